"""Products without a feature store behind them: the protocols read only the columns of a store."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from fashionbert_fast.catalogue.twins import twins


@dataclass
class Products:
    ids: list[str] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    subcategories: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    image_hashes: list[str] = field(default_factory=list)

    @property
    def twin_N(self) -> np.ndarray:
        return twins(self.groups, self.titles, self.image_hashes)

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, split: str | None) -> np.ndarray:
        return np.array([i for i, name in enumerate(self.splits) if split in (None, name)], dtype=np.int64)


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small spend their time waiting for a second thread on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_products():
    """make_products({("shoes", "boots"): 120, ...}) -> that many products of each sub-category, all in validation."""

    def make(sizes: dict[tuple[str, str], int], split: str = "validation") -> Products:
        products = Products()
        for (category, subcategory), count in sizes.items():
            for i in range(count):
                products.ids.append(f"{category}-{subcategory}-{i}")
                products.titles.append(f"{subcategory} number {i}")
                products.categories.append(category)
                products.subcategories.append(subcategory)
                products.splits.append(split)
                products.groups.append("")
                products.image_hashes.append("")
        return products

    return make


@pytest.fixture
def perfect():
    """A scorer that knows: 1 for a product's own title and image, 0 otherwise."""
    return lambda text_rows, image_rows: (text_rows == image_rows).astype(np.float32)
