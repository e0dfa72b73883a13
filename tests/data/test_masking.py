"""Masks: every word's chance, BERT's rates, the cap, patches, and what they depend on."""

from __future__ import annotations

import numpy as np

from fashionbert_fast.data.masking import choose_words, mask_patches, mask_tokens

# [CLS] w0 w1 w1 w2 w3 w3 w3 w4 ... [SEP]: words of one to three tokens
WORDS = np.array([-1, 0, 1, 1, 2, 3, 3, 3, 4, 5, 5, 6, 7, 8, 9, 9, 10, 11, 12, 13, -1])
# Titles as 5,000 real products have them under BERT's vocabulary: how many titles have 3, 4, ... words, and how many
# words have 1, 2, ... pieces.
WORDS_OF_A_TITLE = np.array([5, 140, 1395, 1401, 861, 683, 235, 94, 93, 44, 36, 5, 5, 3])
PIECES_OF_A_WORD = np.array([26583, 3672, 2367, 81, 6, 5])


def _titles(sizes: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(word of each token, offsets) of titles whose words have these numbers of pieces, between [CLS] and [SEP]."""
    titles = [np.concatenate([[-1], np.repeat(np.arange(len(s)), s), [-1]]) for s in sizes]
    return np.concatenate(titles), np.concatenate([[0], np.cumsum([len(title) for title in titles])])


def _chosen(word_N: np.ndarray, sample: int = 0, **options) -> np.ndarray:
    """Positions chosen in one title."""
    title = word_N, np.array([0, len(word_N)]), np.array([sample])
    return choose_words(*title, **{"seed": 0, "epoch": 0} | options)


def _shares(sizes: list[list[int]], samples: int, **rule) -> tuple[list[np.ndarray], np.ndarray]:
    """How often each word of each title was chosen, a share of ``samples`` draws, and tokens chosen (samples, titles).

    Whole words only: a word's pieces are all chosen or none.
    """
    word_N, offsets_S1 = _titles(sizes)
    offsets_R1 = np.append((np.arange(samples)[:, None] * len(word_N) + offsets_S1[:-1]).ravel(), samples * len(word_N))
    drawn = np.arange(samples * len(sizes))
    chosen = choose_words(np.tile(word_N, samples), offsets_R1, drawn, **rule, seed=0, epoch=0)
    share_N = np.bincount(chosen % len(word_N), minlength=len(word_N)) / samples
    counts = np.bincount(np.searchsorted(offsets_R1, chosen, side="right") - 1, minlength=len(drawn))
    shares = []
    for title, size in zip(np.split(share_N, offsets_S1[1:-1]), sizes, strict=True):
        assert title[0] == title[-1] == 0  # special tokens
        first = np.cumsum([0, *size[:-1]])
        assert (np.repeat(title[1:-1][first], size) == title[1:-1]).all()
        shares.append(title[1:-1][first])
    return shares, counts.reshape(samples, len(sizes))


def test_a_word_s_chance_does_not_depend_on_its_pieces():
    """The table is printed with -s. Where tokens were counted, words of one piece came to 22.6%, of three to 0.3%."""
    draw = np.random.default_rng(0)
    lengths = draw.choice(np.arange(3, 17), 3000, p=WORDS_OF_A_TITLE / WORDS_OF_A_TITLE.sum())
    sizes = [list(draw.choice(np.arange(1, 7), n, p=PIECES_OF_A_WORD / PIECES_OF_A_WORD.sum())) for n in lengths]
    shares, counts = _shares(sizes, 60)
    pieces_W, share_W = np.concatenate(sizes), np.concatenate(shares)
    chance_W = np.repeat(np.maximum(0.15, 1 / lengths), lengths)  # at least one word a title
    by_pieces = {"1": pieces_W == 1, "2": pieces_W == 2, "3": pieces_W == 3, "4 and more": pieces_W > 3}
    print("\npieces       words  chosen  rate or 1 / words of the title")
    for name, which in by_pieces.items():
        print(f"{name:10} {which.sum():7} {share_W[which].mean():7.2%} {chance_W[which].mean():7.2%}")
        assert abs(share_W[which].mean() - chance_W[which].mean()) < 0.012
    tokens, expected = counts.sum() / 60 / pieces_W.sum(), (pieces_W * chance_W).sum() / pieces_W.sum()
    print(f"all tokens {pieces_W.sum():7} {tokens:7.2%} {expected:7.2%}")
    assert abs(tokens - expected) < 0.001 and expected < 0.175
    assert counts.min() == 1


def test_every_word_of_one_title_alike_and_the_tokens_near_the_rate():
    sizes = [1, 2, 1, 3, 1, 2, 1, 1, 1, 2, 1, 1, 1, 1, 5, 1]
    (share_W,), counts = _shares([sizes], 6000)
    assert np.abs(share_W - 0.15).max() < 0.02  # four standard deviations
    assert abs(counts.mean() - 0.15 * sum(sizes)) < 0.1
    assert counts.min() >= 1 and counts.max() <= 8


def test_the_cap_holds_for_every_title_and_keeps_words_alike():
    draw = np.random.default_rng(1)
    sizes = [list(draw.integers(1, 6, n)) for n in draw.integers(1, 60, 300)]
    for most in (1, 4, 10):
        _, counts = _shares(sizes, 20, most=most)
        assert counts.max() == most
    (share_W,), counts = _shares([sizes[np.argmax([len(s) for s in sizes])]], 4000, most=10)
    assert counts.max() <= 10 and counts.mean() > 6
    assert share_W.max() - share_W.min() < 0.04
    assert _shares([[3, 1, 1, 4, 1]], 300, most=3)[0][0][3] == 0  # longer than the cap: never
    assert _shares([[3, 1, 1, 4, 1]], 300, most=3)[0][0][0] > 0.2


def test_short_titles_and_nothing_to_mask():
    many = np.concatenate([[-1], np.arange(200), [-1]])
    assert {len(_chosen(many, sample)) for sample in range(50)} == {10}
    assert len(_chosen(np.array([-1, 0, -1]))) == 1
    assert _chosen(np.array([-1, 0, 0, 0, -1])).tolist() == [1, 2, 3]  # one word, whole
    assert len(_chosen(np.array([-1, -1]))) == 0
    assert len(_chosen(many, most=0)) == 0
    assert len(_chosen(WORDS, rate=0)) == 0
    assert len(_chosen(WORDS, rate=1, most=100)) == len(WORDS) - 2


def test_neighbours_of_one_word_are_two_titles():
    """[SEP] [CLS] stand between, and both words are number 0: they are chosen each for itself."""
    word_N, offsets_S1 = _titles([[2], [3]])
    chosen = choose_words(word_N, offsets_S1, np.array([5, 6]), seed=0, epoch=0)
    assert chosen.tolist() == [1, 2, 5, 6, 7]


def test_words_depend_on_seed_epoch_and_sample_not_on_the_batch():
    sizes = [[1, 2, 1, 1, 3, 1, 1, 1, 2], [1] * 30, [4, 1, 1]]
    word_N, offsets_S1 = _titles(sizes)
    samples_B = np.array([11, 3, 8])
    whole = choose_words(word_N, offsets_S1, samples_B, seed=5, epoch=3)
    titles = np.split(word_N, offsets_S1[1:-1])
    alone = [offset + _chosen(title, sample, seed=5, epoch=3)
             for title, sample, offset in zip(titles, samples_B, offsets_S1, strict=False)]  # fmt: skip
    assert whole.tolist() == np.concatenate(alone).tolist()
    for other in ({"seed": 6, "epoch": 3}, {"seed": 5, "epoch": 4}):
        assert choose_words(word_N, offsets_S1, samples_B, **other).tolist() != whole.tolist()
    assert choose_words(word_N, offsets_S1, samples_B + 1, seed=5, epoch=3).tolist() != whole.tolist()


def test_draws_are_pinned():
    """A run can be repeated years later, on another machine: what is drawn must not change."""
    words = [_chosen(WORDS, sample, seed=7, epoch=1).tolist() for sample in range(4)]
    assert words == [[2, 3, 17], [1, 13], [4, 9, 10], [5, 6, 7, 12, 18]]
    ids = np.arange(100, 116)
    masked = mask_tokens(ids, np.arange(16), np.full(16, 3), 4, 1000, seed=7, epoch=1)
    assert masked.tolist() == [4, 884, 4, 4, 104, 105, 4, 4, 4, 4, 4, 111, 4, 4, 4, 4]
    patches = mask_patches(np.array([0, 1, 9]), 16, 0.2, seed=7, epoch=1).nonzero()[1]
    assert patches.tolist() == [3, 7, 14, 4, 6, 14, 6, 8, 12]


def test_eighty_ten_ten():
    ids, places, samples = np.full(20_000, 777), np.tile(np.arange(10), 2000), np.repeat(np.arange(2000), 10)
    masked = mask_tokens(ids, places, samples, 4, 10_000, seed=0, epoch=0)
    assert abs((masked == 4).mean() - 0.8) < 0.01
    assert abs((masked == 777).mean() - 0.1) < 0.01
    replaced = masked[(masked != 4) & (masked != 777)]
    assert replaced.min() < 50 and replaced.max() > 9950  # of the whole vocabulary, as BERT's
    assert (ids == 777).all()  # a copy was masked


def test_patches_rate_and_randomness():
    mask_BP = mask_patches(np.arange(3000), 64, 0.1, seed=0, epoch=0)
    assert (mask_BP.sum(1) == 6).all()
    assert np.abs(mask_BP.mean(0) - 6 / 64).max() < 0.03
    assert not mask_patches(np.arange(5), 64, 0.0, seed=0, epoch=0).any()


def test_masks_depend_on_seed_epoch_and_sample_not_on_the_batch():
    all_at_once = mask_patches(np.arange(8), 16, 0.2, seed=5, epoch=3)
    one_by_one = np.concatenate([mask_patches(np.array([s]), 16, 0.2, seed=5, epoch=3) for s in range(8)])
    assert (all_at_once == one_by_one).all()
    for other in (dict(seed=6, epoch=3), dict(seed=5, epoch=4)):
        assert (mask_patches(np.arange(8), 16, 0.2, **other) != all_at_once).any()
