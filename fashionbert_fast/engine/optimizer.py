"""Optimizers and schedules from existing implementations: torch, DeepSpeed, apex, pytorch_optimizer."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from fashionbert_fast.config import TrainConfig
from fashionbert_fast.errors import InputError
from fashionbert_fast.model.fashionbert import FashionBert


def has_apex() -> bool:
    """NVIDIA's apex with its fused optimizers; the package called apex on the Python index is something else."""
    return importlib.util.find_spec("apex") is not None and importlib.util.find_spec("apex.optimizers") is not None


def choose_backend(train: TrainConfig, device: torch.device) -> str:
    """What `auto` stands for. AdamW: torch's fused one. LAMB: apex's, else DeepSpeed's, on CPU pytorch_optimizer's."""
    if train.optimizer_backend != "auto":
        return train.optimizer_backend
    if train.optimizer == "adamw":
        return "torch"
    if device.type == "cuda":
        return "apex" if has_apex() else "deepspeed"
    return "pytorch_optimizer"


def _factory(name: str, backend: str, device: torch.device) -> Callable[..., torch.optim.Optimizer]:
    """The class behind (name, backend), or InputError with what is possible on this device."""
    if backend == "apex" and not has_apex():
        raise InputError("train.optimizer_backend apex: NVIDIA apex is not installed; build it from source or use auto")
    if device.type == "cpu" and (backend == "apex" or (name == "lamb" and backend == "deepspeed")):
        raise InputError(f"train.optimizer_backend {backend}: its {name} needs a CUDA device; use auto")
    if (name, backend) == ("adamw", "torch"):
        return lambda groups, **kw: torch.optim.AdamW(groups, fused=True, **kw)
    if (name, backend) == ("adamw", "deepspeed") and device.type == "cpu":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return lambda groups, **kw: DeepSpeedCPUAdam(groups, adamw_mode=True, **kw)
    if (name, backend) == ("adamw", "deepspeed"):
        from deepspeed.ops.adam import FusedAdam

        return lambda groups, **kw: FusedAdam(groups, adam_w_mode=True, **kw)
    if (name, backend) == ("lamb", "deepspeed"):
        from deepspeed.ops.lamb import FusedLamb

        return FusedLamb
    if backend == "apex":
        from apex.optimizers import FusedAdam, FusedLAMB  # pyright: ignore[reportMissingImports]  # optional

        return FusedAdam if name == "adamw" else FusedLAMB
    if (name, backend) == ("lamb", "pytorch_optimizer"):
        from pytorch_optimizer import Lamb

        return Lamb
    raise InputError(f"train.optimizer_backend {backend} has no {name}; use auto")


def build_optimizer(model: FashionBert, train: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer over two groups: matrices with weight decay, biases and LayerNorm without. Where fresh weights have
    a learning rate of their own, they are two groups more."""
    fresh = model.fresh if train.fresh_lr_factor != 1 else frozenset()
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            groups.setdefault((name in fresh, p.dim() <= 1), []).append(p)
    listed = [
        {
            "params": groups[is_fresh, is_vector],
            "weight_decay": 0.0 if is_vector else train.weight_decay,
            "lr": train.lr * (train.fresh_lr_factor if is_fresh else 1.0),
        }
        for is_fresh, is_vector in sorted(groups)
    ]
    make = _factory(train.optimizer, choose_backend(train, device), device)
    return make(listed, lr=train.lr, betas=tuple(train.betas), eps=train.eps)


def build_schedule(optimizer: torch.optim.Optimizer, train: TrainConfig) -> LRScheduler:
    """Linear warm-up, then linear or cosine decay to 0, or constant: transformers' schedules."""
    from transformers import get_scheduler

    name = {"constant": "constant_with_warmup"}.get(train.schedule, train.schedule)
    warmup = round(train.warmup_ratio * train.steps)
    return get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=train.steps)
