"""SCAN's score against the released arithmetic, caption by caption; PFAN's positions on a toy that needs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import manifest_of

from fashionbert_fast.baselines.cross_attention import BLOCKS, cross_match, overlaps
from fashionbert_fast.baselines.fitting import Budget
from fashionbert_fast.baselines.systems import fit
from fashionbert_fast.catalogue.product import Product
from fashionbert_fast.features.store import FeatureStore, StoreWriter

from .conftest import recall_at_1


def released(query_QE: torch.Tensor, context_XE: torch.Tensor, smooth: float, aggregate: str) -> torch.Tensor:
    """model.py of the release: func_attention with clipped_l2norm, then cosine_similarity and AVG or LSE."""
    attention_XQ = F.leaky_relu(context_XE @ query_QE.T, 0.1)
    attention_XQ = attention_XQ / (attention_XQ.pow(2).sum(1, keepdim=True).sqrt() + 1e-8)
    weights_QX = torch.softmax(attention_XQ.T * smooth, dim=1)
    attended_QE = weights_QX @ context_XE
    cosine_Q = (query_QE * attended_QE).sum(1) / (query_QE.norm(dim=1) * attended_QE.norm(dim=1)).clamp(min=1e-8)
    return cosine_Q.mean() if aggregate == "mean" else (6 * cosine_Q).exp().sum().log() / 6


@pytest.fixture
def batch():
    """Three captions of 5, 2 and 4 words, padded with noise, and four photos of 6 regions."""
    generator = torch.Generator().manual_seed(0)
    words_BLE = F.normalize(torch.randn(3, 5, 8, generator=generator, dtype=torch.float64), dim=-1)
    regions_CRE = F.normalize(torch.randn(4, 6, 8, generator=generator, dtype=torch.float64), dim=-1)
    return words_BLE, torch.arange(5) < torch.tensor([5, 2, 4])[:, None], regions_CRE


@pytest.mark.parametrize("aggregate", ["mean", "lse"])
def test_text_to_image_is_the_released_score(batch, aggregate):
    words_BLE, live_BL, regions_CRE = batch
    similarity = torch.einsum("ble,cre->bclr", words_BLE, regions_CRE)
    ours = cross_match(
        similarity, regions_CRE @ regions_CRE.mT, 9.0, query_live_Q=live_BL[:, None], aggregate=aggregate
    )
    theirs = [[released(words[live], regions, 9.0, aggregate) for regions in regions_CRE]
              for words, live in zip(words_BLE, live_BL, strict=True)]  # fmt: skip
    torch.testing.assert_close(ours, torch.tensor(theirs, dtype=torch.float64), atol=1e-7, rtol=0)


@pytest.mark.parametrize("aggregate", ["mean", "lse"])
def test_image_to_text_is_the_released_score(batch, aggregate):
    words_BLE, live_BL, regions_CRE = batch
    similarity = torch.einsum("ble,cre->bcrl", words_BLE, regions_CRE)
    gram = (words_BLE @ words_BLE.mT)[:, None]
    ours = cross_match(similarity, gram, 4.0, context_live_X=live_BL[:, None], aggregate=aggregate)
    theirs = [[released(regions, words[live], 4.0, aggregate) for regions in regions_CRE]
              for words, live in zip(words_BLE, live_BL, strict=True)]  # fmt: skip
    torch.testing.assert_close(ours, torch.tensor(theirs, dtype=torch.float64), atol=1e-7, rtol=0)


def test_the_order_of_regions_is_nothing_to_scan(batch):
    words_BLE, live_BL, regions_CRE = batch

    def score(regions):
        return cross_match(words_BLE @ regions[:3].mT, regions[:3] @ regions[:3].mT, 9.0, query_live_Q=live_BL)

    torch.testing.assert_close(score(regions_CRE.flip(1)), score(regions_CRE))


def test_a_word_that_is_a_region_scores_1_where_attention_is_sharp():
    regions_RE = torch.eye(6, dtype=torch.float64)
    found = cross_match(regions_RE[2:4] @ regions_RE.T, regions_RE @ regions_RE.T, 1e4)
    assert found.item() == pytest.approx(1.0)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 8])
def test_overlaps_are_those_of_counted_points(side):
    """A fine lattice of points, 960 a side: of each block the share that lies in the region."""
    block_RX, share_RX = overlaps(side)
    point = np.arange(960)
    region, block = point * side // 960, point * BLOCKS // 960
    for r in range(side**2):
        along = [np.bincount(block[region == place], minlength=BLOCKS) / (960 / BLOCKS) for place in divmod(r, side)]
        share_G = np.outer(*along).ravel()
        np.testing.assert_allclose(share_RX[r], share_G[block_RX[r]], atol=1e-5)
        assert share_RX[r].sum().item() == pytest.approx(np.sort(share_G)[-15:].sum(), abs=1e-4)


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> FeatureStore:
    """Photos of the same four features in other places; the title says which place the first one and the second have:
    without positions nobody can know."""
    generator, listed, features = np.random.default_rng(0), [], []
    for row in range(480):
        order = generator.permutation(4)
        place = np.argsort(order)
        features.append(np.eye(4, 8)[order] + generator.normal(0, 0.02, (4, 8)))
        names = ["north", "south", "east", "west"]
        title = f"{names[place[0]]} red {names[place[1]]} number {row}"
        split = ("train", "train", "train", "validation", "test")[row % 5]
        listed.append(Product(str(1000 + row), title, "things", "all", Path(f"{row}.jpg"), split))
    path = tmp_path_factory.mktemp("places") / "store"
    with StoreWriter(path, patches=4, feature_size=8, dtype="float32") as writer:
        writer.append(listed, torch.from_numpy(np.stack(features)).float())
        writer.commit(manifest_of(2, 8))
    return FeatureStore.open(path)


@pytest.mark.parametrize("name", ["scan-t2i", "scan-i2t"])
def test_both_directions_find_planted_pairs(planted, core, name):
    """The hardest negatives after two steps on the sum make it slow on so few products: chance is 0.02."""
    assert min(recall_at_1(fit(name, planted, core=core, budget=Budget(epochs=100)), planted)[:2]) > 0.35


def test_places_are_seen_by_pfan_alone(places, core):
    """12 places of two features: of 96 candidates 8 have the right ones, and are alike."""

    def mean_rank(name: str) -> float:
        from fashionbert_fast.baselines.system import Scorer
        from fashionbert_fast.evaluation import evaluate

        scorer = Scorer(fit(name, places, core=core, budget=Budget(epochs=40)), places)
        return evaluate(places, places.rows("test"), scorer.score)["median_rank"]["text_to_image"]

    assert mean_rank("pfan-t2i") < 12 and mean_rank("scan-t2i") > 30
