"""What weighting by task gradients costs a whole step, forward and backward, at BERT-base widths.

`gradient` and `min_norm` through the gate (one backward) against a step of fixed weights, which solves nothing, and
against MGDA as first written: three backwards through the whole model, one a task, the Gram matrix of the three
parameter gradients, the solve, their weighted sum. Dropout is 0, so that all of them compute the same losses.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.measure import Row, compare
from benchmarks.steps.workload import fashion_gen_lengths, make_batches
from fashionbert_fast.data.batch import Batch
from fashionbert_fast.kernels import min_norm_weights
from fashionbert_fast.kernels.adaptive_loss import closed_form_weights_reference
from fashionbert_fast.model.config import FashionBertConfig, TaskWeighting
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining
from fashionbert_fast.objectives.weighting import TaskWeighter

QUICK = (4, 8)  # layers, pairs
METHODS = ("gradient", "min_norm")
# peer -> times faster to be
PEERS = {"fixed weights": 1 / 1.05, "three backwards": 2.0}
HEADS = ("mlm_head", "tia_head", "mpm_head")


def task_losses(model: FashionBertForPreTraining, batch: Batch) -> tuple[torch.Tensor, ...]:
    """The three mean losses of one forward without the weighter, each its own scalar, so that the backward of one does
    not run through the heads of the others."""
    inputs, targets = batch.inputs, batch.targets
    hidden_TH = model.encode(inputs)
    word_VH, features_RD = model.text_embeddings.word.weight, inputs.features_IPD.flatten(0, 1)
    mlm = model.mlm_head(hidden_TH[targets.mlm_row_M], word_VH, targets.mlm_label_M) / targets.counts_T[0]
    logits_B2 = model.tia_head(hidden_TH[inputs.cls_row_B])
    tia = F.cross_entropy(logits_B2.float(), targets.tia_label_B)
    mpm = model.mpm_head(hidden_TH[targets.mpm_row_K], features_RD, targets.mpm_target_K) / targets.counts_T[2]
    return mlm, tia, mpm


def three_backwards(model: FashionBertForPreTraining, batch: Batch, method: str) -> torch.Tensor:
    """One step of MGDA over parameters: fills every ``.grad`` and returns the losses (3,).

    Weighted are the parameters all tasks share, the encoder's and the embeddings'; a head keeps its own gradient.
    """
    losses = task_losses(model, batch)
    named = list(model.named_parameters())
    own = [p for name, p in named if name.startswith(HEADS)]
    shared = [p for name, p in named if not name.startswith(HEADS)]
    flat_TN = shared[0].new_empty(len(losses), sum(p.numel() for p in shared))
    for i, loss in enumerate(losses):
        last = i + 1 == len(losses)
        grads = torch.autograd.grad(loss, shared + own, retain_graph=not last, allow_unused=True)
        torch.cat([g.flatten() for g in grads[: len(shared)]], out=flat_TN[i])
        for p, grad in zip(own, grads[len(shared) :], strict=True):
            p.grad = grad if grad is not None else p.grad  # of one task alone
    weights_T = _solve(flat_TN, method)
    mixed_N = weights_T.to(flat_TN.dtype) @ flat_TN
    for p, grad in zip(shared, mixed_N.split([p.numel() for p in shared]), strict=True):
        p.grad = grad.view_as(p)
    return torch.stack(losses).detach()


def _solve(flat_TN: torch.Tensor, method: str) -> torch.Tensor:
    gram_TT = (flat_TN @ flat_TN.T).float()
    if method == "gradient":
        return closed_form_weights_reference(gram_TT.diagonal().sqrt(), 1.0)
    return min_norm_weights(gram_TT)


def weighted_step(model: FashionBertForPreTraining, batch: Batch, method: str) -> torch.Tensor:
    """One step of ours, weighted by ``method``: fills every ``.grad`` and returns the losses (3,)."""
    model.weighter = TaskWeighter(TaskWeighting(method=method))
    output = model(batch)
    output.loss.backward()
    return output.losses_T


def _step(step: Callable[..., torch.Tensor], model: FashionBertForPreTraining, batch: Batch, method: str):
    def run() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        return step(model, batch, method)

    return run


def workload(device: torch.device, quick: bool) -> tuple[FashionBertForPreTraining, Batch]:
    """A bfloat16 model of BERT-base's widths and a batch, so large that the encoder is most of the step."""
    layers, pairs = QUICK if quick else (12, 16)
    if device.type == "cuda":  # or launching is the time
        pairs *= 16
    config = FashionBertConfig(
        num_hidden_layers=layers, hidden_dropout_prob=0, attention_probs_dropout_prob=0, patch_dropout_prob=0
    )
    torch.manual_seed(0)
    model = FashionBertForPreTraining(config).to(device, torch.bfloat16)
    (batch,) = make_batches(config, fashion_gen_lengths(pairs), pairs)
    return model, batch.to(device)


def rows(device: torch.device, quick: bool) -> list[Row]:
    """A row for each way of weighting and peer."""
    model, batch = workload(device, quick)
    layers, pairs, result = model.config.num_hidden_layers, len(batch.targets.tia_label_B), []
    for method in METHODS:
        ours = _step(weighted_step, model, batch, method)
        peers = {
            "fixed weights": _step(weighted_step, model, batch, "fixed"),
            "three backwards": _step(three_backwards, model, batch, method),
        }
        for peer, theirs in peers.items():
            torch.testing.assert_close(ours(), theirs(), atol=1e-6, rtol=1e-5)
            case = f"whole step, {method} weighting, {layers} layers H=768 {pairs} pairs bfloat16 forward+backward"
            result.append(
                compare(case, peer, ours, theirs, target=PEERS[peer], device=device, pairs=5 if quick else 9)
            )  # fmt: skip
    return result
