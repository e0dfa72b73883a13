"""Batches: pairs of titles and images as tensors, packed: one axis of tokens, no padding between pairs.

Shapes: B pairs, S1 = B + 1 offsets, N title tokens of all pairs, P patches, T = N + B P rows of the packed axis,
I distinct images, D patch feature, M masked tokens, K masked patches, three tasks (mlm, tia, mpm).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch.utils.data import Dataset

from fashionbert_fast.data.masking import TextMasking, choose_words, mask_patches, mask_tokens
from fashionbert_fast.data.sampling import EpochPlan, numbered, plan_epoch
from fashionbert_fast.data.store import FeatureStore
from fashionbert_fast.errors import InputError
from fashionbert_fast.kernels._library import IGNORED


@dataclass
class Batch:
    """One micro-batch. Pair b is the rows ``offsets_S1[b]`` to ``offsets_S1[b + 1]`` of the packed axis: its title's
    tokens, then its P patches. Rows after the last pair, [PAD] tokens, fill up to a token budget (`Budget`)."""

    input_id_N: torch.Tensor  # int64, masked; the fill last
    position_N: torch.Tensor  # int64: the place of each token in its title
    text_row_N: torch.Tensor  # int64: its row of the packed axis
    offsets_S1: torch.Tensor  # int32
    cls_row_B: torch.Tensor  # int64: the row of each pair's [CLS]
    patch_row_B: torch.Tensor  # int64: the row of each pair's first patch
    features_IPD: torch.Tensor  # the store's dtype, each distinct image once
    image_index_B: torch.Tensor  # int64: the image of each pair
    patch_mask_BP: torch.Tensor  # bool, True: masked
    mlm_row_M: torch.Tensor  # int64: packed rows to predict, the fill's being 0
    mlm_label_M: torch.Tensor  # int64 token ids, the fill's being -100
    mpm_row_K: torch.Tensor  # int64: packed rows to predict
    mpm_target_K: torch.Tensor  # int64: their row of the features, image * P + patch
    tia_label_B: torch.Tensor  # int64, 1: title and image belong together
    counts_T: torch.Tensor  # float32: masked tokens, pairs, masked patches of this batch
    longest: int  # at least the tokens of any pair

    def _with(self, change) -> Batch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(**{k: change(v) if isinstance(v, torch.Tensor) else v for k, v in values.items()})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch with every tensor on ``device``."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self._with(lambda tensor: tensor.pin_memory())

    @property
    def rows(self) -> int:
        """T, the rows of the packed axis, fill included."""
        return len(self.input_id_N) + self.patch_mask_BP.numel()

    @property
    def tokens(self) -> int:
        """Useful tokens: title tokens and patches, no fill. Reads a tensor: keep it out of a GPU step."""
        return int(self.offsets_S1[-1])


@dataclass(frozen=True)
class Budget:
    """Shapes repeat from batch to batch when sizes are rounded up: fewer compilations, CUDA graphs that fit again, and
    products of even sizes, which libraries like. A size s is rounded up to a multiple of the field."""

    tokens: int = 1  # rows of the packed axis
    predictions: int = 1  # masked tokens

    @classmethod
    def of(cls, pairs: int, longest: int) -> Budget:
        """For batches of ``pairs`` pairs of up to ``longest`` tokens: fill stays near 1% of the tokens."""
        tokens = max(16, 2 ** int(np.log2(max(1, pairs * longest / 64))))
        return cls(tokens, max(1, tokens // 4))


def rounded_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


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
        self.longest = max_text_tokens

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


def pack(id_N: np.ndarray, lengths_B: np.ndarray, patches: int, pad_id: int, budget: Budget) -> dict[str, torch.Tensor]:
    """The text's and the layout's fields of a `Batch`, for titles of ``lengths_B`` tokens, one after another."""
    offsets_S1 = np.concatenate([[0], np.cumsum(lengths_B + patches)])
    fill = rounded_up(int(offsets_S1[-1]), budget.tokens) - int(offsets_S1[-1])
    before_B = np.cumsum(lengths_B) - lengths_B  # title tokens of the pairs before
    place_N = np.arange(len(id_N)) - np.repeat(before_B, lengths_B)
    rows_N = place_N + np.repeat(offsets_S1[:-1], lengths_B)
    fields_of_text = {
        "input_id_N": np.concatenate([id_N, np.full(fill, pad_id)]),
        "position_N": np.concatenate([place_N, np.zeros(fill, dtype=np.int64)]),
        "text_row_N": np.concatenate([rows_N, offsets_S1[-1] + np.arange(fill)]),
        "cls_row_B": offsets_S1[:-1],
        "patch_row_B": offsets_S1[:-1] + lengths_B,
    }
    tensors = {name: torch.from_numpy(value.astype(np.int64)) for name, value in fields_of_text.items()}
    return tensors | {"offsets_S1": torch.from_numpy(offsets_S1.astype(np.int32))}


def _images(store: FeatureStore, image_rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Each distinct image once, and the index of each pair's image among them."""
    distinct, index = np.unique(image_rows, return_inverse=True)
    return store.features(distinct), torch.from_numpy(index.astype(np.int64))


def collate_pairs(store: FeatureStore, titles: TokenizedTitles, text_rows: np.ndarray, image_rows: np.ndarray) -> Batch:
    """Unmasked pairs, for evaluation: title ``text_rows[b]`` with image ``image_rows[b]``, both int64 store rows."""
    P = store.manifest.patches
    features_IPD, image_index_B = _images(store, image_rows)
    nothing = torch.empty(0, dtype=torch.int64)
    id_N, _, offsets_S1 = titles.gather(text_rows)
    lengths_B = np.diff(offsets_S1)
    return Batch(
        **pack(id_N, lengths_B, P, titles.pad_id, Budget()),
        features_IPD=features_IPD, image_index_B=image_index_B,
        patch_mask_BP=torch.zeros(len(text_rows), P, dtype=torch.bool),
        mlm_row_M=nothing, mlm_label_M=nothing, mpm_row_K=nothing, mpm_target_K=nothing,
        tia_label_B=torch.from_numpy((text_rows == image_rows).astype(np.int64)),
        counts_T=torch.tensor([0.0, len(text_rows), 0.0]), longest=int(lengths_B.max()) + P,
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
        budget: Budget | None = None,
    ) -> None:  # fmt: skip
        self.store, self.titles, self.rows, self.pairing = store, titles, np.asarray(rows), pairing
        self.micro_batch_size, self.micro_batches = micro_batch_size, micro_batches
        self.rank, self.world_size, self.steps = rank, world_size, steps
        self.global_batch = micro_batch_size * micro_batches * world_size
        self.budget = budget or Budget.of(micro_batch_size, titles.longest + store.manifest.patches)
        self.steps_per_epoch = len(self.rows) * (2 if pairing.way == "both" else 1) // self.global_batch
        if self.steps_per_epoch == 0:
            raise InputError(
                f"{store.path}: {len(self.rows)} products do not fill one global batch of {self.global_batch} pairs; "
                "lower train.micro_batch_size or train.gradient_accumulation_steps"
            )
        self._plan: tuple[int, EpochPlan] | None = None
        self._group_N: np.ndarray | None = None

    def __len__(self) -> int:
        return self.steps

    def plan(self, epoch: int) -> EpochPlan:
        """The epoch's pairs in order; the last one asked for is kept."""
        if self._plan is None or self._plan[0] != epoch:
            p = self.pairing
            plan = plan_epoch(
                self.rows, self._groups(epoch), self.store.twin_N[self.rows], seed=p.seed, epoch=epoch, way=p.way,
                negative_rate=p.negative_rate,
            )  # fmt: skip
            self._plan = (epoch, plan)
        return self._plan[1]

    def global_rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Store rows of the titles and of the images in a step's global batch, of all ranks: (global batch,) int64."""
        epoch, in_epoch = divmod(step, self.steps_per_epoch)
        plan, span = self.plan(epoch), slice(in_epoch * self.global_batch, (in_epoch + 1) * self.global_batch)
        return plan.text_rows[span], plan.image_rows[span]

    def _groups(self, epoch: int) -> np.ndarray:
        """(N,) int64: equal for products that may be each other's negatives. Sub-categories are told apart within their
        category: "Other" of shoes is not "Other" of bags."""
        if self.pairing.negatives == "random" or epoch < self.pairing.random_epochs:
            return np.zeros(len(self.rows), dtype=np.int64)
        if self._group_N is None:
            names = self.store.categories
            if self.pairing.negatives == "subcategory":
                names = zip(names, self.store.subcategories, strict=True)
            self._group_N = numbered(names)[self.rows]
        return self._group_N

    def __getitem__(self, step: int) -> list[Batch]:
        epoch, in_epoch = divmod(step, self.steps_per_epoch)
        plan = self.plan(epoch)
        first = in_epoch * self.global_batch + self.rank * self.micro_batch_size
        stride = self.micro_batch_size * self.world_size
        starts = [first + i * stride for i in range(self.micro_batches)]
        return [self._collate(plan, slice(start, start + self.micro_batch_size), epoch) for start in starts]

    def _collate(self, plan: EpochPlan, span: slice, epoch: int) -> Batch:
        p, P = self.pairing, self.store.manifest.patches
        text_rows, is_match = plan.text_rows[span], plan.is_match[span]
        samples_B = text_rows * 2 + is_match  # a title in a match and in a mismatch is masked differently
        # Every pair is masked, whether or not it is predicted: masks on matches alone would give the label away.
        predicted_B = np.ones(len(text_rows), dtype=bool) if p.predict_negatives else is_match
        id_N, word_N, offsets_S1 = self.titles.gather(text_rows)
        chosen_M = choose_words(word_N, offsets_S1, samples_B, p.text, seed=p.seed, epoch=epoch)
        pair_M = np.searchsorted(offsets_S1, chosen_M, side="right") - 1
        label_M, place_M = id_N[chosen_M], chosen_M - offsets_S1[pair_M]
        id_N[chosen_M] = mask_tokens(
            label_M, place_M, samples_B[pair_M], p.text, self.titles.mask_id, self.titles.vocabulary,
            seed=p.seed, epoch=epoch,
        )  # fmt: skip
        packed = pack(id_N, np.diff(offsets_S1), P, self.titles.pad_id, self.budget)
        row_M = (packed["cls_row_B"].numpy()[pair_M] + place_M)[predicted_B[pair_M]]
        label_M = label_M[predicted_B[pair_M]].astype(np.int64)
        fill = rounded_up(len(row_M), self.budget.predictions) - len(row_M)
        patch_mask_BP = mask_patches(samples_B, P, p.patch_rate, seed=p.seed, epoch=epoch)
        pair_K, patch_K = np.nonzero(patch_mask_BP & predicted_B[:, None])
        features_IPD, image_index_B = _images(self.store, plan.image_rows[span])
        return Batch(
            **packed, features_IPD=features_IPD, image_index_B=image_index_B,
            patch_mask_BP=torch.from_numpy(patch_mask_BP),
            mlm_row_M=torch.from_numpy(np.pad(row_M, (0, fill))),
            mlm_label_M=torch.from_numpy(np.pad(label_M, (0, fill), constant_values=IGNORED)),
            mpm_row_K=packed["patch_row_B"][pair_K] + torch.from_numpy(patch_K),
            mpm_target_K=image_index_B[pair_K] * P + torch.from_numpy(patch_K),
            tia_label_B=torch.from_numpy(is_match.astype(np.int64)),
            counts_T=torch.tensor([len(row_M), len(text_rows), len(pair_K)], dtype=torch.float32),
            longest=self.titles.longest + P,
        )  # fmt: skip
