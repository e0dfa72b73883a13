"""Task weighting against float64 oracles written from the definition: losses, task gradients, what w scales."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch

from fashionbert_fast.data.batch import Batch
from fashionbert_fast.data.config import DataConfig
from fashionbert_fast.data.pairs import PairDataset
from fashionbert_fast.errors import InputError
from fashionbert_fast.kernels import min_norm_weights
from fashionbert_fast.kernels.adaptive_loss import adaptive_loss_reference, closed_form_weights_reference
from fashionbert_fast.kernels.min_norm_weights import min_norm_weights_reference
from fashionbert_fast.model.config import FLOORED, METHODS, NORMALISATIONS, FashionBertConfig, TaskWeighting
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining
from fashionbert_fast.objectives.weighting import TaskWeighter, WeightingReport

HEADS = ("mlm_head", "tia_head", "mpm_head")


@pytest.fixture(scope="module")
def batch(store_and_titles):
    return _batch(*store_and_titles)


def _batch(store, titles, **pairing) -> Batch:
    dataset = PairDataset(store, titles, np.arange(len(store)), DataConfig(**pairing), micro_batch_size=8, steps=1)
    batch = dataset[0][0]
    batch.inputs.features_IPD = batch.inputs.features_IPD.double()
    return batch


def _model(**weighting) -> FashionBertForPreTraining:
    torch.manual_seed(0)
    config = FashionBertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        patches=4, patch_feature_size=24, hidden_dropout_prob=0, attention_probs_dropout_prob=0, patch_dropout_prob=0,
        initializer_range=0.2, weighting=TaskWeighting(**weighting),
    )  # fmt: skip
    return FashionBertForPreTraining(config).double()


def _task_losses_and_gradients(model, batch):
    """The definition, plainly: three losses from three separate passes, their gradients at the hidden states and
    with respect to every parameter through the hidden states (shared) and through the head alone (own)."""
    inputs, targets = batch.inputs, batch.targets
    hidden = model.encode(inputs)
    leaf = hidden.detach().requires_grad_()
    word_VH, features_RD = model.text_embeddings.word.weight, inputs.features_IPD.flatten(0, 1)
    counts_T = targets.counts_T.clamp_min(1)
    mlm = model.mlm_head(leaf[targets.mlm_row_M], word_VH, targets.mlm_label_M) / counts_T[0]
    tia = torch.nn.functional.cross_entropy(model.tia_head(leaf[inputs.cu_seqlens_S1[:-1].long()]), targets.tia_label_B)
    mpm = model.mpm_head(leaf[targets.mpm_row_K], features_RD, targets.mpm_target_K) / counts_T[2]
    losses_T = torch.stack([mlm, tia, mpm])
    parameters = list(model.parameters())
    at_hidden, own = [], []
    for loss in losses_T:
        gradient, *rest = torch.autograd.grad(loss, [leaf, *parameters], retain_graph=True, allow_unused=True)
        at_hidden.append(gradient)
        own.append([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, rest, strict=True)])
    shared = []
    for gradient in at_hidden:
        grads = torch.autograd.grad(hidden, parameters, gradient, retain_graph=True, allow_unused=True)
        shared.append([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)])
    return losses_T.detach(), at_hidden, own, shared


def _gram(gradients) -> torch.Tensor:
    flat = torch.stack([g.flatten() for g in gradients])
    return flat @ flat.T


def _oracle_weights(weighting: dict, losses_T: torch.Tensor, at_hidden: list[torch.Tensor]) -> torch.Tensor:
    """The definition: of the task gradients (times preference), those that are zero left out."""
    preference_T = torch.tensor(weighting.get("preference", (1.0, 1.0, 1.0)), dtype=torch.float64)
    gradients = [p * g for p, g in zip(preference_T, at_hidden, strict=True)]
    live = [t for t, gradient in enumerate(gradients) if gradient.any()]
    gram = _gram([gradients[t] for t in live])
    scale = torch.ones(len(live), dtype=torch.float64)
    if weighting["method"] in ("imtl", "nash", "gradnorm"):
        return _of_cosines(weighting, gram, preference_T[live], live)
    if weighting.get("normalise") == "norm":
        scale = 1 / gram.diagonal().sqrt()
    elif weighting.get("normalise") == "loss":
        scale = 1 / losses_T[live]
    scale = scale / scale.mean()
    gram = gram * scale[:, None] * scale
    if weighting["method"] == "gradient":
        alpha = weighting.get("alpha", 1.0) * 3 / len(live)
        w = closed_form_weights_reference(gram.diagonal().sqrt(), alpha)
    else:
        w = min_norm_weights(gram)
    floor = weighting.get("floor", 0.0)
    weights_T = torch.zeros(3, dtype=torch.float64)
    weights_T[live] = (floor + (1 - len(live) * floor) * w) * scale
    return weights_T


def _of_cosines(weighting: dict, gram: torch.Tensor, share: torch.Tensor, live: list[int]) -> torch.Tensor:
    """By the conditions that the papers state, on the gradients as they are. gradnorm: of a first batch, whose losses
    have fallen by nothing."""
    norms = gram.diagonal().sqrt()
    if weighting["method"] == "imtl":  # the mix projects on every direction alike, or as its share
        w = torch.linalg.solve(gram / norms[:, None], share)
    elif weighting["method"] == "gradnorm":
        w = share / norms
    else:  # w_i (G w)_i are as the shares: by a fixed point of a plain kind, a thousand times
        v, cosines = torch.ones(len(live), dtype=torch.float64), gram / norms[:, None] / norms
        for _ in range(1000):
            for i in range(len(live)):  # the root of v_i^2 + b v_i = share_i
                b = cosines[i] @ v - v[i]
                v[i] = (-b + (b * b + 4 * share[i]).sqrt()) / 2
        w = v / norms
    w = w / w.abs().sum()
    floor = weighting.get("floor", 0.0)
    weights_T = torch.zeros(3, dtype=torch.float64)
    weights_T[live] = floor + (1 - len(live) * floor) * w
    return weights_T


CASES = [
    {"method": "gradient"},
    {"method": "min_norm"},
    {"method": "gradient", "preference": (0.5, 2.0, 1.0), "alpha": 0.7},
    {"method": "min_norm", "normalise": "norm"},
    {"method": "min_norm", "normalise": "loss", "floor": 0.1},
    {"method": "imtl"},
    {"method": "imtl", "preference": (0.5, 2.0, 1.0)},
    {"method": "nash"},
    {"method": "nash", "preference": (0.5, 2.0, 1.0), "floor": 0.05},
    {"method": "gradnorm"},
    {"method": "gradnorm", "preference": (0.5, 2.0, 1.0), "floor": 0.05},
]


def _check_one_backward(model, batch, weighting: dict) -> list[float]:
    """Every parameter's gradient, weights and reported losses of one backward against the oracle. Gives the weights."""
    losses_T, at_hidden, own, shared = _task_losses_and_gradients(copy.deepcopy(model), batch)
    preference = torch.tensor(weighting.get("preference", (1.0, 1.0, 1.0)), dtype=torch.float64)
    w = _oracle_weights(weighting, losses_T, at_hidden)
    output = model(batch)
    (output.loss * 1024.0).backward()  # a loss scale must not reach the weights
    torch.testing.assert_close(output.report.weights_T.double(), w * preference, atol=1e-5, rtol=1e-5)
    for i, (name, parameter) in enumerate(model.named_parameters()):
        expected = sum(preference[t] * (own[t][i] + w[t] * shared[t][i]) for t in range(3)) * 1024.0
        torch.testing.assert_close(parameter.grad, expected, atol=2e-3, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(output.losses_T.double(), losses_T, atol=1e-5, rtol=1e-5)
    return output.report.weights_T.tolist()


@pytest.mark.parametrize("weighting", CASES, ids=str)
def test_one_backward_gives_the_weighted_gradients(batch, weighting):
    _check_one_backward(_model(**weighting), batch, weighting)


# A task without a gradient: by its factor, or because nothing of its kind is masked.
SILENT = {
    "no words wanted": ((0.0, 1.0, 1.0), {}, 0),
    "no alignment wanted": ((1.0, 0.0, 1.0), {}, 1),
    "no patches wanted": ((1.0, 1.0, 0.0), {}, 2),
    "no masked words": ((1.0, 1.0, 1.0), {"mlm_most": 0}, 0),
    "no masked patches": ((1.0, 1.0, 1.0), {"patch_rate": 0.0}, 2),
}


SOLVERS = [("gradient", n) for n in NORMALISATIONS] + [("min_norm", n) for n in NORMALISATIONS]
SOLVERS += [("nash", "none"), ("gradnorm", "none")]


@pytest.mark.parametrize(("method", "normalise"), SOLVERS)
@pytest.mark.parametrize("cause", SILENT)
def test_a_task_without_a_gradient_is_left_out_of_the_solve(store_and_titles, cause, method, normalise):
    """Else its zero gradient is the point of smallest norm, and the encoder stands still."""
    preference, pairing, silent = SILENT[cause]
    weighting = {"method": method, "normalise": normalise, "preference": preference, "floor": 0.1, "alpha": 0.4}
    model, batch = _model(**weighting), _batch(*store_and_titles, **pairing)
    weights = _check_one_backward(model, batch, weighting)
    assert weights[silent] == 0
    assert min(weights[:silent] + weights[silent + 1 :]) > 0.05
    assert all(parameter.grad.norm() > 1 for parameter in model.encoder.parameters() if parameter.dim() > 1)


@pytest.mark.parametrize("cause", SILENT)
def test_equal_projections_are_those_of_the_tasks_that_have_a_gradient(store_and_titles, cause):
    preference, pairing, silent = SILENT[cause]
    weighting = {"method": "imtl", "preference": preference}
    assert _check_one_backward(_model(**weighting), _batch(*store_and_titles, **pairing), weighting)[silent] == 0


@pytest.mark.parametrize(("method", "normalise"), [*SOLVERS, ("imtl", "none")])
def test_without_any_gradient_all_weights_are_zero(method, normalise):
    weighter = TaskWeighter(TaskWeighting(method=method, normalise=normalise, floor=0.1 if method in FLOORED else 0.0))
    report = WeightingReport(losses_T=torch.zeros(3), cotangent=torch.tensor(1.0))
    assert weighter.solve((torch.zeros(4, 8),) * 3, report).tolist() == [0, 0, 0]
    weighter.memory = {name: torch.ones(3) for name in weighter.memory}
    report.losses_T = torch.tensor([0.0, 1.0, 0.0])
    only = weighter.solve((torch.zeros(4, 8), torch.ones(4, 8), torch.zeros(4, 8)), report)
    torch.testing.assert_close(only, torch.tensor([0.0, 1.0, 0.0]))


# Four tasks ----------------------------------------------------------------------------------------------------------
FOUR = ("mlm", "tia", "mpm", "itc")
LOSSES_T = torch.tensor([7.0, 0.7, 0.05, 3.0])
SLOPES_TD = torch.tensor([[1.0, 0, 0, 0, 0.5], [0, 2, 0, 0, -1], [0, 0, 0.3, 0, 0.1], [0.2, 0, 0, 4, 0]])


def _step_of_four(weighter: TaskWeighter, first: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights, and the gradient at the hidden state, of losses that rise by ``SLOPES_TD`` along it."""
    hidden, report = torch.zeros(1, 5, requires_grad=True), WeightingReport()
    aliases = weighter.gate(hidden, report)
    assert len(aliases) == 4
    if first is not None:
        weighter.memory["first"] = first
    rises = [alias[0] @ slope for alias, slope in zip(aliases, SLOPES_TD, strict=True)]
    weighter(LOSSES_T + torch.stack(rises), report).backward()
    return report.weights_T.double(), hidden.grad[0].double()


@pytest.mark.parametrize("preference", [(1.0, 1.0, 1.0), (0.5, 2.0, 1.0), (0.5, 2.0, 1.0, 0.25)])
@pytest.mark.parametrize("method", METHODS)
def test_of_four_tasks_every_method_weighs_all(method, preference):
    """What goes back is sum_i w_i dL_i; the fourth's factor is the caller's unless preference has it."""
    weighter = TaskWeighter(TaskWeighting(method=method, preference=preference, detach_weights=True), FOUR, factor=0.25)
    weights_T, gradient_D = _step_of_four(weighter)
    assert weights_T.shape == (4,)
    torch.testing.assert_close(gradient_D, weights_T @ SLOPES_TD.double(), atol=1e-5, rtol=1e-5)
    with_all = TaskWeighter(TaskWeighting(method=method, preference=[*preference[:3], 0.25], detach_weights=True), FOUR)
    assert torch.equal(_step_of_four(with_all)[0], weights_T)


def test_of_four_tasks_the_weights_are_those_of_the_definitions():
    gram_TT = SLOPES_TD.double() @ SLOPES_TD.double().T
    norms_T = gram_TT.diagonal().sqrt()
    expected = {
        "fixed": torch.ones(4),
        "uncertainty": torch.ones(4),  # before anything is learned
        "dwa": torch.ones(4),  # in the first window
        "loss": closed_form_weights_reference(LOSSES_T.double(), 1.0),
        "gradient": closed_form_weights_reference(norms_T, 1.0),
        "min_norm": min_norm_weights_reference(gram_TT),
        "imtl": torch.linalg.solve(gram_TT / norms_T[:, None], torch.ones(4, dtype=torch.float64)),
        "gradnorm": 1 / norms_T,
    }
    for method, weights_T in expected.items():
        found_T = _step_of_four(TaskWeighter(TaskWeighting(method=method), FOUR))[0]
        if method in ("imtl", "gradnorm"):
            weights_T = weights_T / weights_T.abs().sum()
        torch.testing.assert_close(
            found_T, weights_T.double(), atol=1e-5, rtol=1e-5, msg=lambda m, n=method: f"{n}: {m}"
        )
    bargain_T = _step_of_four(TaskWeighter(TaskWeighting(method="nash"), FOUR))[0]
    gain_T = bargain_T * (gram_TT @ bargain_T)
    torch.testing.assert_close(gain_T / gain_T.sum(), torch.full((4,), 0.25, dtype=torch.float64), atol=1e-5, rtol=0)


def test_with_alpha_below_a_third_of_four_tasks_no_weight_is_below_0():
    """alpha T stays above 1 for every number of live tasks: T is that of all."""
    weighter = TaskWeighter(TaskWeighting(method="gradient", alpha=0.34, preference=(1.0, 0.0, 0.0, 1.0)), FOUR)
    weights_T, _ = _step_of_four(weighter)
    norms_T = SLOPES_TD[[0, 3]].double().norm(dim=1)
    expected_T = closed_form_weights_reference(norms_T, 0.34 * 4 / 2)
    torch.testing.assert_close(weights_T[[0, 3]], expected_T, atol=1e-5, rtol=1e-5)
    assert (expected_T > 0).all()


def test_of_more_factors_than_tasks_the_first_count_and_a_floor_has_to_leave_room():
    four = TaskWeighting(method="fixed", preference=(1.0, 2.0, 3.0, 4.0))
    assert TaskWeighter(four).preference_T.tolist() == [1, 2, 3]
    with pytest.raises(InputError, match=r"floor 0\.3"):
        TaskWeighter(TaskWeighting(method="min_norm", floor=0.3), FOUR)


# What is remembered and what is learned ------------------------------------------------------------------------------
def _train(weighter: TaskWeighter, losses_T: torch.Tensor) -> list[float]:
    report = WeightingReport()
    weighter(losses_T.clone().requires_grad_(), report)
    return report.weights_T.tolist()


def test_dwa_weighs_by_how_fast_the_losses_of_two_windows_fell():
    """The paper's formula in plain Python, on windows of three steps; what is validated or not finite counts not."""
    weighter = TaskWeighter(TaskWeighting(method="dwa", window=3, temperature=0.5, preference=(1.0, 2.0, 0.5)))
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(12, 3, generator=generator) + torch.tensor([2.0, 1.0, 0.0])
    losses[:, 2] = 0  # nothing of its kind is masked
    for step, losses_T in enumerate(losses):
        if step == 4:
            losses_T = losses_T * torch.nan
        found = _train(weighter, losses_T)
        with torch.no_grad():
            _train(weighter, 100 * losses_T)
        _train(weighter.eval(), 100 * losses_T)
        weighter.train()
        windows = [losses[i : i + 3].double().mean(0) for i in range(0, step - step % 3, 3)]
        if len(windows) > 1:
            windows[1] = losses[[3, 5]].double().mean(0)
            r = [1.0 if before == 0 else (last / before).item() for last, before in zip(*windows[:-3:-1], strict=True)]
            powers = [math.exp(value / 0.5) for value in r]
            expected = [p * 3 * power / sum(powers) for p, power in zip((1.0, 2.0, 0.5), powers, strict=True)]
        else:
            expected = [1.0, 2.0, 0.5]
        assert found == pytest.approx(expected, rel=1e-5), step


def test_gradnorm_gives_the_task_that_lags_behind_the_longer_gradient():
    """w_i |g_i| as (L_i / first L_i)^asymmetry: eq. 2 of the paper at its rest, the mean being the same for all."""
    weighting = TaskWeighting(method="gradnorm", asymmetry=2.0, preference=(1.0, 1.0, 1.0))
    weighter = TaskWeighter(weighting, FOUR)
    first_T = torch.tensor([10.0, 0.7, 0.5, 4.0])
    weights_T, _ = _step_of_four(weighter, first_T)
    length_T = weights_T * SLOPES_TD.double().norm(dim=1)
    expected_T = (LOSSES_T / first_T).double() ** 2
    torch.testing.assert_close(length_T / length_T.sum(), expected_T / expected_T.sum(), atol=1e-5, rtol=1e-5)


def test_gradnorm_remembers_the_first_loss_that_says_anything():
    weighter = TaskWeighter(TaskWeighting(method="gradnorm"))
    _forward = lambda *losses: weighter(torch.tensor(losses, requires_grad=True), WeightingReport())  # noqa: E731
    with torch.no_grad():
        _forward(9.0, 9.0, 9.0)
    for losses in ((7.0, 0.0, math.nan), (6.0, 0.7, 0.05), (5.0, 0.6, 0.04)):
        _forward(*losses)
    assert weighter.memory["first"].tolist() == pytest.approx([7.0, 0.7, 0.05])


def test_uncertainty_rests_where_weights_are_half_the_inverse_losses():
    weighter = TaskWeighter(TaskWeighting(method="uncertainty", preference=(1.0, 2.0, 0.5)))
    optimizer = torch.optim.SGD(weighter.parameters(), lr=0.5)
    losses_T = torch.tensor([7.0, 0.7, 0.05])
    leaf_T = losses_T.clone().requires_grad_()
    report = WeightingReport()
    weighter(leaf_T, report).backward()
    torch.testing.assert_close(leaf_T.grad, report.weights_T)  # exp(-0) = 1, times preference
    exact_T = torch.tensor([1.0, 2.0, 0.5]) * (0.5 - losses_T)  # of s / 2 + L exp(-s), at s = 0
    torch.testing.assert_close(weighter.log_variance_T.grad, exact_T)
    for _ in range(400):
        optimizer.zero_grad()
        weighter(losses_T, report).backward()
        optimizer.step()
    expected_T = torch.tensor([1.0, 2.0, 0.5]) / (2 * losses_T)
    torch.testing.assert_close(report.weights_T, expected_T, rtol=1e-3, atol=0)


@pytest.mark.parametrize("method", ["dwa", "gradnorm"])
def test_what_is_remembered_goes_on_from_numbers_bit_for_bit(method):
    weighting = TaskWeighting(method=method, window=2)
    losses = torch.rand(9, 3, generator=torch.Generator().manual_seed(0)) + 0.1
    whole, resumed = TaskWeighter(weighting), TaskWeighter(weighting)
    for losses_T in losses[:5]:
        _train_or_gate(whole, losses_T)
    resumed.restore_memory(json.loads(json.dumps(whole.saved_memory())))
    for losses_T in losses[5:]:
        assert _train_or_gate(whole, losses_T) == _train_or_gate(resumed, losses_T)
    fresh = TaskWeighter(TaskWeighting(method="loss"))
    fresh.restore_memory(whole.saved_memory())  # another method: nothing to go on from
    assert fresh.saved_memory() == {}
    with pytest.raises(RuntimeError):
        TaskWeighter(weighting, FOUR).restore_memory(whole.saved_memory())


def _train_or_gate(weighter: TaskWeighter, losses_T: torch.Tensor) -> list[float]:
    hidden, report = torch.zeros(1, 3, requires_grad=True), WeightingReport()
    rises = torch.stack([alias[0, t] for t, alias in enumerate(weighter.gate(hidden, report))])
    weighter(losses_T + rises, report).backward()
    return report.weights_T.tolist()


@pytest.mark.parametrize("before", METHODS)
@pytest.mark.parametrize("after", ["loss", "uncertainty"])
def test_a_model_goes_on_with_another_weighting(tmp_path, before, after):
    model = _model(method=before).float()
    if before == "uncertainty":
        torch.nn.init.constant_(model.weighter.log_variance_T, 0.5)
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(FashionBertForPreTraining.from_pretrained(tmp_path / "model").mlm_head.bias, model.mlm_head.bias)
    warm = FashionBertForPreTraining.warm_start(tmp_path / "model", weighting=TaskWeighting(method=after))
    if after == "uncertainty":
        assert warm.weighter.log_variance_T.tolist() == [0.5 if before == "uncertainty" else 0.0] * 3
    torch.testing.assert_close(warm.tia_head.classifier.weight, model.tia_head.classifier.weight)


@pytest.mark.parametrize("detach", [False, True])
def test_loss_method_is_the_released_formula_with_its_gradient(batch, detach):
    model = _model(method="loss", detach_weights=detach)
    losses_T, _, own, shared = _task_losses_and_gradients(copy.deepcopy(model), batch)
    leaf = losses_T.clone().requires_grad_()
    loss, _ = adaptive_loss_reference(leaf, detach_weights=detach)
    (factor,) = torch.autograd.grad(loss, leaf)
    output = model(batch)
    output.loss.backward()
    torch.testing.assert_close(output.loss.double(), loss, atol=1e-6, rtol=1e-6)
    for i, parameter in enumerate(model.parameters()):
        expected = sum(factor[t] * (own[t][i] + shared[t][i]) for t in range(3))
        torch.testing.assert_close(parameter.grad, expected, atol=1e-6, rtol=1e-4)


def test_fixed_weights_are_the_preference(batch):
    model = _model(method="fixed", preference=(0.1, 1.0, 0.2))
    output = model(batch)
    expected = (torch.tensor([0.1, 1.0, 0.2]) * output.losses_T).sum()
    torch.testing.assert_close(output.loss.detach().float(), expected.float())


def test_a_batch_without_masks_has_zero_losses_and_dense_gradients(batch):
    empty = copy.deepcopy(batch)
    nothing = torch.empty(0, dtype=torch.int64)
    empty.targets.mlm_row_M = empty.targets.mlm_label_M = empty.targets.mpm_row_K = empty.targets.mpm_target_K = nothing
    empty.inputs.patch_mask_BP = torch.zeros_like(batch.inputs.patch_mask_BP)
    empty.targets.counts_T = torch.tensor([0.0, 8.0, 0.0])
    for method in METHODS:
        model = _model(method=method)
        output = model(empty)
        output.loss.backward()
        assert output.losses_T[[0, 2]].tolist() == [0, 0]
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name  # ZeRO-3 keeps last step's where there is none
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("method", {"method": "sum"}),
        ("alpha", {"alpha": 0.3}),
        ("preference", {"preference": (1, -1, 1)}),
        ("normalise", {"method": "min_norm", "normalise": "l2"}),
        ("floor", {"method": "min_norm", "floor": 0.5}),
        ("floor", {"method": "loss", "floor": 0.1}),
        ("floor", {"method": "imtl", "floor": 0.1}),
        ("normalise", {"method": "nash", "normalise": "norm"}),
        ("preference", {"preference": (1, 1)}),
        ("preference", {"preference": (1, 1, 1, 1, 1)}),
        ("window", {"method": "dwa", "window": 0}),
        ("temperature", {"method": "dwa", "temperature": 0.0}),
        ("asymmetry", {"method": "gradnorm", "asymmetry": -1.0}),
    ],
)
def test_nonsense_names_the_field(field, values):
    with pytest.raises(ValueError, match=field):
        TaskWeighting(**values)
