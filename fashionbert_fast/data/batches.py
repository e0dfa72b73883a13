"""Batches: pairs of titles and images as tensors, padded to the longest title of the batch.

Shapes: B pairs, L text tokens of the longest title, P patches, I distinct images, D patch feature, M masked tokens,
K masked patches, T = 3 tasks (mlm, tia, mpm).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch.utils.data import Dataset

from fashionbert_fast.data.masking import TextMasking, choose_words, mask_patches, mask_tokens
from fashionbert_fast.data.sampling import EpochPlan, plan_epoch
from fashionbert_fast.data.store import FeatureStore
from fashionbert_fast.errors import InputError

NOTHING = np.empty(0, dtype=np.int64)


@dataclass
class Batch:
    """One micro-batch. Positions are flat: b * L + l for tokens, b * P + p for patches; targets go by index."""

    input_ids_BL: torch.Tensor  # int64, masked
    text_mask_BL: torch.Tensor  # bool, True: a token, False: padding
    features_IPD: torch.Tensor  # the store's dtype, each distinct image once
    image_index_B: torch.Tensor  # int64: the image of each pair
    patch_mask_BP: torch.Tensor  # bool, True: masked
    mlm_position_M: torch.Tensor  # int64, flat
    mlm_label_M: torch.Tensor  # int64 token ids
    mpm_position_K: torch.Tensor  # int64, flat
    tia_label_B: torch.Tensor  # int64, 1: title and image belong together
    counts_T: torch.Tensor  # float32: M, B, K of this batch

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch with every tensor on ``device``."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)}
        return Batch(**moved)

    def pin_memory(self) -> Batch:
        return Batch(**{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})

    @property
    def tokens(self) -> int:
        """Useful tokens: title tokens and patches, no padding. Reads a tensor: keep it out of a GPU step."""
        return int(self.text_mask_BL.sum()) + self.patch_mask_BP.numel()


class TokenizedTitles:
    """All titles of a store as one flat id array with offsets, and the word each token belongs to."""

    def __init__(self, titles: Sequence[str], tokenizer, max_text_tokens: int) -> None:
        encoded = tokenizer(list(titles), truncation=True, max_length=max_text_tokens, return_attention_mask=False)
        ids = encoded["input_ids"]
        self.offsets = np.concatenate([[0], np.cumsum([len(i) for i in ids])]).astype(np.int64)
        self.ids = np.concatenate([np.asarray(i, dtype=np.int32) for i in ids]) if ids else np.empty(0, np.int32)
        words = [encoded.word_ids(i) for i in range(len(ids))]
        self.words = np.asarray([-1 if w is None else w for title in words for w in title], dtype=np.int32)
        self.mask_id = tokenizer.mask_token_id
        self.pad_id = tokenizer.pad_token_id
        self.vocabulary = len(tokenizer)

    def title(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, word of each token) of a product's title, special tokens included."""
        span = slice(self.offsets[row], self.offsets[row + 1])
        return self.ids[span], self.words[span]

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        return self.offsets[rows + 1] - self.offsets[rows]


def _pad(sequences: Sequence[np.ndarray], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = np.asarray([len(s) for s in sequences])
    ids = np.full((len(sequences), lengths.max()), pad_id, dtype=np.int64)
    mask = np.arange(lengths.max())[None, :] < lengths[:, None]
    ids[mask] = np.concatenate(sequences)
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _images(store: FeatureStore, image_rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Each distinct image once, and the index of each pair's image among them."""
    distinct, index = np.unique(image_rows, return_inverse=True)
    return store.features(distinct), torch.from_numpy(index.astype(np.int64))


def collate_pairs(store: FeatureStore, titles: TokenizedTitles, text_rows: np.ndarray, image_rows: np.ndarray) -> Batch:
    """Unmasked pairs, for evaluation: title ``text_rows[b]`` with image ``image_rows[b]``, both int64 store rows."""
    ids_BL, mask_BL = _pad([titles.title(row)[0] for row in text_rows], titles.pad_id)
    features_IPD, image_index_B = _images(store, image_rows)
    B, P = len(text_rows), store.manifest.patches
    nothing = torch.empty(0, dtype=torch.int64)
    return Batch(
        ids_BL, mask_BL, features_IPD, image_index_B, torch.zeros(B, P, dtype=torch.bool), nothing, nothing, nothing,
        torch.from_numpy((text_rows == image_rows).astype(np.int64)), torch.tensor([0.0, B, 0.0]),
    )  # fmt: skip


@dataclass(frozen=True)
class Pairing:
    """How pairs, negatives and masks are drawn."""

    seed: int = 0
    negatives: str = "category"  # a negative's image comes from: random | category | subcategory
    random_epochs: int = 0  # first epochs with random negatives, whatever `negatives` says
    way: str = "coin"  # coin | both: see sampling
    negative_rate: float = 0.5
    predict_negatives: bool = True  # MLM and MPM on negative pairs too, as released
    text: TextMasking = field(default_factory=TextMasking)
    patch_rate: float = 0.1


class PairDataset(Dataset):
    """``dataset[step]``: the micro-batches of one optimizer step for one rank.

    The global batch of a step is a slice of the epoch's order; rank r takes its r-th part. So nothing but the slicing
    depends on the number of ranks, and training resumes at any step. An epoch's incomplete last batch is dropped.
    """

    def __init__(
        self, store: FeatureStore, titles: TokenizedTitles, rows: np.ndarray, pairing: Pairing, *,
        micro_batch_size: int, micro_batches: int = 1, rank: int = 0, world_size: int = 1, steps: int,
    ) -> None:  # fmt: skip
        self.store, self.titles, self.rows, self.pairing = store, titles, np.asarray(rows), pairing
        self.micro_batch_size, self.micro_batches = micro_batch_size, micro_batches
        self.rank, self.world_size, self.steps = rank, world_size, steps
        self.global_batch = micro_batch_size * micro_batches * world_size
        self.steps_per_epoch = len(self.rows) * (2 if pairing.way == "both" else 1) // self.global_batch
        if self.steps_per_epoch == 0:
            raise InputError(
                f"{store.path}: {len(self.rows)} products do not fill one global batch of {self.global_batch} pairs; "
                "lower train.micro_batch_size or train.gradient_accumulation_steps"
            )
        self._plan: tuple[int, EpochPlan] | None = None

    def __len__(self) -> int:
        return self.steps

    def plan(self, epoch: int) -> EpochPlan:
        """The epoch's pairs in order; the last one asked for is kept."""
        if self._plan is None or self._plan[0] != epoch:
            p = self.pairing
            plan = plan_epoch(
                self.rows, self._groups(epoch), seed=p.seed, epoch=epoch, way=p.way, negative_rate=p.negative_rate
            )
            self._plan = (epoch, plan)
        return self._plan[1]

    def _groups(self, epoch: int) -> np.ndarray:
        if self.pairing.negatives == "random" or epoch < self.pairing.random_epochs:
            return np.zeros(len(self.rows), dtype=np.int64)
        names = self.store.categories if self.pairing.negatives == "category" else self.store.subcategories
        return np.unique(np.asarray(names, dtype=object)[self.rows].astype(str), return_inverse=True)[1]

    def __getitem__(self, step: int) -> list[Batch]:
        epoch, in_epoch = divmod(step, self.steps_per_epoch)
        plan = self.plan(epoch)
        first = in_epoch * self.global_batch + self.rank * self.micro_batch_size
        stride = self.micro_batch_size * self.world_size
        starts = [first + i * stride for i in range(self.micro_batches)]
        return [self._collate(plan, slice(start, start + self.micro_batch_size), epoch) for start in starts]

    def _collate(self, plan: EpochPlan, span: slice, epoch: int) -> Batch:
        p = self.pairing
        text_rows, is_match = plan.text_rows[span], plan.is_match[span]
        samples = text_rows * 2 + is_match  # a title in a match and in a mismatch is masked differently
        vocabulary = self.titles.mask_id, self.titles.vocabulary
        sequences, positions, labels = [], [], []
        # Every pair is masked, whether or not it is predicted: masks on matches alone would give the label away.
        predicted_B = np.ones(len(text_rows), dtype=bool) if p.predict_negatives else is_match
        for row, sample, is_predicted in zip(text_rows, samples, predicted_B, strict=True):
            ids, words = self.titles.title(row)
            chosen = choose_words(words, sample, p.text, seed=p.seed, epoch=epoch)
            sequences.append(mask_tokens(ids, chosen, sample, p.text, *vocabulary, seed=p.seed, epoch=epoch))
            positions.append(chosen if is_predicted else NOTHING)
            labels.append(ids[positions[-1]])
        ids_BL, text_mask_BL = _pad(sequences, self.titles.pad_id)
        mlm_position_M = np.concatenate([b * ids_BL.shape[1] + chosen for b, chosen in enumerate(positions)])
        patch_mask_BP = mask_patches(samples, self.store.manifest.patches, p.patch_rate, seed=p.seed, epoch=epoch)
        mpm_position_K = np.flatnonzero(patch_mask_BP & predicted_B[:, None])
        features_IPD, image_index_B = _images(self.store, plan.image_rows[span])
        return Batch(
            ids_BL, text_mask_BL, features_IPD, image_index_B, torch.from_numpy(patch_mask_BP),
            torch.from_numpy(mlm_position_M.astype(np.int64)),
            torch.from_numpy(np.concatenate(labels).astype(np.int64)),
            torch.from_numpy(mpm_position_K.astype(np.int64)),
            torch.from_numpy(is_match.astype(np.int64)),
            torch.tensor([len(mlm_position_M), len(text_rows), len(mpm_position_K)], dtype=torch.float32),
        )  # fmt: skip
