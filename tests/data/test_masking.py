"""Masks: BERT's rates on whole words, the cap, patches, and what they depend on."""

from __future__ import annotations

import numpy as np

from fashionbert_fast.data.masking import TextMasking, choose_words, mask_patches, mask_tokens

# [CLS] w0 w1 w1 w2 w3 w3 w3 w4 ... [SEP]: words of one to three tokens
WORDS = np.array([-1, 0, 1, 1, 2, 3, 3, 3, 4, 5, 5, 6, 7, 8, 9, 9, 10, 11, 12, 13, -1])


def test_whole_words_at_the_rate_never_special_tokens():
    counts = []
    for sample in range(500):
        chosen = choose_words(WORDS, sample, TextMasking(), seed=0, epoch=0)
        assert (WORDS[chosen] >= 0).all()
        for word in np.unique(WORDS[chosen]):
            assert set(np.flatnonzero(word == WORDS)) <= set(chosen)
        counts.append(len(chosen))
    assert max(counts) == 3  # 15% of 19 tokens
    assert np.mean(counts) > 2.8


def test_cap_short_titles_and_nothing_to_mask():
    long = np.concatenate([[-1], np.arange(200), [-1]])
    assert len(choose_words(long, 0, TextMasking(), seed=0, epoch=0)) == 10
    assert len(choose_words(np.array([-1, 0, -1]), 0, TextMasking(), seed=0, epoch=0)) == 1
    assert len(choose_words(np.array([-1, 0, 0, 0, -1]), 0, TextMasking(), seed=0, epoch=0)) == 3  # one word, whole
    assert len(choose_words(np.array([-1, -1]), 0, TextMasking(), seed=0, epoch=0)) == 0
    assert len(choose_words(long, 0, TextMasking(most=0), seed=0, epoch=0)) == 0


def test_every_word_is_chosen_about_equally_often():
    words = np.arange(20)
    hits = np.zeros(20)
    for sample in range(4000):
        hits[choose_words(words, sample, TextMasking(), seed=1, epoch=2)] += 1
    assert np.abs(hits / 4000 - 0.15).max() < 0.03


def test_eighty_ten_ten():
    ids = np.full(10, 777)
    masked = np.concatenate(
        [mask_tokens(ids, np.arange(10), s, TextMasking(), 4, 10_000, seed=0, epoch=0) for s in range(2000)]
    )
    assert abs((masked == 4).mean() - 0.8) < 0.01
    assert abs((masked == 777).mean() - 0.1) < 0.01
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
