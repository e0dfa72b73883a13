"""ViLBERT in small: with its gates closed it is BERT; with them open it learns what no sum of two sides can."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import manifest_of
from transformers import BertModel

from fashionbert_fast.baselines.inputs import TitleEncoder
from fashionbert_fast.baselines.pairs import PairBatches
from fashionbert_fast.baselines.two_stream import TwoStream
from fashionbert_fast.catalogue.product import Product
from fashionbert_fast.features.store import FeatureStore, StoreWriter


def opened(store: FeatureStore, core: Path, **sizes: int) -> TwoStream:
    torch.manual_seed(0)
    encoder = TitleEncoder.from_bert(core, trained=2)
    system = TwoStream(text=encoder.options, co_layers=2, **sizes)
    system.encoder = encoder
    return system.open(store)


def test_with_closed_gates_a_title_s_stream_is_bert(planted, core):
    system = opened(planted, core, patches=4, features=24).eval()
    rows = np.arange(12)
    titles, photos = system.titles(rows), system.photos(rows)
    bert = BertModel.from_pretrained(core).eval()
    tokens = system.encoder.tokenizer([planted.titles[row] for row in rows], padding=True, return_tensors="pt")
    theirs_BLH = bert(**tokens).last_hidden_state
    live_BL = tokens["attention_mask"].bool()
    with torch.no_grad():
        open_BLH = system.streams(*titles, *photos)[0]
        for block in system.to_photo:
            block.gate.zero_()
        closed_BLH = system.streams(*titles, *photos)[0]
    torch.testing.assert_close(closed_BLH[live_BL], theirs_BLH[live_BL], atol=1e-5, rtol=1e-5)
    assert (open_BLH - closed_BLH)[live_BL].abs().max() > 1e-3


def test_padding_and_company_change_no_pair(planted, core):
    system = opened(planted, core, patches=4, features=24).eval()
    rows = np.arange(6)
    (title_BLH, live_BL), photos = system.titles(rows), system.photos(rows)
    padded = F.pad(title_BLH, (0, 0, 0, 3), value=9.0), F.pad(live_BL, (0, 3))
    with torch.no_grad():
        whole = system.logits((title_BLH, live_BL), photos)
        torch.testing.assert_close(system.logits(padded, photos), whole)
        alone = system.logits((title_BLH[2:3], live_BL[2:3]), (photos[0][2:3],))
    torch.testing.assert_close(alone, whole[2:3])


@pytest.fixture
def colours(tmp_path) -> FeatureStore:
    """Two titles and two photos: each of red and blue."""
    listed = [
        Product(str(i), f"{name} shirt", "a", "b", Path("x.jpg"), "train") for i, name in enumerate(("red", "blue"))
    ]
    with StoreWriter(tmp_path / "store", patches=4, feature_size=8, dtype="float32") as writer:
        writer.append(listed, torch.eye(2, 8)[:, None].expand(2, 4, 8) * 3)
        writer.commit(manifest_of(2, 8))
    return FeatureStore.open(tmp_path / "store")


def test_it_learns_that_colours_must_agree(colours, core):
    """The exclusive or: any score that adds up one number of the title and one of the photo has 0.5."""
    system = opened(colours, core, patches=4, features=8).train()
    text, image = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    label_B = torch.tensor([1.0, 0.0, 0.0, 1.0])
    optimizer = torch.optim.AdamW([p for p in system.parameters() if p.requires_grad], lr=2e-3)
    for _ in range(150):
        loss = F.binary_cross_entropy_with_logits(system.logits(system.titles(text), system.photos(image)), label_B)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.1
    by_hand = system.logits(system.titles(text), system.photos(image)).detach()
    assert ((by_hand > 0) == label_B.bool()).all()


def test_others_are_of_the_sub_category_and_no_twins(store_path, core):
    store = FeatureStore.open(store_path)
    batches = PairBatches(None, store, store.rows("train"), seed=0)
    rows = store.rows("train")
    first, second = batches.others(rows, 0), batches.others(rows, 1)
    for other in (first, second):
        assert (store.twin_N[other] != store.twin_N[rows]).all()
        assert [store.subcategories[row] for row in other] == [store.subcategories[row] for row in rows]
        assert set(store.splits[row] for row in other) == {"train"}
    assert (first != second).mean() > 0.5
    np.testing.assert_array_equal(PairBatches(None, store, rows[::-1], seed=0).others(rows, 0), first)
