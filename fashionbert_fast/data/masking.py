"""What is masked: whole words of the titles, patches of the images. Functions of seed, epoch and sample.

Shapes: B pairs, S1 = B + 1 offsets, N title tokens of all pairs, M tokens chosen, W words of all pairs, P patches.
"""

from __future__ import annotations

import numpy as np

from fashionbert_fast.data.counter_rng import Stream, random_bits, uniform

ONE = 1 << 32  # a whole in the fixed-point numbers below: their sums are exact, on any machine


# BERT's rule for the tokens chosen (Devlin et al. 2019): so many stay, so many become a random token, the rest [MASK].
KEEP = REPLACE = 0.1


def choose_words(
    word_N: np.ndarray, offsets_S1: np.ndarray, samples_B: np.ndarray, *, rate: float = 0.15, most: int = 10, seed: int,
    epoch: int,
) -> np.ndarray:  # fmt: skip
    """Tokens to predict, whole words at a time: ascending int64 indices (M,) into the N tokens.

    Every word of a title has the same chance, however many its pieces: ``rate``, or one in its number of words where
    that is more, so that no title goes without. Hence words are counted, not tokens: a budget of a short title's tokens
    is smaller than a long word, which would never be chosen. Words are laid out by length, at random among equals, and
    a comb with a tooth every 1 / rate words, shifted at random, says which are taken: with long and short words thus
    spread over the teeth, the tokens come to nearly the same share in every title.

    No title has more than ``most`` tokens chosen: where a shift of the comb could meet more, its teeth stand further
    apart, for all of the title's words alike. Words of more than ``most`` pieces are never chosen.

    Args:
        rate: the chance of each word, of one piece or of many; 0: nothing is masked. most: masked positions a title.
        word_N: the word of each token, -1 for special tokens; numbered within its title, tokens of a word side by side.
        offsets_S1: int64, where each title's tokens start, and N. samples_B: int64, the number of the sample that each
            title is drawn in; its words depend on that, the seed and the epoch alone.
    """
    if rate == 0 or not (word_N >= 0).any():
        return np.empty(0, dtype=np.int64)
    token_T = np.flatnonzero(word_N >= 0)  # T: the tokens that belong to a word
    pair_T = np.repeat(np.arange(len(samples_B)), np.diff(offsets_S1))[token_T]
    starts_T = np.ones(len(token_T), dtype=bool)
    starts_T[1:] = (np.diff(word_N[token_T]) != 0) | (np.diff(pair_T) != 0)
    pair_W, size_W = pair_T[starts_T], np.bincount(np.cumsum(starts_T) - 1)
    key_W = random_bits(seed, Stream.WORD_CHOICE, epoch, samples_B[pair_W], word_N[token_T][starts_T])
    order_W = np.lexsort((key_W, -size_W, pair_W))
    order_W = order_W[size_W[order_W] <= most]
    shift_B = (random_bits(seed, Stream.WORD_SHIFT, epoch, samples_B) >> np.uint64(32)).astype(np.int64)
    taken_W = np.zeros(len(size_W), dtype=bool)
    taken_W[order_W] = _comb(pair_W[order_W], size_W[order_W], shift_B, rate, most)
    return token_T[np.repeat(taken_W, size_W)]


def _comb(pair_W: np.ndarray, size_W: np.ndarray, shift_B: np.ndarray, rate: float, most: int) -> np.ndarray:
    """Which words a comb meets, bool (W,). Words in order of pair and falling size; ``shift_B`` below `ONE`.

    A tooth meets an earlier, longer word the further the comb is shifted, so the last shift is the one to try ``most``
    on. A comb of one tooth meets exactly one word, whatever its shift.
    """
    count_B = np.bincount(pair_W, minlength=len(shift_B))
    place_W = np.arange(len(pair_W)) - (np.cumsum(count_B) - count_B)[pair_W]
    tokens_B = np.bincount(pair_W, size_W, len(shift_B))
    rate_B = np.minimum(rate, most / np.maximum(tokens_B, 1))
    teeth_B = np.maximum((rate_B * count_B * ONE).astype(np.int64), ONE)

    def met(shift_B: np.ndarray) -> np.ndarray:
        teeth_W, count_W, shift_W = teeth_B[pair_W], count_B[pair_W], shift_B[pair_W]
        before_W, after_W = place_W * teeth_W // count_W, (place_W + 1) * teeth_W // count_W
        return (after_W + shift_W) // ONE > (before_W + shift_W) // ONE

    last_shift_B = np.full_like(shift_B, ONE - 1)
    while (over_B := np.bincount(pair_W, size_W * met(last_shift_B), len(shift_B)) > most).any():
        teeth_B = np.where(over_B, np.maximum(teeth_B * 15 // 16, ONE), teeth_B)
    return met(shift_B)


def mask_tokens(
    id_M: np.ndarray, place_M: np.ndarray, sample_M: np.ndarray, mask_id: int, vocabulary: int, *, seed: int, epoch: int
) -> np.ndarray:
    """What stands in place of the chosen tokens ``id_M``: 80% [MASK], 10% a random token, 10% the token itself.

    As in BERT, a random token is any of the vocabulary's, special and unused ones and the token itself included: they
    are few among many, and no list of them has to be kept for every tokenizer.

    Args:
        place_M: the place of each token in its title. sample_M: the number of the sample its title is drawn in.
    """
    action_M = uniform(seed, Stream.TOKEN_ACTION, epoch, sample_M, place_M)
    random_M = (uniform(seed, Stream.TOKEN_REPLACEMENT, epoch, sample_M, place_M) * vocabulary).astype(id_M.dtype)
    replaced_M = np.where(action_M < KEEP + REPLACE, random_M, mask_id)
    return np.where(action_M < KEEP, id_M, replaced_M)


def mask_patches(samples_B: np.ndarray, patches: int, rate: float, *, seed: int, epoch: int) -> np.ndarray:
    """(B, P) bool: ``round(rate * P)`` patches of each pair, at least one where ``rate`` > 0."""
    count = max(1, round(rate * patches)) if rate > 0 else 0
    keys_BP = uniform(seed, Stream.PATCH_CHOICE, epoch, samples_B[:, None], np.arange(patches)[None, :])
    mask_BP = np.zeros(keys_BP.shape, dtype=bool)
    np.put_along_axis(mask_BP, np.argsort(keys_BP, axis=1, kind="stable")[:, :count], True, axis=1)
    return mask_BP
