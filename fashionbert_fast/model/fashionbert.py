"""FashionBertForPreTraining: text and patches through one BERT core, three tasks, one loss.

Shapes: B pairs, L text tokens, P patches, S = L + P joint positions (text first), H hidden, I images in the batch,
D patch feature, M masked tokens, K masked patches, T = 3 tasks (mlm, tia, mpm).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from fashionbert_fast.data.batches import Batch
from fashionbert_fast.model import checkpoint
from fashionbert_fast.model.config import FashionBertConfig
from fashionbert_fast.model.embeddings import IMAGE_SEGMENT, PatchEmbeddings, TextEmbeddings
from fashionbert_fast.model.encoder import Encoder
from fashionbert_fast.model.heads import AlignmentHead, MaskedPatchHead, MaskedTokenHead
from fashionbert_fast.model.weighting import TaskWeighter, all_reduce_sum, global_means


@dataclass
class FashionBertOutput:
    """``loss``: scalar to run backward on. ``losses_T``: (3,) float32 global mean losses (mlm, tia, mpm), detached.
    ``logits_B2``: alignment logits, class 1 = title and image match."""

    loss: torch.Tensor
    losses_T: torch.Tensor
    logits_B2: torch.Tensor


class FashionBertForPreTraining(nn.Module):
    """FashionBERT (Gao et al., SIGIR 2020) around a standard BERT core."""

    def __init__(self, config: FashionBertConfig) -> None:
        super().__init__()
        self.config = config
        self.text_embeddings = TextEmbeddings(config)
        self.patch_embeddings = PatchEmbeddings(config)
        self.encoder = Encoder(config)
        self.mlm_head = MaskedTokenHead(config)
        self.mpm_head = MaskedPatchHead(config)
        self.tia_head = AlignmentHead(config)
        self.weighter = TaskWeighter(config.weighting)
        self.feature_manifest: dict | None = None  # of the feature store it was trained on, kept in its checkpoints
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    # Reading and writing ---------------------------------------------------------------------------------------------
    @classmethod
    def from_bert(cls, path: str | Path, patch_feature_size: int = 2048, **overrides) -> FashionBertForPreTraining:
        """A model whose core is the Hugging Face BERT checkpoint at ``path`` (directory, hub id or an alias of
        `checkpoint.resolve_core`), its patch side and any head the checkpoint lacks freshly initialised.

        Args:
            patch_feature_size: D. overrides: further `FashionBertConfig` fields (dropout, patches, weighting, ...).

        Raises:
            InputError: not a BERT checkpoint in safetensors; the message names file and remedy.
        """
        return checkpoint.model_from_bert(cls, path, patch_feature_size=patch_feature_size, **overrides)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> FashionBertForPreTraining:
        """Read what `save_pretrained` wrote, bit for bit."""
        return checkpoint.load_model(cls, Path(path))

    def save_pretrained(self, path: str | Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write config.json, model.safetensors and, where known, patch_features.json to the directory ``path``.

        Args:
            state_dict: weights to write in place of the module's own (a ZeRO engine's gathered master weights).
        """
        checkpoint.save_model(self, Path(path), state_dict)

    def export_bert(self, path: str | Path) -> None:
        """Write the core with its MLM head as a checkpoint `transformers.BertModel` / `BertForMaskedLM` load."""
        checkpoint.export_bert(self, Path(path))

    # Forward ---------------------------------------------------------------------------------------------------------
    def encode_text(self, input_ids_BL: torch.Tensor, text_mask_BL: torch.Tensor | None = None) -> torch.Tensor:
        """Last hidden states (B, L, H) of text alone: what `transformers.BertModel` computes."""
        mask = None if text_mask_BL is None else text_mask_BL.bool()
        return self.encoder(self.text_embeddings(input_ids_BL), mask)

    def encode(self, batch: Batch) -> torch.Tensor:
        """Joint last hidden states (B, S, H): text positions first, then the patches."""
        features_BPD = batch.features_IPD[batch.image_index_B]
        text_BLH = self.text_embeddings(batch.input_ids_BL)
        segment_H = self.text_embeddings.segment.weight[IMAGE_SEGMENT]
        patches_BPH = self.patch_embeddings(features_BPD, batch.patch_mask_BP, segment_H)
        mask_BS = F.pad(batch.text_mask_BL, (0, patches_BPH.shape[1]), value=True)
        return self.encoder(torch.cat([text_BLH, patches_BPH], dim=1), mask_BS)

    def encode_cls(self, batch: Batch) -> torch.Tensor:
        """[CLS] of an unmasked batch, (B, H), for inference: `encode` at position 0 without the work of the others.

        Each distinct image is embedded once, however many titles it meets.
        """
        unmasked_IP = torch.zeros(batch.features_IPD.shape[:2], dtype=torch.bool, device=batch.features_IPD.device)
        segment_H = self.text_embeddings.segment.weight[IMAGE_SEGMENT]
        images_IPH = self.patch_embeddings(batch.features_IPD, unmasked_IP, segment_H)
        joint_BSH = torch.cat([self.text_embeddings(batch.input_ids_BL), images_IPH[batch.image_index_B]], dim=1)
        return self.encoder.forward_cls(joint_BSH, F.pad(batch.text_mask_BL, (0, images_IPH.shape[1]), value=True))

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
        for_mlm, for_tia, for_mpm = self.weighter.gate(self.encode(batch))
        logits_B2 = self.tia_head(for_tia[:, 0]).float()
        sums_T = torch.stack(
            [
                self._mlm_sum(for_mlm, batch),
                F.cross_entropy(logits_B2, batch.tia_label_B, reduction="sum"),
                self._mpm_sum(for_mpm, batch),
            ]
        )
        losses_T = global_means(sums_T, counts_T, micro_batches)
        return FashionBertOutput(self.weighter(losses_T), losses_T.detach(), logits_B2.detach())

    def _mlm_sum(self, hidden_BSH: torch.Tensor, batch: Batch) -> torch.Tensor:
        L, S = batch.input_ids_BL.shape[1], hidden_BSH.shape[1]
        rows_M = batch.mlm_position_M // L * S + batch.mlm_position_M % L
        hidden_MH = hidden_BSH.flatten(0, 1).index_select(0, rows_M)
        return self.mlm_head(hidden_MH, self.text_embeddings.word.weight, batch.mlm_label_M)

    def _mpm_sum(self, hidden_BSH: torch.Tensor, batch: Batch) -> torch.Tensor:
        P, S = batch.patch_mask_BP.shape[1], hidden_BSH.shape[1]
        pair_K, patch_K = batch.mpm_position_K // P, batch.mpm_position_K % P
        hidden_KH = hidden_BSH.flatten(0, 1).index_select(0, pair_K * S + (S - P) + patch_K)
        target_rows_K = batch.image_index_B[pair_K] * P + patch_K
        return self.mpm_head(hidden_KH, batch.features_IPD.flatten(0, 1), target_rows_K)
