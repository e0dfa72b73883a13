"""Task weighting against float64 oracles written from the definition: losses, task gradients, what w scales."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from fashionbert_fast.data.batch import Batch
from fashionbert_fast.data.config import DataConfig
from fashionbert_fast.data.pairs import PairDataset
from fashionbert_fast.kernels import min_norm_weights
from fashionbert_fast.kernels.adaptive_loss import adaptive_loss_reference, closed_form_weights_reference
from fashionbert_fast.model.config import NORMALISATIONS, FashionBertConfig, TaskWeighting
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


CASES = [
    {"method": "gradient"},
    {"method": "min_norm"},
    {"method": "gradient", "preference": (0.5, 2.0, 1.0), "alpha": 0.7},
    {"method": "min_norm", "normalise": "norm"},
    {"method": "min_norm", "normalise": "loss", "floor": 0.1},
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


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("method", ["gradient", "min_norm"])
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


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("method", ["gradient", "min_norm"])
def test_without_any_gradient_all_weights_are_zero(method, normalise):
    weighter = TaskWeighter(TaskWeighting(method=method, normalise=normalise, floor=0.1))
    report = WeightingReport(losses_T=torch.zeros(3), cotangent=torch.tensor(1.0))
    assert weighter.solve((torch.zeros(4, 8),) * 3, report).tolist() == [0, 0, 0]
    only = weighter.solve((torch.zeros(4, 8), torch.ones(4, 8), torch.zeros(4, 8)), report)
    assert only.tolist() == [0, 1, 0]


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
    for method in ("loss", "gradient", "min_norm", "fixed"):
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
    ],
)
def test_nonsense_names_the_field(field, values):
    with pytest.raises(ValueError, match=field):
        TaskWeighting(**values)
