"""FashionBertForPreTraining: three tasks on the joint hidden states, one loss.

Shapes: B pairs, N title tokens of all pairs, P patches, T = N + B P rows of the packed axis, H hidden, I images in the
batch, D patch feature, M masked tokens, K masked patches; of losses and counts, T = 3 tasks (mlm, tia, mpm).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from fashionbert_fast.data.batch import Batch
from fashionbert_fast.distributed import all_reduce_sum
from fashionbert_fast.model import checkpoint
from fashionbert_fast.model.fashionbert import FashionBert
from fashionbert_fast.model.heads import AlignmentHead, MaskedPatchHead, MaskedTokenHead
from fashionbert_fast.objectives.weighting import TaskWeighter, global_means


@dataclass
class FashionBertOutput:
    """``loss``: scalar to run backward on. ``losses_T``: (3,) float32 global mean losses (mlm, tia, mpm), detached.
    ``logits_B2``: alignment logits, class 1 = title and image match."""

    loss: torch.Tensor
    losses_T: torch.Tensor
    logits_B2: torch.Tensor


class FashionBertForPreTraining(FashionBert):
    """FashionBERT (Gao et al., SIGIR 2020) with its three pre-training heads and their adaptive weights."""

    def build_heads(self) -> None:
        self.mlm_head = MaskedTokenHead(self.config)
        self.mpm_head = MaskedPatchHead(self.config)
        self.tia_head = AlignmentHead(self.config)
        self.weighter = TaskWeighter(self.config.weighting)

    def export_bert(self, path: str | Path) -> None:
        """Write the core with its MLM head as a checkpoint `transformers.BertModel` / `BertForMaskedLM` load."""
        checkpoint.export_bert(self, Path(path))

    def alignment_logits(self, batch: Batch) -> torch.Tensor:
        """(B, 2) float32 of an unmasked batch; class 1 = the title and the image belong together. For inference."""
        return self.tia_head(self.encode_cls(batch)).float()

    def pooled(self, batch: Batch) -> torch.Tensor:
        """(B, H) float32 of an unmasked batch: dense + tanh on [CLS]. For inference."""
        return self.tia_head.pooled(self.encode_cls(batch)).float()

    def forward(self, batch: Batch, counts_T: torch.Tensor | None = None, micro_batches: int = 1) -> FashionBertOutput:
        """Losses of a batch.

        Args:
            batch: a masked batch.
            counts_T: (3,) float32 rows per task over all ranks and micro-batches of the optimizer step; by default
                those of this one batch over all ranks.
            micro_batches: how many micro-batches that step has.
        """
        if counts_T is None:
            counts_T = all_reduce_sum(batch.counts_T.clone())
        mlm_MH, cls_BH, mpm_KH = self._head_rows(self.encode(batch), batch)
        logits_B2 = self.tia_head(cls_BH).float()
        sums_T = torch.stack(
            [
                self.mlm_head(mlm_MH, self.text_embeddings.word.weight, batch.mlm_label_M),
                F.cross_entropy(logits_B2, batch.tia_label_B, reduction="sum"),
                self.mpm_head(mpm_KH, batch.features_IPD.flatten(0, 1), batch.mpm_target_K),
            ]
        )
        losses_T = global_means(sums_T, counts_T, micro_batches)
        return FashionBertOutput(self.weighter(losses_T), losses_T.detach(), logits_B2.detach())

    def _head_rows(self, hidden_TH: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, ...]:
        """The rows each head reads: of aliases behind the weighter's gate where it has one, else in one gathering."""
        rows = (batch.mlm_row_M, batch.cls_row_B, batch.mpm_row_K)
        if self.weighter.at_gate:
            aliases = self.weighter.gate(hidden_TH)
            return tuple(alias.index_select(0, row) for alias, row in zip(aliases, rows, strict=True))
        return hidden_TH.index_select(0, torch.cat(rows)).split([len(row) for row in rows])
