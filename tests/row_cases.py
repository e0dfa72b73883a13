"""What the tests of the row-wise operators share: random matrices in every layout, and the comparison of errors."""

from __future__ import annotations

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


def check_as_exact(ours: list[list[float]], plain: list[list[float]], floor: float, factor: float = 2.0) -> None:
    """Each column's largest and mean error at most ``factor`` times that of plain PyTorch, plus ``floor``."""
    ours, plain = torch.tensor(ours, dtype=torch.float64), torch.tensor(plain, dtype=torch.float64)
    for mine, theirs in ((ours.amax(0), plain.amax(0)), (ours.mean(0), plain.mean(0))):
        assert (mine <= factor * theirs + floor).all(), (mine, theirs)
