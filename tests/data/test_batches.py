"""Batches: indices point where they should, ranks and accumulation only slice, images are held once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fashionbert_fast.data.batches import PairDataset, Pairing, collate_pairs
from fashionbert_fast.errors import InputError


@pytest.fixture
def parts(store_and_titles):
    return store_and_titles


def _dataset(parts, micro_batch_size=8, micro_batches=1, rank=0, world_size=1, **pairing):
    return PairDataset(
        *parts, parts[0].rows("train"), Pairing(seed=1, **pairing), micro_batch_size=micro_batch_size,
        micro_batches=micro_batches, rank=rank, world_size=world_size, steps=50,
    )  # fmt: skip


def test_positions_labels_and_targets(parts):
    store, titles = parts
    dataset = _dataset(parts)
    (batch,) = dataset[3]
    plan = dataset.plan(0)
    span = slice(3 * 8, 4 * 8)
    L, P = batch.input_ids_BL.shape[1], 4
    for position, label in zip(batch.mlm_position_M.tolist(), batch.mlm_label_M.tolist(), strict=True):
        assert titles.title(plan.text_rows[span][position // L])[0][position % L] == label
    features = batch.features_IPD[batch.image_index_B]
    assert torch.equal(features, store.features(plan.image_rows[span]))
    assert torch.equal(batch.mpm_position_K, batch.patch_mask_BP.flatten().nonzero()[:, 0])
    assert (batch.mpm_position_K < 8 * P).all()
    assert batch.tia_label_B.tolist() == plan.is_match[span].tolist()
    assert batch.counts_T.tolist() == [len(batch.mlm_label_M), 8, len(batch.mpm_position_K)]
    unmasked = batch.text_mask_BL.flatten()
    assert (batch.input_ids_BL.flatten()[~unmasked] == titles.pad_id).all()


@pytest.mark.parametrize("pairs", ["coin", "both"])
def test_images_are_held_once(parts, pairs):
    (batch,) = _dataset(parts, way=pairs)[0]
    distinct = batch.features_IPD.flatten(1).unique(dim=0)
    assert len(distinct) == len(batch.features_IPD)
    assert len(batch.features_IPD) <= (4 if pairs == "both" else 8)


def _samples(batches):
    """What is learned from, pair by pair, free of how it was batched."""
    pairs = []
    for batch in batches:
        L = batch.input_ids_BL.shape[1]
        for b, (ids, mask) in enumerate(zip(batch.input_ids_BL, batch.text_mask_BL, strict=True)):
            here = batch.mlm_position_M // L == b
            pairs.append(
                (ids[mask].tolist(), batch.features_IPD[batch.image_index_B[b]].sum().item(),
                 batch.patch_mask_BP[b].tolist(), batch.mlm_label_M[here].tolist(), batch.tia_label_B[b].item())
            )  # fmt: skip
    return pairs


@pytest.mark.parametrize("step", [0, 9, 25])  # 25: a later epoch
def test_ranks_and_accumulation_only_slice(parts, step):
    whole = _samples(_dataset(parts)[step])
    two_ranks = [s for r in range(2) for s in _samples(_dataset(parts, 4, rank=r, world_size=2)[step])]
    accumulated = _samples(_dataset(parts, 4, 2)[step])
    both = [_dataset(parts, 2, 2, rank=r, world_size=2)[step] for r in range(2)]
    both = [s for micro in range(2) for r in range(2) for s in _samples([both[r][micro]])]
    assert whole == two_ranks == accumulated == both


def test_loader_workers_change_nothing(parts):
    dataset = _dataset(parts)
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, sampler=range(3), num_workers=2)
    for step, batches in enumerate(loader):
        assert _samples(batches) == _samples(dataset[step])


def test_unpredicted_negatives_are_masked_all_the_same(parts):
    """Masks on matches alone would tell the model which pairs match."""
    for predict in (True, False):
        dataset = _dataset(parts, predict_negatives=predict, way="both")
        for step in range(4):
            (batch,) = dataset[step]
            negative = batch.tia_label_B == 0
            assert negative.any()
            assert (batch.patch_mask_BP.sum(1) == 1).all()
            mask_id = parts[1].mask_id
            masked = (batch.input_ids_BL == mask_id).any(1)
            assert masked[negative].any()
            if not predict:
                assert not negative[batch.mlm_position_M // batch.input_ids_BL.shape[1]].any()
                assert not negative[batch.mpm_position_K // 4].any()
                assert len(batch.mpm_position_K) == (~negative).sum()


def test_random_negatives_first_then_the_category(parts):
    store = parts[0]
    dataset = _dataset(parts, random_epochs=1, negatives="subcategory", way="both")
    kinds = np.asarray(store.subcategories)
    first, later = dataset.plan(0), dataset.plan(1)
    assert (kinds[first.text_rows] != kinds[first.image_rows]).any()
    assert (kinds[later.text_rows] == kinds[later.image_rows]).all()


def test_too_few_products_are_an_input_error(parts):
    with pytest.raises(InputError, match="micro_batch_size"):
        _dataset(parts, micro_batch_size=1000)


def test_collate_pairs_masks_nothing(parts):
    store, titles = parts
    batch = collate_pairs(store, titles, np.array([0, 1, 2]), np.array([0, 5, 0]))
    assert not batch.patch_mask_BP.any()
    assert batch.tia_label_B.tolist() == [1, 0, 0]
    assert len(batch.features_IPD) == 2
