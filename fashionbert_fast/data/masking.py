"""What is masked: whole words of the title, patches of the image. Functions of seed, epoch and sample.

Shapes: B pairs, L text tokens, P patches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fashionbert_fast.data.counter_rng import Stream, uniform


@dataclass(frozen=True)
class TextMasking:
    """BERT's rule (Devlin et al. 2019) on whole words, with the reference's cap on masked positions."""

    rate: float = 0.15  # of a title's tokens
    most: int = 10  # masked positions a title
    keep: float = 0.1  # of the chosen words' tokens stay as they are
    replace: float = 0.1  # of them become a random token; the rest becomes [MASK]


def choose_words(word_ids: np.ndarray, sample: int, masking: TextMasking, *, seed: int, epoch: int) -> np.ndarray:
    """Positions to predict in one title, ascending int64.

    Words are taken in random order until ``rate`` of the tokens is reached (at least one token); a word that would
    exceed that number, or ``most``, is passed over, as in BERT's own whole-word masking.

    Args:
        word_ids: (L,) int: the word of each token, -1 for special tokens. sample: the number of the
            pair the title is drawn in.
    """
    positions = np.flatnonzero(word_ids >= 0)
    if len(positions) == 0:
        return positions
    words, first, sizes = np.unique(word_ids[positions], return_index=True, return_counts=True)
    target = min(masking.most, max(1, round(len(positions) * masking.rate)))
    chosen: list[np.ndarray] = []
    count = 0
    order = np.argsort(uniform(seed, Stream.WORD_CHOICE, epoch, sample, words), kind="stable")
    for i in order:
        if count + sizes[i] <= target:
            chosen.append(positions[first[i]] + np.arange(sizes[i]))
            count += sizes[i]
        if count == target:
            break
    if not chosen and sizes.min() <= masking.most:  # every word is longer than the target: the first drawn that fits
        i = next(i for i in order if sizes[i] <= masking.most)
        chosen.append(positions[first[i]] + np.arange(sizes[i]))
    return np.sort(np.concatenate(chosen)) if chosen else positions[:0]


def mask_tokens(
    ids: np.ndarray, positions: np.ndarray, sample: int, masking: TextMasking, mask_id: int, vocabulary: int, *,
    seed: int, epoch: int,
) -> np.ndarray:  # fmt: skip
    """A copy of ``ids`` (L,) with the chosen positions 80% [MASK], 10% random token, 10% unchanged."""
    masked = ids.copy()
    action = uniform(seed, Stream.TOKEN_ACTION, epoch, sample, positions)
    random_id = (uniform(seed, Stream.TOKEN_REPLACEMENT, epoch, sample, positions) * vocabulary).astype(ids.dtype)
    masked[positions] = np.where(
        action < masking.keep, ids[positions], np.where(action < masking.keep + masking.replace, random_id, mask_id)
    )
    return masked


def mask_patches(samples_B: np.ndarray, patches: int, rate: float, *, seed: int, epoch: int) -> np.ndarray:
    """(B, P) bool: ``round(rate * P)`` patches of each pair, at least one where ``rate`` > 0."""
    count = max(1, round(rate * patches)) if rate > 0 else 0
    keys_BP = uniform(seed, Stream.PATCH_CHOICE, epoch, samples_B[:, None], np.arange(patches)[None, :])
    mask_BP = np.zeros(keys_BP.shape, dtype=bool)
    np.put_along_axis(mask_BP, np.argsort(keys_BP, axis=1, kind="stable")[:, :count], True, axis=1)
    return mask_BP
