"""The configuration of a pre-training run: typed, from YAML, with `section.key=value` overrides.

A section is the dataclass that its consumer takes: `data.config.DataConfig` and `ContrastiveConfig`,
`model.config.TaskWeighting` and `QueryLoss` stand with theirs, the others, which only the engine and the commands read,
here.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from fashionbert_fast.checks import at_least, one_of, within
from fashionbert_fast.data.config import ContrastiveConfig, DataConfig
from fashionbert_fast.errors import InputError
from fashionbert_fast.files import check_file
from fashionbert_fast.model.config import (
    ALIGNMENT_HEADS,
    LAYER_NORMS,
    MOST,
    MOST_LAYERS,
    PATCH_OBJECTIVES,
    TASKS,
    QueryLoss,
    TaskWeighting,
)

# Files that come along, by name: `--config base`. A checkout has them as configs/NAME.yaml too.
SHIPPED = {path.stem: path for path in sorted((Path(__file__).parent / "configs").glob("*.yaml"))}
MOST_BYTES, MOST_NODES = 2**16, 10_000  # of a YAML file: twenty times the longest that there is reason to write
HIGHEST = ("alignment_accuracy", "query_accuracy", "itc_accuracy")  # what validation measures of which more is better
MOST_INTEGER = 2**63 - 1  # of any field: torch's and numpy's own
# What others call some of our fields.
OTHERS_NAMES = {
    "learning_rate": "lr", "batch_size": "micro_batch_size", "per_device_train_batch_size": "micro_batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size", "max_steps": "steps", "num_train_steps": "steps",
    "num_hidden_layers": "layers", "num_layers": "layers", "num_attention_heads": "heads", "dtype": "precision",
    "max_grad_norm": "gradient_clipping", "output_dir": "output", "num_workers": "workers", "stage": "zero_stage",
    "logging_steps": "log_every", "save_steps": "checkpoint_every", "eval_steps": "every",
    "lr_scheduler_type": "schedule", "hidden_dropout_prob": "hidden_dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}  # fmt: skip


@dataclass
class ModelConfig:
    """The core: a published checkpoint, or sizes to start from scratch."""

    core: str | None = None  # BERT (directory, hub id, all-minilm-l6-v2) or a run of ours, to go on; null: from scratch
    # For a core from scratch: a directory, hub id, or null: WordPiece trained on the titles.
    tokenizer: str | None = None
    vocab_size: int = 8192  # of a trained WordPiece, at most
    layers: int | None = None  # from scratch: how many; of a checkpoint: keep the first so many
    hidden_size: int = 768  # from scratch
    heads: int = 12  # from scratch
    intermediate_size: int = 3072  # from scratch
    initializer_range: float = 0.02  # std of fresh weights; a narrow core learns sooner with 1 / sqrt(hidden_size)
    hidden_dropout: float = 0.1  # after embeddings, attention and feed-forward
    attention_dropout: float = 0.1  # on attention probabilities
    patch_dropout: float = 0.1  # on the raw patch feature
    # begin with features of mean 0 and deviation 1, by the store's statistics; not where core is a run of ours
    standardise_features: bool = False
    layer_norm: str = "fused"  # the encoder's: fused (with bias, dropout and residual, one operator) | apex
    # What the alignment head reads: cls ([CLS], as in the article) | pooled (and the means of both sides); null: what
    # that of a run of ours reads, else cls.
    alignment_head: str | None = None
    # What is asked of masked patches: kld (their feature as a distribution, as in the article) | selfie (which of the
    # photo's masked patches was where).
    patch_objective: str = "kld"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "heads", "intermediate_size"):
            within(f"model.{name}", getattr(self, name), 1, MOST)
        if self.layers is not None:
            within("model.layers", self.layers, 1, MOST_LAYERS)
        if self.core is None and self.hidden_size % self.heads:
            raise ValueError(f"model.hidden_size {self.hidden_size} must be a multiple of model.heads {self.heads}")
        if self.core is not None and self.tokenizer is not None:
            raise ValueError("model.tokenizer goes with model.core null: a checkpoint brings its own")
        if not self.initializer_range > 0:
            raise ValueError(f"model.initializer_range must be positive, got {self.initializer_range}")
        one_of("model.layer_norm", self.layer_norm, LAYER_NORMS)
        if self.alignment_head is not None:
            one_of("model.alignment_head", self.alignment_head, ALIGNMENT_HEADS)
        one_of("model.patch_objective", self.patch_objective, PATCH_OBJECTIVES)
        for name in ("hidden_dropout", "attention_dropout", "patch_dropout"):
            within(f"model.{name}", getattr(self, name), 0.0, 1.0, open_high=True)


@dataclass
class TrainConfig:
    """The optimization and the engine."""

    output: str = "???"  # run directory
    steps: int = 10000  # optimizer steps
    micro_batch_size: int = 32  # pairs a process and micro-batch; even, so that negatives find their image in the batch
    gradient_accumulation_steps: int = 1  # micro-batches an optimizer step
    optimizer: str = "adamw"  # adamw | lamb
    optimizer_backend: str = "auto"  # auto | torch | deepspeed | apex | pytorch_optimizer
    lr: float = 1e-4  # peak learning rate
    fresh_lr_factor: float = 1.0  # times lr: that of weights which the core's checkpoint has not, patches' and heads'
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    weight_decay: float = 0.0  # not on biases and LayerNorm
    schedule: str = "linear"  # after the warm-up: linear | cosine | constant
    warmup_ratio: float = 0.1  # of the steps
    gradient_clipping: float = 1.0  # global norm; 0: off
    precision: str = "fp32"  # fp32 | bf16 | fp16
    zero_stage: int = 1  # DeepSpeed ZeRO: 0 to 3
    cuda_graphs: bool = False  # replay the encoder's forward and backward as CUDA graphs; ZeRO 0 to 2
    fp8: bool = False  # the encoder's products in 8 bits, by torchao, on sm_89 and later; with bf16, ZeRO 0 to 2
    nvtx: bool = False  # ranges for Nsight Systems, and host seconds by phase in the metrics
    wandb: bool = False  # metrics to Weights & Biases as well, where that is installed
    seed: int = 0  # of initialisation, dropout, order, negatives and masks
    log_every: int = 10  # steps between metrics, the only host synchronisation
    checkpoint_every: int = 1000  # steps; the last step is always kept; 0: only the last
    keep_checkpoints: int = 2  # newest checkpoints kept
    keep_hours: float = 0.0  # of older ones, one for every so many hours is kept as well; 0: none
    max_skipped_steps: int = 3  # in a row, with a loss or gradient that is not finite, before the run stops
    step_timeout: int = 1800  # seconds without the end of a step, validation or save before the run is ended; 0: never

    def __post_init__(self) -> None:
        one_of("train.optimizer", self.optimizer, ("adamw", "lamb"))
        backends = ("auto", "torch", "deepspeed", "apex", "pytorch_optimizer")
        one_of("train.optimizer_backend", self.optimizer_backend, backends)
        one_of("train.schedule", self.schedule, ("linear", "cosine", "constant"))
        one_of("train.precision", self.precision, ("fp32", "bf16", "fp16"))
        within("train.zero_stage", self.zero_stage, 0, 3)
        within("train.warmup_ratio", self.warmup_ratio, 0.0, 1.0)
        for name in ("steps", "micro_batch_size", "gradient_accumulation_steps", "log_every", "keep_checkpoints"):
            at_least(f"train.{name}", getattr(self, name), 1)
        at_least("train.max_skipped_steps", self.max_skipped_steps, 1)
        for name in ("checkpoint_every", "step_timeout"):
            at_least(f"train.{name}", getattr(self, name), 0)
        for name in ("lr", "fresh_lr_factor", "eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"train.{name} must be positive, got {getattr(self, name)}")
        for name in ("weight_decay", "gradient_clipping", "keep_hours"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"train.{name} must be 0 or more, got {getattr(self, name)}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"train.betas must be two numbers in [0, 1), got {self.betas}")
        if self.zero_stage == 3 and (self.cuda_graphs or self.fp8):
            field = "cuda_graphs" if self.cuda_graphs else "fp8"
            raise ValueError(
                f"train.{field} needs train.zero_stage 0, 1 or 2: stage 3 gathers each weight anew, at another address"
            )
        if self.fp8 and self.precision != "bf16":
            raise ValueError(f"train.fp8 needs train.precision bf16, got {self.precision}")
        if self.optimizer == "lamb" and self.zero_stage > 0:
            raise ValueError(
                "train.optimizer lamb needs train.zero_stage 0: ZeRO flattens parameters, LAMB scales per layer"
            )


@dataclass
class ValidationConfig:
    """Losses and alignment accuracy on held-out pairs while training; see engine/validation.py."""

    every: int = 500  # steps; the last step is validated as well; 0: never
    pairs: int = 1024  # at most so many of the store's validation split, half of them mismatches; the same every time
    # keep the best checkpoint by: alignment_accuracy | itc_accuracy | query_accuracy | loss | mlm | tia | mpm; null:
    # off
    keep_best: str | None = None
    patience: int = 0  # validations without a better keep_best before the run stops early; 0: never

    def __post_init__(self) -> None:
        at_least("validation.every", self.every, 0)
        at_least("validation.pairs", self.pairs, 2)
        at_least("validation.patience", self.patience, 0)
        if self.keep_best is not None:
            one_of("validation.keep_best", self.keep_best, (*HIGHEST, "loss", *TASKS))
        if self.patience and self.keep_best is None:
            raise ValueError("validation.patience needs validation.keep_best: the metric that must improve")
        if self.keep_best is not None and self.every == 0:
            raise ValueError("validation.keep_best needs validation.every above 0")


@dataclass
class Config:
    """Everything a run depends on."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    weighting: TaskWeighting = field(default_factory=TaskWeighting)
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    queries: QueryLoss = field(default_factory=QueryLoss)
    train: TrainConfig = field(default_factory=TrainConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        if self.validation.keep_best == "query_accuracy" and not self.queries.weight:
            raise ValueError("validation.keep_best query_accuracy needs queries.weight above 0")
        if self.validation.keep_best == "itc_accuracy" and not self.contrastive.on:
            raise ValueError("validation.keep_best itc_accuracy needs contrastive.weight or first_steps above 0")
        if len(self.weighting.preference) > len(TASKS):
            given = len(self.weighting.preference)
            raise ValueError(
                f"weighting.preference has {given} factors, the tasks are {', '.join(TASKS)}: one for each"
            )

    def to_yaml(self) -> str:
        """The resolved configuration, every field written out."""
        return OmegaConf.to_yaml(OmegaConf.structured(self))


def load_config(path: str | Path | None, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read ``path`` (YAML, or the name of a shipped file; None: defaults) and apply ``section.key=value`` overrides.

    Raises:
        InputError: one line naming the file and the field.
    """
    source = str(path) if path is not None else "defaults"
    raw: Any = {}
    if path is not None:
        raw = read_yaml(path if os.path.isfile(path) else SHIPPED.get(str(path), path))
    for override in overrides:
        if "=" not in override:
            raise InputError(f"{override}: not an override; write section.key=value, for example train.lr=1e-4")
    merged = _merged(OmegaConf.structured(Config), raw, source)
    for override in overrides:
        merged = _merged(merged, _parsed(override), override)
    try:
        missing = sorted(OmegaConf.missing_keys(merged))
        if not missing:
            config = cast(Config, OmegaConf.to_object(merged))
            _check_integers(config)
            return config
    except OmegaConfBaseException as error:
        raise InputError(f"{source}: {_reason(error)}") from error
    except ValueError as error:  # from a section's own check, which begins with the field's name
        given = [override for override in overrides if override.startswith(f"{str(error).split()[0]}=")]
        raise InputError(f"{given[-1] if given else source}: {error}") from error
    raise InputError(f"{source}: {missing[0]} is not set; add it to the file or give {missing[0]}=...")


def _check_integers(config: Config) -> None:
    for section in fields(config):
        values = getattr(config, section.name)
        for field_ in fields(values):
            value = getattr(values, field_.name)
            if isinstance(value, int) and abs(value) > MOST_INTEGER:
                raise ValueError(f"{section.name}.{field_.name} must lie within 64 bits, got {value}")


def read_yaml(path: str | Path) -> DictConfig:
    """A YAML file, which may come from a stranger, as OmegaConf has it: no objects, no values from the environment,
    which would stand in every checkpoint, and no more of it than its size promises.

    Raises:
        InputError: one line naming the file.
    """
    check_file(path, f"give a YAML file or one of {', '.join(SHIPPED)}", MOST_BYTES)
    try:
        text = Path(path).read_text(encoding="utf-8")
        _check_nodes(yaml.compose(text, yaml.SafeLoader))
        raw = OmegaConf.create(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a YAML file") from error
    except RecursionError as error:
        raise InputError(f"{path}: not valid YAML: nested too deeply; start from {SHIPPED['base']}") from error
    except Exception as error:  # yaml's errors share no useful base with omegaconf's
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())[:500]}") from error
    if not isinstance(raw, DictConfig):
        raise InputError(f"{path}: holds no sections; start from {SHIPPED['base']}")
    return raw


def _parsed(override: str) -> DictConfig:
    """``section.key=value`` as OmegaConf has it."""
    try:
        _check_nodes(yaml.compose(override.partition("=")[2], yaml.SafeLoader))
        return OmegaConf.from_dotlist([override])
    except RecursionError as error:
        raise InputError(f"{override[:80]}: nested too deeply; give a plain value") from error
    except Exception as error:
        raise InputError(f"{override[:80]}: not valid YAML: {' '.join(str(error).split())[:300]}") from error


def _check_nodes(root: yaml.Node | None) -> None:
    """ValueError where aliases make more of a file than `MOST_NODES`, or where a value comes from elsewhere."""
    sizes: dict[int, int] = {}  # of what is done; 0 while it is under way

    def size(node: yaml.Node) -> int:
        if sizes.get(id(node)) == 0:
            raise ValueError("an alias within what it stands for")
        if id(node) not in sizes:
            sizes[id(node)] = 0
            parts = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
            sizes[id(node)] = 1 + (0 if isinstance(node, yaml.ScalarNode) else sum(map(size, parts)))
            if isinstance(node, yaml.ScalarNode) and "${" in node.value and ":" in node.value:
                raise ValueError(f"{node.value:.80} is not looked up; write the value out")
        return sizes[id(node)]

    if root is not None and size(root) > MOST_NODES:
        raise ValueError(f"its aliases make more than {MOST_NODES:,} values of it")


def _merged(base: DictConfig, more: Any, source: str) -> DictConfig:
    """``base`` with the fields of ``more`` on top; InputError naming ``source``, the field and what was meant."""
    try:
        return cast(DictConfig, OmegaConf.merge(base, more))
    except OmegaConfBaseException as error:
        raise InputError(f"{source}: {_reason(error)}") from error


def _reason(error: OmegaConfBaseException) -> str:
    key = getattr(error, "full_key", None) or ""
    reason = str(getattr(error, "msg", None) or error).splitlines()[0]
    if isinstance(error, ConfigKeyError):
        section, _, name = key.rpartition(".")
        reason = f"no such {'field' if section else 'section'}"
        if meant := _meant(section, name):
            reason += f"; did you mean {meant}?"
    return f"{key}: {reason}" if key else reason


def _meant(section: str, name: str) -> str | None:
    """The field or section that somebody wanted who wrote ``name``: the nearest of its section, or of all."""
    config = OmegaConf.structured(Config)
    if not section:
        return next(iter(difflib.get_close_matches(name, list(config))), None)
    for place in (section, *config):
        fields = list(config[place]) if place in config else []
        wanted = OTHERS_NAMES.get(name, name)
        near = [wanted] if wanted in fields else difflib.get_close_matches(wanted, fields, cutoff=0.75)
        if near:
            return f"{place}.{near[0]}"
    return None
