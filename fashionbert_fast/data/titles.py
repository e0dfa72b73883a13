"""The titles of a store as tokens.

Shapes: B pairs, N title tokens of all pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class TokenizedTitles:
    """All titles of a store as one flat id array with offsets, and the word each token belongs to.

    A title is plain text: "[MASK]" or "[SEP]" written in one becomes ordinary pieces, never the token of that name.
    """

    def __init__(self, titles: Sequence[str], tokenizer, max_text_tokens: int) -> None:
        encoded = tokenizer(
            list(titles), truncation=True, max_length=max_text_tokens, return_attention_mask=False,
            split_special_tokens=True,
        )  # fmt: skip
        ids = encoded["input_ids"]
        self.offsets = np.concatenate([[0], np.cumsum([len(i) for i in ids])]).astype(np.int64)
        self.ids = np.concatenate([np.asarray(i, dtype=np.int32) for i in ids]) if ids else np.empty(0, np.int32)
        words = [encoded.word_ids(i) for i in range(len(ids))]
        self.words = np.asarray([-1 if w is None else w for title in words for w in title], dtype=np.int32)
        self.mask_id = tokenizer.mask_token_id
        self.pad_id = tokenizer.pad_token_id
        self.vocabulary = len(tokenizer)
        self.max_text_tokens = max_text_tokens

    def title(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, word of each token) of a product's title, special tokens included."""
        span = slice(self.offsets[row], self.offsets[row + 1])
        return self.ids[span], self.words[span]

    def gather(self, rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The titles of ``rows_B``, one after another: ids (N,), word of each token (N,), offsets (B + 1,) int64."""
        offsets_S1 = np.concatenate([[0], np.cumsum(self.lengths(rows_B))])
        token_N = np.arange(offsets_S1[-1]) + np.repeat(self.offsets[rows_B] - offsets_S1[:-1], np.diff(offsets_S1))
        return self.ids[token_N], self.words[token_N], offsets_S1

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        return self.offsets[rows + 1] - self.offsets[rows]
