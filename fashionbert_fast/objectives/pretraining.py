"""FashionBertForPreTraining: three tasks on the joint hidden states, and a contrastive loss where there is one: one
loss.

Shapes: B pairs, N title tokens of all pairs, P patches, T = N + B P rows of the packed axis, H hidden, I images in the
batch, D patch feature, M masked tokens, K masked patches; of losses and counts, T = 3 tasks (mlm, tia, mpm).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from fashionbert_fast.data.batch import Batch, PackedPairs, StepCounts
from fashionbert_fast.distributed import all_reduce_sum
from fashionbert_fast.errors import InputError
from fashionbert_fast.model import directories
from fashionbert_fast.model.config import CONTRASTIVE_TASK, TASKS
from fashionbert_fast.model.fashionbert import FashionBert
from fashionbert_fast.model.heads import AlignmentHead, MaskedPatchHead, MaskedTokenHead
from fashionbert_fast.objectives.contrastive import contrastive_sums
from fashionbert_fast.objectives.patch_matching import patch_matching_loss
from fashionbert_fast.objectives.weighting import TaskWeighter, WeightingReport, global_means

PRODUCTS = StepCounts._fields.index("products")


@dataclass
class FashionBertOutput:
    """``loss``: scalar to run backward on. ``logits_B2``: alignment logits, class 1 = title and image match, detached.
    ``report``: the task losses and the weights they got. ``query_2``: (2,) float32 global means of queries, detached:
    their loss, and whether each is nearer to its item than to any wrong one; None: the batch has none.
    ``contrastive_2``: the same of the titles and photos of the contrastive loss.
    """

    loss: torch.Tensor
    logits_B2: torch.Tensor
    report: WeightingReport
    query_2: torch.Tensor | None = None
    contrastive_2: torch.Tensor | None = None

    @property
    def losses_T(self) -> torch.Tensor:
        """(T,) float32 global mean losses of the weighted tasks (mlm, tia, mpm; itc where it is one), detached."""
        assert self.report.losses_T is not None
        return self.report.losses_T


class FashionBertForPreTraining(FashionBert):
    """FashionBERT (Gao et al., SIGIR 2020) with its three pre-training heads and their adaptive weights.

    Where the configuration has vectors of a size (``contrastive_size``), a batch may bring titles alone and photos
    alone, whose loss (`objectives.contrastive`) is the fourth task where ``contrastive_weight`` is above 0. A batch
    without pairs is that loss alone.

    A model of any size, trained or not, scores plain tensors; `FashionBertProcessor` makes them of titles and photos:

    >>> config = FashionBertConfig(vocab_size=100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
    ...                            intermediate_size=32, patches=4, patch_feature_size=6)
    >>> model = FashionBertForPreTraining(config)
    >>> model.score(torch.tensor([[2, 17, 3]]), torch.ones(1, 3, dtype=torch.int64), torch.rand(1, 4, 6)).shape
    torch.Size([1])
    """

    def build_heads(self) -> None:
        self.mlm_head = MaskedTokenHead(self.config)
        self.mpm_head = MaskedPatchHead(self.config)
        self.tia_head = AlignmentHead(self.config)
        weight = self.config.contrastive_weight
        self.weighter = TaskWeighter(self.config.weighting, (*TASKS, CONTRASTIVE_TASK) if weight else TASKS, weight)

    def export_bert(self, path: str | Path) -> None:
        """Write the model as a checkpoint that `transformers.BertModel` and `BertForMaskedLM` load, of which they take
        the core, its pooler and its MLM head, and `from_pretrained` takes all. In the model's dtype."""
        directories.export_bert(self, Path(path))

    def alignment_logits(self, pairs: PackedPairs) -> torch.Tensor:
        """(B, 2) float32 of unmasked pairs; class 1 = the title and the image belong together. For inference."""
        if not self.tia_head.reads_sides:
            return self.tia_head(self.encode_cls(pairs)).float()
        hidden_TH = self.encode(pairs)
        cls_BH = hidden_TH.index_select(0, pairs.cls_row_B)
        return self.tia_head(cls_BH, self.side_means(hidden_TH, pairs)).float()

    def pooled(self, pairs: PackedPairs) -> torch.Tensor:
        """(B, H) float32 of unmasked pairs: dense + tanh on [CLS]. For inference."""
        return self.tia_head.pooled(self.encode_cls(pairs)).float()

    @torch.inference_mode()
    def score(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, patch_features: torch.Tensor, *,
        batch_size: int = 128,
    ) -> torch.Tensor:  # fmt: skip
        """The probability that title b and image b belong together, (B,) float32 on the model's device. Nothing drops,
        whatever mode the model is in; no gradients.

        Args:
            input_ids, attention_mask, patch_features: see `pack`; ``**processor(titles, images)`` gives all three.
            batch_size: pairs of a forward pass; it moves results by float noise only.

        Raises:
            InputError: naming the argument that the model cannot take.
        """
        if batch_size < 1:
            raise InputError(f"batch_size {batch_size}: must be 1 or more")
        tensors = (input_ids, attention_mask, patch_features)
        self._check_padded(*tensors)
        was_training = self.training
        self.eval()
        try:
            parts = zip(*(tensor.split(batch_size) for tensor in tensors), strict=True)
            logits_B2 = torch.cat([self.alignment_logits(self.pack(*part)) for part in parts])
        finally:
            self.train(was_training)
        return logits_B2.softmax(1)[:, 1]

    def forward(self, batch: Batch, counts: torch.Tensor | None = None, micro_batches: int = 1) -> FashionBertOutput:
        """Losses of a batch.

        Args:
            batch: a masked batch.
            counts: float32 rows per task over all ranks and micro-batches of the optimizer step, (3,) or a vector that
                begins with them (`StepCounts`); by default those of this one batch over all ranks.
            micro_batches: how many micro-batches that step has.
        """
        return self.losses(self.encode(batch.inputs), batch, counts, micro_batches)

    def losses(
        self, hidden_TH: torch.Tensor, batch: Batch, counts: torch.Tensor | None, micro_batches: int
    ) -> FashionBertOutput:
        """What `forward` gives, of the last hidden states."""
        report = WeightingReport()
        has_pairs = len(batch.inputs.cls_row_B) > 0  # a batch without is not weighed: it has one loss
        aliases = self.weighter.gate(hidden_TH, report) if has_pairs else (hidden_TH,) * len(self.weighter.tasks)
        sums_T, logits_B2 = self._task_sums(hidden_TH, aliases, batch)
        counts_T = all_reduce_sum(batch.targets.counts_T.clone()) if counts is None else counts[: len(TASKS)]
        losses_T, contrastive_2 = global_means(sums_T, counts_T, micro_batches), None
        if batch.contrastive is not None:
            sums_2 = self._contrastive_sums(aliases[-1], batch)
            count = all_reduce_sum(batch.contrastive.live_C.sum().float()) if counts is None else counts[PRODUCTS]
            contrastive_2 = global_means(sums_2, count.expand(2), micro_batches)
            if len(self.weighter.tasks) > len(TASKS):
                sums_T, losses_T = torch.cat([sums_T, sums_2[:1]]), torch.cat([losses_T, contrastive_2[:1]])
        report.own_T = sums_T.detach()
        if has_pairs:
            loss = self.weighter(losses_T, report)
        else:  # and what the heads of pairs have to do with it is 0, so that every parameter has a gradient
            assert contrastive_2 is not None
            loss = contrastive_2[0] + 0.0 * losses_T.sum()
            report.losses_T, report.weights_T = losses_T.detach(), self.weighter.alone(losses_T)
        found_2 = None if contrastive_2 is None else contrastive_2.detach()
        return FashionBertOutput(loss, logits_B2.detach(), report, contrastive_2=found_2)

    def _task_sums(
        self, hidden_TH: torch.Tensor, aliases: Sequence[torch.Tensor], batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's sums of the three tasks' row losses, float32, and the alignment logits (B, 2)."""
        targets = batch.targets
        (mlm_MH, cls_BH, mpm_KH), sides = self._head_rows(hidden_TH, aliases, batch)
        logits_B2 = self.tia_head(cls_BH, sides).float()
        sums_T = torch.stack(
            [
                self.mlm_head(mlm_MH, self.text_embeddings.word.weight, targets.mlm_label_M),
                F.cross_entropy(logits_B2, targets.tia_label_B, reduction="sum"),
                self._patch_sum(mpm_KH, batch),
            ]
        )
        return sums_T, logits_B2

    def _patch_sum(self, mpm_KH: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The sum of the masked patches' losses, by ``patch_objective``."""
        features_RD, t = batch.inputs.features_IPD.flatten(0, 1), batch.targets
        if self.config.patch_objective == "kld":
            return self.mpm_head(mpm_KH, features_RD, t.mpm_target_K)
        pair_K = t.mpm_row_K - t.mpm_target_K % self.config.patches  # where its photo's rows begin
        return patch_matching_loss(self.mpm_head.projection(mpm_KH), features_RD, t.mpm_target_K, pair_K)

    def _contrastive_sums(self, hidden_TH: torch.Tensor, batch: Batch) -> torch.Tensor:
        """See `contrastive_sums`."""
        if self.itc_head is None:
            raise InputError("batch: brings products of the contrastive loss, the model has no vectors for them; build "
                             "it with contrastive_size above 0")  # fmt: skip
        assert batch.contrastive is not None
        vectors_SE = self.pooled_vectors(hidden_TH, batch.inputs, last=2 * len(batch.contrastive.live_C))
        return contrastive_sums(vectors_SE, self.itc_head.scale(), batch.contrastive)

    def _head_rows(
        self, hidden_TH: torch.Tensor, aliases: Sequence[torch.Tensor], batch: Batch
    ) -> tuple[Sequence[torch.Tensor], tuple[torch.Tensor, torch.Tensor] | None]:
        """The rows the three heads read: of aliases behind the weighter's gate where it has one, else in one gathering.
        Then the means of both sides of each pair, where the alignment head reads them."""
        rows = (batch.targets.mlm_row_M, batch.inputs.cls_row_B, batch.targets.mpm_row_K)
        sides = self.side_means(aliases[1], batch.inputs) if self.tia_head.reads_sides else None
        if self.weighter.at_gate:
            return [alias.index_select(0, row) for alias, row in zip(aliases, rows, strict=False)], sides
        return hidden_TH.index_select(0, torch.cat(rows)).split([len(row) for row in rows]), sides
