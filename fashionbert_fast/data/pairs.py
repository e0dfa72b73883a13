"""Pairs of titles and images, masked or not, queries, and products of the contrastive loss, as packed batches.

Shapes: B pairs, S1 = B + 1 offsets, N title tokens of all pairs, P patches, T = N + B P rows of the packed axis,
I distinct images, D patch feature, M masked tokens, K masked patches, three tasks (mlm, tia, mpm), C slots of queries
or of products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from fashionbert_fast.data.batch import Batch, ContrastiveTargets, PackedPairs, QueryTargets, Targets
from fashionbert_fast.data.config import ContrastiveConfig, DataConfig
from fashionbert_fast.data.contrastive import contrastive_targets, epoch_order, mirrored
from fashionbert_fast.data.masking import choose_words, mask_patches, mask_tokens
from fashionbert_fast.data.packing import Budget, pack, pack_unmasked, rounded_up
from fashionbert_fast.data.queries import Queries
from fashionbert_fast.data.sampling import EpochPlan, draw_views, no_pairs, numbered, plan_epoch
from fashionbert_fast.data.titles import TokenizedTitles
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.kernels._library import IGNORED


def _images(
    store: FeatureStore, image_rows: np.ndarray, views: np.ndarray | None = None, **mirror: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each distinct image once, and the index of each pair's image among them.

    Args:
        views: of each, the same of the same. mirror: what `mirrored` takes further, where photos may be mirrored.
    """
    distinct, first, index = np.unique(image_rows, return_index=True, return_inverse=True)
    features_IPD = store.features(distinct, None if views is None else views[first])
    if mirror:
        features_IPD = mirrored(features_IPD, distinct, **mirror)
    return features_IPD, torch.from_numpy(index.astype(np.int64))


def collate_pairs(
    store: FeatureStore, titles: TokenizedTitles, text_rows: np.ndarray, image_rows: np.ndarray
) -> PackedPairs:
    """Unmasked pairs, for evaluation: title ``text_rows[b]`` with image ``image_rows[b]``, both int64 store rows."""
    id_N, _, offsets_S1 = titles.gather(text_rows)
    return pack_unmasked(id_N, np.diff(offsets_S1), *_images(store, image_rows), titles.pad_id)


def collate_texts(titles: TokenizedTitles, rows: np.ndarray, patches: int, feature_size: int) -> PackedPairs:
    """Texts ``rows`` alone, int64 (B,), for a model of so many patches of so many features."""
    id_N, _, offsets_S1 = titles.gather(rows)
    nothing = torch.empty(0, patches, feature_size), torch.empty(0, dtype=torch.int64)
    return pack_unmasked(id_N, np.diff(offsets_S1), *nothing, titles.pad_id)


def collate_images(store: FeatureStore, rows: np.ndarray) -> PackedPairs:
    """Photos ``rows`` of the store alone, int64 (B,)."""
    return pack_unmasked(np.empty(0, np.int64), np.zeros(len(rows), np.int64), *_images(store, rows))


class PairDataset(Dataset):
    """``dataset[step]``: the micro-batches of one optimizer step for one rank.

    The global batch of a step is a slice of the epoch's order; rank r takes its r-th part. So nothing but the slicing
    depends on the number of ranks, and training resumes at any step. An epoch's incomplete last batch is dropped.

    queries: of the store; None: batches without. A match whose product has any brings one of them.
    contrastive: the first ``first_steps`` steps hold products alone, no pairs, each a title and a photo; the pairs'
    steps begin after them, and bring their products alone as well where the loss stands beside the three tasks.
    """

    def __init__(
        self, store: FeatureStore, titles: TokenizedTitles, rows: np.ndarray, config: DataConfig, *,
        seed: int = 0, micro_batch_size: int, micro_batches: int = 1, rank: int = 0, world_size: int = 1, steps: int,
        budget: Budget | None = None, queries: Queries | None = None, contrastive: ContrastiveConfig | None = None,
    ) -> None:  # fmt: skip
        self.store, self.titles, self.rows, self.config, self.seed = store, titles, np.asarray(rows), config, seed
        self.contrastive = contrastive or ContrastiveConfig()
        self.micro_batch_size, self.micro_batches = micro_batch_size, micro_batches
        self.rank, self.world_size, self.steps, self.queries = rank, world_size, steps, queries
        self.global_batch = micro_batch_size * micro_batches * world_size
        self.budget = budget or Budget.of(micro_batch_size, titles.max_text_tokens + store.manifest.patches)
        self.steps_per_epoch = len(self.rows) * (2 if config.pairs == "both" else 1) // self.global_batch
        if self.steps_per_epoch == 0:
            raise InputError(
                f"{store.path}: {len(self.rows)} products do not fill one global batch of {self.global_batch} pairs; "
                "lower train.micro_batch_size or train.gradient_accumulation_steps"
            )
        per_step = self.contrastive.batch_size * micro_batches * world_size
        if self.contrastive.first_steps and len(self.rows) < per_step:
            raise InputError(
                f"{store.path}: {len(self.rows)} products do not fill one global batch of {per_step} products; "
                "lower contrastive.batch_size or train.gradient_accumulation_steps"
            )
        self._plan: tuple[int, EpochPlan] | None = None
        self._order: tuple[tuple[int, bool], np.ndarray] | None = None
        self._group_N: np.ndarray | None = None

    def __len__(self) -> int:
        return self.steps

    def plan(self, epoch: int) -> EpochPlan:
        """The epoch's pairs in order; the last one asked for is kept."""
        if self._plan is None or self._plan[0] != epoch:
            plan = plan_epoch(
                self.rows, self._groups(epoch), self.store.twin_N[self.rows], seed=self.seed, epoch=epoch,
                pairs=self.config.pairs, negative_rate=self.config.negative_rate,
            )  # fmt: skip
            self._plan = (epoch, plan)
        return self._plan[1]

    def global_rows(self, step: int, ranks: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Store rows of the titles and of the images that those ranks have of a step's global batch, int64: of its
        pairs, or of the products of one of the contrastive loss alone."""
        if step < self.contrastive.first_steps:
            rows = self._products(step)[1][:, ranks].ravel()
            return rows, rows
        epoch, in_epoch = divmod(step - self.contrastive.first_steps, self.steps_per_epoch)
        plan, span = self.plan(epoch), slice(in_epoch * self.global_batch, (in_epoch + 1) * self.global_batch)
        layout = (self.micro_batches, self.world_size, self.micro_batch_size)
        text_rows, image_rows = (rows[span].reshape(layout) for rows in (plan.text_rows, plan.image_rows))
        return text_rows[:, ranks].ravel(), image_rows[:, ranks].ravel()

    def _groups(self, epoch: int) -> np.ndarray:
        """(N,) int64: equal for products that may be each other's negatives. Sub-categories are told apart within their
        category: "Other" of shoes is not "Other" of bags."""
        if self.config.negatives == "random" or epoch < self.config.random_negative_epochs:
            return np.zeros(len(self.rows), dtype=np.int64)
        if self._group_N is None:
            names = self.store.categories
            if self.config.negatives == "subcategory":
                names = zip(names, self.store.subcategories, strict=True)
            self._group_N = numbered(names)[self.rows]
        return self._group_N

    def samples(self, step: int) -> int:
        """Pairs, and in the first steps products, that all ranks have seen after so many steps."""
        first = min(step, self.contrastive.first_steps)
        products = self.contrastive.batch_size * self.micro_batches * self.world_size
        return first * products + (step - first) * self.global_batch

    def _products(self, step: int) -> tuple[int, np.ndarray]:
        """Of one of the first steps: its epoch, and the store rows (micro-batches, ranks, C) of its products."""
        c, layout = self.contrastive, (self.micro_batches, self.world_size, self.contrastive.batch_size)
        per_step = int(np.prod(layout))
        epoch, in_epoch = divmod(step, len(self.rows) // per_step)
        of_one_subcategory = step >= c.first_steps - c.subcategory_steps
        if self._order is None or self._order[0] != (epoch, of_one_subcategory):
            names = zip(self.store.categories, self.store.subcategories, strict=True)
            groups = np.stack([numbered(self.store.categories), numbered(names)], axis=1)[self.rows]
            order = epoch_order(
                self.rows, per_step // self.micro_batches, seed=self.seed, epoch=epoch,
                groups=groups if of_one_subcategory else None,
            )  # fmt: skip
            self._order = (epoch, of_one_subcategory), order
        return epoch, self._order[1][in_epoch * per_step : (in_epoch + 1) * per_step].reshape(layout)

    def __getitem__(self, step: int) -> list[Batch]:
        if step < self.contrastive.first_steps:
            epoch, products = self._products(step)
            nothing = [slice(0, 0)] * self.world_size
            return [self._collate(no_pairs(), nothing, epoch, micro) for micro in products]
        epoch, in_epoch = divmod(step - self.contrastive.first_steps, self.steps_per_epoch)
        plan = self.plan(epoch)
        starts = in_epoch * self.global_batch + self.micro_batch_size * np.arange(self.micro_batches * self.world_size)
        spans = [slice(start, start + self.micro_batch_size) for start in starts.tolist()]
        return [
            self._collate(plan, spans[i * self.world_size : (i + 1) * self.world_size], epoch)
            for i in range(self.micro_batches)
        ]

    def _collate(
        self, plan: EpochPlan, spans: Sequence[slice], epoch: int, products: Sequence[np.ndarray] | None = None
    ) -> Batch:
        """This rank's part of a micro-batch; ``spans``: each rank's, of the plan. products: store rows of each rank's,
        of the contrastive loss; None: those of the pairs' titles, where it stands beside the three tasks."""
        if products is None and self.contrastive.weight:
            products = [np.unique(plan.text_rows[span]) for span in spans]
        c, P, draw = self.config, self.store.manifest.patches, {"seed": self.seed, "epoch": epoch}
        span = spans[self.rank]
        text_rows, is_match = plan.text_rows[span], plan.is_match[span]
        samples_B = text_rows * 2 + is_match  # a title in a match and in a mismatch is masked differently
        # Every pair is masked, whether or not it is predicted: masks on matches alone would give the label away.
        predicted_B = np.ones(len(text_rows), dtype=bool) if c.predict_negatives else is_match
        id_N, lengths_B, label_M, pair_M, place_M = self._masked_titles(
            text_rows, samples_B, c.mlm_rate, c.mlm_most, epoch
        )
        packed, queries, contrastive = self._packed(id_N, lengths_B, plan, spans, epoch, products)
        row_M = (packed["cls_row_B"].numpy()[pair_M] + place_M)[predicted_B[pair_M]]
        label_M = label_M[predicted_B[pair_M]].astype(np.int64)
        fill = rounded_up(len(row_M), self.budget.predictions) - len(row_M)
        patch_mask_BP = mask_patches(samples_B, P, c.patch_rate, **draw)
        pair_K, patch_K = np.nonzero(patch_mask_BP & predicted_B[:, None])
        image_rows, masks, mirror = plan.image_rows[span], [patch_mask_BP], {}
        if products is not None:
            alone = products[self.rank]
            image_rows = np.concatenate([image_rows, alone])
            masks.append(mask_patches(self._alone(alone), P, self.contrastive.patch_rate, **draw))
            mirror = {"rate": self.contrastive.mirror_rate, **draw}
        features_IPD, image_index_B = _images(self.store, image_rows, self._views(image_rows, epoch), **mirror)
        inputs = PackedPairs(
            **packed,
            features_IPD=features_IPD,
            image_index_B=image_index_B,
            patch_mask_BP=torch.from_numpy(np.concatenate(masks)),
            max_seqlen=self.titles.max_text_tokens + P,
        )
        targets = Targets(
            mlm_row_M=torch.from_numpy(np.pad(row_M, (0, fill))),
            mlm_label_M=torch.from_numpy(np.pad(label_M, (0, fill), constant_values=IGNORED)),
            mpm_row_K=packed["patch_row_B"][pair_K] + torch.from_numpy(patch_K),
            mpm_target_K=image_index_B[pair_K] * P + torch.from_numpy(patch_K),
            tia_label_B=torch.from_numpy(is_match.astype(np.int64)),
            counts_T=torch.tensor([len(row_M), len(text_rows), len(pair_K)], dtype=torch.float32),
        )
        return Batch(inputs, targets, queries, contrastive)

    def _alone(self, rows: np.ndarray) -> np.ndarray:
        """The numbers of the samples in which products stand alone: those of pairs are below 2 N, see `_collate`."""
        return 2 * len(self.store) + rows

    def _views(self, image_rows: np.ndarray, epoch: int) -> np.ndarray | None:
        """In which view each photo is seen; None: as it is."""
        views = self.store.manifest.views
        return draw_views(image_rows, views, seed=self.seed, epoch=epoch) if views > 1 else None

    def _packed(
        self, id_N: np.ndarray, lengths_B: np.ndarray, plan: EpochPlan, spans: Sequence[slice], epoch: int,
        products: Sequence[np.ndarray] | None,
    ) -> tuple[dict[str, torch.Tensor], QueryTargets | None, ContrastiveTargets | None]:  # fmt: skip
        """The titles, with room for their patches, then the queries, where there are any, then titles alone and photos
        alone, where the contrastive loss is on: see `pack`."""
        P, pad_id, queries, contrastive = self.store.manifest.patches, self.titles.pad_id, None, None
        ids, lengths, patches = [id_N], [lengths_B], [np.full(len(lengths_B), P)]
        if self.queries is not None:
            query_C, queries = self.queries.ask(
                plan, spans, self.rank, self.micro_batch_size, seed=self.seed, epoch=epoch
            )
            query_id_N, lengths_C = self.queries.gather(query_C)
            ids, lengths, patches = [*ids, query_id_N], [*lengths, lengths_C], [*patches, np.zeros_like(lengths_C)]
        if products is not None:
            slots = max(map(len, products)) if len(lengths_B) == 0 else self.micro_batch_size
            contrastive = contrastive_targets(products, self.store.twin_N, self.rank, slots)
            alone, c = products[self.rank], self.contrastive
            title_id_N, lengths_n, *_ = self._masked_titles(
                alone, self._alone(alone), c.token_rate, self.titles.max_text_tokens, epoch
            )
            lengths_C, live_C = np.zeros((2, slots), dtype=np.int64)
            lengths_C[: len(lengths_n)], live_C[: len(lengths_n)] = lengths_n, 1
            ids, lengths = [*ids, title_id_N], [*lengths, lengths_C, np.zeros_like(lengths_C)]
            patches += [np.zeros_like(lengths_C), P * live_C]
        packed = pack(np.concatenate(ids), np.concatenate(lengths), np.concatenate(patches), pad_id, self.budget)
        packed["cls_row_B"] = packed["cls_row_B"][: len(lengths_B)]
        if self.queries is not None:
            packed["segment_N"] = torch.zeros_like(packed["input_id_N"])
            packed["segment_N"][len(id_N) : len(id_N) + len(ids[1])] = self.queries.segment
        return packed, queries, contrastive

    def _masked_titles(
        self, rows: np.ndarray, samples: np.ndarray, rate: float, most: int, epoch: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Titles of ``rows``, one after another, with some of their words masked.

        Returns:
            Tokens (N,); the length of each title; and of each masked token (M,) what it was, the number of its title,
            its place there.
        """
        draw = {"seed": self.seed, "epoch": epoch}
        id_N, word_N, offsets_S1 = self.titles.gather(rows)
        chosen_M = choose_words(word_N, offsets_S1, samples, rate=rate, most=most, **draw)
        title_M = np.searchsorted(offsets_S1, chosen_M, side="right") - 1
        label_M, place_M = id_N[chosen_M], chosen_M - offsets_S1[title_M]
        id_N[chosen_M] = mask_tokens(
            label_M, place_M, samples[title_M], self.titles.mask_id, self.titles.vocabulary, **draw
        )
        return id_N, np.diff(offsets_S1), label_M, title_M, place_M
