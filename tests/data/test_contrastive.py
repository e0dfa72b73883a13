"""Products of the contrastive loss: who is in a batch, who is wrong for whom, what stands on the packed axis."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fashionbert_fast.data.config import ContrastiveConfig, DataConfig
from fashionbert_fast.data.contrastive import contrastive_targets, epoch_order, mirrored
from fashionbert_fast.data.pairs import PairDataset

ROWS = np.arange(100, 160)


def test_an_epoch_holds_every_product_once_and_each_epoch_in_another_order():
    orders = [epoch_order(ROWS, 8, seed=3, epoch=epoch) for epoch in range(3)]
    for order in orders:
        assert len(order) == 56 == len(set(order.tolist())) and set(order.tolist()) <= set(ROWS.tolist())
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[1], orders[2])
    assert np.array_equal(orders[0], epoch_order(ROWS, 8, seed=3, epoch=0))


def test_batches_of_one_subcategory_and_what_is_left_over_of_its_category():
    """Two categories of three sub-categories of ten: batches of ten are of one, those of fifteen of one category."""
    groups = np.stack([np.arange(60) // 30, np.arange(60) // 10], axis=1)
    drawn = np.random.default_rng(0).permutation(60)
    for size, column in ((10, 1), (15, 0)):
        order = epoch_order(ROWS[drawn], size, seed=1, epoch=0, groups=groups[drawn])
        batches = (order - ROWS[0]).reshape(-1, size)
        assert all(len(set(groups[batch, column].tolist())) == 1 for batch in batches)
    by_epoch = [epoch_order(ROWS, 10, seed=1, epoch=epoch, groups=groups)[::10] - ROWS[0] for epoch in range(6)]
    assert len({tuple(groups[first, 1].tolist()) for first in by_epoch}) > 1  # the batches' order is drawn


def test_wrong_are_the_products_of_all_ranks_but_duplicates_and_empty_slots():
    twin_N = np.array([0, 1, 0, 3, 4, 1])
    ranks = [np.array([0, 1, 3]), np.array([2, 4]), np.array([5])]
    targets = contrastive_targets(ranks, twin_N, 1, 3)
    assert targets.live_C.tolist() == [True, True, False]
    # columns: 0, 1, 3 | 2, 4, nothing | 5, nothing, nothing; row 2 is a duplicate of 0
    assert targets.wrong_CG.int().tolist() == [
        [0, 1, 1, 0, 1, 0, 1, 0, 0],
        [1, 1, 1, 1, 0, 0, 1, 0, 0],
        [0] * 9,
    ]


def test_a_mirrored_photo_has_its_columns_exchanged_and_the_others_stay():
    features_IPD = torch.arange(40 * 9).float().view(40, 9, 1)
    seen_IPD = mirrored(features_IPD, np.arange(40), 0.5, seed=0, epoch=1)
    order = torch.tensor([2, 1, 0, 5, 4, 3, 8, 7, 6])
    changed = [not torch.equal(seen, stored) for seen, stored in zip(seen_IPD, features_IPD, strict=True)]
    for seen, stored, exchanged in zip(seen_IPD, features_IPD, changed, strict=True):
        assert torch.equal(seen, stored[order] if exchanged else stored)
    assert 10 < sum(changed) < 30
    assert torch.equal(mirrored(features_IPD, np.arange(40), 0.0, seed=0, epoch=1), features_IPD)


def dataset(parts, rank: int = 0, world_size: int = 1, **contrastive) -> PairDataset:
    store, titles = parts
    plain = {"token_rate": 0.0, "patch_rate": 0.0, "mirror_rate": 0.0} | contrastive
    return PairDataset(
        store, titles, store.rows("train"), DataConfig(pairs="both"), seed=1, micro_batch_size=8, steps=50, rank=rank,
        world_size=world_size, contrastive=ContrastiveConfig(**plain),
    )  # fmt: skip


def sequences(batch, first: int) -> list[tuple[list[int], torch.Tensor | None]]:
    """Of each sequence from ``first``: its tokens, and the features of its photo, where it has one."""
    inputs, found = batch.inputs, []
    ends = inputs.cu_seqlens_S1.tolist()
    for start, stop in zip(ends[first:-1], ends[first + 1 :], strict=True):
        tokens = inputs.input_id_N[(inputs.text_row_N >= start) & (inputs.text_row_N < stop)].tolist()
        photos = ((inputs.patch_row_B >= start) & (inputs.patch_row_B < stop)).nonzero().flatten().tolist()
        found.append((tokens, inputs.features_IPD[inputs.image_index_B[photos[0]]] if photos else None))
    return found


@pytest.mark.parametrize(("step", "pairs"), [(0, 0), (2, 8)])
def test_titles_alone_and_photos_alone_come_last(store_and_titles, step, pairs):
    store, titles = store_and_titles
    data = dataset(store_and_titles, first_steps=2, batch_size=6, weight=1.0)
    (batch,) = data[step]
    targets = batch.contrastive
    assert targets is not None
    C = len(targets.live_C)
    rows = data.global_rows(step, [0])[0] if pairs == 0 else np.unique(data.plan(0).text_rows[:8])
    assert int(targets.live_C.sum()) == len(rows) and (6 if pairs == 0 else 8) == C
    found = sequences(batch, pairs)
    assert len(found) == 2 * C and len(batch.inputs.cls_row_B) == pairs == len(batch.targets.tia_label_B)
    for slot in range(C):
        (title, no_photo), (no_title, photo) = found[slot], found[C + slot]
        assert no_photo is None and no_title == []
        if slot < len(rows):
            assert title == titles.title(rows[slot])[0].tolist()
            assert photo is not None and torch.equal(photo, store.features([rows[slot]])[0])
        else:
            assert title == [] and photo is None


def test_pairs_are_what_they_are_without_it(store_and_titles):
    """The loss beside them, and steps before them, change nothing of the pairs."""
    plain = dataset(store_and_titles)
    beside = dataset(store_and_titles, first_steps=3, batch_size=4, weight=1.0)
    for step in range(2):
        (a,), (b,) = plain[step], beside[step + 3]
        assert torch.equal(a.targets.mlm_label_M, b.targets.mlm_label_M)
        assert torch.equal(a.targets.tia_label_B, b.targets.tia_label_B)
        assert torch.equal(a.inputs.patch_mask_BP, b.inputs.patch_mask_BP[:8])
        assert sequences(a, 0)[0][0] == sequences(b, 0)[0][0]
        assert torch.equal(a.inputs.cu_seqlens_S1, b.inputs.cu_seqlens_S1[:9])


def test_ranks_only_cut_the_global_batch(store_and_titles):
    whole = dataset(store_and_titles, first_steps=4, batch_size=12)
    parts = [dataset(store_and_titles, rank, 3, first_steps=4, batch_size=4) for rank in range(3)]
    for step in range(4):
        cut = [part.global_rows(step, [rank])[0] for rank, part in enumerate(parts)]
        assert np.array_equal(np.concatenate(cut), whole.global_rows(step, [0])[0])
        wrong_CG = torch.cat([part[step][0].contrastive.wrong_CG for part in parts])
        assert torch.equal(wrong_CG, whole[step][0].contrastive.wrong_CG)
