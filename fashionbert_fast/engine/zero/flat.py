"""Optimizers over flat gradients: under DeepSpeed, with a handful of operators a step and no host read.

DeepSpeed's own take each gradient by a hook, copy it, scan it for infinities and take its norm: some thousand small
operators for BERT-base. Then they read on the host whether the step stands. Here the gradients of a parameter group go
to one flat buffer by one copy, ranks sum by one collective, and the norm, clipping and the check for numbers that are
not finite stay on the device: torch's fused AdamW divides by `grad_scale` and passes over a step by `found_inf`, as it
does for `torch.amp.GradScaler`. ZeRO's partitions and checkpoints are DeepSpeed's.

Shapes: P elements of a parameter group laid flat, padding included; a rank owns P / ranks of them at ZeRO-1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from fashionbert_fast.profiling import ranges


class FlatGradients:
    """The gradients of one parameter group.

    ``owned``: float32, what this rank steps with: their sum over ranks and micro-batches. ranks: how many sum.
    partitioned: each owns its part alone (ZeRO), else all own all. at_once: ranks sum after every micro-batch (ZeRO-2),
    else after the last.
    """

    def __init__(
        self, parameters: Sequence[torch.Tensor], offsets: Sequence[int], size: int, group: dist.ProcessGroup | None, *,
        partitioned: bool, at_once: bool, micro_batches: int,
    ) -> None:  # fmt: skip
        self.parameters, self.group, self.partitioned = list(parameters), group, partitioned
        self.ranks = dist.get_world_size(group)
        first = self.parameters[0]
        self.owned = first.new_zeros(size // self.ranks if partitioned else size, dtype=torch.float32)
        straight = self.ranks == 1 and micro_batches == 1  # nothing to sum: gradients go where they are stepped with
        self.staged = self.owned if straight else first.new_zeros(size)
        later = self.ranks > 1 and micro_batches > 1 and not at_once
        self.local = first.new_zeros(size, dtype=torch.float32) if later else None  # this rank's micro-batches so far
        self.views = [
            self.staged.narrow(0, offset, parameter.numel()).view(parameter.shape)
            for parameter, offset in zip(self.parameters, offsets, strict=True)
        ]

    @torch.no_grad()
    def collect(self, first: bool, last: bool) -> None:
        """Take the gradients of a micro-batch off the parameters. first, last: of the optimizer step's."""
        with ranges.phase("gradients"):
            self._collect(first, last)

    def _collect(self, first: bool, last: bool) -> None:
        gradients = [parameter.grad for parameter in self.parameters]
        views = [view for view, gradient in zip(self.views, gradients, strict=True) if gradient is not None]
        if len(views) < len(self.views):
            self.staged.zero_()
        if views:
            found = [gradient for gradient in gradients if gradient is not None]
            torch._foreach_copy_(views, found)  # pyright: ignore[reportPrivateImportUsage]
        for parameter in self.parameters:
            parameter.grad = None
        if self.staged is self.owned:
            return
        if self.local is not None:
            _put(self.local, self.staged, first)
            if not last:
                return
            self.staged.copy_(self.local)
        _put(self.owned, self._summed(), first or self.local is not None)

    def _summed(self) -> torch.Tensor:
        """``staged`` over all ranks: this rank's part of it, or the whole."""
        if self.ranks == 1:
            return self.staged
        with ranges.phase("all-reduce"):
            return self._reduced()

    def _reduced(self) -> torch.Tensor:
        if not self.partitioned:
            dist.all_reduce(self.staged, group=self.group)
            return self.staged
        part = self.staged.new_empty(self.owned.shape)
        dist.reduce_scatter_tensor(part, self.staged, group=self.group)
        return part


def _put(target: torch.Tensor, source: torch.Tensor, first: bool) -> None:
    target.copy_(source) if first else target.add_(source)


def global_norm(groups: Sequence[FlatGradients]) -> torch.Tensor:
    """() float32: of the mean over ranks of all gradients together."""
    norms = [torch.linalg.vector_norm(group.owned) for group in groups]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    ranks = groups[0].ranks
    if ranks > 1 and groups[0].partitioned:
        square = norm.square()
        with ranges.phase("all-reduce"):
            dist.all_reduce(square, group=groups[0].group)
        norm = square.sqrt()
    return norm / ranks


def clip_divisor(norm: torch.Tensor, clip: float) -> torch.Tensor:
    """What gradients of that norm are divided by so that it is ``clip`` at most; 0: no limit."""
    return torch.clamp((norm + 1e-6) / clip, min=1.0) if clip > 0 else torch.ones_like(norm)


def is_fused_adamw(optimizer: torch.optim.Optimizer) -> bool:
    return isinstance(optimizer, torch.optim.AdamW) and bool(optimizer.defaults["fused"])


def guarded_step(optimizer: torch.optim.Optimizer, norm: torch.Tensor, ranks: int, clip: float) -> None:
    """A step of torch's fused AdamW with gradients that are sums over ``ranks`` and whose mean has ``norm``.

    Where ``norm`` is above ``clip`` (0: no limit) they are scaled down to it, as `torch.nn.utils.clip_grad_norm_`
    does; where it is not finite nothing changes, the step's number included.
    """
    assert is_fused_adamw(optimizer)
    optimizer.grad_scale = clip_divisor(norm, clip) * ranks  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.found_inf = 1.0 - norm.isfinite().float()  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()


def gather_weights(optimizer: DeepSpeedZeroOptimizer) -> None:
    """Cast the float32 weights of this rank's part to the model's precision, and gather those of all ranks."""
    for i, group in enumerate(optimizer.real_dp_process_group):
        part = optimizer.parallel_partitioned_bit16_groups[i][dist.get_rank(group)]
        part.copy_(optimizer.single_partition_of_fp32_groups[i])
        if dist.get_world_size(group) > 1:
            with ranges.phase("all-reduce"):
                dist.all_gather_into_tensor(optimizer.bit16_groups_flat[i], part, group=group)


class FlatZeroOptimizer(DeepSpeedZeroOptimizer):
    """DeepSpeed's ZeRO-1 and ZeRO-2 with the gradients of `FlatGradients`. A step whose gradient is not finite changes
    no weight; the learning rate's schedule goes on."""

    _flat: list[FlatGradients]  # one a parameter group
    _collected: int  # micro-batches of this optimizer step so far

    @classmethod
    def take_over(cls, engine) -> None:
        """Let the engine's optimizer, new and DeepSpeed's own, do its steps like this."""
        optimizer = engine.optimizer
        assert type(optimizer) is DeepSpeedZeroOptimizer, type(optimizer)
        optimizer.__class__ = cls
        assert isinstance(optimizer, cls)
        for hook in optimizer._grad_acc_hooks:
            hook.remove()
        optimizer._collected = 0
        groups = zip(
            optimizer.round_robin_bit16_groups, optimizer.round_robin_bit16_offsets, optimizer.bit16_groups_flat,
            optimizer.real_dp_process_group, strict=True,
        )  # fmt: skip
        at_once, micro_batches = optimizer.partition_gradients, optimizer.gradient_accumulation_steps
        optimizer._flat = [
            FlatGradients(
                parameters, offsets, whole.numel(), group,
                partitioned=True, at_once=at_once, micro_batches=micro_batches,
            )
            for parameters, offsets, whole, group in groups
        ]  # fmt: skip

    def reduce_gradients(self, pipeline_parallel=False):
        """At the end of a backward DeepSpeed calls this at ZeRO-1, the next at ZeRO-2, and then `backward_epilogue`."""

    def overlapping_partition_gradients_reduce_epilogue(self):
        pass

    def backward_epilogue(self, *_, **__):
        last = self.is_gradient_accumulation_boundary()
        for gradients in self._flat:
            gradients.collect(self._collected == 0, last)
        self._collected = 0 if last else self._collected + 1

    @torch.no_grad()
    def step(self, closure=None):
        norm = global_norm(self._flat)
        for master, gradients in zip(self.single_partition_of_fp32_groups, self._flat, strict=True):
            master.grad = gradients.owned
        guarded_step(self.optimizer, norm, self._flat[0].ranks, self.clip_grad)
        self._lazy_init_hp_params_optimizer_state()
        self._global_grad_norm = norm
        gather_weights(self)


class FlatOptimizer(torch.optim.Optimizer):
    """ZeRO-0: an optimizer over float32 weights that lie flat, behind weights of any precision that lie flat too.

    ``optimizer``: torch's fused AdamW steps with each parameter group as one tensor. Any other keeps a tensor for each
    parameter, since LAMB's trust ratios are of one each, and reads on the host whether the step stands.
    """

    ALIGNMENT = 64  # elements from one parameter's start to a multiple of them: vector instructions, tensor cores

    @classmethod
    def take_over(cls, engine, dtype: torch.dtype, clip: float) -> None:
        """Let the engine, new and of float32 weights, train weights of ``dtype`` by its optimizer like this."""
        engine.optimizer = cls(engine.optimizer, dtype, clip)
        engine.enable_backward_allreduce = False  # it goes parameter by parameter

    def __init__(self, optimizer: torch.optim.Optimizer, dtype: torch.dtype, clip: float) -> None:
        self.optimizer, self.clip, self.fused = optimizer, clip, is_fused_adamw(optimizer)
        self._global_grad_norm: torch.Tensor | None = None  # by this name the engine asks for it
        self.gradients: list[FlatGradients] = []
        self.weights: list[tuple[torch.Tensor, torch.Tensor]] = []  # flat, a group: of ``dtype``, and in float32
        # Parameter -> what is stepped for it, and where in that the float32 weight behind it begins.
        self.stepped: dict[torch.Tensor, tuple[torch.Tensor, int]] = {}
        for group in optimizer.param_groups:
            self._lay_flat(group, dtype)

    @torch.no_grad()
    def _lay_flat(self, group: dict, dtype: torch.dtype) -> None:
        parameters, offsets, size = group["params"], [], 0
        for parameter in parameters:
            offsets.append(size)
            size += -(-parameter.numel() // self.ALIGNMENT) * self.ALIGNMENT
        full = parameters[0].new_zeros(size, dtype=torch.float32)
        low = full if dtype == torch.float32 else full.to(dtype)
        for parameter, offset in zip(parameters, offsets, strict=True):
            here, behind = (flat.narrow(0, offset, parameter.numel()).view(parameter.shape) for flat in (low, full))
            behind.copy_(parameter)
            here.copy_(parameter)
            parameter.data = here
            self.stepped[parameter] = (full, offset) if self.fused else (behind, 0)
        flat = FlatGradients(parameters, offsets, size, None, partitioned=False, at_once=False, micro_batches=1)
        full.grad = flat.owned
        if self.fused:
            group["params"] = [full]
        else:
            for parameter, offset in zip(parameters, offsets, strict=True):
                gradient = flat.owned.narrow(0, offset, parameter.numel())
                self.stepped[parameter][0].grad = gradient.view(parameter.shape)
            group["params"] = [self.stepped[parameter][0] for parameter in parameters]
        self.weights.append((low, full))
        self.gradients.append(flat)

    # DeepSpeed and schedules see the optimizer's own.
    param_groups = property(lambda self: self.optimizer.param_groups)  # pyright: ignore[reportAssignmentType]
    state = property(lambda self: self.optimizer.state)  # pyright: ignore[reportAssignmentType]
    defaults = property(lambda self: self.optimizer.defaults)  # pyright: ignore[reportAssignmentType]

    @torch.no_grad()
    def step(self, closure=None):
        for gradients in self.gradients:
            gradients.collect(True, True)
        ranks = self.gradients[0].ranks
        self._global_grad_norm = norm = global_norm(self.gradients)
        if self.fused:
            guarded_step(self.optimizer, norm, ranks, self.clip)
        elif norm.isfinite():
            for gradients in self.gradients:
                gradients.owned.mul_(1 / (clip_divisor(norm, self.clip) * ranks))
            self.optimizer.step()
        for low, full in self.weights:
            if low is not full:
                low.copy_(full)

    def zero_grad(self, set_to_none: bool = True):
        """Nothing: a step takes the gradients off the parameters."""
