"""masked_patch_embed on a GPU: kernels/masked_patch_embed.py has the formula.

The unmasked rows are counted and listed on the GPU, the matmuls visit no others, and one program a row does the rest.

Shapes: B pairs, I distinct images, P patches, D patch feature, H hidden, N = B P rows (of text_NH: text tokens), R rows
of the packed sequence.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

from fashionbert_fast.kernels._library import on_device_of_first
from fashionbert_fast.kernels.dropout import scale_of, threshold_of
from fashionbert_fast.kernels.triton.dropout import keep_tile

# Kernels -------------------------------------------------------------------------------------------------------------
# Triton compiles anew for an integer of 1, for one that 16 divides and for any other, unless it is named in
# do_not_specialize: there is what differs from batch to batch. Left out are the widths and strides whose divisibility
# lets a thread load 16 bytes, and totals of whole rows (`size`), which bound such loads.


@triton.jit  # N stays: it bounds the loads of 16 mask bytes at once
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


@triton.jit(do_not_specialize=["seed", "site", "threshold"])
def _keep_bits(rows_N, count, bits, seed, site, threshold, ROWS: tl.constexpr):
    """Of ROWS unmasked rows and 128 columns a bit each, 1: kept; eight columns a byte. Drawn here once, because every
    tile of the matmuls would draw it again, and run out of registers doing so."""
    slot = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    unmasked = tl.load(count)
    if tl.program_id(0) * ROWS >= unmasked:
        return
    valid = slot < unmasked
    row = tl.load(rows_N + slot, mask=valid, other=0)
    block, blocks = tl.program_id(1), tl.num_programs(1)
    keep = keep_tile(tl.load(seed), site, 0, row, block, threshold, ROWS, 1)
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
        x = tl.load(where, mask=inside, other=0.0)  # nothing in the way of an asynchronous copy to the matmul
    else:
        x = tl.where(inside, tl.load(where, mask=inside).to(tl.float32), 0.0)
        if SCALE:
            x *= tl.load(scale + image * P + patch, mask=valid & known, other=0.0)[:, None]
        if DROPOUT:
            byte_of_row = slot.to(tl.int64)[:, None] * (tl.cdiv(D, 128) * 16)
            byte = tl.load(bits + byte_of_row + (column // 8)[None, :], mask=inside, other=0).to(tl.int32)
            x = tl.where(((byte >> (column % 8)[None, :]) & 1) != 0, x * factor, 0.0)
    return x.to(TYPE)


@triton.jit(do_not_specialize=["images", "P"])
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
def _hidden_keep(seed, site, row, threshold, BLOCKS: tl.constexpr):
    keep = keep_tile(tl.load(seed), site, 0, row + tl.arange(0, 1), 0, threshold, 1, BLOCKS)
    return tl.reshape(keep, (BLOCKS * 128,))


@triton.jit(do_not_specialize=["P", "seed", "site", "threshold"])
def _finish(
    projection_NH, mask_N, position_PH, segment_H, ln_weight_H, ln_bias_H, patch_row_B, out, stats_N2, P, H, size, eps,
    seed, site, threshold, factor, PACKED: tl.constexpr, DROPOUT: tl.constexpr, BLOCKS: tl.constexpr,
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
        y = tl.where(_hidden_keep(seed, site, row, threshold, BLOCKS), y * factor, 0.0)
    place = row.to(tl.int64)
    if PACKED:
        place = tl.load(patch_row_B + row // P) + row % P
    place = place * H + column
    tl.store(out + place, y, mask=inside & (place >= 0) & (place < size))


@triton.jit(do_not_specialize=["B", "P", "seed", "site", "threshold"])
def _finish_backward(
    grad_out, projection_NH, mask_N, position_PH, segment_H, ln_weight_H, patch_row_B, stats_N2, grad_NH, sums_3PSH,
    B, P, H, size, seed, site, threshold, factor, PACKED: tl.constexpr, DROPOUT: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Every splits-th pair's row of one position: its gradient before LayerNorm, and the parameters' sums over them."""
    patch, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    column = tl.arange(0, BLOCKS * 128)
    inside = column < H
    start = tl.load(position_PH + patch * H + column, mask=inside, other=0.0).to(tl.float32)
    start += tl.load(segment_H + column, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(ln_weight_H + column, mask=inside, other=0.0).to(tl.float32)
    of_position = tl.zeros((BLOCKS * 128,), tl.float32)
    of_weight = tl.zeros((BLOCKS * 128,), tl.float32)
    of_bias = tl.zeros((BLOCKS * 128,), tl.float32)
    for pair in range(split, B, splits):
        row = pair * P + patch
        masked = tl.load(mask_N + row + 0 * column) != 0
        place = row.to(tl.int64)
        if PACKED:
            place = tl.load(patch_row_B + pair) + patch
        place = place * H + column
        g = tl.load(grad_out + place, mask=inside & (place >= 0) & (place < size), other=0.0).to(tl.float32)
        if DROPOUT:
            g = tl.where(_hidden_keep(seed, site, row, threshold, BLOCKS), g * factor, 0.0)
        x = start + tl.load(projection_NH + row * H + column, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(stats_N2 + 2 * row + 1)
        normal = tl.where(inside, (x - tl.load(stats_N2 + 2 * row)) * rstd, 0.0)
        of_weight += g * normal
        of_bias += g
        g *= weight
        g = (g - tl.sum(g, 0) / H - normal * (tl.sum(g * normal, 0) / H)) * rstd
        of_position += g
        tl.store(grad_NH + row * H + column, tl.where(masked, 0.0, g), mask=inside)
    place = (patch * splits + split) * H + column
    size = P * splits * H
    tl.store(sums_3PSH + place, of_position, mask=inside)
    tl.store(sums_3PSH + size + place, of_weight, mask=inside)
    tl.store(sums_3PSH + 2 * size + place, of_bias, mask=inside)


@triton.jit(do_not_specialize=["images", "P"])
def _weight_gradient(
    features, scale, image_index, image_stride, patch_stride, images, P, D, bits, factor, rows_N, count, grad_NH,
    sums_SHD, H, INDEX: tl.constexpr, SCALE: tl.constexpr, DROPOUT: tl.constexpr,
    ROWS: tl.constexpr, HIDDEN: tl.constexpr, COLUMNS: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A (HIDDEN, COLUMNS) tile of grad.T @ features over the split's share of the unmasked rows, in float32."""
    hidden_tile, column_tile, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    unmasked = tl.load(count)
    share = tl.cdiv(tl.cdiv(unmasked, ROWS), tl.num_programs(2)) * ROWS
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


@triton.jit(do_not_specialize=["B", "P", "seed", "site", "threshold"])
def _feature_gradient(
    grad_ND, mask_N, image_index, out_IPD, B, P, D, seed, site, threshold, factor, INDEX: tl.constexpr,
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
            g = tl.load(grad_ND + row.to(tl.int64) * D + column, mask=column < D, other=0.0).to(tl.float32)
            if DROPOUT:
                keep = keep_tile(tl.load(seed), site, 0, row + tl.arange(0, 1), block, threshold, 1, 1)
                g = tl.where(tl.reshape(keep, (128,)), g * factor, 0.0)
            total += g
    place = tl.program_id(0).to(tl.int64) * D + column
    tl.store(out_IPD + place, total, mask=column < D)


# Launch --------------------------------------------------------------------------------------------------------------
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def _dropout_arguments(p: float, site: int) -> tuple[int, int, float]:
    return site, threshold_of(p), scale_of(p)


def _feature_arguments(features_IPD, image_index_B, scale_IP, rows_N, count, p, seed, site):
    """What the matmuls take first, and their switches. Draws the features' dropout for the rows in ``rows_N``."""
    blocks, bits = triton.cdiv(features_IPD.shape[2], 128), None
    if p > 0:
        bits = torch.empty(rows_N.shape[0], 16 * blocks, dtype=torch.uint8, device=rows_N.device)
        grid = (triton.cdiv(rows_N.shape[0], 16), blocks)
        _keep_bits[grid](rows_N, count, bits, seed, site, threshold_of(p), ROWS=16)
    arguments = (
        features_IPD, scale_IP, image_index_B, features_IPD.stride(0), features_IPD.stride(1), *features_IPD.shape,
        bits, scale_of(p), rows_N, count,
    )  # fmt: skip
    return arguments, {"INDEX": image_index_B is not None, "SCALE": scale_IP is not None, "DROPOUT": p > 0}


def _matmul_arguments(weight_HD: torch.Tensor) -> dict:
    """The type of the matmuls and how float32 is multiplied. The interpreter multiplies nothing narrower."""
    exact = torch.backends.cuda.matmul.fp32_precision != "tf32"  # by either of torch's ways of asking for it
    kind = tl.float32 if isinstance(_project, InterpretedFunction) else TYPES[weight_HD.dtype]
    return {"TYPE": kind, "PRECISION": "ieee" if exact else "tf32"}


def _tile(weight_HD: torch.Tensor) -> dict:
    """Tile of the forward's matmul."""
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
def launch_forward(
    features_IPD, mask_BP, weight_HD, position_PH, segment_H, ln_weight_H, ln_bias_H, eps, image_index_B, scale_IP,
    feature_dropout, hidden_dropout, seed, site, text_NH, text_row_N, patch_row_B, packed_rows,
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
    tile, drop = _tile(weight_HD), (feature_dropout, seed, site)
    arguments, switches = _feature_arguments(features_IPD, image_index_B, scale_IP, rows_N, count, *drop)
    grid = (triton.cdiv(B * P, tile["ROWS"]) * triton.cdiv(H, tile["HIDDEN"]),)
    _project[grid](*arguments, weight_HD, projection_NH, H, **switches, **tile, **_matmul_arguments(weight_HD))
    _finish[(B * P,)](
        projection_NH, mask_BP.view(torch.uint8), position_PH.contiguous(), segment_H.contiguous(),
        ln_weight_H.contiguous(), ln_bias_H.contiguous(), patch_row_B, out, stats_N2, P, H, out.numel(), eps, seed,
        *_dropout_arguments(hidden_dropout, site + 1), PACKED=text_NH is not None, DROPOUT=hidden_dropout > 0,
        BLOCKS=_blocks(H),
    )  # fmt: skip
    return out, projection_NH, stats_N2


def _rows_contiguous(features_IPD: torch.Tensor) -> torch.Tensor:
    return features_IPD if features_IPD.stride(2) == 1 else features_IPD.contiguous()


@on_device_of_first
def launch_backward(
    grad_out, features_IPD, mask_BP, weight_HD, position_PH, segment_H, ln_weight_H, image_index_B, scale_IP,
    feature_dropout, hidden_dropout, seed, site, patch_row_B, projection_NH, stats_N2, features_gradient,
    weight_gradient,
):  # fmt: skip
    """The backward: `_finish_backward`, then the matmuls of the gradients asked for."""
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
            *_dropout_arguments(hidden_dropout, site + 1), PACKED=patch_row_B is not None,
            DROPOUT=hidden_dropout > 0, BLOCKS=_blocks(H),
        )  # fmt: skip
    of_3PH = sums_3PSH.sum(2)
    of_segment_H, of_ln_weight_H, of_ln_bias_H = of_3PH.sum(1).to(weight_HD.dtype).unbind()
    of_features, of_weight = features_IPD.new_empty(0), weight_HD.new_empty(0)
    if weight_gradient:
        drop = (feature_dropout, seed, site)
        of_weight = _launch_weight_gradient(features_IPD, image_index_B, scale_IP, mask_BP, weight_HD, grad_NH, *drop)
    if features_gradient:
        of_features = torch.zeros(features_IPD.shape, dtype=features_IPD.dtype, device=features_IPD.device)
        if of_features.numel() and grad_NH.numel():
            _feature_gradient[(of_features.shape[0] * P, triton.cdiv(D, 128))](
                grad_NH @ weight_HD, mask_N, image_index_B, of_features, B, P, D, seed,
                *_dropout_arguments(feature_dropout, site), INDEX=image_index_B is not None,
                DROPOUT=feature_dropout > 0,
            )  # fmt: skip
    of_position_PH = of_3PH[0].to(weight_HD.dtype, copy=True)
    return of_features, of_weight, of_position_PH, of_segment_H.clone(), of_ln_weight_H.clone(), of_ln_bias_H.clone()


def _launch_weight_gradient(features_IPD, image_index_B, scale_IP, mask_BP, weight_HD, grad_NH, p, seed, site):
    (H, D), N = weight_HD.shape, mask_BP.numel()
    if N * H * D == 0:
        return torch.zeros_like(weight_HD)
    rows_N, count = _unmasked(mask_BP)
    arguments, switches = _feature_arguments(features_IPD, image_index_B, scale_IP, rows_N, count, p, seed, site)
    hidden = 64 if weight_HD.dtype == torch.float32 else 128
    tiles = triton.cdiv(H, hidden) * triton.cdiv(D, 128)
    splits = max(1, min(triton.cdiv(N, 1024), 512 // tiles))  # enough programs for a GPU, by the shapes alone
    sums_SHD = weight_HD.new_empty((splits, H, D), dtype=torch.float32)
    _weight_gradient[(triton.cdiv(H, hidden), triton.cdiv(D, 128), splits)](
        *arguments, grad_NH, sums_SHD, H, ROWS=16 if hidden == 64 else 64, HIDDEN=hidden, COLUMNS=128,
        num_warps=8, num_stages=3, **switches, **_matmul_arguments(weight_HD),
    )  # fmt: skip
    return sums_SHD.sum(0).to(weight_HD.dtype)
