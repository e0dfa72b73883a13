"""Two optimizer steps of the real engine against AdamW written out: betas, eps, weight decay and its exceptions,
clipping, rate."""

from __future__ import annotations

import pytest
import torch

from benchmarks.steps.weights import master_weights
from fashionbert_fast.engine.build import build_loader
from fashionbert_fast.engine.step import train_step
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining

LR, DECAY, BETAS, EPS, CLIP = 0.01, 0.1, (0.8, 0.95), 1e-3, 0.05
OPTIONS = (
    f"train.lr={LR}", f"train.weight_decay={DECAY}", f"train.betas=[{BETAS[0]},{BETAS[1]}]", f"train.eps={EPS}",
    f"train.gradient_clipping={CLIP}", "train.schedule=constant", "train.warmup_ratio=0", "weighting.method=fixed",
    "model.hidden_dropout=0", "model.attention_dropout=0", "model.patch_dropout=0",
)  # fmt: skip


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_steps_are_those_of_adamw(build_run, stage):
    run = build_run(*OPTIONS, f"train.zero_stage={stage}")
    oracle = FashionBertForPreTraining(run.engine.module.config).double()
    oracle.load_state_dict(master_weights(run.engine))
    moments = {name: [torch.zeros_like(p), torch.zeros_like(p)] for name, p in oracle.named_parameters()}
    for step, micro_batches in zip((1, 2), build_loader(run, 0), strict=False):
        train_step(run, micro_batches, step)
        _adamw_step(oracle, micro_batches[0], moments, step)
    ours = master_weights(run.engine)
    for name, parameter in oracle.named_parameters():
        difference = (ours[name].double() - parameter.detach()).abs().max().item()
        assert difference < 1e-6, (name, difference)  # 1.1e-7 measured, of updates up to 1e-2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bias_correction_counts_the_steps_taken(build_run, stage, precision):
    run = build_run(f"train.zero_stage={stage}", f"train.precision={precision}")
    for step, micro_batches in zip((1, 2), build_loader(run, 0), strict=False):
        train_step(run, micro_batches, step)
    counted = [state["step"] for state in run.engine.basic_optimizer.state.values()]
    assert counted and all(step == 2 for step in counted)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_bf16_weights_are_the_masters_rounded(build_run, stage):
    run = build_run(*OPTIONS, "train.precision=bf16", f"train.zero_stage={stage}")
    before = master_weights(run.engine)
    train_step(run, run.dataset[0], 1)
    after = master_weights(run.engine)
    for name, parameter in run.engine.module.named_parameters():
        assert torch.equal(parameter, after[name].bfloat16()), name
        assert not torch.equal(after[name], before[name]) or not parameter.any(), name
        assert parameter.data_ptr() % 16 == 0, f"{name} starts off a 16-byte boundary"


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")  # LAMB's and stage 3's first step is
@pytest.mark.parametrize("optimizer, stage", [("adamw", 0), ("adamw", 1), ("adamw", 2), ("adamw", 3), ("lamb", 0)])
def test_a_gradient_that_is_not_finite_changes_nothing(build_run, optimizer, stage):
    options = (*OPTIONS, "train.precision=bf16", f"train.zero_stage={stage}", f"train.optimizer={optimizer}")
    spoiled, plain = build_run(*options), build_run(*options)
    name, parameter = next(iter(spoiled.engine.module.named_parameters()))
    hook = parameter.register_hook(lambda gradient: gradient * float("inf"))
    micro_batches = spoiled.dataset[0]
    before = master_weights(spoiled.engine)
    train_step(spoiled, micro_batches, 1)
    hook.remove()
    norm = spoiled.engine.get_global_grad_norm()
    assert norm is not None and not torch.as_tensor(norm).isfinite()
    assert all(torch.equal(weight, before[name]) for name, weight in master_weights(spoiled.engine).items())
    for run in (spoiled, plain):  # and leaves no trace: the next step is a run's first
        train_step(run, micro_batches, 2)
    theirs = master_weights(plain.engine)
    for name, weight in master_weights(spoiled.engine).items():
        assert torch.equal(weight, theirs[name]) and not torch.equal(weight, before[name]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_lamb_steps_with_each_parameter_by_itself(build_run, precision):
    """Its trust ratio is of one parameter: over a flat group it would be another optimizer."""
    from pytorch_optimizer import Lamb

    run = build_run(*OPTIONS, "train.optimizer=lamb", "train.zero_stage=0", f"train.precision={precision}")
    masters = {name: weight.clone().requires_grad_() for name, weight in master_weights(run.engine).items()}
    seen = {}
    for name, parameter in run.engine.module.named_parameters():
        parameter.register_hook(lambda gradient, name=name: seen.__setitem__(name, gradient.float()))
    decayed = [weight for weight in masters.values() if weight.dim() > 1]
    others = [weight for weight in masters.values() if weight.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    reference = Lamb(groups, lr=LR, betas=BETAS, eps=EPS)
    for step, micro_batches in zip((1, 2, 3), build_loader(run, 0), strict=False):
        train_step(run, micro_batches, step)
        for name, weight in masters.items():
            weight.grad = seen[name]
        torch.nn.utils.clip_grad_norm_(masters.values(), CLIP)
        reference.step()
    for name, weight in master_weights(run.engine).items():
        assert torch.allclose(weight, masters[name], atol=1e-6, rtol=1e-5), name


def _adamw_step(model, batch, moments: dict, step: int) -> None:
    batch.inputs.features_IPD = batch.inputs.features_IPD.double()
    gradients = torch.autograd.grad(model(batch).loss, list(model.parameters()))
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    assert norm > 4 * CLIP, "clipping has nothing to do"
    with torch.no_grad():
        for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
            gradient = gradient * (CLIP / norm)
            first, second = moments[name]
            first.mul_(BETAS[0]).add_((1 - BETAS[0]) * gradient)
            second.mul_(BETAS[1]).add_((1 - BETAS[1]) * gradient.square())
            if not name.endswith("bias") and "norm" not in name:
                parameter.mul_(1 - LR * DECAY)
            mean, square = first / (1 - BETAS[0] ** step), second / (1 - BETAS[1] ** step)
            parameter.sub_(LR * mean / (square.sqrt() + EPS))
