"""Weights of task gradients from the cosines between them: IMTL-G and Nash-MTL. No host read; float64.

Each rule finds how long each task's part w_i g_i of the mix is to be, so that it does not matter how long a gradient
is. ``share_T`` tells tasks apart: all 1 in the papers.

Shapes: T tasks, S steps tried in a line search.
"""

from __future__ import annotations

import torch

RIDGE = 1e-6  # on the cosines: gradients that are parallel or cancel have no unique, or no finite, solution
SEARCHES, DAMPED = 12, 4  # Newton's steps, by a line search far from the solution, damped near it
TRIED = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01)  # of the way to where a length would be 0, and of Newton's step


def equal_projections(cosine_TT: torch.Tensor, share_T: torch.Tensor) -> torch.Tensor:
    """IMTL-G (Liu et al., Towards Impartial Multi-task Learning, ICLR 2021): the mix projects on each gradient's
    direction as its share says: C v = share. (T,) lengths v, some of them negative where gradients conflict."""
    return torch.linalg.solve_ex(_ridged(cosine_TT), share_T)[0]


def nash_bargain(cosine_TT: torch.Tensor, share_T: torch.Tensor) -> torch.Tensor:
    """Nash-MTL (Navon et al., Multi-Task Learning as a Bargaining Game, ICML 2022): C v = share / v, v > 0, which is
    where the convex v' C v / 2 - sum_i share_i log v_i is least. (T,) lengths v.

    Newton's method with a fixed number of steps. Between them v is scaled so that v' C v = sum of shares, as it is at
    the solution. A share of 0 is taken as nearly 0: its length means nothing.
    """
    cosine_TT = _ridged(cosine_TT)
    share_T = share_T / share_T.amax().clamp_min(1e-300)
    share_T = share_T.clamp_min(1e-6)
    share_T = share_T / share_T.amin()  # from 1 on the function is self-concordant: damped steps stay inside
    fractions_S = torch.tensor(TRIED, dtype=torch.float64, device=cosine_TT.device)
    length_T = share_T.sqrt()
    for step in range(SEARCHES + DAMPED):
        length_T = length_T * (share_T.sum() / (length_T @ cosine_TT @ length_T)).sqrt()
        slope_T = cosine_TT @ length_T - share_T / length_T
        curvature_TT = cosine_TT + torch.diag(share_T / length_T.square())
        move_T = torch.linalg.solve_ex(curvature_TT, slope_T)[0]
        if step >= SEARCHES:
            length_T = length_T - move_T / (1 + (slope_T @ move_T).clamp_min(0).sqrt())
            continue
        edge = 0.99 / (move_T / length_T).amax().clamp_min(1e-2)  # how far to go so that all stay above 0
        tried_ST = length_T - torch.cat([fractions_S * edge, fractions_S * edge.clamp_max(1)])[:, None] * move_T
        quadratic_S = ((tried_ST @ cosine_TT) * tried_ST).sum(1) / 2
        best = (quadratic_S - tried_ST.clamp_min(1e-300).log() @ share_T).argmin()
        length_T = tried_ST.index_select(0, best[None])[0]
    return length_T


def _ridged(cosine_TT: torch.Tensor) -> torch.Tensor:
    return cosine_TT + RIDGE * torch.eye(len(cosine_TT), dtype=cosine_TT.dtype, device=cosine_TT.device)
