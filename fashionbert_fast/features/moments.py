"""Mean and deviation of each dimension of a store's features, over the products to train on.

Shapes: R = views * P patches of a row, D feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from fashionbert_fast.features.manifest import DTYPES

DIGITS = 6  # that are kept


def feature_statistics(file: Path, dtype: str, row_shape: Sequence[int], rows: Sequence[int]) -> dict[str, list[float]]:
    """ "mean" and "std" of D numbers each, over all views and patches of ``rows`` of a features.bin; {} of no rows.

    A row is read at a time, and added up in float64 as differences from the first patch (Chan, Golub & LeVeque 1983):
    large means lose no digits, and a dimension that never changes has a deviation of exactly 0. OSError where it cannot
    be read.
    """
    size, (*_, D) = DTYPES[dtype].itemsize * torch.Size(row_shape).numel(), row_shape
    first_D = None
    sums_D, squares_D = torch.zeros(2, D, dtype=torch.float64)
    with file.open("rb") as opened:
        for row in rows:
            opened.seek(row * size)
            features_RD = torch.frombuffer(bytearray(opened.read(size)), dtype=DTYPES[dtype]).view(-1, D).double()
            first_D = features_RD[0].clone() if first_D is None else first_D
            features_RD -= first_D
            sums_D += features_RD.sum(0)
            squares_D += features_RD.square_().sum(0)
    if first_D is None:
        return {}
    count = len(rows) * torch.Size(row_shape[:-1]).numel()
    mean_D = sums_D / count
    std_D = (squares_D / count - mean_D.square()).clamp_min(0).sqrt()
    return {name: [float(f"{number:.{DIGITS}g}") for number in values.tolist()]
            for name, values in (("mean", first_D + mean_D), ("std", std_D))}  # fmt: skip
