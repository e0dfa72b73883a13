"""Each technique of the step taken away: what `fashionbert bench step` measures the worth of it by."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from fashionbert_fast.data.batch import Batch
from fashionbert_fast.kernels._library import IGNORED
from fashionbert_fast.kernels.bias_gelu import bias_gelu_reference
from fashionbert_fast.kernels.linear_cross_entropy import linear_cross_entropy_reference
from fashionbert_fast.kernels.linear_patch_kld import linear_patch_kld_reference
from fashionbert_fast.model import embeddings, encoder, heads

LONGEST_TITLE = 64


def without_packing(batch: Batch, to: int = LONGEST_TITLE) -> Batch:
    """Every title filled up to ``to`` tokens with [PAD], which are computed and attended to by nobody: each fill is a
    sequence of its own after its pair."""
    inputs, targets = batch.inputs, batch.targets
    B, P = inputs.patch_mask_BP.shape
    old_S1 = inputs.cu_seqlens_S1.long()
    fill_B = to + P - old_S1.diff()
    starts_B = torch.arange(B) * (to + P)
    ends_B = starts_B + old_S1.diff()
    offsets = torch.stack([starts_B, ends_B], dim=1).flatten()

    def moved(rows: torch.Tensor) -> torch.Tensor:
        pair = torch.bucketize(rows, old_S1[1:], right=True)
        return rows - old_S1[pair] + starts_B[pair]

    live = inputs.text_row_N < old_S1[-1]
    fills = zip(ends_B.tolist(), fill_B.tolist(), strict=True)
    fill_rows = torch.cat([torch.arange(end, end + fill) for end, fill in fills])
    nothing = torch.zeros(len(fill_rows), dtype=torch.int64)
    packed = replace(
        inputs,
        input_id_N=torch.cat([inputs.input_id_N[live], nothing]),
        position_N=torch.cat([inputs.position_N[live], nothing]),
        text_row_N=torch.cat([moved(inputs.text_row_N[live]), fill_rows]),
        cu_seqlens_S1=torch.cat([offsets, torch.tensor([B * (to + P)])]).int(),
        cls_row_B=starts_B,
        patch_row_B=moved(inputs.patch_row_B),
    )
    return Batch(packed, replace(targets, mlm_row_M=moved(targets.mlm_row_M), mpm_row_K=moved(targets.mpm_row_K)))


def with_dense_heads(batch: Batch) -> Batch:
    """The MLM head on every title token, the MPM head on every patch; only the masked ones count in the losses."""
    inputs, targets = batch.inputs, batch.targets
    P = inputs.patch_mask_BP.shape[1]
    live = inputs.text_row_N < inputs.cu_seqlens_S1[-1]
    rows = inputs.text_row_N[live]
    label_of_row = torch.full((inputs.rows,), IGNORED)
    known = targets.mlm_label_M != IGNORED
    label_of_row[targets.mlm_row_M[known]] = targets.mlm_label_M[known]
    patch_rows = (inputs.patch_row_B[:, None] + torch.arange(P)).flatten()
    target_of_row = torch.full((inputs.rows,), IGNORED)
    target_of_row[targets.mpm_row_K] = targets.mpm_target_K
    dense = replace(
        targets,
        mlm_row_M=rows,
        mlm_label_M=label_of_row[rows],
        mpm_row_K=patch_rows,
        mpm_target_K=target_of_row[patch_rows],
    )
    return Batch(inputs, dense)


def plain_attention(qkv_T3H, cu_seqlens_S1, heads, *, max_seqlen, bias_3H, dropout=0.0, seed=None, site=0):
    """SDPA with a mask on sequences padded to the longest."""
    lengths_S = cu_seqlens_S1.diff()
    first_S, place_L = cu_seqlens_S1[:-1].long(), torch.arange(max_seqlen, device=qkv_T3H.device)
    live_SL = place_L < lengths_S[:, None]
    rows_SL = torch.where(live_SL, first_S[:, None] + place_L, 0)
    padded = (qkv_T3H + bias_3H)[rows_SL].unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    mask_S11L = (live_SL | (place_L == 0))[:, None, None, :]  # an empty sequence attends to something
    context = F.scaled_dot_product_attention(*padded, attn_mask=mask_S11L, dropout_p=dropout).transpose(1, 2).flatten(2)
    out_TH = qkv_T3H.new_zeros(qkv_T3H.shape[0], qkv_T3H.shape[1] // 3)
    return out_TH.index_put((rows_SL[live_SL],), context[live_SL])


def plain_dropout_add_layer_norm(
    x_TH, residual_TH, ln_weight_H, ln_bias_H, *, bias_H=None, eps=1e-12, dropout=0.0, seed=None, site=0
):
    summed_TH = residual_TH + F.dropout(x_TH + bias_H, dropout)
    return F.layer_norm(summed_TH, (x_TH.shape[1],), ln_weight_H, ln_bias_H, eps)


def plain_patch_embed(
    features_IPD, patch_mask_BP, weight_HD, position_PH, segment_H, ln_weight_H, ln_bias_H, *, eps, image_index_B,
    packed, feature_dropout=0.0, hidden_dropout=0.0, seed=None, site=0,
):  # fmt: skip
    features_BPD = F.dropout(features_IPD[image_index_B].to(weight_HD.dtype), feature_dropout)
    projected_BPH = F.linear(features_BPD.masked_fill(patch_mask_BP[..., None], 0), weight_HD)
    summed_BPH = projected_BPH + position_PH + segment_H
    patches_BPH = F.dropout(F.layer_norm(summed_BPH, ln_weight_H.shape, ln_weight_H, ln_bias_H, eps), hidden_dropout)
    text_NH, text_row_N, patch_row_B, packed_rows = packed
    rows = (patch_row_B[:, None] + torch.arange(position_PH.shape[0], device=patch_row_B.device)).flatten()
    out_TH = text_NH.new_zeros(packed_rows, text_NH.shape[1]).index_copy(0, text_row_N, text_NH)
    return out_TH.index_copy(0, rows, patches_BPH.flatten(0, 1))


def plain_linear_fork(x_TK, weight_NK):
    return F.linear(x_TK, weight_NK), x_TK


# technique -> what stands in for it: (module, name, plain function)
REPLACEMENTS = {
    "packed_attention": [(encoder, "packed_attention", plain_attention)],
    "dropout_add_layer_norm": [(encoder, "dropout_add_layer_norm", plain_dropout_add_layer_norm)],
    "bias_gelu": [(encoder, "bias_gelu", bias_gelu_reference)],
    "linear_fork": [(encoder, "linear_fork", plain_linear_fork)],
    "masked_patch_embed": [(embeddings, "masked_patch_embed", plain_patch_embed)],
    "linear_cross_entropy": [(heads, "linear_cross_entropy", linear_cross_entropy_reference)],
    "linear_patch_kld": [(heads, "linear_patch_kld", linear_patch_kld_reference)],
}
TECHNIQUES = ("packing", "masked-only heads", "kept memory", *REPLACEMENTS)
