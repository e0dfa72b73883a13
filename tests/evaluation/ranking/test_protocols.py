from __future__ import annotations

import json

import numpy as np
import pytest

from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation import evaluate
from fashionbert_fast.evaluation.ranking.candidates import CandidateSampler
from fashionbert_fast.evaluation.ranking.protocols import DIRECTIONS, candidate_lists, score_lists

SIZES = {("clothes", "shirts"): 150, ("clothes", "skirts"): 60, ("shoes", "boots"): 20, ("bags", "totes"): 1}
ALL_ONE = {"R@1": 1.0, "R@5": 1.0, "R@10": 1.0}


def hashed(text_rows, image_rows):
    """A scorer without ties or meaning: every pair its own number, whatever call it comes in."""
    return ((text_rows * 7919 + image_rows * 104729 + 13) % 1_000_003) / 1_000_003


def random_scores(seed):
    """A scorer that guesses, the same for a pair whenever it is asked."""
    table = np.random.default_rng(seed).random((400, 400))
    return lambda text_rows, image_rows: table[text_rows, image_rows]


def test_contract_keys_and_types(make_products, perfect):
    store = make_products(SIZES)
    result = json.loads(json.dumps(evaluate(store, store.rows(None), perfect)))
    assert list(result)[:7] == [
        "protocol", "queries", "candidates", "topped_up", "alignment_accuracy", "image_to_text", "text_to_image",
    ]  # fmt: skip
    assert result["protocol"] == "fashionbert"
    assert (result["queries"], result["candidates"]) == (231, 101)
    assert result["image_to_text"] == result["text_to_image"] == ALL_ONE
    assert result["alignment_accuracy"] == 1.0


@pytest.mark.parametrize("protocol", ["fashionbert", "full"])
@pytest.mark.parametrize("pairs_per_call", [1, 7, 64, 1000, 1 << 22])
def test_perfect_scorer_is_exactly_one_at_any_chunking(make_products, perfect, protocol, pairs_per_call):
    store = make_products({("a", "b"): 30, ("a", "c"): 13})
    result = evaluate(store, store.rows(None), perfect, protocol=protocol, candidates=20, pairs_per_call=pairs_per_call)
    assert result["image_to_text"] == result["text_to_image"] == ALL_ONE
    assert result["alignment_accuracy"] == 1.0
    assert result["median_rank"] == {"image_to_text": 1.0, "text_to_image": 1.0}


@pytest.mark.parametrize("protocol,candidates", [("fashionbert", 101), ("full", 231)])
def test_a_constant_scorer_finds_nothing(make_products, protocol, candidates):
    store = make_products(SIZES)
    result = evaluate(store, store.rows(None), lambda text, image: np.full(len(text), 0.7), protocol=protocol)
    for direction in ("image_to_text", "text_to_image"):
        assert set(result[direction].values()) == {0.0}
        assert (result["median_rank"][direction], result["queries_with_ties"][direction]) == (candidates, 231)
        for k in (1, 5, 10):
            assert result["random_ties"][direction][f"R@{k}"] == pytest.approx(k / candidates, abs=1e-12)
    assert result["alignment_accuracy"] == 0.5


@pytest.mark.parametrize("protocol,candidates", [("fashionbert", 101), ("full", 400)])
def test_random_scorers_get_chance_within_their_intervals(make_products, protocol, candidates):
    """Of each figure of 8 guessers; 1 in 20 may miss, and a few more where fewer than 5 queries of 400 hit."""
    store = make_products({("a", "b"): 250, ("a", "c"): 150})
    chance = {f"R@{k}": k / candidates for k in (1, 5, 10)}
    mrr = sum(1 / rank for rank in range(1, candidates + 1)) / candidates
    expected = {"alignment_accuracy": 0.5, "image_to_text": chance, "text_to_image": chance}
    expected |= {"mrr": dict.fromkeys(DIRECTIONS, mrr), "median_rank": dict.fromkeys(DIRECTIONS, (candidates + 1) / 2)}
    held = []
    for seed in range(8):
        intervals = evaluate(store, store.rows(None), random_scores(seed), protocol=protocol)["intervals"]
        assert intervals.keys() == expected.keys()
        for name, values in expected.items():
            ends = intervals[name] if isinstance(values, dict) else {name: intervals[name]}
            values = values if isinstance(values, dict) else {name: values}
            held += [ends[part][0] <= value <= ends[part][1] for part, value in values.items()]
    assert len(held) == 8 * 11 and 0.88 <= np.mean(held) < 1


def test_a_perfect_scorer_may_yet_fail_at_another_query(make_products, perfect):
    store = make_products(SIZES)
    result = evaluate(store, store.rows(None), perfect)
    sure = [0.025 ** (1 / 231), 1.0]
    assert result["intervals"]["image_to_text"] == dict.fromkeys(ALL_ONE, sure)
    assert result["intervals"]["alignment_accuracy"] == result["intervals"]["mrr"]["text_to_image"] == sure
    assert result["mrr"] == {"image_to_text": 1.0, "text_to_image": 1.0}
    assert result["by_list"]["own_subcategory"]["intervals"]["text_to_image"]["R@1"] == [0.025 ** (1 / 150), 1.0]


def test_hand_computed_full(make_products):
    store = make_products({("a", "b"): 3})
    matrix_NN = np.array([[0.9, 0.8, 0.1], [0.2, 0.6, 0.7], [0.95, 0.3, 0.4]])  # rows titles, columns images
    result = evaluate(store, np.arange(3), lambda text, image: matrix_NN[text, image], protocol="full")
    assert result["text_to_image"]["R@1"] == 1 / 3  # title 0 finds its image, 1 and 2 rank second
    assert result["image_to_text"]["R@1"] == 0.0  # image 0 prefers title 2, 1 prefers title 0, 2 prefers title 1
    assert result["median_rank"]["text_to_image"] == 2.0
    assert (result["queries"], result["candidates"], result["topped_up"]) == (3, 3, 0)


def test_top_up_counts(make_products, perfect):
    store = make_products(SIZES)
    result = evaluate(store, store.rows(None), perfect)
    # 150 shirts need nothing; 60 skirts take shirts; 20 boots and the tote are too few even as a category
    assert result["topped_up_from_category"] == 60
    assert result["topped_up_from_anywhere"] == 21
    assert result["topped_up"] == 81
    assert result["alignment_negatives_outside_subcategory"] == 1  # the tote


def test_lists_hold_the_truth_once_and_the_nearest_first(make_products):
    store = make_products(SIZES)
    lists = candidate_lists(store, store.rows(None), protocol="fashionbert", queries=None, candidates=101, seed=3)
    for query, candidates in zip(lists.queries_Q, lists.candidates_QC, strict=True):
        assert candidates[0] == query
        assert len(set(candidates.tolist())) == 101
        own = [store.subcategories[c] == store.subcategories[query] for c in candidates]
        assert sum(own) == min(101, SIZES[store.categories[query], store.subcategories[query]])
        assert own == sorted(own, reverse=True)
    skirts = [q for q in range(len(lists.queries_Q)) if store.subcategories[lists.queries_Q[q]] == "skirts"]
    assert all(store.categories[c] == "clothes" for q in skirts for c in lists.candidates_QC[q])


def test_same_subcategory_name_in_two_categories_is_two(make_products):
    store = make_products({("shoes", "other"): 5, ("bags", "other"): 5})
    lists = candidate_lists(store, store.rows(None), protocol="fashionbert", queries=None, candidates=5, seed=0)
    assert all(len({store.categories[c] for c in row}) == 1 for row in lists.candidates_QC)


def test_draws_depend_on_seed_and_product_not_on_order(make_products):
    store = make_products(SIZES)
    rows = store.rows(None)

    def drawn(rows, seed):
        lists = candidate_lists(store, rows, protocol="fashionbert", queries=50, candidates=30, seed=seed)
        return {
            store.ids[rows[q]]: [store.ids[rows[c]] for c in line]
            for q, line in zip(lists.queries_Q, lists.candidates_QC, strict=True)
        }

    shuffled = np.random.default_rng(0).permutation(rows)
    assert drawn(rows, 0) == drawn(rows, 0) == drawn(shuffled, 0)
    assert drawn(rows, 0).keys() != drawn(rows, 1).keys()
    assert evaluate(store, rows, hashed, queries=50) == evaluate(store, shuffled, hashed, queries=50)
    assert evaluate(store, rows, hashed, queries=50) != evaluate(store, rows, hashed, queries=50, seed=1)


def test_draws_are_pinned():
    """The figures of a published run can be drawn again: these positions must never change."""
    sampler = CandidateSampler([str(i) for i in range(40)], ["c"] * 40, ["s"] * 40, seed=0)
    assert sampler.queries(5).tolist() == [19, 21, 23, 24, 38]
    assert sampler.others(7, 6)[0].tolist() == [15, 13, 9, 3, 29, 11]


def test_draws_are_uniform():
    sampler = CandidateSampler([str(i) for i in range(50)], ["c"] * 50, ["s"] * 50, seed=0)
    counts = np.zeros(50)
    for query in range(50):
        counts[sampler.others(query, 10)[0]] += 1
    assert counts.sum() == 500 and counts.min() >= 2 and counts.max() <= 20  # 10 expected, standard deviation 2.8


def test_full_and_fashionbert_agree_when_the_lists_hold_everything(make_products):
    store = make_products({("a", "b"): 25})
    full = evaluate(store, store.rows(None), hashed, protocol="full")
    listed = evaluate(store, store.rows(None), hashed, protocol="fashionbert", candidates=25)
    for key in ("image_to_text", "text_to_image", "median_rank", "alignment_accuracy", "candidates"):
        assert full[key] == listed[key]


def test_full_with_fewer_queries_ranks_against_everything(make_products):
    store = make_products({("a", "b"): 40})
    result = evaluate(store, store.rows(None), hashed, protocol="full", queries=10)
    assert (result["queries"], result["candidates"]) == (10, 40)


@pytest.mark.parametrize("protocol,pairs", [("full", 20 * 20), ("fashionbert", 20 * 20)])
def test_a_pair_is_scored_once(make_products, protocol, pairs):
    store = make_products({("a", "b"): 20})
    asked = []

    def score(text_rows, image_rows):
        asked.extend(zip(text_rows.tolist(), image_rows.tolist(), strict=True))
        return hashed(text_rows, image_rows)

    evaluate(store, store.rows(None), score, protocol=protocol, candidates=20)
    assert len(asked) == len(set(asked)) == pairs


def test_rows_of_the_store_are_asked_for_not_positions(make_products):
    store = make_products({("a", "b"): 30})
    rows = np.arange(20, 30)
    lists = candidate_lists(store, rows, protocol="fashionbert", queries=None, candidates=5, seed=0)
    seen = set()

    def score(text_rows, image_rows):
        seen.update(text_rows.tolist(), image_rows.tolist())
        return (text_rows == image_rows).astype(float)

    scored = score_lists(lists, rows, score)
    assert seen == set(range(20, 30))
    assert (scored.text_to_image_QC.argmax(axis=1) == lists.truth_Q).all()


def test_alignment_accuracy_counts_both_kinds(make_products):
    store = make_products({("a", "b"): 10})
    yes_to_own_even = evaluate(
        store, store.rows(None), lambda text, image: ((text == image) & (text % 2 == 0)).astype(float), candidates=5
    )
    assert yes_to_own_even["alignment_accuracy"] == 0.75  # half of the positives, all of the negatives


def test_twin_titles_are_reported(make_products, perfect):
    store = make_products({("a", "b"): 6})
    store.titles[1] = store.titles[4]
    assert evaluate(store, store.rows(None), perfect, protocol="full")["queries_with_a_twin_title"] == 2


def test_twin_photos_are_reported(make_products, perfect):
    store = make_products({("a", "b"): 6})
    store.image_hashes[1] = store.image_hashes[4] = store.image_hashes[5] = "1f"
    result = evaluate(store, store.rows(None), perfect, protocol="full")
    assert (result["queries_with_a_twin_photo"], result["queries_with_a_twin_title"]) == (3, 0)


def with_views(make_products):
    """40 rows of 22 products: the first 9 have three views each, two of them in another sub-category."""
    store = make_products({("a", "b"): 29, ("a", "c"): 11})
    for product in range(9):
        for row in (product, product + 9, product + 29):
            store.groups[row] = f"product {product}"
    return store


@pytest.mark.parametrize("protocol,candidates", [("fashionbert", 15), ("fashionbert", 101), ("full", 40)])
def test_views_of_one_product_are_no_candidates_of_each_other(make_products, protocol, candidates):
    """A model that knows the product, but not which of its views a title or photo belongs to, makes no mistake."""
    store = with_views(make_products)
    product_N = np.array([group or id_ for group, id_ in zip(store.groups, store.ids, strict=True)])

    def knows_products(text, image):
        return (product_N[text] == product_N[image]).astype(float)

    result = evaluate(store, store.rows(None), knows_products, protocol=protocol, candidates=candidates)
    assert result["image_to_text"] == result["text_to_image"] == ALL_ONE
    assert result["alignment_accuracy"] == 1.0
    assert (result["queries"], result["queries_with_other_views"]) == (40, 27)
    rows = store.rows(None)
    lists = candidate_lists(store, rows, protocol=protocol, queries=None, candidates=candidates, seed=0)
    for place, query in enumerate(lists.queries_Q):
        line, kept = lists.candidates_QC[place], np.ones(lists.candidates_QC.shape[1], dtype=bool)
        if lists.left_out_QC is not None:
            kept = ~lists.left_out_QC[place]
        assert line[kept].tolist().count(query) == 1 and line[lists.truth_Q[place]] == query
        assert (product_N[line[kept]] == product_N[query]).sum() == 1
        assert kept.sum() == min(candidates, 41 - (product_N == product_N[query]).sum())


@pytest.mark.parametrize("score", [0.7, 0.2])  # a model that is never sure of a match ranks as well as any
@pytest.mark.parametrize("protocol", ["fashionbert", "full"])
def test_what_is_left_out_is_neither_better_nor_tied(make_products, protocol, score):
    store = with_views(make_products)
    result = evaluate(store, store.rows(None), lambda text, image: np.full(len(text), score), protocol=protocol)
    expected = np.mean([1 / 38] * 27 + [1 / 40] * 13)  # two views of 40 rows are left out of 27 lists
    for direction in ("image_to_text", "text_to_image"):
        assert result["random_ties"][direction]["R@1"] == pytest.approx(expected, abs=1e-12)
        assert (result[direction]["R@1"], result["median_rank"][direction]) == (0.0, 38)


@pytest.mark.parametrize("protocol", ["fashionbert", "full"])
def test_the_negative_of_the_alignment_accuracy_is_no_twin(make_products, protocol):
    """Of 12 products, 10 are twins by title or photo: candidates they stay, but "no match" would be a wrong answer."""
    store = make_products({("a", "b"): 10, ("a", "c"): 2})
    store.titles[:5] = ["one title"] * 5
    store.image_hashes[4:10] = ["1f"] * 6
    twin_N = store.twin_N

    def knows_twins(text, image):
        return (twin_N[text] == twin_N[image]).astype(float)

    result = evaluate(store, store.rows(None), knows_twins, protocol=protocol)
    assert result["alignment_accuracy"] == 1.0
    assert (result["alignment_queries"], result["alignment_negatives_outside_subcategory"]) == (12, 10)
    assert result["image_to_text"]["R@1"] < 1  # its twins tie with the truth
    assert (result["candidates"], result["queries_with_a_twin_title"]) == (12, 5)


def test_queries_with_only_twins_beside_them_are_not_asked(make_products):
    store = make_products({("a", "b"): 10, ("a", "c"): 2})
    store.titles[:10] = ["one title"] * 10
    always = lambda text, image: np.ones(len(text))  # noqa: E731
    result = evaluate(store, store.rows(None), always, candidates=4)
    assert (result["alignment_queries"], result["alignment_accuracy"]) == (2, 0.5)
    store.titles[:] = ["one title"] * 12
    with pytest.raises(InputError, match="twins of one another"):
        evaluate(store, store.rows(None), always)


def test_recall_apart_for_lists_that_were_topped_up(make_products):
    """Of boots and the tote all photos score the same and their titles no better; all others are found."""
    store = make_products(SIZES)
    shoes_or_bag = np.array([category != "clothes" for category in store.categories])

    def finds_clothes(text, image):
        return np.where(shoes_or_bag[text], 0.5, text == image)

    result = evaluate(store, store.rows(None), finds_clothes)
    by_list = result["by_list"]
    assert {name: found["queries"] for name, found in by_list.items()} == {
        "own_subcategory": 150, "topped_up_from_category": 60, "topped_up_from_anywhere": 21,
    }  # fmt: skip
    for direction in ("image_to_text", "text_to_image"):
        assert by_list["own_subcategory"][direction] == by_list["topped_up_from_category"][direction] == ALL_ONE
        for k in ("R@1", "R@5", "R@10"):
            mean = sum(found["queries"] * found[direction][k] for found in by_list.values()) / 231
            assert mean == pytest.approx(result[direction][k], abs=1e-12)
    assert by_list["topped_up_from_anywhere"]["text_to_image"]["R@1"] == 0.0
    assert by_list["topped_up_from_anywhere"]["image_to_text"]["R@1"] < 0.9
    plain = make_products({("a", "b"): 20})
    assert list(evaluate(plain, plain.rows(None), hashed, candidates=5)["by_list"]) == ["own_subcategory"]
    assert "by_list" not in evaluate(plain, plain.rows(None), hashed, protocol="full")


def test_released_faulty_grouping(make_products, perfect):
    store = make_products({("a", "b"): 200})
    correct = evaluate(store, store.rows(None), perfect)
    faulty = evaluate(store, store.rows(None), perfect, grouping="released-faulty")
    assert correct["image_to_text"]["R@1"] == 1.0
    assert faulty["image_to_text"] == faulty["text_to_image"] == ALL_HALF
    assert (faulty["grouping"], faulty["released_batch_size"]) == ("released-faulty", 64)


ALL_HALF = {"R@1": 0.5, "R@5": 0.5, "R@10": 0.5, "R@100": 0.5}


@pytest.mark.parametrize(
    "change,message",
    [
        ({"protocol": "paper"}, "protocol: 'paper'"),
        ({"grouping": "wrong"}, "grouping: 'wrong'"),
        ({"grouping": "released-faulty", "protocol": "full"}, "only under protocol 'fashionbert'"),
        ({"queries": 0}, "queries: 0"),
        ({"candidates": 1}, "candidates: 1"),
        ({"released_batch_size": 0}, "released_batch_size: 0"),
        ({"rows": np.arange(1)}, "2 or more"),
        ({"score": lambda text, image: np.full(len(text), np.nan)}, "as NaN"),
    ],
)
def test_bad_input_is_one_clear_line(make_products, perfect, change, message):
    store = make_products({("a", "b"): 5})
    arguments = {"rows": store.rows(None), "score": perfect} | change
    with pytest.raises(InputError, match=message) as caught:
        evaluate(store, arguments.pop("rows"), arguments.pop("score"), **arguments)
    assert "\n" not in str(caught.value)


def test_a_scorer_that_loses_pairs_is_caught(make_products):
    store = make_products({("a", "b"): 5})
    with pytest.raises(ValueError, match="came back"):
        evaluate(store, store.rows(None), lambda text, image: np.zeros(len(text) - 1))
