"""What is compared: the baselines, and FashionBERT by the recipe `small` and by what differs from it in one point."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fashionbert_fast.baselines import DEFAULT_CORE, SYSTEMS
from fashionbert_fast.baselines.systems import summands
from fashionbert_fast.config import Config, load_config

RECIPE = "small"  # configs/small.yaml
SUMS = ("infonce+cca",)
GUESSERS = ("random", "category", "text", "photo")
NO_ITC = ("contrastive.weight=0", "contrastive.first_steps=0", "contrastive.subcategory_steps=0",
          "validation.keep_best=alignment_accuracy")  # fmt: skip
# The article's own settings on the recipe's core, steps and batch: what the recipe changed is all that differs.
ARTICLE = (
    *NO_ITC, "weighting.method=loss", "weighting.preference=[1,1,1]", "weighting.normalise=none", "weighting.floor=0",
    "model.alignment_head=cls", "model.hidden_dropout=0.1", "model.attention_dropout=0.1", "model.patch_dropout=0.1",
    "data.pairs=coin", "data.negatives=subcategory", "data.random_negative_epochs=0", "data.predict_negatives=true",
)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """How much is trained and asked. overrides: of every FashionBERT, before its own. epochs, seconds: of each
    baseline; neither: the system's own number of epochs. core: the BERT of baselines. precision: FashionBERT is scored
    in."""

    overrides: tuple[str, ...] = ()
    epochs: int | None = None
    seconds: float | None = None
    core: str = DEFAULT_CORE
    queries: int = 1000
    candidates: int = 101
    precision: str = "fp32"


QUICK = Sizes(
    overrides=(
        "model.core=null", "model.vocab_size=1024", "model.hidden_size=128", "model.layers=2", "model.heads=4",
        "model.intermediate_size=512", "model.initializer_range=0.09", "contrastive.first_steps=20",
        "contrastive.subcategory_steps=10", "contrastive.batch_size=32", "train.steps=60", "train.micro_batch_size=32",
        "train.lr=1e-3", "train.fresh_lr_factor=1", "train.precision=fp32", "validation.every=20",
        "validation.pairs=64",
    ),
    epochs=1, queries=60, candidates=31,
)  # fmt: skip


@dataclass(frozen=True)
class Baseline:
    """A system of `fashionbert baseline`."""

    name: str
    kind = "baseline"

    @property
    def parts(self) -> tuple[Baseline, ...]:
        """Of a sum: the two systems, which are fitted once."""
        return tuple(Baseline(part) for part in summands(self.name) or ())

    def settings(self, seed: int, sizes: Sizes) -> dict[str, Any]:
        """All that its training depends on beside the store."""
        return {"baseline": self.name, "seed": seed, "epochs": sizes.epochs, "seconds": sizes.seconds,
                "core": sizes.core}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """FashionBERT by ``config`` (a shipped name or a file) with ``overrides``."""

    name: str
    overrides: tuple[str, ...] = ()
    config: str = RECIPE
    kind = "fashionbert"

    @property
    def parts(self) -> tuple[Baseline, ...]:
        return ()

    def configuration(self, seed: int, sizes: Sizes, store: Path | str = "unset", run: Path | str = "unset") -> Config:
        """InputError where an override does not fit the recipe."""
        fixed = [f"data.store={store}", f"train.output={run}", f"train.seed={seed}", "train.checkpoint_every=200",
                 "train.keep_checkpoints=1"]  # fmt: skip
        return load_config(self.config, [*sizes.overrides, *self.overrides, *fixed])

    def settings(self, seed: int, sizes: Sizes) -> dict[str, Any]:
        """All that its training depends on beside the store: two variants that resolve to the same are the same."""
        return asdict(self.configuration(seed, sizes))


System = Baseline | Variant


def systems() -> tuple[System, ...]:
    """Baselines first, sums behind their parts."""
    return (*(Baseline(name) for name in (*SYSTEMS, *SUMS)), *variants())


def variants(config: str = RECIPE) -> tuple[Variant, ...]:
    """The recipe, and each point of it set otherwise."""
    words, alignment, _ = load_config(config, ["data.store=unset", "train.output=unset"]).weighting.preference
    plain = ("weighting.normalise=none", "weighting.floor=0")  # what loss and fixed have not
    changed = {
        "adaptive-loss": ("weighting.method=loss", *plain),
        "adaptive-gradient": ("weighting.method=gradient",),
        "adaptive-min-norm": ("weighting.method=min_norm",),
        "fixed": ("weighting.method=fixed", *plain),
        "no-mpm": (f"weighting.preference=[{words},{alignment},0]",),
        "selfie": ("model.patch_objective=selfie", "data.patch_rate=0.25"),
        "no-itc": NO_ITC,
        "cls-head": ("model.alignment_head=cls",),
        **{f"negatives-{kind}": (f"data.negatives={kind}",) for kind in ("random", "category", "subcategory")},
        "article": ARTICLE,
    }
    return (Variant(config, (), config), *(Variant(name, of, config) for name, of in changed.items()))
