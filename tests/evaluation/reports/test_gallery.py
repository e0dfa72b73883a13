"""The gallery: a page that needs nothing else, tells what is true, and obeys no title."""

from __future__ import annotations

import base64
import html
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import write_store
from PIL import Image

from fashionbert_fast.evaluation.ranking.protocols import candidate_lists, score_lists
from fashionbert_fast.evaluation.reports.gallery import SIDE, write_gallery
from fashionbert_fast.features.store import FeatureStore


class Page(HTMLParser):
    """Its text, figures and photos; every tag closed in turn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.true, self.figures, self.images, self.words = [], 0, 0, [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert tag not in ("script", "link", "iframe")
        if tag == "img":
            assert {name for name, _ in attributes} == {"alt", "src"}
            self.images.append(dict(attributes)["src"])
        elif tag not in ("meta", "br"):
            self.open.append(tag)
        if tag == "figure":
            self.figures, self.true = self.figures + 1, self.true + (dict(attributes).get("class") == "true")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def page(path, store, score, queries=5, candidates=12):
    rows = store.rows(None)
    lists = candidate_lists(store, rows, protocol="fashionbert", queries=None, candidates=candidates, seed=0)
    scored = score_lists(lists, rows, score)
    counts = write_gallery(path, store, scored, queries=queries, title="runs/a <b> on stores/b")
    return Page(path.read_text()), counts, scored


def last(text, image):
    """Of everyone the truth is behind all others."""
    return np.where(text == image, 0.1, 0.2 + image / 1000 + text / 100_000)


def test_photos_are_in_the_page_and_the_true_one_is_framed_wherever_it_ranks(shop, tmp_path):
    store = FeatureStore.open(shop / "stores" / "shop")
    found, counts, scored = page(tmp_path / "page.html", store, last)
    assert (found.figures, found.true) == (2 * 5 * 9, 2 * 5)  # eight that score best, and the true one behind them
    assert counts == {"shown": 12, "missing": 0}
    assert len(found.images) == 5 * 9 + 5
    for source in found.images:
        kind, data = source.split(",")
        assert kind == "data:image/jpeg;base64" and len(data) < 12_000
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (SIDE, SIDE)
    assert found.words.count("rank 12 of 12") == 10 and "0.1000" in found.words
    best = scored.text_to_image_QC[0].max()
    assert f"{best:.4f}" in found.words and "http" not in (tmp_path / "page.html").read_text()


def test_a_perfect_scorers_truths_come_first(shop, tmp_path):
    store = FeatureStore.open(shop / "stores" / "shop")
    found, _, _ = page(tmp_path / "page.html", store, lambda text, image: (text == image) * 0.9)
    assert found.figures == 2 * 5 * 8 and found.words.count("rank 1 of 12") == found.true == 10


def test_ties_put_the_truth_last(shop, tmp_path):
    found, _, _ = page(tmp_path / "p.html", FeatureStore.open(shop / "stores" / "shop"), lambda text, _: text * 0 + 0.5)
    assert found.words.count("rank 12 of 12") == 10


@pytest.mark.parametrize("title", ["<script>alert(1)</script>", 'red "shirt" onerror=x', "a & b </figure>"])
def test_titles_are_text(shop, tmp_path, title):
    store = FeatureStore.open(shop / "stores" / "shop")
    store.titles[:] = [f"{title} {row}" for row in range(len(store))]
    found, _, _ = page(tmp_path / "page.html", store, last)
    text = (tmp_path / "page.html").read_text()
    assert title in found.words and html.escape(title) in text


def test_photos_that_are_gone_are_said_to_be(shop, tmp_path):
    store = FeatureStore.open(write_store(tmp_path / "store"))  # its photos never were
    found, counts, _ = page(tmp_path / "page.html", store, last)
    assert counts["shown"] == 0 < counts["missing"] and found.images == []
    assert f"{counts['missing']} of {counts['missing']} photos are not where the store says they lie" in found.words
    assert "photo not here" in found.words and found.true == 10
