"""Queries: drawn of a product's own, laid behind the pairs, wrong only for items that nobody found by them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fashionbert_fast.catalogue.queries import listed
from fashionbert_fast.catalogue.twins import normalised_title
from fashionbert_fast.data.config import DataConfig
from fashionbert_fast.data.pairs import PairDataset
from fashionbert_fast.data.queries import NONE, Queries
from fashionbert_fast.data.titles import TokenizedTitles
from fashionbert_fast.data.tokenizer import load_tokenizer, train_wordpiece
from fashionbert_fast.features.store import FeatureStore

SEGMENT, LONGEST, PATCHES = 2, 16, 4


@pytest.fixture(scope="module")
def parts(asked_path, tmp_path_factory):
    store = FeatureStore.open(asked_path)
    directory = tmp_path_factory.mktemp("tokenizer")
    train_wordpiece(store.titles, 300, directory)
    tokenizer = load_tokenizer(directory)
    return store, TokenizedTitles(store.titles, tokenizer, LONGEST), Queries(store, tokenizer, LONGEST, SEGMENT)


def dataset(parts, *, micro_batch_size=8, micro_batches=1, rank=0, world_size=1, asked=True, **pairing):
    store, titles, queries = parts
    return PairDataset(
        store, titles, store.rows("train"), DataConfig(**pairing), seed=1, micro_batch_size=micro_batch_size,
        micro_batches=micro_batches, rank=rank, world_size=world_size, steps=50, queries=queries if asked else None,
    )  # fmt: skip


def own(store, row: int) -> set[str]:
    return {normalised_title(query) for query in listed(store.queries[row])}


def spelled(parts, number: int) -> str:
    """A query by its number, as the tokenizer splits it."""
    store, _, queries = parts
    texts = {text for cell in store.queries for text in listed(cell)}
    ids = queries.texts.title(number)[0].tolist()
    (found,) = {normalised_title(text) for text in texts if tokens_of(parts, text) == ids}
    return found


def tokens_of(parts, text: str) -> list[int]:
    store, _, queries = parts
    for row, cell in enumerate(store.queries):
        for place, query in enumerate(listed(cell)):
            if query == text:
                number = queries.by_product.values[queries.by_product.starts[row] + place]
                return queries.texts.title(number)[0].tolist()
    raise AssertionError(text)


def test_a_query_is_drawn_of_the_products_own_and_every_one_in_its_turn(parts):
    store, _, queries = parts
    rows = np.arange(len(store))
    drawn = [queries.drawn(rows, seed=1, epoch=epoch) for epoch in range(60)]
    for row in rows:
        found = {int(of_epoch[row]) for of_epoch in drawn}
        assert found == ({NONE} if not store.queries[row] else set(queries.of(np.array([row])).tolist()))
        assert {spelled(parts, number) for number in found - {NONE}} == own(store, row)
    share = np.mean([of_epoch[1] == drawn[0][1] for of_epoch in drawn])
    assert 0.15 < share < 0.55  # of three
    assert (queries.drawn(rows[:5], seed=1, epoch=3) == drawn[3][:5]).all()
    assert (queries.drawn(rows, seed=2, epoch=3) != drawn[3]).any()


def test_who_is_right_for_a_query(parts):
    """A product that has it, in whatever spelling, and a twin of one that has it."""
    store, _, queries = parts
    rows, numbers = np.arange(len(store)), np.arange(len(queries.texts.offsets) - 1)
    names = [spelled(parts, number) for number in numbers]
    by_twins = {twin: set().union(*(own(store, row) for row in rows if store.twin_N[row] == twin))
                for twin in set(store.twin_N.tolist())}  # fmt: skip
    expected = np.array([[name in by_twins[store.twin_N[row]] for row in rows] for name in names])
    assert (queries.right(np.append(numbers, NONE), rows) == np.append(expected, np.zeros((1, len(rows))), 0)).all()
    of_itself = np.array([[name in own(store, row) for row in rows] for name in names])
    assert (expected & ~of_itself).any()  # there are twins that have no query themselves


@pytest.mark.parametrize("pairs", ["coin", "both"])
def test_queries_stand_behind_the_pairs_and_change_nothing_of_them(parts, pairs):
    store, _, queries = parts
    for step in (0, 7):
        (batch,), (without,) = dataset(parts, pairs=pairs)[step], dataset(parts, pairs=pairs, asked=False)[step]
        inputs, cut = batch.inputs, without.inputs
        B, offsets = 8, inputs.cu_seqlens_S1.tolist()
        assert len(offsets) == 2 * B + 1 and offsets[: B + 1] == cut.cu_seqlens_S1.tolist()
        tokens = offsets[B] - B * PATCHES
        for name in ("input_id_N", "position_N", "text_row_N"):
            assert torch.equal(getattr(inputs, name)[:tokens], getattr(cut, name)[:tokens]), name
        for name in ("cls_row_B", "patch_row_B", "features_IPD", "image_index_B", "patch_mask_BP"):
            assert torch.equal(getattr(inputs, name), getattr(cut, name)), name
        assert all(
            torch.equal(a, b) for a, b in zip(vars(batch.targets).values(), vars(without.targets).values(), strict=True)
        )
        plan = dataset(parts, pairs=pairs).plan(0)
        rows, match = (part[step * B : (step + 1) * B] for part in (plan.text_rows, plan.is_match))
        assert batch.queries.asks_C.tolist() == [
            bool(m and store.queries[row]) for row, m in zip(rows, match, strict=True)
        ]
        drawn = queries.drawn(rows, seed=1, epoch=0)
        found = []
        for slot in range(B):
            first, last = offsets[B + slot : B + slot + 2]
            places = [inputs.text_row_N.tolist().index(row) for row in range(first, last)]
            found.append(inputs.input_id_N[places].tolist())
            assert inputs.position_N[places].tolist() == list(range(last - first))
            assert (inputs.segment_N[places] == SEGMENT).all()
        asks = batch.queries.asks_C.tolist()
        assert found == [queries.texts.title(n)[0].tolist() if a else [] for n, a in zip(drawn, asks, strict=True)]
        assert (inputs.segment_N == SEGMENT).sum() == sum(map(len, found)) > 0
        assert sorted(inputs.text_row_N.tolist() + patch_rows(inputs)) == list(range(inputs.rows))
        assert not without.queries and without.inputs.segment_N is None


def patch_rows(inputs) -> list[int]:
    return (inputs.patch_row_B[:, None] + torch.arange(PATCHES)).flatten().tolist()


def test_wrong_are_the_matches_of_all_ranks_that_nobody_found_by_it(parts):
    queries, shared = parts[2], 0
    for step in range(3):
        rank = 1
        data = dataset(parts, world_size=3, rank=rank, micro_batch_size=4, micro_batches=2)
        for i, batch in enumerate(data[step]):
            start = step * 24 + i * 12
            rows, match = (part[start : start + 12] for part in (data.plan(0).text_rows, data.plan(0).is_match))
            drawn = queries.drawn(rows, seed=1, epoch=0)
            for slot in range(4):
                mine = rank * 4 + slot
                asks = bool(match[mine]) and drawn[mine] != NONE
                right = queries.right(drawn[mine : mine + 1], rows)[0]
                assert batch.queries.asks_C[slot] == asks
                assert batch.queries.wrong_CG[slot].tolist() == [
                    asks and m and not r for m, r in zip(match, right, strict=True)
                ]
                assert not asks or (right[mine] and not batch.queries.wrong_CG[slot, mine])
                shared += asks and (right & match).sum() > 1
    assert shared  # other items that the query is right for as well were among them


def test_ranks_only_cut_the_micro_batch(parts):
    (whole,) = dataset(parts, micro_batch_size=12)[1]
    cut = [dataset(parts, world_size=3, rank=rank, micro_batch_size=4)[1][0].queries for rank in range(3)]
    assert torch.equal(torch.cat([part.asks_C for part in cut]), whole.queries.asks_C)
    assert torch.equal(torch.cat([part.wrong_CG for part in cut]), whole.queries.wrong_CG)


def test_no_query_of_a_held_out_product_is_trained_on(parts):
    store, _, queries = parts
    data = dataset(parts, pairs="both")
    held_out = set(queries.of(store.rows("validation")).tolist()) - set(queries.of(store.rows("train")).tolist())
    trained = set()
    for epoch in range(3):
        for i in range(data.steps_per_epoch):
            plan = data.plan(epoch)
            query_C, _ = queries.ask(plan, [slice(8 * i, 8 * i + 8)], 0, 8, seed=1, epoch=epoch)
            trained |= set(query_C.tolist())
    assert trained - {NONE} and not trained & held_out
