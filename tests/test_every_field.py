"""Every field of the configuration, set to something else, changes what it should: in the batches, the model, the
optimizer, DeepSpeed's engine or the files of a run. A field without a row here fails the test, so does one that no
longer reaches its consumer.

What is observed is stated in numbers of its own, not taken from the code under test.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY_MODEL, write_store
from training import own_traces

from fashionbert_fast.config import Config, load_config
from fashionbert_fast.data.batch import QueryTargets
from fashionbert_fast.data.tokenizer import train_wordpiece
from fashionbert_fast.distributed import init_distributed, shutdown
from fashionbert_fast.engine import train
from fashionbert_fast.engine.build import build, build_loader
from fashionbert_fast.engine.health.nonfinite import NonFiniteMonitor
from fashionbert_fast.engine.health.watchdog import Watchdog
from fashionbert_fast.engine.reporting.metrics import read_metrics
from fashionbert_fast.errors import InputError
from fashionbert_fast.model import encoder as encoder_module
from fashionbert_fast.objectives.weighting import WeightingReport
from fashionbert_fast.run_directory import best_step, list_checkpoints

PRODUCTS, PATCHES = 96, 4  # of conftest's store; 84 to train on, 12 held out
BASE = [*TINY_MODEL, "train.micro_batch_size=12", "train.steps=8", "train.zero_stage=0"]


@dataclasses.dataclass(frozen=True)
class Row:
    """``observe(run)`` gives ``values[i][1]`` where ``field`` is ``values[i][0]`` (and ``beside`` what they say)."""

    field: str
    observe: Callable
    values: tuple[tuple[object, object], ...]
    beside: tuple[str, ...] = ()


# What is observed ----------------------------------------------------------------------------------------------------
def batches(run, epoch: int = 0) -> list:
    steps = run.dataset.steps_per_epoch
    return [batch for step in range(epoch * steps, (epoch + 1) * steps) for batch in run.dataset[step]]


def negatives_share(epoch: int = 0) -> Callable:
    """Whether all mismatches of an epoch share category and sub-category with their image, and whether there are any
    of another product at all."""

    def observe(run) -> tuple[bool, bool]:
        plan, store = run.dataset.plan(epoch), run.store
        text, image = plan.text_rows[~plan.is_match], plan.image_rows[~plan.is_match]
        assert len(text) > 10 and (text != image).all()
        return tuple(
            bool((np.array(names)[text] == np.array(names)[image]).all())
            for names in (store.categories, store.subcategories)
        )

    return observe


def share_of_matches(run) -> float:
    return torch.cat([batch.targets.tia_label_B for batch in batches(run)]).float().mean().item()


def predicted_a_title(run) -> list[int]:
    """Masked tokens of each title."""
    counts = []
    for batch in batches(run):
        rows = batch.targets.mlm_row_M[batch.targets.mlm_label_M != -100]
        counts += torch.bucketize(rows, batch.inputs.cu_seqlens_S1[1:], right=True).bincount(minlength=12).tolist()
    return counts


def predicted_share(run) -> float:
    inputs = [batch.inputs for batch in batches(run)]
    words = sum(pairs.tokens - pairs.patch_mask_BP.numel() - 2 * 12 for pairs in inputs)  # without [CLS] and [SEP]
    return sum(predicted_a_title(run)) / words


def mismatches_are_predicted(run) -> bool:
    for batch in batches(run):
        pair_K = torch.bucketize(batch.targets.mpm_row_K, batch.inputs.cu_seqlens_S1[1:], right=True)
        if (batch.targets.tia_label_B[pair_K] == 0).any():
            return True
    return False


def longest_title(run) -> int:
    return max(int(batch.inputs.cu_seqlens_S1.diff().max()) for batch in batches(run)) - PATCHES


def masked_patches(run) -> set[int]:
    return {int(count) for batch in batches(run) for count in batch.inputs.patch_mask_BP.sum(1)}


def model_of(run):
    return run.engine.module


def rates_of_hidden_dropout(run) -> set[float]:
    """Every rate at which a hidden state is dropped, observed at each place: the text's embeddings, the patches', both
    halves of every layer, the pooled [CLS]."""
    model, seen = model_of(run), observed_dropouts(run)
    places = [dropped_share(run, model.text_embeddings), dropped_share(run, model.tia_head.classifier, "input")]
    layers = [call["dropout"] for call in seen["dropout_add_layer_norm"]]
    assert len(layers) == 2 * len(model.encoder.layers)
    return {round(rate, 1) for rate in (*places, *layers, seen["patches"][0]["hidden_dropout"])}


def projection_undoes_deviations(run) -> bool:
    """Whether each dimension of the training products' features, whatever its deviation, moves the patches' hidden
    states as far: by the fresh weights' 0.02 * sqrt(256)."""
    std_D = run.store.features(run.store.rows("train")).std((0, 1))
    moved_D = model_of(run).patch_embeddings.projection.weight.detach().norm(dim=0) * std_D / (0.02 * 256**0.5)
    return bool((moved_D.log().abs() < 0.25).all())


def observed_dropouts(run) -> dict[str, list[dict]]:
    """The keywords of every operator that drops, in one step of training."""
    from fashionbert_fast.model import embeddings as embeddings_module

    seen = {"packed_attention": [], "dropout_add_layer_norm": [], "patches": []}

    def noting(name: str, function: Callable) -> Callable:
        def call(*args, **keywords):
            seen[name].append(keywords)
            return function(*args, **keywords)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("packed_attention", "dropout_add_layer_norm"):
            patch.setattr(encoder_module, name, noting(name, getattr(encoder_module, name)))
        name = "masked_patch_embed"
        patch.setattr(embeddings_module, name, noting("patches", getattr(embeddings_module, name)))
        forward(run)
    return seen


def dropped_share(run, module: torch.nn.Module, side: str = "output") -> float:
    """The share of exact zeros in what comes out of ``module`` (or goes in) in training."""
    found = []

    def note(_module, inputs, output) -> None:
        found.append(output if side == "output" else inputs[0])

    hook = module.register_forward_hook(note)
    for _ in range(20):
        forward(run)
    hook.remove()
    return torch.cat([(x == 0).float().flatten() for x in found]).mean().item()


def forward(run):
    model = model_of(run).train()
    (batch,) = run.dataset[0]
    return model(batch)


def weigh(run, losses=(7.0, 0.7, 0.05), slopes=(1.0, 2.0, 2.0)) -> SimpleNamespace:
    """The run's weighter on given losses whose gradients at the hidden state are orthogonal and as long as ``slopes``:
    the weights, and the gradient of the weighted loss with respect to the losses."""
    weighter, hidden = model_of(run).weighter, torch.zeros(1, 3, requires_grad=True)
    losses_T = torch.tensor(losses, requires_grad=True)
    report = WeightingReport()
    aliases = weighter.gate(hidden, report)
    rises = [slope * alias[0, i] for i, (slope, alias) in enumerate(zip(slopes, aliases, strict=True))]
    weighter(losses_T + torch.stack(rises), report).backward()
    return SimpleNamespace(weights=report.weights_T.tolist(), of_losses=losses_T.grad)


def weights(run) -> list[float]:
    return weigh(run).weights


def weights_of_the_fourth_batch(run) -> list[float]:
    """Of losses of which the first halves from batch to batch, while the others stay."""
    return [weigh(run, losses=(7.0 / 2**i, 0.7, 0.05)).weights for i in range(4)][3]


def closed_form(signals, alpha: float = 1.0) -> list[float]:
    exponentials = [math.exp(signal - max(signals)) for signal in signals]
    inverse = [1 / (3 * alpha - (e / sum(exponentials)) ** 2) for e in exponentials]
    return [value / sum(inverse) for value in inverse]


def gradient_flows_through_weights(run) -> bool:
    seen = weigh(run)
    return not torch.allclose(seen.of_losses, torch.tensor(seen.weights), atol=1e-5)


def weight_of_queries(run) -> float | None:
    """What their loss is multiplied by in the loss; None where there is none."""
    output = forward(run)
    if output.query_2 is None:
        return None
    of_tasks = (output.report.weights_T * output.losses_T).sum()
    return ((output.loss.detach() - of_tasks) / output.query_2[0]).item()


def loss_of_a_query(run) -> float:
    """Of one with a cosine of 0.5 to its item and of 0.2 to the other."""
    vectors_SH = torch.tensor([[0.5, math.sqrt(0.75)], [0.2, math.sqrt(0.96)], [1.0, 0.0], [0.0, 0.0]])
    targets = QueryTargets(torch.tensor([True, False]), torch.tensor([[False, True], [False, False]]))
    return model_of(run)._sums(vectors_SH, targets)[0].item()


def weight_of_the_contrastive_loss(run) -> float | None:
    """What it is multiplied by as the fourth task; None where it is none."""
    weights = forward(run).report.weights_T.tolist()
    return weights[3] if len(weights) > 3 else None


def alone(run, steps: int = 4) -> list[np.ndarray]:
    """The products of each of the first steps."""
    return [run.dataset.global_rows(step, [0])[0] for step in range(steps)]


def subcategories(run, step: int) -> int:
    return len({run.store.subcategories[row] for row in alone(run)[step]})


class Several:
    """Equal to any number above 1."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int) and other > 1


def masked_tokens_alone(run) -> int:
    mask = run.dataset.titles.mask_id
    return sum(int((run.dataset[step][0].inputs.input_id_N == mask).sum()) for step in range(4))


def masked_patches_alone(run) -> set[int]:
    return {int(count) for step in range(4) for count in run.dataset[step][0].inputs.patch_mask_BP.sum(1)}


def share_of_mirrored(run) -> float:
    """Of the photos of the first steps; each is as it is, or its 2 x 2 patches are."""
    found = []
    for step, rows in enumerate(alone(run)):
        features_IPD = run.dataset[step][0].inputs.features_IPD
        as_it_is_IPD = run.store.features(np.unique(rows))
        for seen_PD, stored_PD in zip(features_IPD, as_it_is_IPD, strict=True):
            mirrored = torch.equal(seen_PD, stored_PD[[1, 0, 3, 2]])
            assert mirrored != torch.equal(seen_PD, stored_PD)
            found.append(mirrored)
    return sum(found) / len(found)


def optimizer_of(run) -> torch.optim.Optimizer:
    return run.engine.basic_optimizer


def of_groups(key: str) -> Callable:
    return lambda run: {
        tuple(value) if isinstance(value := group[key], (list, tuple)) else value
        for group in optimizer_of(run).param_groups
    }


def weight_decay(run) -> tuple[set[float], set[float]]:
    """Of biases and LayerNorm, and of all other parameters."""
    names = {id(parameter): name for name, parameter in model_of(run).named_parameters()}
    found = (set(), set())
    flat = run.engine.optimizer.gradients  # a flat tensor a group is what the optimizer itself has
    for group, gradients in zip(optimizer_of(run).param_groups, flat, strict=True):
        for parameter in gradients.parameters:
            name = names.pop(id(parameter))
            found[0 if name.endswith("bias") or "norm" in name else 1].add(group["weight_decay"])
    assert not names, f"not optimised: {names}"
    return found


def lr_curve(*steps: int) -> Callable:
    """Learning rates that those optimizer steps use, counted from 0."""

    def observe(run) -> list[float]:
        found = {0: run.engine.get_lr()[0]}
        for step in range(1, max(steps) + 1):
            run.engine.lr_scheduler.step()
            found[step] = run.engine.get_lr()[0]
        return [found[step] for step in steps]

    return observe


def validations(out: Path) -> list[tuple[int, dict]]:
    return [(record["step"], record["validation"]) for record in read_metrics(out) if "validation" in record]


def what_the_seed_draws(run) -> list:
    """First weights, the order and the masks of the batches, and the dropout of a step."""
    (batch,) = run.dataset[0]
    keep = [call["seed"].item() for call in observed_dropouts(run)["packed_attention"]]
    return [
        model_of(run).encoder.layers[0].qkv.weight[0, 0].item(), run.dataset.plan(0).text_rows.tolist(),
        batch.inputs.input_id_N.tolist(), batch.inputs.patch_mask_BP.tolist(), keep,
    ]  # fmt: skip


class Refused(str):
    """This machine cannot have the value: an InputError says so in these words."""


class Constant:
    """A dictionary of equal values."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dict) and all(value == next(iter(other.values())) for value in other.values())


class Unlike(str):
    """Whatever it is, nothing of it is as with the other value."""


def close(value) -> object:
    return pytest.approx(value, rel=1e-4)


DROPOUT = ("model.hidden_dropout=0.1", "model.attention_dropout=0.1", "model.patch_dropout=0.1")
MIN_NORM = ("weighting.method=min_norm",)
DWA = ("weighting.method=dwa",)
FALLING = [3 * math.exp(r / 2) / (math.exp(0.25) + 2 * math.exp(0.5)) for r in (0.5, 1.0, 1.0)]
ASKED = ("data.store=ASKED_STORE",)
QUERIES = (*ASKED, "queries.weight=1")
ALONE = ("contrastive.first_steps=4", "contrastive.batch_size=12")
SCHEDULED = ("train.lr=1.0", "train.warmup_ratio=0.25")
GOLDEN = [0.42789072, 0.28605476, 0.28605452]  # the specification's, of losses (7, 0.7, 0.05)

# fmt: off
ROWS = [
    # data
    Row("data.store", lambda run: len(run.store), (("STORE", PRODUCTS), ("SMALL_STORE", 48))),
    Row("data.split", lambda run: len(run.dataset.rows), (("train", 84), ("validation", 12), ("all", 96))),
    Row("data.max_text_tokens", longest_title,
        ((4, 4), (7, 7))),
    Row("data.negatives", negatives_share(),
        (("random", (False, False)), ("category", (True, False)), ("subcategory", (True, True)))),
    Row("data.random_negative_epochs", lambda run: [negatives_share(epoch)(run)[1] for epoch in range(3)],
        ((0, [True, True, True]), (2, [False, False, True])), ("data.negatives=subcategory",)),
    Row("data.pairs", lambda run: len(run.dataset.plan(0).text_rows), (("coin", 84), ("both", 168))),
    Row("data.negative_rate", share_of_matches, ((0.0, 1.0), (1.0, 0.0), (0.5, pytest.approx(0.5, abs=0.15)))),
    Row("data.predict_negatives", mismatches_are_predicted, ((True, True), (False, False))),
    Row("data.mlm_rate", predicted_share,
        ((0.15, pytest.approx(0.17, abs=0.05)), (0.6, pytest.approx(0.6, abs=0.06)), (0, 0))),
    Row("data.mlm_most", lambda run: max(predicted_a_title(run)), ((10, 8), (3, 3), (0, 0)), ("data.mlm_rate=1",)),
    Row("data.patch_rate", masked_patches, ((0.25, {1}), (0.5, {2}), (0.0, {0}), (1.0, {4}))),
    Row("data.workers", lambda run: build_loader(run, 0).num_workers, ((None, 0), (0, 0), (2, 2))),
    # model
    Row("model.core", lambda run: (run.tokenizer_dir.name, model_of(run).text_embeddings.word.weight[5, :3].tolist()),
        ((None, Unlike()), ("CORE", ("core", [0.5, 0.5, 0.5])))),
    Row("model.tokenizer", lambda run: run.dataset.titles.vocabulary, ((None, 119), ("TOKENIZER", 47))),
    Row("model.vocab_size", lambda run: model_of(run).text_embeddings.word.num_embeddings, ((100, 100), (110, 110))),
    Row("model.layers", lambda run: len(model_of(run).encoder.layers), ((1, 1), (3, 3))),
    Row("model.layers", lambda run: len(model_of(run).encoder.layers), ((None, 3), (1, 1)), ("model.core=CORE",)),
    Row("model.hidden_size", lambda run: model_of(run).tia_head.pooler.in_features, ((16, 16), (48, 48))),
    Row("model.heads", lambda run: {layer.heads for layer in model_of(run).encoder.layers}, ((2, {2}), (8, {8}))),
    Row("model.intermediate_size",
        lambda run: {layer.feed_forward.out_features for layer in model_of(run).encoder.layers},
        ((64, {64}), (80, {80}))),
    Row("model.initializer_range",
        lambda run: [m.weight.std().item() for m in model_of(run).modules()
                     if isinstance(m, (torch.nn.Linear, torch.nn.Embedding))],
        ((0.02, pytest.approx([0.02] * 17, rel=0.25)), (0.3, pytest.approx([0.3] * 17, rel=0.25)))),
    Row("model.hidden_dropout", rates_of_hidden_dropout, ((0.0, {0.0}), (0.3, {0.3})),
        ("model.attention_dropout=0.5", "model.patch_dropout=0.5")),
    Row("model.attention_dropout", lambda run: [call["dropout"] for call in observed_dropouts(run)["packed_attention"]],
        ((0.0, [0.0, 0.0]), (0.3, [0.3, 0.3])), ("model.hidden_dropout=0.5", "model.patch_dropout=0.5")),
    Row("model.patch_dropout", lambda run: observed_dropouts(run)["patches"][0]["feature_dropout"],
        ((0.0, 0.0), (0.3, 0.3)), ("model.hidden_dropout=0.5", "model.attention_dropout=0.5")),
    Row("model.attention_dropout", lambda run: [call["dropout"] for call in observed_dropouts(run)["packed_attention"]],
        ((0.3, [0.3, 0.3]),)),  # also where nothing else drops
    Row("model.patch_dropout", lambda run: observed_dropouts(run)["patches"][0]["feature_dropout"], ((0.3, 0.3),)),
    Row("model.standardise_features", projection_undoes_deviations, ((False, False), (True, True)),
        ("model.hidden_size=256", "model.layers=1")),
    Row("model.alignment_head", lambda run: hasattr(model_of(run).tia_head, "dense"),
        ((None, False), ("cls", False), ("pooled", True))),
    Row("model.patch_objective", lambda run: forward(run).losses_T[2].item() == 0,  # selfie: a photo's are alike here
        (("kld", False), ("selfie", True)), ("data.patch_rate=0.5",)),
    Row("model.layer_norm", lambda run: run, (("apex", Refused("model.layer_norm apex")),)),
    # weighting
    Row("weighting.method", weights,
        (("loss", close(GOLDEN)), ("fixed", [1.0, 1.0, 1.0]), ("gradient", close(closed_form((1.0, 2.0, 2.0)))),
         ("min_norm", close([2 / 3, 1 / 6, 1 / 6])), ("uncertainty", [1.0, 1.0, 1.0]), ("dwa", close([1.0, 1.0, 1.0])),
         *((method, close([0.5, 0.25, 0.25])) for method in ("imtl", "nash", "gradnorm")))),
    Row("weighting.alpha", weights, ((1.0, close(GOLDEN)), (0.5, close(closed_form((7.0, 0.7, 0.05), 0.5))))),
    Row("weighting.alpha", weights, ((0.5, close(closed_form((1.0, 2.0, 2.0), 0.5))),), ("weighting.method=gradient",)),
    Row("weighting.detach_weights", gradient_flows_through_weights, ((False, True), (True, False))),
    Row("weighting.preference", weights, (([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]), ([0.5, 1.0, 2.0], [0.5, 1.0, 2.0])),
        ("weighting.method=fixed",)),
    Row("weighting.preference", weights,  # of the losses before their weights, and of what the weights then are
        (([0.5, 1.0, 2.0], close([p * w for p, w in zip((0.5, 1, 2), closed_form((3.5, 0.7, 0.1)), strict=True)])),)),
    Row("weighting.normalise", weights,
        (("none", close([2 / 3, 1 / 6, 1 / 6])), ("norm", close([0.5, 0.25, 0.25])),
         ("loss", Unlike())), MIN_NORM),
    Row("weighting.floor", weights, ((0.0, close([2 / 3, 1 / 6, 1 / 6])), (0.2, close([7 / 15, 4 / 15, 4 / 15]))),
        MIN_NORM),
    # contrastive
    Row("contrastive.weight", weight_of_the_contrastive_loss, ((0.0, None), (0.5, close(0.5)), (2.0, close(2.0))),
        ("weighting.method=fixed",)),
    Row("contrastive.first_steps", lambda run: [len(run.dataset[step][0].targets.tia_label_B) for step in range(3)],
        ((0, [12, 12, 12]), (2, [0, 0, 12])), ("contrastive.batch_size=12",)),
    Row("contrastive.batch_size", lambda run: len(run.dataset[0][0].contrastive.live_C), ((8, 8), (20, 20)), ALONE),
    Row("contrastive.subcategory_steps", lambda run: [subcategories(run, step) for step in range(4)],
        ((0, [Several()] * 4), (2, [Several(), Several(), 1, 1])), (*ALONE, "contrastive.batch_size=3")),
    Row("contrastive.size", lambda run: model_of(run).vector_size, ((24, 24), (8, 8)), ALONE),
    Row("contrastive.dropout", lambda run: model_of(run).itc_head.patch_tower[2].p, ((0.3, 0.3), (0.0, 0.0)), ALONE),
    Row("contrastive.temperature", lambda run: model_of(run).itc_head.scale().tolist(),
        ((0.07, close([1 / 0.07] * 2)), (0.5, close([2.0] * 2))), ALONE),
    Row("contrastive.token_rate", lambda run: masked_tokens_alone(run) > 0, ((0.0, False), (0.5, True)), ALONE),
    Row("contrastive.patch_rate", lambda run: masked_patches_alone(run),
        ((0.25, {1}), (0.5, {2}), (0.0, {0})), ALONE),
    Row("contrastive.mirror_rate", share_of_mirrored,
        ((0.0, 0.0), (1.0, 1.0), (0.5, pytest.approx(0.5, abs=0.2))), ALONE),
    Row("weighting.window", weights_of_the_fourth_batch, ((100, close([1.0, 1.0, 1.0])), (1, close(FALLING))), DWA),
    Row("weighting.temperature", weights_of_the_fourth_batch, ((1e9, close([1.0, 1.0, 1.0])), (2.0, close(FALLING))),
        (*DWA, "weighting.window=1")),
    Row("weighting.asymmetry", weights_of_the_fourth_batch,  # norms of 1, 2 and 2, an eighth of the first loss left
        ((0.0, close([0.5, 0.25, 0.25])), (1.0, close([1 / 9, 4 / 9, 4 / 9]))), ("weighting.method=gradnorm",)),
    # queries
    Row("queries.weight", weight_of_queries, ((0.0, None), (0.5, close(0.5)), (2.0, close(2.0))), ASKED),
    Row("queries.scale", loss_of_a_query, ((20.0, close(math.log1p(math.exp(20 * (0.2 - 0.5 + 0.1))))),
                                           (1.0, close(math.log1p(math.exp(0.2 - 0.5 + 0.1))))), QUERIES),
    Row("queries.margin", loss_of_a_query, ((0.0, close(math.log1p(math.exp(20 * (0.2 - 0.5))))),
                                            (0.4, close(math.log1p(math.exp(20 * (0.2 - 0.5 + 0.4)))))), QUERIES),
    # train
    Row("train.steps", lambda run: len(build_loader(run, 0)), ((8, 8), (5, 5))),
    Row("train.steps", lr_curve(5), ((8, close([0.5])), (20, close([1.0]))), SCHEDULED),
    Row("train.micro_batch_size",
        lambda run: (len(run.dataset[0][0].targets.tia_label_B), run.engine.train_batch_size()),
        ((12, (12, 12)), (6, (6, 6)))),
    Row("train.gradient_accumulation_steps",
        lambda run: (len(run.dataset[0]), run.engine.gradient_accumulation_steps(), run.engine.train_batch_size()),
        ((1, (1, 1, 12)), (3, (3, 3, 36)))),
    Row("train.optimizer", lambda run: type(optimizer_of(run)).__name__, (("adamw", "AdamW"), ("lamb", "Lamb"))),
    Row("train.optimizer_backend", lambda run: type(optimizer_of(run)).__module__.split(".")[0],
        (("auto", "torch"), ("torch", "torch"), ("apex", Refused("train.optimizer_backend apex")),
         ("pytorch_optimizer", Refused("train.optimizer_backend pytorch_optimizer has no adamw")))),
    Row("train.lr", lr_curve(2), ((1e-4, close([1e-4])), (5e-3, close([5e-3]))), ("train.warmup_ratio=0.25",)),
    Row("train.fresh_lr_factor", lambda run: {group["lr"] for group in optimizer_of(run).param_groups},
        ((1.0, {0.5}), (4.0, {0.5, 2.0})), ("model.core=CORE", "train.lr=0.5", "train.schedule=constant",
                                            "train.warmup_ratio=0")),
    Row("train.betas", of_groups("betas"), (([0.9, 0.999], {(0.9, 0.999)}), ([0.8, 0.95], {(0.8, 0.95)}))),
    Row("train.eps", of_groups("eps"), ((1e-8, {1e-8}), (1e-6, {1e-6}))),
    Row("train.weight_decay", weight_decay, ((0.0, ({0.0}, {0.0})), (0.01, ({0.0}, {0.01})))),
    Row("train.schedule", lr_curve(1, 4, 8),
        (("linear", close([0.5, 2 / 3, 0.0])), ("cosine", close([0.5, 0.75, 0.0])), ("constant", [0.5, 1.0, 1.0])),
        SCHEDULED),
    Row("train.warmup_ratio", lr_curve(0, 1), ((0.0, close([1.0, 0.875])), (0.5, close([0.0, 0.25]))),
        ("train.lr=1.0",)),
    Row("train.gradient_clipping", lambda run: run.engine.optimizer.clip, ((1.0, 1.0), (0.0, 0.0), (0.3, 0.3))),
    Row("train.precision", lambda run: {p.dtype for p in model_of(run).parameters()},
        (("fp32", {torch.float32}), ("bf16", {torch.bfloat16}))),
    Row("train.zero_stage", lambda run: run.engine.zero_optimization_stage(), ((0, 0), (1, 1), (2, 2), (3, 3))),
    Row("train.cuda_graphs", lambda run: run, ((True, Refused("train.cuda_graphs")),)),
    Row("train.fp8", lambda run: run, ((True, Refused("train.fp8")),), ("train.precision=bf16",)),
    Row("train.max_skipped_steps", lambda run: NonFiniteMonitor(run).most, ((3, 3), (1, 1))),
    Row("train.step_timeout", lambda run: Watchdog(run).timeout, ((1800, 1800), (5, 5))),
    Row("train.seed", what_the_seed_draws, ((0, Unlike()), (1, Unlike())), DROPOUT),
]
# fmt: on

# Of whole runs, which `trained` makes with these values: what their files say.
RUNS = ({
    "train.output": ("OUTPUT", lambda out: [(out / name).exists() for name in ("config.yaml", "metrics.jsonl")],
                     [True, True]),
    "train.log_every": (3, lambda out: [record["step"] for record in read_metrics(out)], [3, 4, 6, 7]),
    "train.nvtx": (True, lambda out: "forward" in read_metrics(out)[-1]["phases"], True),
    "train.checkpoint_every": (2, lambda out: [path.name[-1] for path in list_checkpoints(out)], ["4", "6", "7"]),
    "train.keep_checkpoints": (3, lambda out: len(list_checkpoints(out)), 3),
    "validation.every": (4, lambda out: [step for step, _ in validations(out)], [4, 7]),
    "validation.pairs": (10, lambda out: {validation["pairs"] for _, validation in validations(out)}, {10}),
}, {  # a run whose losses stay what they are: the first validation is the best
    "train.lr": (1e-30, lambda out: {step: validation["losses"] for step, validation in validations(out)}, Constant()),
    "train.output": ("STOPPED", lambda out: (out / "metrics.jsonl").exists(), True),
    "validation.every": (1, lambda out: len(validations(out)), 3),
    "validation.keep_best": ("mlm", lambda out: best_step(out), 1),
    "validation.patience": (2, lambda out: [path.name[-1] for path in list_checkpoints(out)], ["1", "3"]),
}, {
    "train.output": ("KEPT", lambda out: (out / "metrics.jsonl").exists(), True),
    "train.checkpoint_every": (1, lambda out: [path.name[-1] for path in list_checkpoints(out)], [*"1234567"]),
    "train.wandb": (False, lambda out: (out / "wandb-id.txt").exists(), False),  # where asked for: test_metrics.py
    "train.keep_hours": (1e-9, lambda out: len(list_checkpoints(out)), 7),
})  # fmt: skip


# Tests ---------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def places(store_path, asked_path, tmp_path_factory) -> dict[str, str]:
    """What capital words in the table stand for."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("every_field")
    titles = [f"{a}{b} shirt" for a in "abcdefgh" for b in "ijklmnop"]
    train_wordpiece(titles, 100, folder / "tokenizer")
    core = BertModel(BertConfig(vocab_size=100, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
                                intermediate_size=32, max_position_embeddings=64))  # fmt: skip
    torch.nn.init.constant_(core.embeddings.word_embeddings.weight, 0.5)
    core.save_pretrained(folder / "core")
    train_wordpiece(titles, 100, folder / "core")
    write_store(folder / "small", products=48)
    names = {"SMALL_STORE": "small", "CORE": "core", "TOKENIZER": "tokenizer", "OUTPUT": "run", "STOPPED": "stopped",
             "KEPT": "kept"}  # fmt: skip
    return {"STORE": str(store_path), "ASKED_STORE": str(asked_path)} | {
        word: str(folder / name) for word, name in names.items()
    }


@pytest.fixture(scope="module")
def one_process():
    """This process as a group of one, which no run leaves before the last test here has; its device."""
    with own_traces(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "shutdown", lambda: None)
        yield init_distributed()
        shutdown()


@pytest.fixture(scope="module")
def built(places, one_process, tmp_path_factory):
    """(overrides) -> the run that `pretrain` would train."""

    def make(*overrides: str):
        directory = tmp_path_factory.mktemp("built")
        words = [f"data.store={places['STORE']}", f"train.output={directory}", *BASE, *overrides]
        return build(load_config(None, [_placed(word, places) for word in words]), directory, one_process)

    return make


def _placed(word: str, places: dict[str, str]) -> str:
    name, _, value = word.partition("=")
    return f"{name}={places.get(value, value)}"


def _override(field: str, value: object) -> str:
    return f"{field}={'null' if value is None else value}"


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")  # the curve is walked without training
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.field)
def test_a_field_reaches_its_consumer(row, built):
    seen = []
    for value, expected in row.values:
        if isinstance(expected, Refused):
            with pytest.raises(InputError, match=str(expected)):
                built(*row.beside, _override(row.field, value))
            continue
        seen.append(row.observe(built(*row.beside, _override(row.field, value))))
        if not isinstance(expected, Unlike):
            assert seen[-1] == expected, f"{row.field}={value}"
    for (_, expected), one in zip(row.values, seen, strict=False):
        if isinstance(expected, Unlike):
            others = [other for other in seen if other is not one]
            assert others and all(a != b for other in others for a, b in zip(one, other, strict=True)), row.field


@pytest.fixture(scope="module")
def trained(places, one_process) -> list[Path]:
    """The directories of the runs of `RUNS`."""
    directories = []
    for run in RUNS:
        words = [f"data.store={places['STORE']}", *BASE, "train.steps=7"]
        words += [_override(field, value) for field, (value, *_) in run.items()]
        directories.append(train.pretrain(load_config(None, [_placed(word, places) for word in words])))
        assert directories[-1] == Path(places[run["train.output"][0]])
    return directories


@pytest.mark.parametrize(("run", "field"), [(i, field) for i, run in enumerate(RUNS) for field in run])
def test_a_field_reaches_the_files_of_a_run(run, field, trained):
    _, observe, expected = RUNS[run][field]
    assert observe(trained[run]) == expected


def test_no_field_is_without_a_row():
    sections = {field.name: field.default_factory for field in dataclasses.fields(Config)}
    fields = {f"{name}.{field.name}" for name, section in sections.items() for field in dataclasses.fields(section)}
    assert {row.field for row in ROWS} | {field for run in RUNS for field in run} == fields


def test_every_layer_and_place_drops_by_itself(built):
    """One site a place: two layers that drew the same mask would drop the same units. The seed is the step's."""
    calls = observed_dropouts(built(*DROPOUT, "model.layers=3"))
    sites = [call["site"] for name in ("packed_attention", "dropout_add_layer_norm") for call in calls[name]]
    sites += [calls["patches"][0]["site"], calls["patches"][0]["site"] + 1]  # of features, of the embedding
    assert len(sites) == 3 + 2 * 3 + 2 == len(set(sites))
    assert len({call["seed"].item() for found in calls.values() for call in found}) == 1
