"""What the tests of the operators share: random matrices in every layout, bounds of errors, numbers of threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

NARROW = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("dense", "columns", "slice", "transposed")


class Picker:
    """Random choices of one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, options):
        return options[int(torch.randint(len(options), (), generator=self.generator))]

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def matrix(self, rows: int, width: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
        """(rows, width) normal numbers times ``scale``, laid out in memory in any of the ways a view can be."""
        layout = self(LAYOUTS)
        if layout == "columns":
            matrix = self._normal(rows, 2 * width)[:, ::2]
        elif layout == "slice":  # rows start off any 16-byte boundary
            matrix = self._normal(rows, width + 3)[:, 3:]
        elif layout == "transposed":
            matrix = self._normal(width, rows).T
        else:
            matrix = self._normal(rows, width)
        return _cast(matrix * scale, dtype)

    def vector(self, width: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
        """(width,) normal numbers times ``scale``, dense or every second of a dense tensor."""
        stride = self((1, 2))
        return _cast((self._normal(stride * width) * scale)[::stride], dtype)


def _cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x`` in ``dtype`` with its strides (`Tensor.to` would make it dense)."""
    return torch.empty_strided(x.shape, x.stride(), dtype=dtype).copy_(x.clamp(-6e4, 6e4))


def poison(*shapes: tuple[int, ...]) -> None:
    """Leaves NaN in memory that the next allocations of these sizes are likely to get."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for shape in shapes:
            torch.full(shape, float("nan"), dtype=dtype)


def relative_errors(results, exact, least: float = 1e-6) -> list[float]:
    """The largest error of each, in units of the largest exact value (of ``least`` if that is less)."""
    return [
        float((a.double() - b).abs().max() / b.abs().max().clamp_min(least)) if b.numel() else 0.0
        for a, b in zip(results, exact, strict=True)
    ]


ROUNDINGS = 2  # of stored numbers: of the result, and of what it was computed from


def allowed_error(dtype: torch.dtype, terms: int = 0) -> float:
    """What a correct kernel may err by, in units of the largest exact value, in whatever order and by whatever
    instructions it sums ``terms`` products: plain PyTorch's own error depends on the processor.

    Numbers in memory are rounded to ``dtype``, by u = eps / 2 each. Sums are in float32 at least: each addition rounds
    by u of a partial sum, which of K numbers of either sign has grown to sqrt(k) of their size; those errors add up
    like a random walk, to a deviation of u sqrt(K / 6) times the size of a whole sum. sqrt(K) u is 2.4 deviations of
    an ordinary sum, and twice to four times as many of the largest. Sums in bfloat16 exceed it: test_row_cases.py.
    """
    summed = torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2
    return ROUNDINGS * torch.finfo(dtype).eps / 2 + terms**0.5 * summed


def check_as_exact(
    ours: list[list[float]], plain: list[list[float]], floor: float, factor: float = 2.0, allowed: float = 0.0
) -> None:
    """Each column's largest and mean error at most ``factor`` times that of plain PyTorch plus ``floor``, or at most
    ``allowed``."""
    ours, plain = torch.tensor(ours, dtype=torch.float64), torch.tensor(plain, dtype=torch.float64)
    for mine, theirs in ((ours.amax(0), plain.amax(0)), (ours.mean(0), plain.mean(0))):
        assert (mine <= (factor * theirs + floor).clamp_min(allowed)).all(), (mine, theirs, allowed)


def at_thread_counts(run: Callable[[], Sequence[torch.Tensor]], counts=(1, 2, 3)) -> list[Sequence[torch.Tensor]]:
    """What ``run`` gives at each number of threads."""
    before, results = torch.get_num_threads(), []
    try:
        for count in counts:
            torch.set_num_threads(count)
            results.append(run())
    finally:
        torch.set_num_threads(before)
    return results


def same_bits(results: list[Sequence[torch.Tensor]]) -> bool:
    return all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True))
