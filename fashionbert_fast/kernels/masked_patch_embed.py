"""masked_patch_embed: patch features to embeddings, masked patches counting as zeros.

Formula (EasyTransfer's imagebert embedding): LayerNorm(masked(features) @ weight.T + position + segment). The
projection has no bias, so a masked patch contributes exactly zero before position and segment: it is neither loaded nor
multiplied. In training there is dropout on the feature and on the result; kernels/dropout.py has the mask, whose row is
b P + p, whose column is the feature or the hidden unit, and which the backward draws again. Features may be stored in
8 bits, times a scale a row.

Shapes: B pairs, I distinct images, P patches, D patch feature, H hidden, N = B P rows (of text_NH: text tokens), R rows
of the packed sequence.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

from fashionbert_fast.kernels._library import check_floating, check_same, on_device_of_first, reverse_mode_only
from fashionbert_fast.kernels.dropout import keep_reference, keep_tile, scale_of, threshold_of

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


# Reference -----------------------------------------------------------------------------------------------------------
def masked_patch_embed_reference(
    features_IPD, patch_mask_BP, weight_HD, position_PH, segment_H, ln_weight_H, ln_bias_H, *, eps=1e-12,
    image_index_B=None, scale_IP=None, feature_dropout=0.0, hidden_dropout=0.0, seed=None, stream=0,
):  # fmt: skip
    """The formula in plain PyTorch: what tests and benchmarks compare with."""
    features_BPD = features_IPD if image_index_B is None else features_IPD[image_index_B]
    if scale_IP is not None:
        scale_BP = scale_IP if image_index_B is None else scale_IP[image_index_B]
        features_BPD = features_BPD.to(torch.promote_types(weight_HD.dtype, torch.float32)) * scale_BP[..., None]
    features_BPD = features_BPD.to(weight_HD.dtype)
    features_BPD = _dropout_reference(features_BPD, feature_dropout, seed, stream)
    masked_BPD = features_BPD.masked_fill(patch_mask_BP[..., None], 0)
    embedded_BPH = F.linear(masked_BPD, weight_HD) + position_PH + segment_H
    normal_BPH = F.layer_norm(embedded_BPH, (weight_HD.shape[0],), ln_weight_H, ln_bias_H, eps)
    return _dropout_reference(normal_BPH, hidden_dropout, seed, stream + 1)


def masked_patch_embed_packed_reference(text_NH, text_row_N, patch_row_B, packed_rows, *args, **kwargs):
    """The same into a packed sequence."""
    patches_BPH = masked_patch_embed_reference(*args, **kwargs)
    row_BP = patch_row_B[:, None] + torch.arange(patches_BPH.shape[1], device=patch_row_B.device)
    out_RH = patches_BPH.new_zeros(packed_rows, patches_BPH.shape[2]).index_copy(0, text_row_N, text_NH)
    return out_RH.index_copy(0, row_BP.flatten(), patches_BPH.flatten(0, 1))


def _dropout_reference(x_BPC, p, seed, stream):
    if p == 0:
        return x_BPC
    rows_BP = torch.arange(x_BPC.shape[0] * x_BPC.shape[1]).view(x_BPC.shape[:2])
    keep_BPC = keep_reference(int(seed), stream, rows_BP, x_BPC.shape[2], p).to(x_BPC.device)
    return torch.where(keep_BPC, x_BPC * scale_of(p), 0)


# Triton --------------------------------------------------------------------------------------------------------------
@triton.jit
def _unmasked_rows(mask_N, rows_N, count, N, BLOCK: tl.constexpr):
    """The unmasked row numbers in order, and how many they are: one program, so that nothing waits for the host."""
    found = 0
    for first in range(0, N, BLOCK):
        row = first + tl.arange(0, BLOCK)
        keep = tl.load(mask_N + row, mask=row < N, other=1) == 0
        place = found + tl.cumsum(keep.to(tl.int32), 0) - 1
        tl.store(rows_N + place, row, mask=keep)
        found += tl.sum(keep.to(tl.int32), 0)
    tl.store(count, found)


@triton.jit
def _keep_bits(rows_N, count, bits, seed, stream, threshold, ROWS: tl.constexpr):
    """Of ROWS unmasked rows and 128 columns a bit each, 1: kept; eight columns a byte. Drawn here once, because every
    tile of the products would draw it again, and run out of registers doing so."""
    slot = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    unmasked = tl.load(count)
    if tl.program_id(0) * ROWS >= unmasked:
        return
    valid = slot < unmasked
    row = tl.load(rows_N + slot, mask=valid, other=0)
    block, blocks = tl.program_id(1), tl.num_programs(1)
    keep = keep_tile(tl.load(seed), stream, 0, row, block, threshold, ROWS, 1)
    byte = tl.sum(tl.reshape(keep.to(tl.int32), (ROWS, 16, 8)) << tl.arange(0, 8)[None, None, :], 2)
    place = slot.to(tl.int64)[:, None] * (16 * blocks) + 16 * block + tl.arange(0, 16)[None, :]
    tl.store(bits + place, byte.to(tl.uint8), mask=valid[:, None])


@triton.jit
def _feature_tile(
    features, scale, image_index, image_stride, patch_stride, images, P, D, bits, factor, slot, rows, valid, first,
    INDEX: tl.constexpr, SCALE: tl.constexpr, DROPOUT: tl.constexpr, COLUMNS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """(slots, COLUMNS) of the features, dequantised and dropped; zeros where image_index points nowhere."""
    column = first + tl.arange(0, COLUMNS)
    pair, patch = rows // P, rows % P
    image = pair
    if INDEX:
        image = tl.load(image_index + pair, mask=valid, other=0)
    known = (image >= 0) & (image < images)
    place = image.to(tl.int64) * image_stride + patch * patch_stride
    inside = (valid & known)[:, None] & (column < D)[None, :]
    where = features + place[:, None] + column[None, :]
    if features.dtype.element_ty == TYPE and not SCALE and not DROPOUT:
        x = tl.load(where, mask=inside, other=0.0)  # nothing in the way of an asynchronous copy to the product
    else:
        x = tl.where(inside, tl.load(where, mask=inside).to(tl.float32), 0.0)
        if SCALE:
            x *= tl.load(scale + image * P + patch, mask=valid & known, other=0.0)[:, None]
        if DROPOUT:
            byte_of_row = slot.to(tl.int64)[:, None] * (tl.cdiv(D, 128) * 16)
            byte = tl.load(bits + byte_of_row + (column // 8)[None, :], mask=inside, other=0).to(tl.int32)
            x = tl.where(((byte >> (column % 8)[None, :]) & 1) != 0, x * factor, 0.0)
    return x.to(TYPE)


@triton.jit
def _project(
    features, scale, image_index, image_stride, patch_stride, images, P, D, bits, factor, rows_N, count, weight_HD,
    projection_NH, H, INDEX: tl.constexpr, SCALE: tl.constexpr, DROPOUT: tl.constexpr,
    ROWS: tl.constexpr, HIDDEN: tl.constexpr, COLUMNS: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A (ROWS, HIDDEN) tile of features @ weight.T over the unmasked rows; tiles past them end at once."""
    tile, hidden_tile = tl.program_id(0) // tl.cdiv(H, HIDDEN), tl.program_id(0) % tl.cdiv(H, HIDDEN)
    slot = tile * ROWS + tl.arange(0, ROWS)
    unmasked = tl.load(count)
    if tile * ROWS >= unmasked:
        return
    valid = slot < unmasked
    row = tl.load(rows_N + slot, mask=valid, other=0)
    hidden = hidden_tile * HIDDEN + tl.arange(0, HIDDEN)
    total = tl.zeros((ROWS, HIDDEN), tl.float32)
    for first in range(0, D, COLUMNS):
        x = _feature_tile(
            features, scale, image_index, image_stride, patch_stride, images, P, D, bits, factor, slot, row, valid,
            first, INDEX, SCALE, DROPOUT, COLUMNS, TYPE,
        )  # fmt: skip
        column = first + tl.arange(0, COLUMNS)
        inside = (column < D)[:, None] & (hidden < H)[None, :]
        w = tl.load(weight_HD + hidden[None, :] * D + column[:, None], mask=inside, other=0.0).to(TYPE)
        total = tl.dot(x, w, total, input_precision=PRECISION)
    if INDEX:
        image = tl.load(image_index + row // P, mask=valid, other=0)
        total = tl.where(((image >= 0) & (image < images))[:, None], total, float("nan"))
    place = row[:, None] * H + hidden[None, :]
    tl.store(projection_NH + place, total, mask=valid[:, None] & (hidden < H)[None, :])


@triton.jit
def _hidden_keep(seed, stream, row, threshold, BLOCKS: tl.constexpr):
    keep = keep_tile(tl.load(seed), stream, 0, row + tl.arange(0, 1), 0, threshold, 1, BLOCKS)
    return tl.reshape(keep, (BLOCKS * 128,))


@triton.jit
def _finish(
    projection_NH, mask_N, position_PH, segment_H, ln_weight_H, ln_bias_H, patch_row_B, out, stats_N2, P, H, size, eps,
    seed, stream, threshold, factor, PACKED: tl.constexpr, DROPOUT: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Position, segment, LayerNorm and dropout of one row, to its place."""
    row, column = tl.program_id(0), tl.arange(0, BLOCKS * 128)
    inside = column < H
    masked = tl.load(mask_N + row + 0 * column) != 0
    x = tl.load(projection_NH + row * H + column, mask=inside & (masked == 0), other=0.0).to(tl.float32)
    tl.store(projection_NH + row * H + column, tl.zeros_like(x), mask=inside & masked)
    x += tl.load(position_PH + row % P * H + column, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(segment_H + column, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, 0) / H
    centred = tl.where(inside, x - mean, 0.0)
    rstd = 1 / tl.sqrt_rn(tl.sum(centred * centred, 0) / H + eps)
    tl.store(stats_N2 + 2 * row, mean)
    tl.store(stats_N2 + 2 * row + 1, rstd)
    y = centred * rstd * tl.load(ln_weight_H + column, mask=inside, other=0.0).to(tl.float32)
    y += tl.load(ln_bias_H + column, mask=inside, other=0.0).to(tl.float32)
    if DROPOUT:
        y = tl.where(_hidden_keep(seed, stream, row, threshold, BLOCKS), y * factor, 0.0)
    place = row.to(tl.int64)
    if PACKED:
        place = tl.load(patch_row_B + row // P) + row % P
    place = place * H + column
    tl.store(out + place, y, mask=inside & (place >= 0) & (place < size))


@triton.jit
def _finish_backward(
    grad_out, projection_NH, mask_N, position_PH, segment_H, ln_weight_H, patch_row_B, stats_N2, grad_NH, sums_3PSH,
    B, P, H, size, seed, stream, threshold, factor, PACKED: tl.constexpr, DROPOUT: tl.constexpr, SPLITS: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    """Every SPLITS-th pair's row of one position: its gradient before LayerNorm, and the parameters' sums over them."""
    patch, split, column = tl.program_id(0), tl.program_id(1), tl.arange(0, BLOCKS * 128)
    inside = column < H
    start = tl.load(position_PH + patch * H + column, mask=inside, other=0.0).to(tl.float32)
    start += tl.load(segment_H + column, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(ln_weight_H + column, mask=inside, other=0.0).to(tl.float32)
    of_position = tl.zeros((BLOCKS * 128,), tl.float32)
    of_weight = tl.zeros((BLOCKS * 128,), tl.float32)
    of_bias = tl.zeros((BLOCKS * 128,), tl.float32)
    for pair in range(split, B, SPLITS):
        row = pair * P + patch
        masked = tl.load(mask_N + row + 0 * column) != 0
        place = row.to(tl.int64)
        if PACKED:
            place = tl.load(patch_row_B + pair) + patch
        place = place * H + column
        g = tl.load(grad_out + place, mask=inside & (place >= 0) & (place < size), other=0.0).to(tl.float32)
        if DROPOUT:
            g = tl.where(_hidden_keep(seed, stream, row, threshold, BLOCKS), g * factor, 0.0)
        x = start + tl.load(projection_NH + row * H + column, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(stats_N2 + 2 * row + 1)
        normal = tl.where(inside, (x - tl.load(stats_N2 + 2 * row)) * rstd, 0.0)
        of_weight += g * normal
        of_bias += g
        g *= weight
        g = (g - tl.sum(g, 0) / H - normal * (tl.sum(g * normal, 0) / H)) * rstd
        of_position += g
        tl.store(grad_NH + row * H + column, tl.where(masked, 0.0, g), mask=inside)
    place = (patch * SPLITS + split) * H + column
    size = P * SPLITS * H
    tl.store(sums_3PSH + place, of_position, mask=inside)
    tl.store(sums_3PSH + size + place, of_weight, mask=inside)
    tl.store(sums_3PSH + 2 * size + place, of_bias, mask=inside)


@triton.jit
def _weight_gradient(
    features, scale, image_index, image_stride, patch_stride, images, P, D, bits, factor, rows_N, count, grad_NH,
    sums_SHD, H, INDEX: tl.constexpr, SCALE: tl.constexpr, DROPOUT: tl.constexpr, SPLITS: tl.constexpr,
    ROWS: tl.constexpr, HIDDEN: tl.constexpr, COLUMNS: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A (HIDDEN, COLUMNS) tile of grad.T @ features over the split's share of the unmasked rows, in float32."""
    hidden_tile, column_tile, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    unmasked = tl.load(count)
    share = tl.cdiv(tl.cdiv(unmasked, ROWS), SPLITS) * ROWS
    hidden = hidden_tile * HIDDEN + tl.arange(0, HIDDEN)
    total = tl.zeros((HIDDEN, COLUMNS), tl.float32)
    for first in range(split * share, tl.minimum(split * share + share, unmasked), ROWS):
        slot = first + tl.arange(0, ROWS)
        valid = slot < unmasked
        row = tl.load(rows_N + slot, mask=valid, other=0)
        inside = (hidden < H)[:, None] & valid[None, :]
        g = tl.load(grad_NH + row[None, :] * H + hidden[:, None], mask=inside, other=0.0).to(TYPE)
        x = _feature_tile(
            features, scale, image_index, image_stride, patch_stride, images, P, D, bits, factor, slot, row, valid,
            column_tile * COLUMNS, INDEX, SCALE, DROPOUT, COLUMNS, TYPE,
        )  # fmt: skip
        total = tl.dot(g, x, total, input_precision=PRECISION)
    column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    place = (split * H + hidden)[:, None] * D + column[None, :]
    tl.store(sums_SHD + place, total, mask=(hidden < H)[:, None] & (column < D)[None, :])


@triton.jit
def _feature_gradient(
    product_ND, mask_N, image_index, out_IPD, B, P, D, seed, stream, threshold, factor, INDEX: tl.constexpr,
    DROPOUT: tl.constexpr,
):  # fmt: skip
    """128 columns of the gradient of one feature row: the sum over the pairs that use it, in their order."""
    image, patch, block = tl.program_id(0) // P, tl.program_id(0) % P, tl.program_id(1)
    column = block * 128 + tl.arange(0, 128)
    total = tl.zeros((128,), tl.float32)
    begin, end = image, image + 1
    if INDEX:
        begin, end = image * 0, image * 0 + B
    for pair in range(begin, end):
        row = pair * P + patch
        used = tl.load(mask_N + row) == 0
        if INDEX:
            used = used & (tl.load(image_index + pair) == image)
        if used:
            g = tl.load(product_ND + row.to(tl.int64) * D + column, mask=column < D, other=0.0).to(tl.float32)
            if DROPOUT:
                keep = keep_tile(tl.load(seed), stream, 0, row + tl.arange(0, 1), block, threshold, 1, 1)
                g = tl.where(tl.reshape(keep, (128,)), g * factor, 0.0)
            total += g
    place = tl.program_id(0).to(tl.int64) * D + column
    tl.store(out_IPD + place, total, mask=column < D)


# Launch --------------------------------------------------------------------------------------------------------------
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def _dropout_arguments(p: float, stream: int) -> tuple[int, int, float]:
    return stream, threshold_of(p), scale_of(p)


def _feature_arguments(features_IPD, image_index_B, scale_IP, rows_N, count, p, seed, stream):
    """What the products take first, and their switches. Draws the features' dropout for the rows in ``rows_N``."""
    blocks, bits = triton.cdiv(features_IPD.shape[2], 128), None
    if p > 0:
        bits = torch.empty(rows_N.shape[0], 16 * blocks, dtype=torch.uint8, device=rows_N.device)
        grid = (triton.cdiv(rows_N.shape[0], 16), blocks)
        _keep_bits[grid](rows_N, count, bits, seed, stream, threshold_of(p), ROWS=16)
    arguments = (
        features_IPD, scale_IP, image_index_B, features_IPD.stride(0), features_IPD.stride(1), *features_IPD.shape,
        bits, scale_of(p), rows_N, count,
    )  # fmt: skip
    return arguments, {"INDEX": image_index_B is not None, "SCALE": scale_IP is not None, "DROPOUT": p > 0}


def _product_arguments(weight_HD: torch.Tensor) -> dict:
    """The type of the products and how float32 is multiplied. The interpreter multiplies nothing narrower."""
    exact = torch.get_float32_matmul_precision() == "highest"
    kind = tl.float32 if isinstance(_project, InterpretedFunction) else TYPES[weight_HD.dtype]
    return {"TYPE": kind, "PRECISION": "ieee" if exact else "tf32"}


def _tile(weight_HD: torch.Tensor) -> dict:
    """Tile of the forward's product."""
    wide = weight_HD.dtype == torch.float32
    side = 64 if wide else 128
    return {"ROWS": side, "HIDDEN": side, "COLUMNS": side // 2, "num_warps": 4 if wide else 8, "num_stages": 3}


def _unmasked(mask_BP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows_N = torch.empty(max(mask_BP.numel(), 1), dtype=torch.int32, device=mask_BP.device)
    count = torch.empty(1, dtype=torch.int32, device=mask_BP.device)
    _unmasked_rows[(1,)](mask_BP.view(torch.uint8), rows_N, count, mask_BP.numel(), BLOCK=4096)
    return rows_N, count


def _blocks(width: int) -> int:
    return max(triton.next_power_of_2(triton.cdiv(width, 128)), 1)


@on_device_of_first
def _launch(
    features_IPD, mask_BP, weight_HD, position_PH, segment_H, ln_weight_H, ln_bias_H, eps, image_index_B, scale_IP,
    feature_dropout, hidden_dropout, seed, stream, text_NH, text_row_N, patch_row_B, packed_rows,
):  # fmt: skip
    """The forward: `_unmasked_rows`, `_project`, `_finish`."""
    (B, P), (H, _) = mask_BP.shape, weight_HD.shape
    projection_NH = weight_HD.new_empty(B * P, H)
    stats_N2 = weight_HD.new_empty((B * P, 2), dtype=torch.float32)
    if text_NH is None:
        out = weight_HD.new_empty(B, P, H)
    else:
        out = weight_HD.new_zeros(packed_rows, H).index_copy_(0, text_row_N, text_NH)
    if projection_NH.numel() == 0:
        return out, projection_NH, stats_N2
    mask_BP, weight_HD, features_IPD = mask_BP.contiguous(), weight_HD.contiguous(), _rows_contiguous(features_IPD)
    rows_N, count = _unmasked(mask_BP)
    tile, drop = _tile(weight_HD), (feature_dropout, seed, stream)
    arguments, switches = _feature_arguments(features_IPD, image_index_B, scale_IP, rows_N, count, *drop)
    grid = (triton.cdiv(B * P, tile["ROWS"]) * triton.cdiv(H, tile["HIDDEN"]),)
    _project[grid](*arguments, weight_HD, projection_NH, H, **switches, **tile, **_product_arguments(weight_HD))
    _finish[(B * P,)](
        projection_NH, mask_BP.view(torch.uint8), position_PH.contiguous(), segment_H.contiguous(),
        ln_weight_H.contiguous(), ln_bias_H.contiguous(), patch_row_B, out, stats_N2, P, H, out.numel(), eps, seed,
        *_dropout_arguments(hidden_dropout, stream + 1), PACKED=text_NH is not None, DROPOUT=hidden_dropout > 0,
        BLOCKS=_blocks(H),
    )  # fmt: skip
    return out, projection_NH, stats_N2


def _rows_contiguous(features_IPD: torch.Tensor) -> torch.Tensor:
    return features_IPD if features_IPD.stride(2) == 1 else features_IPD.contiguous()


@on_device_of_first
def _launch_backward(
    grad_out, features_IPD, mask_BP, weight_HD, position_PH, segment_H, ln_weight_H, image_index_B, scale_IP,
    feature_dropout, hidden_dropout, seed, stream, patch_row_B, projection_NH, stats_N2, features_gradient,
    weight_gradient,
):  # fmt: skip
    """The backward: `_finish_backward`, then the products of the gradients asked for."""
    (B, P), (H, D) = mask_BP.shape, weight_HD.shape
    splits = max(1, min(B, 1024 // max(P, 1)))  # by the shapes alone: the sums are the same on every GPU
    grad_NH = torch.empty_like(projection_NH)
    sums_3PSH = stats_N2.new_zeros(3, P, splits, H)
    mask_BP, grad_out, features_IPD = mask_BP.contiguous(), grad_out.contiguous(), _rows_contiguous(features_IPD)
    weight_HD, mask_N = weight_HD.contiguous(), mask_BP.view(torch.uint8)
    if grad_NH.numel():
        _finish_backward[(P, splits)](
            grad_out, projection_NH, mask_N, position_PH.contiguous(), segment_H.contiguous(),
            ln_weight_H.contiguous(), patch_row_B, stats_N2, grad_NH, sums_3PSH, B, P, H, grad_out.numel(), seed,
            *_dropout_arguments(hidden_dropout, stream + 1), PACKED=patch_row_B is not None,
            DROPOUT=hidden_dropout > 0, SPLITS=splits, BLOCKS=_blocks(H),
        )  # fmt: skip
    of_3PH = sums_3PSH.sum(2)
    of_segment_H, of_ln_weight_H, of_ln_bias_H = of_3PH.sum(1).to(weight_HD.dtype).unbind()
    of_features, of_weight = features_IPD.new_empty(0), weight_HD.new_empty(0)
    if weight_gradient:
        drop = (feature_dropout, seed, stream)
        of_weight = _launch_weight_gradient(features_IPD, image_index_B, scale_IP, mask_BP, weight_HD, grad_NH, *drop)
    if features_gradient:
        of_features = torch.zeros(features_IPD.shape, dtype=features_IPD.dtype, device=features_IPD.device)
        if of_features.numel() and grad_NH.numel():
            _feature_gradient[(of_features.shape[0] * P, triton.cdiv(D, 128))](
                grad_NH @ weight_HD, mask_N, image_index_B, of_features, B, P, D, seed,
                *_dropout_arguments(feature_dropout, stream), INDEX=image_index_B is not None,
                DROPOUT=feature_dropout > 0,
            )  # fmt: skip
    of_position_PH = of_3PH[0].to(weight_HD.dtype, copy=True)
    return of_features, of_weight, of_position_PH, of_segment_H.clone(), of_ln_weight_H.clone(), of_ln_bias_H.clone()


def _launch_weight_gradient(features_IPD, image_index_B, scale_IP, mask_BP, weight_HD, grad_NH, p, seed, stream):
    (H, D), N = weight_HD.shape, mask_BP.numel()
    if N * H * D == 0:
        return torch.zeros_like(weight_HD)
    rows_N, count = _unmasked(mask_BP)
    arguments, switches = _feature_arguments(features_IPD, image_index_B, scale_IP, rows_N, count, p, seed, stream)
    hidden = 64 if weight_HD.dtype == torch.float32 else 128
    tiles = triton.cdiv(H, hidden) * triton.cdiv(D, 128)
    splits = max(1, min(triton.cdiv(N, 1024), 512 // tiles))  # enough programs for a GPU, by the shapes alone
    sums_SHD = weight_HD.new_empty((splits, H, D), dtype=torch.float32)
    _weight_gradient[(triton.cdiv(H, hidden), triton.cdiv(D, 128), splits)](
        *arguments, grad_NH, sums_SHD, H, SPLITS=splits, ROWS=16 if hidden == 64 else 64, HIDDEN=hidden, COLUMNS=128,
        num_warps=8, num_stages=3, **switches, **_product_arguments(weight_HD),
    )  # fmt: skip
    return sums_SHD.sum(0).to(weight_HD.dtype)


torch.library.impl("fashionbert_fast::masked_patch_embed", "CUDA")(_launch)
torch.library.impl("fashionbert_fast::masked_patch_embed_backward", "CUDA")(_launch_backward)


# Registration; the CPU's kernel is csrc/cpu/masked_patch_embed.cpp ---------------------------------------------------
@torch.library.register_fake("fashionbert_fast::masked_patch_embed")
def _(
    features_IPD, mask_BP, weight_HD, position_PH, segment_H, ln_weight_H, ln_bias_H, eps, image_index_B, scale_IP,
    feature_dropout, hidden_dropout, seed, stream, text_NH, text_row_N, patch_row_B, packed_rows,
):  # fmt: skip
    (B, P), H = mask_BP.shape, weight_HD.shape[0]
    stats = torch.float64 if weight_HD.dtype == torch.float64 else torch.float32
    out = weight_HD.new_empty((B, P, H) if text_NH is None else (packed_rows, H))
    return out, weight_HD.new_empty(B * P, H), weight_HD.new_empty((B * P, 2), dtype=stats)


@torch.library.register_fake("fashionbert_fast::masked_patch_embed_backward")
def _(
    grad_out, features_IPD, mask_BP, weight_HD, position_PH, segment_H, ln_weight_H, image_index_B, scale_IP,
    feature_dropout, hidden_dropout, seed, stream, patch_row_B, projection_NH, stats_N2, features_gradient,
    weight_gradient,
):  # fmt: skip
    of_features = features_IPD.new_empty(features_IPD.shape if features_gradient else (0,))
    of_weight = weight_HD.new_empty(weight_HD.shape if weight_gradient else (0,))
    vectors = (weight_HD.new_empty(segment_H.shape) for _ in range(3))
    return of_features, of_weight, weight_HD.new_empty(position_PH.shape), *vectors


def _setup_context(ctx, inputs, output):
    (*tensors, _ln_bias_H, _eps, image_index_B, scale_IP, ctx.feature_dropout, ctx.hidden_dropout, seed, ctx.stream,
     _text_NH, text_row_N, patch_row_B, _packed_rows) = inputs  # fmt: skip
    ctx.save_for_backward(*tensors, image_index_B, scale_IP, seed, text_row_N, patch_row_B, *output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_out, _grad_projection, _grad_stats):
    if grad_out is None:
        return (None,) * 18
    *tensors, image_index_B, scale_IP, seed, text_row_N, patch_row_B, projection_NH, stats_N2 = ctx.saved_tensors
    features, weight = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
    of_features, of_weight, *of_rest = torch.ops.fashionbert_fast.masked_patch_embed_backward(
        grad_out, *tensors, image_index_B, scale_IP, ctx.feature_dropout, ctx.hidden_dropout, seed, ctx.stream,
        patch_row_B, projection_NH, stats_N2, features, weight,
    )  # fmt: skip
    of_text = grad_out.index_select(0, text_row_N) if ctx.needs_input_grad[14] else None
    of_features, of_weight = of_features if features else None, of_weight if weight else None
    return of_features, None, of_weight, *of_rest, *(None,) * 7, of_text, None, None, None


torch.library.register_autograd("fashionbert_fast::masked_patch_embed", _backward, setup_context=_setup_context)


# Public functions ----------------------------------------------------------------------------------------------------
@reverse_mode_only
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
    stream: int = 0,
) -> torch.Tensor:
    """Patch embeddings (B, P, H), in the dtype of ``weight_HD`` (of autocast, where that is on).

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
        seed: (1,) int64 on the device, needed for dropout. stream: where in the model this is, at most 2^32 - 2; it
            also takes ``stream + 1``.

    Raises:
        ValueError: naming the argument whose shape, dtype, device or value is wrong.
    """
    return _embed(
        features_IPD, patch_mask_BP, weight_HD, position_PH, segment_H, ln_weight_H, ln_bias_H, eps, image_index_B,
        scale_IP, feature_dropout, hidden_dropout, seed, stream, None, None, None, 0,
    )  # fmt: skip


@reverse_mode_only
def masked_patch_embed_packed(
    text_NH: torch.Tensor,
    text_row_N: torch.Tensor,
    patch_row_B: torch.Tensor,
    packed_rows: int,
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
    stream: int = 0,
) -> torch.Tensor:
    """`masked_patch_embed` written straight into a packed sequence (packed_rows, H), beside the text.

    Args:
        text_NH: (N, H) finished text embeddings, of the weight's dtype. text_row_N: (N,) int64, the row of each.
        patch_row_B: (B,) int64: patch p of pair b goes to row ``patch_row_B[b] + p``.
        packed_rows: rows of the result; those that neither names are zeros. A row that is out of range or given twice
            is a RuntimeError on CPU; on CUDA a patch out of range is left out.

    Raises:
        ValueError: naming the argument whose shape, dtype, device or value is wrong.
    """
    _check_packed(text_NH, text_row_N, patch_row_B, packed_rows, patch_mask_BP, weight_HD)
    return _embed(
        features_IPD, patch_mask_BP, weight_HD, position_PH, segment_H, ln_weight_H, ln_bias_H, eps, image_index_B,
        scale_IP, feature_dropout, hidden_dropout, seed, stream, text_NH, text_row_N, patch_row_B, packed_rows,
    )  # fmt: skip


def _embed(
    features_IPD, patch_mask_BP, weight_HD, position_PH, segment_H, ln_weight_H, ln_bias_H, eps, image_index_B,
    scale_IP, feature_dropout, hidden_dropout, seed, stream, text_NH, *packing,
) -> torch.Tensor:  # fmt: skip
    _check_features(features_IPD, scale_IP, weight_HD)
    _check_parameters(
        features_IPD, patch_mask_BP, image_index_B, weight_HD, position_PH, segment_H, ln_weight_H, ln_bias_H
    )
    _check_dropout(feature_dropout, hidden_dropout, seed, stream, weight_HD.device)
    if weight_HD.dtype == torch.float64 and features_IPD.dtype != torch.float64:
        features_IPD = features_IPD.double()  # the kernels mix the narrower dtypes only
    parameters = [weight_HD, position_PH, segment_H, ln_weight_H, ln_bias_H, text_NH]
    if torch.is_autocast_enabled(weight_HD.device.type):
        dtype = torch.get_autocast_dtype(weight_HD.device.type)
        parameters = [None if x is None else x.to(dtype) for x in parameters]
    *parameters, text_NH = parameters
    return torch.ops.fashionbert_fast.masked_patch_embed(
        features_IPD, patch_mask_BP, *parameters, eps, image_index_B, scale_IP, feature_dropout, hidden_dropout, seed,
        stream, text_NH, *packing,
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
    if scale_IP is None:
        if features_IPD.dtype == torch.int8:
            raise ValueError("scale_IP is missing: int8 features need one a row")
        return
    if not quantised:
        raise ValueError(f"scale_IP goes with int8 and float8 features, not with {features_IPD.dtype}")
    _check_tensor("scale_IP", scale_IP, features_IPD.shape[:2], torch.float32, features_IPD.device)


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


def _check_dropout(feature_dropout, hidden_dropout, seed, stream, device) -> None:
    for name, p in (("feature_dropout", feature_dropout), ("hidden_dropout", hidden_dropout)):
        if not 0 <= p <= 1:
            raise ValueError(f"{name} must be a probability in [0, 1], got {p}")
    if not 0 <= stream <= 2**32 - 2:
        raise ValueError(f"stream must be 0 to 2^32 - 2, got {stream}")
    if seed is not None:
        _check_tensor("seed", seed, (1,), torch.int64, device)
    elif feature_dropout > 0 or hidden_dropout > 0:
        raise ValueError("seed is missing: dropout needs one, see fashionbert_fast.kernels.dropout.draw_seed")


def _check_packed(text_NH, text_row_N, patch_row_B, packed_rows, patch_mask_BP, weight_HD) -> None:
    check_floating("text_NH", text_NH)
    check_floating("weight_HD", weight_HD)
    if text_NH.dim() != 2:
        raise ValueError(f"text_NH must have shape (N, H), got {tuple(text_NH.shape)}")
    check_same("text_NH", text_NH, "weight_HD", weight_HD)
    _check_tensor("text_NH", text_NH, (text_NH.shape[0], weight_HD.shape[0]), weight_HD.dtype, weight_HD.device)
    _check_tensor("text_row_N", text_row_N, text_NH.shape[:1], torch.int64, weight_HD.device)
    _check_tensor("patch_row_B", patch_row_B, patch_mask_BP.shape[:1], torch.int64, weight_HD.device)
    if packed_rows < 0:
        raise ValueError(f"packed_rows must not be negative, got {packed_rows}")
