"""masked_patch_embed: patch features to embeddings, masked patches counting as zeros.

Formula (EasyTransfer's imagebert embedding): LayerNorm(masked(features) @ weight.T + position + segment). The
projection has no bias, so a masked patch contributes exactly zero before position and segment: it is neither loaded nor
multiplied. In training there is dropout on the feature and on the result; kernels/dropout.py has the mask, whose row is
b P + p, whose column is the feature or the hidden unit, and which the backward draws again. Features may be stored in
8 bits, times a scale a row. The result may be written into a packed sequence, beside the text.

Shapes: B pairs, I distinct images, P patches, D patch feature, H hidden, N = B P rows (of text_NH: text tokens), R rows
of the packed sequence.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from fashionbert_fast.kernels._autocast import autocast
from fashionbert_fast.kernels._library import check_floating, check_same, reverse_mode_only
from fashionbert_fast.kernels.dropout import check_dropout, keep_reference, scale_of
from fashionbert_fast.kernels.triton import masked_patch_embed as on_gpu

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


class PackedRows(NamedTuple):
    """A packed sequence (rows, H) to write patches into, and the text that lies beside them.

    text_NH: (N, H) finished text embeddings, of the weight's dtype. text_row_N: (N,) int64, the row of each.
    patch_row_B: (B,) int64: patch p of pair b goes to row ``patch_row_B[b] + p``. rows: R; those that nothing names are
    zeros. A row that is out of range or given twice is a RuntimeError on CPU; on CUDA a patch out of range is left out.
    """

    text_NH: torch.Tensor
    text_row_N: torch.Tensor
    patch_row_B: torch.Tensor
    rows: int


# Reference -----------------------------------------------------------------------------------------------------------
def masked_patch_embed_reference(
    features_IPD, patch_mask_BP, weight_HD, position_PH, segment_H, ln_weight_H, ln_bias_H, *, eps=1e-12,
    image_index_B=None, scale_IP=None, feature_dropout=0.0, hidden_dropout=0.0, seed=None, site=0, packed=None,
):  # fmt: skip
    """The formula in plain PyTorch: what tests and benchmarks compare with."""
    features_BPD = features_IPD if image_index_B is None else features_IPD[image_index_B]
    if scale_IP is not None:
        scale_BP = scale_IP if image_index_B is None else scale_IP[image_index_B]
        features_BPD = features_BPD.to(torch.promote_types(weight_HD.dtype, torch.float32)) * scale_BP[..., None]
    features_BPD = features_BPD.to(weight_HD.dtype)
    features_BPD = _dropout_reference(features_BPD, feature_dropout, seed, site)
    masked_BPD = features_BPD.masked_fill(patch_mask_BP[..., None], 0)
    embedded_BPH = F.linear(masked_BPD, weight_HD) + position_PH + segment_H
    normal_BPH = F.layer_norm(embedded_BPH, (weight_HD.shape[0],), ln_weight_H, ln_bias_H, eps)
    patches_BPH = _dropout_reference(normal_BPH, hidden_dropout, seed, site + 1)
    if packed is None:
        return patches_BPH
    row_BP = packed.patch_row_B[:, None] + torch.arange(patches_BPH.shape[1], device=packed.patch_row_B.device)
    out_RH = patches_BPH.new_zeros(packed.rows, patches_BPH.shape[2]).index_copy(0, packed.text_row_N, packed.text_NH)
    return out_RH.index_copy(0, row_BP.flatten(), patches_BPH.flatten(0, 1))


def _dropout_reference(x_BPC, p, seed, site):
    if p == 0:
        return x_BPC
    rows_BP = torch.arange(x_BPC.shape[0] * x_BPC.shape[1]).view(x_BPC.shape[:2])
    keep_BPC = keep_reference(int(seed), site, rows_BP, x_BPC.shape[2], p).to(x_BPC.device)
    return torch.where(keep_BPC, x_BPC * scale_of(p), 0)


# Registration; the CPU's kernel is csrc/cpu/masked_patch_embed.cpp ---------------------------------------------------
torch.library.impl("fashionbert_fast::masked_patch_embed", "CUDA")(on_gpu.launch_forward)
torch.library.impl("fashionbert_fast::masked_patch_embed_backward", "CUDA")(on_gpu.launch_backward)


@torch.library.register_fake("fashionbert_fast::masked_patch_embed")
def _(features_IPD, mask_BP, weight_HD, *rest):
    *_, text_NH, _text_row_N, _patch_row_B, packed_rows = rest
    (B, P), H = mask_BP.shape, weight_HD.shape[0]
    stats = torch.float64 if weight_HD.dtype == torch.float64 else torch.float32
    out = weight_HD.new_empty((B, P, H) if text_NH is None else (packed_rows, H))
    return out, weight_HD.new_empty(B * P, H), weight_HD.new_empty((B * P, 2), dtype=stats)


@torch.library.register_fake("fashionbert_fast::masked_patch_embed_backward")
def _(grad_out, features_IPD, mask_BP, weight_HD, position_PH, segment_H, *rest):
    *_, features_gradient, weight_gradient = rest
    of_features = features_IPD.new_empty(features_IPD.shape if features_gradient else (0,))
    of_weight = weight_HD.new_empty(weight_HD.shape if weight_gradient else (0,))
    vectors = (weight_HD.new_empty(segment_H.shape) for _ in range(3))
    return of_features, of_weight, weight_HD.new_empty(position_PH.shape), *vectors


def _setup_context(ctx, inputs, output):
    (*tensors, _ln_bias_H, _eps, image_index_B, scale_IP, ctx.feature_dropout, ctx.hidden_dropout, seed, ctx.site,
     _text_NH, text_row_N, patch_row_B, _packed_rows) = inputs  # fmt: skip
    ctx.save_for_backward(*tensors, image_index_B, scale_IP, seed, text_row_N, patch_row_B, *output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_out, _grad_projection, _grad_stats):
    if grad_out is None:
        return (None,) * len(ctx.needs_input_grad)
    *tensors, image_index_B, scale_IP, seed, text_row_N, patch_row_B, projection_NH, stats_N2 = ctx.saved_tensors
    features, weight = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
    of_features, of_weight, *of_rest = torch.ops.fashionbert_fast.masked_patch_embed_backward(
        grad_out, *tensors, image_index_B, scale_IP, ctx.feature_dropout, ctx.hidden_dropout, seed, ctx.site,
        patch_row_B, projection_NH, stats_N2, features, weight,
    )  # fmt: skip
    of_text = grad_out.index_select(0, text_row_N) if ctx.needs_input_grad[14] else None
    of_features, of_weight = of_features if features else None, of_weight if weight else None
    return of_features, None, of_weight, *of_rest, *(None,) * 7, of_text, None, None, None


torch.library.register_autograd("fashionbert_fast::masked_patch_embed", _backward, setup_context=_setup_context)


# Public function -----------------------------------------------------------------------------------------------------
@reverse_mode_only
@autocast(keep=("features_IPD", "scale_IP"))
def masked_patch_embed(
    features_IPD: torch.Tensor,
    patch_mask_BP: torch.Tensor,
    weight_HD: torch.Tensor,
    position_PH: torch.Tensor,
    segment_H: torch.Tensor,
    ln_weight_H: torch.Tensor,
    ln_bias_H: torch.Tensor,
    *,
    eps: float = 1e-12,
    image_index_B: torch.Tensor | None = None,
    scale_IP: torch.Tensor | None = None,
    feature_dropout: float = 0.0,
    hidden_dropout: float = 0.0,
    seed: torch.Tensor | None = None,
    site: int = 0,
    packed: PackedRows | None = None,
) -> torch.Tensor:
    """Patch embeddings (B, P, H), or (R, H) where ``packed``, in the dtype of ``weight_HD`` (of autocast, where on).

    Sums are in float32 (float64 for float64); the same bits on every run. Gradients: of every floating tensor but the
    scale, of features of 16 bits and more.

    Args:
        features_IPD: (I, P, D) patch features: floating (float64 goes with float64 weights only), int8 with
            ``scale_IP``, float8_e4m3fn or float8_e5m2. Those of masked patches are not read.
        patch_mask_BP: (B, P) bool; True: this patch counts as zeros.
        weight_HD: (H, D) projection, no bias. position_PH: (P, H) patch positions. segment_H: (H,) the image segment.
        ln_weight_H, ln_bias_H: (H,) LayerNorm. eps: its epsilon.
        image_index_B: (B,) int64, each pair's image, 0 <= index < I; by default pair b uses image b. One out of range
            is a RuntimeError on CPU and NaN on CUDA, where nothing could raise in time.
        scale_IP: (I, P) float32, what int8 or float8 features are multiplied by.
        feature_dropout, hidden_dropout: probabilities in [0, 1] of dropping a feature, an element of the result.
        seed: (1,) int64 on the device, needed for dropout. site: where in the model this is, at most 2^31 - 2; it
            also takes ``site + 1``.
        packed: the packed sequence that is to hold the patches and the text; its text takes gradients as well.

    Raises:
        ValueError: naming the argument whose shape, dtype, device or value is wrong.

    Example:
        >>> features_IPD, patch_mask_BP = torch.rand(2, 4, 6), torch.rand(2, 4) < 0.1  # two photos of four patches
        >>> weights = torch.rand(8, 6), torch.rand(4, 8), torch.rand(8), torch.ones(8), torch.zeros(8)
        >>> masked_patch_embed(features_IPD, patch_mask_BP, *weights).shape
        torch.Size([2, 4, 8])
    """
    _check_features(features_IPD, scale_IP, weight_HD)
    _check_parameters(
        features_IPD, patch_mask_BP, image_index_B, weight_HD, position_PH, segment_H, ln_weight_H, ln_bias_H
    )
    rates = {"feature_dropout": feature_dropout, "hidden_dropout": hidden_dropout}
    check_dropout(seed, site, weight_HD.device, sites=2, **rates)
    if packed is not None:
        _check_packed(packed, patch_mask_BP, weight_HD)
    if weight_HD.dtype == torch.float64 and features_IPD.dtype != torch.float64:
        features_IPD = features_IPD.double()  # the kernels mix the narrower dtypes only
    placement = (None, None, None, 0) if packed is None else packed
    return torch.ops.fashionbert_fast.masked_patch_embed(
        features_IPD, patch_mask_BP, weight_HD, position_PH, segment_H, ln_weight_H, ln_bias_H, eps, image_index_B,
        scale_IP, feature_dropout, hidden_dropout, seed, site, *placement,
    )[0]  # fmt: skip


def _check_features(features_IPD, scale_IP, weight_HD) -> None:
    check_floating("weight_HD", weight_HD)
    if weight_HD.dtype == torch.float64 and weight_HD.is_cuda:
        raise ValueError("weight_HD is float64 on CUDA: float64 is for checking gradients on a CPU; use float32")
    quantised = isinstance(features_IPD, torch.Tensor) and features_IPD.dtype in (torch.int8, *FLOAT8)
    if not quantised:
        check_floating("features_IPD", features_IPD)
    if features_IPD.dim() != 3:
        raise ValueError(f"features_IPD must have shape (I, P, D), got {tuple(features_IPD.shape)}")
    narrower = weight_HD.dtype != torch.float64
    if narrower == (features_IPD.dtype == torch.float64) and (narrower or quantised):
        raise ValueError(f"features_IPD is {features_IPD.dtype} but weight_HD is {weight_HD.dtype}: cast one of them")
    if features_IPD.dtype == torch.float8_e4m3fn and features_IPD.is_cuda:
        check_float8(torch.cuda.get_device_capability(features_IPD.device))
    if scale_IP is None:
        if features_IPD.dtype == torch.int8:
            raise ValueError("scale_IP is missing: int8 features need one a row")
        return
    if not quantised:
        raise ValueError(f"scale_IP goes with int8 and float8 features, not with {features_IPD.dtype}")
    _check_tensor("scale_IP", scale_IP, features_IPD.shape[:2], torch.float32, features_IPD.device)


def check_float8(capability: tuple[int, int]) -> None:
    """ValueError where a GPU of that capability cannot read float8_e4m3fn: Triton compiles it for sm_89 and later."""
    if capability < (8, 9):
        raise ValueError(
            "features_IPD is float8_e4m3fn, which needs sm_89 or later; this GPU is "
            f"sm_{capability[0]}{capability[1]}: use float8_e5m2 or int8 with scale_IP"
        )


def _check_tensor(name, tensor, shape, dtype, device) -> None:
    if not isinstance(tensor, torch.Tensor) or tensor.dtype != dtype:
        raise ValueError(f"{name} must be a {dtype} tensor, got {getattr(tensor, 'dtype', type(tensor).__name__)}")
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device} but must be on {device}: move it")


def _check_parameters(
    features_IPD, patch_mask_BP, image_index_B, weight_HD, position_PH, segment_H, ln_weight_H, ln_bias_H
) -> None:
    images, P, D = features_IPD.shape
    device = features_IPD.device
    if image_index_B is not None:
        _check_tensor("image_index_B", image_index_B, image_index_B.shape[:1], torch.int64, device)
    B = images if image_index_B is None else image_index_B.shape[0]
    _check_tensor("patch_mask_BP", patch_mask_BP, (B, P), torch.bool, device)
    if weight_HD.dim() != 2:
        raise ValueError(f"weight_HD must have shape (H, {D}), got {tuple(weight_HD.shape)}")
    H = weight_HD.shape[0]
    _check_tensor("weight_HD", weight_HD, (H, D), weight_HD.dtype, device)
    named = {"segment_H": segment_H, "ln_weight_H": ln_weight_H, "ln_bias_H": ln_bias_H}
    for name, tensor in {"position_PH": position_PH, **named}.items():
        check_floating(name, tensor)
        check_same(name, tensor, "weight_HD", weight_HD)
        _check_tensor(name, tensor, (P, H) if name == "position_PH" else (H,), weight_HD.dtype, device)


def _check_packed(packed: PackedRows, patch_mask_BP, weight_HD) -> None:
    text_NH, text_row_N, patch_row_B, rows = packed
    check_floating("text_NH", text_NH)
    if text_NH.dim() != 2:
        raise ValueError(f"text_NH must have shape (N, H), got {tuple(text_NH.shape)}")
    check_same("text_NH", text_NH, "weight_HD", weight_HD)
    _check_tensor("text_NH", text_NH, (text_NH.shape[0], weight_HD.shape[0]), weight_HD.dtype, weight_HD.device)
    _check_tensor("text_row_N", text_row_N, text_NH.shape[:1], torch.int64, weight_HD.device)
    _check_tensor("patch_row_B", patch_row_B, patch_mask_BP.shape[:1], torch.int64, weight_HD.device)
    if rows < 0:
        raise ValueError(f"packed.rows must not be negative, got {rows}")
