"""Products without a feature store, as evaluation has them."""

from evaluation.conftest import make_products, one_thread  # noqa: F401
