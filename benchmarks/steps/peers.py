"""What ours is measured against: FashionBERT as one writes it today with Hugging Face's `BertModel`, on padded batches.

The same formulas, the same weights and the same samples, so losses must agree before anything is timed.

Shapes: B pairs, L padded title tokens, P patches, S = L + P positions (text first), H hidden, D patch feature, M masked
tokens, K masked patches, V vocabulary; of losses, three tasks (mlm, tia, mpm).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import nn

from fashionbert_fast.data.batch import Batch
from fashionbert_fast.kernels.adaptive_loss import adaptive_loss_reference
from fashionbert_fast.kernels.patch_kld import patch_kld_reference
from fashionbert_fast.model.config import FashionBertConfig
from fashionbert_fast.model.directories import CORE_FIELDS, bert_names
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining

# Stated here and not taken from ours, or a slip in ours would be made here too.
IGNORED = -100  # torch's own ignore_index
IMAGE_SEGMENT = 1  # the row of BERT's two segments that stands for images
LAYER_NORM_EPS = 1e-12  # BERT's


@dataclass
class PaddedBatch:
    """A `Batch` padded: what a collator gives that pads titles to one length."""

    input_ids_BL: torch.Tensor
    mask_BS: torch.Tensor  # True: text or patch, not padding
    features_BPD: torch.Tensor
    patch_mask_BP: torch.Tensor
    labels_BL: torch.Tensor  # token ids, -100 where nothing is predicted
    mlm_position_M: torch.Tensor  # flat, b * L + l
    mlm_label_M: torch.Tensor
    mpm_position_K: torch.Tensor  # flat, b * P + p
    tia_label_B: torch.Tensor

    def to(self, device: torch.device) -> PaddedBatch:
        return PaddedBatch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def pad(batch: Batch, to: int | None = None) -> PaddedBatch:
    """The samples of ``batch`` padded to titles of ``to`` tokens, or to the longest of the batch."""
    inputs, targets = batch.inputs, batch.targets
    cu_seqlens_S1, live_N = inputs.cu_seqlens_S1.long(), inputs.text_row_N < inputs.cu_seqlens_S1[-1]
    B, P = inputs.patch_mask_BP.shape
    lengths_B = cu_seqlens_S1.diff() - P
    L = to or int(lengths_B.max())
    pair_N = torch.bucketize(inputs.text_row_N[live_N], cu_seqlens_S1[1:], right=True)
    place_N = inputs.position_N[live_N]
    input_ids_BL = torch.zeros(B, L, dtype=torch.int64)
    input_ids_BL[pair_N, place_N] = inputs.input_id_N[live_N]
    mask_BS = F.pad(torch.arange(L) < lengths_B[:, None], (0, P), value=True)
    known_M = targets.mlm_label_M != IGNORED
    rows_M, label_M = targets.mlm_row_M[known_M], targets.mlm_label_M[known_M]
    pair_M = torch.bucketize(rows_M, cu_seqlens_S1[1:], right=True)
    position_M = pair_M * L + rows_M - cu_seqlens_S1[pair_M]
    labels_BL = torch.full((B, L), IGNORED)
    labels_BL.view(-1)[position_M] = label_M
    pair_K = torch.bucketize(targets.mpm_row_K, cu_seqlens_S1[1:], right=True)  # not every masked patch is predicted
    position_K = pair_K * P + targets.mpm_row_K - cu_seqlens_S1[pair_K] - lengths_B[pair_K]
    return PaddedBatch(
        input_ids_BL, mask_BS, inputs.features_IPD[inputs.image_index_B], inputs.patch_mask_BP, labels_BL, position_M,
        label_M, position_K, targets.tia_label_B,
    )  # fmt: skip


class PaddedFashionBert(nn.Module):
    """FashionBERT around `transformers.BertModel` with SDPA: plain PyTorch, padded, adaptive loss as released.

    dense_heads: MLM and MPM on every position, as released, instead of on the masked ones.
    """

    def __init__(self, config: FashionBertConfig, dense_heads: bool = False) -> None:
        from transformers import BertConfig, BertForPreTraining

        super().__init__()
        core = {name: getattr(config, name) for name in CORE_FIELDS} | {"layer_norm_eps": LAYER_NORM_EPS}
        bert = BertForPreTraining(BertConfig(**core, attn_implementation="sdpa"))
        self.bert, self.cls = bert.bert, bert.cls  # embeddings, encoder, pooler; MLM and two-class heads
        self.config, self.dense_heads = config, dense_heads
        self.register_buffer("preference_T", torch.tensor(config.weighting.preference), persistent=False)
        self.feature_dropout = nn.Dropout(config.patch_dropout_prob)
        self.projection = nn.Linear(config.patch_feature_size, config.hidden_size, bias=False)
        self.position = nn.Embedding(config.patches, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.mpm = nn.Linear(config.hidden_size, config.patch_feature_size, bias=False)

    @classmethod
    def from_ours(cls, model: FashionBertForPreTraining, dense_heads: bool = False) -> PaddedFashionBert:
        """The same weights in the plain model."""
        peer = cls(model.config, dense_heads)
        core = {}
        for ours, theirs in bert_names(model).items():
            for name, part in zip(theirs, model.get_parameter(ours).detach().chunk(len(theirs)), strict=True):
                core[name if name.startswith("cls.") else f"bert.{name}"] = part
        patches, head = model.patch_embeddings, model.tia_head
        own = {
            "projection.weight": patches.projection.weight, "position.weight": patches.position.weight,
            "norm.weight": patches.norm.weight, "norm.bias": patches.norm.bias,
            "mpm.weight": model.mpm_head.projection.weight,
            "cls.seq_relationship.weight": head.classifier.weight, "cls.seq_relationship.bias": head.classifier.bias,
            "bert.pooler.dense.weight": head.pooler.weight, "bert.pooler.dense.bias": head.pooler.bias,
        }  # fmt: skip
        missing, unexpected = peer.load_state_dict(core | own, strict=False)
        missing = [name for name in missing if "position_ids" not in name and "predictions.decoder" not in name]
        if missing or unexpected:
            raise RuntimeError(f"weights do not match: missing {missing}, unexpected {unexpected}")
        return peer

    def hidden(self, batch: PaddedBatch) -> torch.Tensor:
        """(B, S, H) last hidden states."""
        text_BLH = self.bert.embeddings(input_ids=batch.input_ids_BL)
        masked_BPD = self.feature_dropout(batch.features_BPD.to(self.projection.weight.dtype))
        masked_BPD = masked_BPD.masked_fill(batch.patch_mask_BP[..., None], 0)
        segment_H = self.bert.embeddings.token_type_embeddings.weight[IMAGE_SEGMENT]
        patches_BPH = self.dropout(self.norm(self.projection(masked_BPD) + self.position.weight + segment_H))
        joint_BSH = torch.cat([text_BLH, patches_BPH.to(text_BLH.dtype)], dim=1)
        mask_B11S = batch.mask_BS[:, None, None, :]
        for layer in self.bert.encoder.layer:
            output = layer(joint_BSH, mask_B11S)
            joint_BSH = output[0] if isinstance(output, tuple) else output
        return joint_BSH

    def forward(self, batch: PaddedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The adaptive loss to run backward on, and the three mean losses."""
        hidden_BSH = self.hidden(batch)
        L = batch.input_ids_BL.shape[1]
        text_BLH, patches_BPH = hidden_BSH[:, :L], hidden_BSH[:, L:]
        logits_B2 = self.cls.seq_relationship(self.dropout(self.bert.pooler(hidden_BSH)))
        tia = F.cross_entropy(logits_B2.float(), batch.tia_label_B)
        target_KD = batch.features_BPD.flatten(0, 1)[batch.mpm_position_K]
        if self.dense_heads:
            logits_NV = self.cls.predictions(text_BLH.flatten(0, 1))
            mlm = F.cross_entropy(logits_NV.float(), batch.labels_BL.flatten())
            predicted_KD = self.mpm(patches_BPH).flatten(0, 1)[batch.mpm_position_K]
        else:
            logits_MV = self.cls.predictions(text_BLH.flatten(0, 1)[batch.mlm_position_M])
            mlm = F.cross_entropy(logits_MV.float(), batch.mlm_label_M)
            predicted_KD = self.mpm(patches_BPH.flatten(0, 1)[batch.mpm_position_K])
        losses_T = torch.stack([mlm, tia, patch_kld_reference(predicted_KD, target_KD)])
        loss, _ = adaptive_loss_reference(losses_T * self.preference_T, alpha=self.config.weighting.alpha)
        return loss, losses_T.detach()
