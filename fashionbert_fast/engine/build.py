"""From a configuration to what the loop runs: store, tokenizer, model, DeepSpeed engine, data loader."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from fashionbert_fast.catalogue.queries import listed
from fashionbert_fast.config import Config
from fashionbert_fast.data.counter_rng import Stream, random_bits
from fashionbert_fast.data.pairs import PairDataset
from fashionbert_fast.data.queries import Queries
from fashionbert_fast.data.titles import TokenizedTitles
from fashionbert_fast.data.tokenizer import load_tokenizer, train_wordpiece
from fashionbert_fast.distributed import barrier, is_main
from fashionbert_fast.engine.health.signals import ignore_signals
from fashionbert_fast.engine.optimizer import build_optimizer, build_schedule
from fashionbert_fast.engine.speed.fp8 import check_fp8, convert_to_fp8
from fashionbert_fast.engine.speed.graphs import check_cuda_graphs, graph_encoder
from fashionbert_fast.engine.speed.memory import keep_freed_memory
from fashionbert_fast.engine.train_state import TrainState
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.manifest import require_same_features
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.model.config import FashionBertConfig
from fashionbert_fast.model.directories import is_own_model, resolve_core
from fashionbert_fast.model.embeddings import QUERY_SEGMENT
from fashionbert_fast.model.tensors import check_fits
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining
from fashionbert_fast.objectives.query_title_image import FashionBertForQueries
from fashionbert_fast.run_directory import resolve_model_dir

RUN_MARKS = ("manifest.json", "checkpoints", "config.yaml")  # what a run or a checkpoint has and no BERT directory
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Run:
    """Everything the loop needs. ``engine`` is DeepSpeed's; ``tokenizer_dir`` holds the tokenizer's files."""

    config: Config
    directory: Path
    device: torch.device
    store: FeatureStore
    dataset: PairDataset
    engine: Any
    tokenizer_dir: Path
    rank: int
    world_size: int
    state: TrainState = field(default_factory=TrainState)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The T tasks that are weighted, in the order of every *_T tensor."""
        return self.engine.module.weighter.tasks


def seed_everything(seed: int) -> None:
    """Same initial weights on every rank; batches do not use these generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_dropout(device: torch.device, seed: int, step: int, micro_batch: int, rank: int) -> None:
    """Let the dropout of one micro-batch depend on these numbers alone, so that a resumed run draws what it would have.

    Torch's own dropout and `kernels.dropout.draw_seed` both draw from the device's default generator. Only that one is
    seeded: `torch.manual_seed` goes through every backend. On a GPU it is host memory that the next draw, or the next
    replay of a CUDA graph, takes along: nothing waits.
    """
    cuda = device.type == "cuda"
    generator = torch.cuda.default_generators[device.index] if cuda else torch.default_generator
    generator.manual_seed(int(random_bits(seed, Stream.DROPOUT, step, micro_batch, rank)))


def find_core(name: str) -> Path:
    """Directory of ``model.core``: the model of one of our runs or checkpoints, or what `resolve_core` finds."""
    path = Path(name)
    if any((path / mark).exists() for mark in RUN_MARKS) and not (path / "config.json").exists():
        return resolve_model_dir(path)
    return resolve_core(name)


def find_tokenizer(config: Config, store: FeatureStore, directory: Path) -> Path:
    """Directory with the tokenizer: the core's own, the configured one, or a WordPiece trained on the titles and on the
    queries, where the store has any."""
    source = config.model.core or config.model.tokenizer
    if source is not None:
        return find_core(source)
    trained = directory / "tokenizer"
    if is_main() and not (trained / "tokenizer.json").exists():
        rows = store.rows(_split(config)).tolist()
        texts = [store.titles[row] for row in rows] + [query for row in rows for query in listed(store.queries[row])]
        train_wordpiece(texts, config.model.vocab_size, trained)
    barrier()
    return trained


def _split(config: Config) -> str | None:
    return None if config.data.split == "all" else config.data.split


def build_model(config: Config, store: FeatureStore, vocabulary: int) -> FashionBertForPreTraining:
    """The model of ``config.model`` for the patch features of ``store``, in float32."""
    m = config.model
    core = None if m.core is None else find_core(m.core)
    rates = {
        "layer_norm": m.layer_norm,
        "hidden_dropout_prob": m.hidden_dropout,
        "attention_probs_dropout_prob": m.attention_dropout,
        "patch_dropout_prob": m.patch_dropout,
        "patch_objective": m.patch_objective,
        "weighting": config.weighting,
    }
    c = config.contrastive
    if m.alignment_head is not None:
        rates["alignment_head"] = m.alignment_head
    rates["contrastive_weight"] = c.weight
    if c.on:
        rates |= {"contrastive_size": c.size, "contrastive_dropout_prob": c.dropout}
    fields = rates | {"patches": store.manifest.patches, "initializer_range": m.initializer_range,
                      "standardise_features": m.standardise_features}  # fmt: skip
    objective = FashionBertForQueries if config.queries.weight else FashionBertForPreTraining
    if core is not None and is_own_model(core):
        model = objective.warm_start(core, layers=m.layers, **rates)
        _check_features(model, core, store)
    elif core is not None:
        if m.layers is not None:
            fields["num_hidden_layers"] = m.layers
        model = objective.from_bert(core, store.manifest.feature_size, **fields)
    else:
        sizes = {"hidden_size": m.hidden_size, "num_hidden_layers": m.layers or 12, "num_attention_heads": m.heads,
                 "intermediate_size": m.intermediate_size, "vocab_size": vocabulary,
                 "max_position_embeddings": max(64, config.data.max_text_tokens),
                 "type_vocab_size": objective.segments}  # fmt: skip
        try:
            scratch = FashionBertConfig(patch_feature_size=store.manifest.feature_size, **sizes, **fields)
        except ValueError as error:
            raise InputError(str(error)) from error
        check_fits(scratch, "model", "lower model.layers, model.hidden_size or model.intermediate_size")
        model = objective(scratch)
    if m.standardise_features and not (core is not None and is_own_model(core)):
        _standardise_features(model, store)
    if isinstance(model, FashionBertForQueries):
        model.query_loss = config.queries
    if model.itc_head is not None and (core is None or not is_own_model(core)):
        model.itc_head.scale.begin_at(c.temperature)
    if config.data.max_text_tokens > model.config.max_position_embeddings:
        raise InputError(
            f"data.max_text_tokens {config.data.max_text_tokens} exceeds the core's "
            f"{model.config.max_position_embeddings} positions; lower it"
        )
    if vocabulary > model.config.vocab_size:
        raise InputError(
            f"{core}: its tokenizer has {vocabulary} tokens, its word embedding {model.config.vocab_size} rows; "
            "give a checkpoint with its own tokenizer files"
        )
    model.feature_manifest = store.manifest.to_dict()
    return model


def _standardise_features(model: FashionBertForPreTraining, store: FeatureStore) -> None:
    """Let a fresh model see the features of ``store`` standardised. InputError where it has no statistics of them."""
    found = store.manifest.statistics
    if not found:
        raise InputError(
            f"model.standardise_features true: {store.path} has no statistics of its features (an older version wrote "
            "it, or none of its products is for training); prepare it again, or set model.standardise_features=false"
        )
    mean_D, std_D = (torch.tensor(found[name], dtype=torch.float64) for name in ("mean", "std"))
    model.patch_embeddings.standardise(mean_D, std_D)


def _check_features(model: FashionBertForPreTraining, core: Path, store: FeatureStore) -> None:
    """A warm start goes on with the patches it knows: InputError unless ``store`` has them."""
    known = model.config.patches, model.config.patch_feature_size
    if model.feature_manifest is not None:
        require_same_features(model.feature_manifest, store.manifest, f"model.core {core} and {store.path}")
    elif known != (store.manifest.patches, store.manifest.feature_size):
        raise InputError(
            f"model.core {core}: knows {known[0]} patches of {known[1]} numbers, {store.path} has "
            f"{store.manifest.patches} of {store.manifest.feature_size}; prepare a store with its encoder and grid"
        )


def build_dataset(config: Config, store: FeatureStore, tokenizer, rank: int, world_size: int) -> PairDataset:
    """The training pairs of this rank."""
    d, t = config.data, config.train
    rows = store.rows(_split(config))
    if len(rows) == 0:
        raise InputError(
            f"{store.path}: has no products of split {d.split!r}; set data.split or prepare it with --holdout"
        )
    titles = TokenizedTitles(store.titles, tokenizer, d.max_text_tokens)
    return PairDataset(
        store, titles, rows, d, seed=t.seed, micro_batch_size=t.micro_batch_size,
        micro_batches=t.gradient_accumulation_steps, rank=rank, world_size=world_size, steps=t.steps,
        queries=_build_queries(config, store, rows, tokenizer), contrastive=config.contrastive,
    )  # fmt: skip


def _build_queries(config: Config, store: FeatureStore, rows: np.ndarray, tokenizer) -> Queries | None:
    """The store's queries where ``queries.weight`` asks for them; InputError where none is of ``rows``."""
    if not config.queries.weight:
        return None
    if not any(store.queries[row] for row in rows.tolist()):
        raise InputError(
            f"queries.weight {config.queries.weight:g}: {store.path} has no queries of split {config.data.split!r}; "
            "prepare it with --queries FILE or a query column, or set queries.weight=0"
        )
    return Queries(store, tokenizer, config.data.max_text_tokens, QUERY_SEGMENT)


def deepspeed_config(config: Config, world_size: int) -> dict:
    """The DeepSpeed configuration; everything it would otherwise guess is written out."""
    t = config.train
    zero: dict[str, Any] = {"stage": t.zero_stage}
    if t.zero_stage in (1, 2):
        zero["parameter_alignment"] = True  # to 16 bytes: after a bias of 2 numbers no weight would be
    if t.zero_stage == 3:
        # Small tables stay whole; nothing here is large enough for prefetching to pay on its own.
        zero |= {"stage3_param_persistence_threshold": 10_000, "stage3_gather_16bit_weights_on_model_save": False}
    return {
        "train_micro_batch_size_per_gpu": t.micro_batch_size,
        "gradient_accumulation_steps": t.gradient_accumulation_steps,
        "train_batch_size": t.micro_batch_size * t.gradient_accumulation_steps * world_size,
        "gradient_clipping": t.gradient_clipping,  # omitted, it means 1.0 since 0.19.3
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": t.precision == "bf16"},
        "fp16": {"enabled": t.precision == "fp16"},
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # on a GPU it waits for the device at every forward and step
    }


def _check_precision(precision: str, device: torch.device) -> None:
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    assert accelerator is not None  # there is always one: the CPU at least
    if precision == "fp16" and not accelerator.is_fp16_supported():
        raise InputError(f"train.precision fp16: this {device.type} has no float16 arithmetic; use bf16 or fp32")
    if precision == "bf16" and not accelerator.is_bf16_supported():
        raise InputError(f"train.precision bf16: this {device.type} has no bfloat16 arithmetic; use fp16 or fp32")


def _check_device(config: Config, model: FashionBertForPreTraining, device: torch.device) -> None:
    """InputError naming the field that this device cannot have."""
    if config.model.layer_norm == "apex" and device.type != "cuda":
        raise InputError(f"model.layer_norm apex: its kernel needs a CUDA device, this is a {device.type}; use fused")
    if config.train.cuda_graphs:
        check_cuda_graphs(device)
    if config.train.fp8:
        check_fp8(model.config, device)


def start_engine(model, optimizer: torch.optim.Optimizer, schedule, config: Config, world_size: int):
    """DeepSpeed's engine, which casts the weights. Except for float16, whose loss scale it finds, and for ZeRO-3 its
    optimizer is one of `engine.zero.flat`."""
    import deepspeed

    from fashionbert_fast.engine.zero.flat import FlatOptimizer, FlatZeroOptimizer, is_fused_adamw

    t = config.train
    flat = t.precision != "fp16"
    settings = deepspeed_config(config, world_size)
    if flat and t.zero_stage == 0:  # then casting and clipping are the optimizer's, and DeepSpeed has none to add
        settings |= {"bf16": {"enabled": False}, "gradient_clipping": 0.0}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=schedule, config=settings)
    if flat and t.zero_stage == 0:
        FlatOptimizer.take_over(engine, DTYPES[t.precision], t.gradient_clipping)
    elif flat and t.zero_stage in (1, 2) and is_fused_adamw(optimizer):
        FlatZeroOptimizer.take_over(engine)
    return engine


def collects_each_micro_batch(engine) -> bool:
    """Whether gradients leave the parameters after every micro-batch: at ZeRO-0 they do only after the last."""
    from fashionbert_fast.engine.zero.flat import FlatOptimizer, FlatZeroOptimizer

    if isinstance(engine.optimizer, FlatOptimizer):
        return engine.gradient_accumulation_steps() == 1
    return isinstance(engine.optimizer, FlatZeroOptimizer)


def build(config: Config, directory: Path, device: torch.device) -> Run:
    """Assemble a run. The process group exists; every rank calls this with the same configuration."""
    import torch.distributed as dist

    rank, world_size = dist.get_rank(), dist.get_world_size()
    _check_precision(config.train.precision, device)
    if device.type == "cpu":
        keep_freed_memory()  # each step frees large buffers and asks for them again: fresh pages cost a fault per 4 KiB
    seed_everything(config.train.seed)
    store = FeatureStore.open(Path(config.data.store))
    tokenizer_dir = find_tokenizer(config, store, directory)
    tokenizer = load_tokenizer(tokenizer_dir)
    dataset = build_dataset(config, store, tokenizer, rank, world_size)
    model = build_model(config, store, len(tokenizer))
    _check_device(config, model, device)
    optimizer = build_optimizer(model.to(device), config.train, device)
    schedule = build_schedule(optimizer, config.train)
    engine = start_engine(model, optimizer, schedule, config, world_size)
    if config.train.zero_stage == 0 and config.train.precision == "fp16":
        optimizer.state.clear()  # DeepSpeed took a step of zero gradients there, which bias correction would count
    # Only now: DeepSpeed has cast the weights and laid them where they stay.
    if config.train.fp8:
        convert_to_fp8(model.encoder)
    if config.train.cuda_graphs:
        graph_encoder(model.encoder, collected=collects_each_micro_batch(engine))
    return Run(config, directory, device, store, dataset, engine, tokenizer_dir, rank, world_size)


def loader_workers(configured: int | None, device: torch.device, cores: int, processes: int) -> int:
    """Processes that assemble batches for one of ``processes`` on this machine: a step of a GPU takes less time than
    assembling its batch does, while on a CPU both want the same cores."""
    if configured is not None:
        return configured
    return min(4, max(1, cores // processes - 1)) if device.type == "cuda" else 0


def build_loader(run: Run, first_step: int, end: int | None = None) -> DataLoader:
    """Steps ``first_step`` to before ``end`` (None: all), each a list of micro-batches; assembled ahead by
    `loader_workers`."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    workers = loader_workers(run.config.data.workers, run.device, len(os.sched_getaffinity(0)), processes)
    return DataLoader(
        run.dataset,
        batch_size=None,
        sampler=range(first_step, run.config.train.steps if end is None else end),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=run.device.type == "cuda",
        worker_init_fn=ignore_signals,
    )
