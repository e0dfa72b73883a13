"""min_norm_weights: the point of smallest norm in the convex hull of the task gradients (MGDA).

Formula (Desideri 2012; Sener & Koltun 2018): argmin_w w' G w subject to w >= 0, sum w = 1, where G is the Gram matrix
of the task gradients. Exact for T <= 4 by enumerating the faces of the simplex: the minimiser lies in the interior of
one face (a vertex, an edge, a triangle or the tetrahedron), where it solves a linear system.

Shapes: T tasks.
"""

from __future__ import annotations

from itertools import combinations

import torch

from fashionbert_fast.kernels._library import check_floating, reverse_mode_only

MAX_TASKS = 4  # csrc/common/min_norm_weights.h


# Reference -----------------------------------------------------------------------------------------------------------
def _edge(G_TT: torch.Tensor, i: int, j: int) -> torch.Tensor:
    """Minimiser on the edge between tasks i and j."""
    curvature = G_TT[i, i] + G_TT[j, j] - 2 * G_TT[i, j]
    share = torch.where(curvature > 0, (G_TT[j, j] - G_TT[i, j]) / curvature.clamp_min(1e-300), 0.5).clamp(0, 1)
    weights_T = torch.zeros_like(G_TT[0])
    weights_T[i], weights_T[j] = share, 1 - share
    return weights_T


def _triangle(G_TT: torch.Tensor) -> torch.Tensor:
    """Stationary point of the whole triangle, or a NaN row where the system is singular or the point lies outside.

    In the basis e = (g_0 - g_2, g_1 - g_2) minimise |g_2 + a e_0 + b e_1|^2: a 2 x 2 system by Cramer's rule.
    """
    e00 = G_TT[0, 0] - 2 * G_TT[0, 2] + G_TT[2, 2]
    e11 = G_TT[1, 1] - 2 * G_TT[1, 2] + G_TT[2, 2]
    e01 = G_TT[0, 1] - G_TT[0, 2] - G_TT[1, 2] + G_TT[2, 2]
    r0, r1 = G_TT[2, 2] - G_TT[0, 2], G_TT[2, 2] - G_TT[1, 2]
    determinant = e00 * e11 - e01 * e01
    a = (r0 * e11 - r1 * e01) / determinant
    b = (r1 * e00 - r0 * e01) / determinant
    weights_T = torch.stack([a, b, 1 - a - b])
    inside = (weights_T >= 0).all() & (determinant > 0)
    return torch.where(inside, weights_T, torch.nan)


def _tetrahedron(G_TT: torch.Tensor) -> torch.Tensor:
    """Stationary point of the whole tetrahedron, or NaN as of `_triangle`: where all slopes are equal, G w = mu 1."""
    bordered = torch.nn.functional.pad(G_TT, (0, 1, 0, 1), value=1.0)
    bordered[-1, -1] = 0
    solution, singular = torch.linalg.solve_ex(bordered, torch.eye(5, dtype=G_TT.dtype, device=G_TT.device)[4])
    weights_T = solution[:4] / solution[:4].sum()
    inside = (weights_T >= 0).all() & (singular == 0)
    return torch.where(inside, weights_T, torch.nan)


def min_norm_weights_reference(gram_TT: torch.Tensor) -> torch.Tensor:
    """The best of all faces, in float64. Scaled to a unit largest entry first, so that scale does not matter."""
    G_TT = gram_TT.to(torch.float64)
    G_TT = (G_TT + G_TT.T) / 2
    T = G_TT.shape[0]
    G_TT = G_TT / torch.where(G_TT.abs().amax() > 0, G_TT.abs().amax(), 1.0)
    candidates = [torch.full((T,), 1 / T, dtype=G_TT.dtype, device=G_TT.device)]  # wins ties
    candidates += [_edge(G_TT, i, j) for i in range(T) for j in range(i + 1, T)]  # an edge includes its two vertices
    for corners in map(list, combinations(range(T), 3)):
        inner_T = torch.zeros_like(G_TT[0])
        inner_T[corners] = _triangle(G_TT[corners][:, corners])
        candidates.append(inner_T)
    if T == 4:
        candidates.append(_tetrahedron(G_TT))
    weights_CT = torch.stack(candidates)
    values_C = ((weights_CT @ G_TT) * weights_CT).sum(dim=1)
    best = torch.where(values_C.isnan(), torch.inf, values_C).argmin()
    weights_T = weights_CT.index_select(0, best[None])[0]
    return torch.where(gram_TT.isfinite().all(), weights_T, torch.nan).to(gram_TT.dtype)


# Registration; the kernels are csrc/cpu/min_norm_weights.cpp and csrc/cuda/min_norm_weights.cu -----------------------
@torch.library.register_fake("fashionbert_fast::min_norm_weights")
def _(gram_TT):
    return gram_TT.new_empty(gram_TT.shape[:1])


# Public function -----------------------------------------------------------------------------------------------------
@reverse_mode_only
def min_norm_weights(gram_TT: torch.Tensor) -> torch.Tensor:
    """argmin_w w' G w on the simplex, exact for T <= 4: one launch, no host synchronisation.

    Computed in float64 whatever the dtype. Not differentiable: the weights are constants of the step.

    Args:
        gram_TT: (T, T) float32, bfloat16, float16 or float64, the symmetric positive semi-definite Gram matrix of T
            gradients, 1 <= T <= 4, on CPU or CUDA.

    Returns:
        weights_T: (T,), dtype of ``gram_TT``, non-negative, summing to 1. Equal weights where they are as good as any
            (all gradients zero or equal); NaN where an entry of ``gram_TT`` is not finite.

    Raises:
        ValueError: naming the argument whose shape or dtype is wrong.

    Example:
        >>> min_norm_weights(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))  # orthogonal gradients, one longer than the other
        tensor([0.7500, 0.2500])
    """
    check_floating("gram_TT", gram_TT)
    if gram_TT.dim() != 2 or gram_TT.shape[0] != gram_TT.shape[1] or not 1 <= gram_TT.shape[0] <= MAX_TASKS:
        raise ValueError(f"gram_TT must have shape (T, T) with T <= {MAX_TASKS}, got {tuple(gram_TT.shape)}")
    return torch.ops.fashionbert_fast.min_norm_weights.default(gram_TT.detach())
