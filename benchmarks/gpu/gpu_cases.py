"""Every operator on a fixed list of shapes, each there for a reason, against its plain PyTorch reference in float64.

Inputs are drawn on the CPU in float32 and rounded to the case's dtype; the operator runs on them on the device, forward
and backward, the reference on the CPU on the same rounded numbers. Dropout masks are functions of a seed and a place
alone, so the reference drops the very same elements.

Accepted: each result, and each gradient, within so many roundings of its dtype of the reference's largest element: 4 of
bfloat16 and 16 of float32, eight times that where an element is a sum over all rows (gradients of weights and biases).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fashionbert_fast.kernels import PackedRows
from fashionbert_fast.operators import OPERATORS

Tensors = dict[str, torch.Tensor]
BF16, FP32 = torch.bfloat16, torch.float32
# Roundings: of 16 bits most is rounding the result once, of float32 it is the order of the sums.
SHORT, LONG = {BF16: 4, FP32: 16}, {BF16: 32, FP32: 128}


@dataclass(frozen=True)
class Case:
    """A shape of an operator. why: what could go wrong there and nowhere else. draw: inputs by name, floating ones in
    float32. call: the operator, or its reference, on them. leaves: those that get a gradient."""

    operator: str
    why: str
    dtype: torch.dtype
    draw: Callable[[torch.Generator], Tensors]
    call: Callable[[Callable, Tensors], torch.Tensor]
    leaves: tuple[str, ...] = ()
    is_sum: bool = False  # over all rows: the result itself

    @property
    def name(self) -> str:
        return f"{self.operator}: {self.why}, {str(self.dtype).removeprefix('torch.')}"


def _randn(*shape: int):
    return lambda g: torch.randn(*shape, generator=g)


def _offsets(*lengths: int) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


SEED = torch.tensor([1234567])


def _bias_gelu() -> list[Case]:
    def case(why, dtype, rows, width):
        return Case(
            "bias_gelu", why, dtype, lambda g: {"x": _randn(rows, width)(g), "bias": _randn(width)(g)},
            lambda f, t: f(t["x"], t["bias"]), ("x", "bias"),
        )  # fmt: skip

    return [
        case("BERT-base's feed-forward", BF16, 2848, 3072), case("BERT-base's feed-forward", FP32, 712, 3072),
        case("BERT-large's", BF16, 356, 4096), case("one row", BF16, 1, 3072),
        case("a width of no power", FP32, 37, 328),
    ]  # fmt: skip


def _layer_norm() -> list[Case]:
    def case(why, dtype, rows, width, dropout=0.0):
        def draw(g):
            names = ("ln_weight", "ln_bias", "bias")
            rest = {name: _randn(width)(g) for name in names}
            return {"x": _randn(rows, width)(g), "residual": _randn(rows, width)(g), **rest, "seed": SEED}

        return Case(
            "dropout_add_layer_norm", why, dtype, draw,
            lambda f, t: f(t["x"], t["residual"], t["ln_weight"], t["ln_bias"], bias_H=t["bias"], dropout=dropout,
                           seed=t["seed"] if dropout else None, site=5),
            ("x", "residual", "ln_weight", "ln_bias", "bias"),
        )  # fmt: skip

    return [
        case("BERT-base", BF16, 2848, 768), case("BERT-base, dropping", BF16, 2848, 768, 0.1),
        case("BERT-base, dropping", FP32, 712, 768, 0.1), case("BERT-large, dropping", BF16, 356, 1024, 0.1),
        case("one row", BF16, 1, 768, 0.1), case("a width of no power", FP32, 37, 312),
    ]  # fmt: skip


def _attention() -> list[Case]:
    def case(why, dtype, lengths, heads, head, dropout=0.0):
        offsets, rows = _offsets(*lengths), sum(lengths)
        return Case(
            "packed_attention", why, dtype,
            lambda g: {"qkv": _randn(rows, 3 * heads * head)(g), "bias": _randn(3 * heads * head)(g),
                       "offsets": offsets, "seed": SEED},
            lambda f, t: f(t["qkv"], t["offsets"], heads, max_seqlen=max(lengths), bias_3H=t["bias"], dropout=dropout,
                           seed=t["seed"] if dropout else None, site=3),
            ("qkv", "bias"),
        )  # fmt: skip

    pairs = (89, 72, 128, 81, 97, 90, 75, 101)
    return [
        case("pairs of BERT-base", BF16, pairs, 12, 64), case("pairs of BERT-base, dropping", BF16, pairs, 12, 64, 0.1),
        case("pairs of BERT-base, dropping", FP32, pairs, 12, 64, 0.1),
        case("one sequence as long as BERT takes", BF16, (512,), 2, 64, 0.1),
        case("sequences of one row, and empty ones", BF16, (1, 0, 65, 64, 1), 2, 64),
        case("heads of 32", BF16, (90, 77), 12, 32),
    ]  # fmt: skip


def _embed() -> list[Case]:
    def case(why, dtype, images, pairs, patches, features, width, dropout=0.0, packed=False):
        def draw(g):
            t = {
                "features": torch.randn(images, patches, features, generator=g).clamp_min(0),
                "weight": _randn(width, features)(g) / features**0.5, "position": _randn(patches, width)(g),
                "segment": _randn(width)(g), "ln_weight": _randn(width)(g), "ln_bias": _randn(width)(g),
                "mask": torch.rand(pairs, patches, generator=g) < 0.1, "seed": SEED,
                "image": torch.randint(images, (pairs,), generator=g),
            }  # fmt: skip
            if packed:
                text = 20 * pairs
                start = torch.arange(pairs) * (20 + patches)
                t |= {"text": _randn(text, width)(g), "patch_row": start + 20}
                t["text_row"] = (start[:, None] + torch.arange(20)).flatten()
            return t

        def call(f, t):
            rows = PackedRows(t["text"], t["text_row"], t["patch_row"], pairs * (20 + patches) + 8) if packed else None
            return f(
                t["features"], t["mask"], t["weight"], t["position"], t["segment"], t["ln_weight"], t["ln_bias"],
                image_index_B=t["image"], feature_dropout=dropout, hidden_dropout=dropout,
                seed=t["seed"] if dropout else None, site=36, packed=rows,
            )  # fmt: skip

        leaves = ("weight", "position", "segment", "ln_weight", "ln_bias") + (("text",) if packed else ())
        return Case("masked_patch_embed", why, dtype, draw, call, leaves)

    return [
        case("ResNet features into BERT-base, packed and dropping", BF16, 16, 32, 64, 2048, 768, 0.1, True),
        case("the same", FP32, 8, 8, 64, 2048, 768, 0.1, True),
        case("one pair of one patch", BF16, 1, 1, 1, 64, 768),
        case("EfficientNet features, a narrow core", BF16, 4, 8, 64, 1280, 384),
    ]  # fmt: skip


def _cross_entropy() -> list[Case]:
    def case(why, dtype, rows, width, words):
        def draw(g):
            labels = torch.randint(words, (rows,), generator=g)
            labels[::7] = -100
            t = {"hidden": _randn(rows, width)(g), "weight": _randn(words, width)(g) / width**0.5}
            return t | {"bias": _randn(words)(g), "labels": labels}

        return Case(
            "linear_cross_entropy", why, dtype, draw,
            lambda f, t: f(t["hidden"], t["weight"], t["bias"], t["labels"]), ("hidden", "weight", "bias"),
        )  # fmt: skip

    return [
        case("BERT's vocabulary, rows of no multiple of 16 bytes", BF16, 123, 768, 30522),
        case("BERT's vocabulary", FP32, 40, 768, 30522), case("a small vocabulary", BF16, 60, 384, 1001),
        case("two rows, one of them ignored", BF16, 2, 768, 2000),
    ]  # fmt: skip


def _patch_kld(linear: bool) -> list[Case]:
    def case(why, dtype, rows, width, features):
        def draw(g):
            picked = torch.randint(2 * rows, (rows,), generator=g)
            if linear:
                picked[::5] = -100
            t = {"target": torch.randn(2 * rows, features, generator=g).clamp_min(0), "rows": picked}
            if not linear:
                return t | {"logits": _randn(rows, features)(g)}
            return t | {"hidden": _randn(rows, width)(g), "weight": _randn(features, width)(g) / width**0.5}

        name, leaves = ("linear_patch_kld", ("hidden", "weight")) if linear else ("patch_kld", ("logits",))
        return Case(name, why, dtype, draw, lambda f, t: f(*(t[n] for n in leaves), t["target"], t["rows"]), leaves)

    return [
        case("ResNet features", BF16, 206, 768, 2048), case("ResNet features", FP32, 52, 768, 2048),
        case("EfficientNet features", BF16, 60, 384, 1280), case("a width of no power", FP32, 6, 64, 100),
    ]  # fmt: skip


def _small() -> list[Case]:
    """The operators of three numbers, or of three gradients."""

    def gradients(rows):
        return lambda g: {name: _randn(rows, 768)(g) for name in "abc"} | {"weights": torch.tensor([0.2, 0.5, 0.3])}

    def gram(g):
        x = torch.randn(3, 8, generator=g)
        return {"gram": x @ x.T}

    cases = [
        Case("adaptive_loss", "three losses", FP32, lambda _: {"losses": torch.tensor([7.1, 0.69, 2.3])},
             lambda f, t: f(t["losses"])[0], ("losses",)),
        Case("min_norm_weights", "an inner point", FP32, gram, lambda f, t: f(t["gram"])),
        Case("min_norm_weights", "one gradient is zero", FP32,
             lambda _: {"gram": torch.diag(torch.tensor([1.0, 0, 2]))}, lambda f, t: f(t["gram"])),
    ]  # fmt: skip
    for rows, dtype, why in ((2848, BF16, "a batch"), (2848, FP32, "a batch"), (1, BF16, "one row")):
        cases.append(
            Case("task_gram", why, dtype, gradients(rows), lambda f, t: f((t["a"], t["b"], t["c"])), is_sum=True)
        )
        cases.append(
            Case("task_mix", why, dtype, gradients(rows), lambda f, t: f((t["a"], t["b"], t["c"]), t["weights"]))
        )
    return cases


CASES = [
    *_small(), *_bias_gelu(), *_layer_norm(), *_attention(), *_embed(), *_cross_entropy(), *_patch_kld(False),
    *_patch_kld(True),
]  # fmt: skip


def cases_of(operator: str) -> list[Case]:
    """The cases of an entry of `OPERATORS`; task_gradients has two functions."""
    names = ("task_gram", "task_mix") if operator == "task_gradients" else (operator,)
    return [case for case in CASES if case.operator in names]


assert {case.operator for case in CASES} - {"task_gram", "task_mix"} <= {operator.name for operator in OPERATORS}


def _function(operator: str, reference: bool) -> Callable:
    import importlib

    file = "task_gradients" if operator in ("task_gram", "task_mix") else operator
    module = importlib.import_module(f"fashionbert_fast.kernels.{file}")
    return getattr(module, f"{operator}_reference" if reference else operator)


def _results(case: Case, inputs: Tensors, *, reference: bool) -> dict[str, torch.Tensor]:
    given = {name: tensor.requires_grad_(name in case.leaves) for name, tensor in inputs.items()}
    out = case.call(_function(case.operator, reference), given)
    found = {"result": out.detach()}
    if case.leaves:
        generator = torch.Generator().manual_seed(1)
        grad = torch.randn(out.shape, generator=generator).to(out.device, out.dtype)
        leaves = [given[name] for name in case.leaves]
        found |= dict(zip(case.leaves, torch.autograd.grad(out, leaves, grad), strict=True))
    return found


def worst_error(case: Case, device: torch.device) -> tuple[str, float]:
    """Which result is furthest from the reference's, and how far: in what is accepted of it, so 1 at most."""
    drawn = case.draw(torch.Generator().manual_seed(0))
    small = ("weights", "losses", "gram")  # float32 whatever the case's dtype
    rounded = {
        name: tensor.to(case.dtype) if tensor.is_floating_point() and name not in small else tensor
        for name, tensor in drawn.items()
    }
    wide = {n: t.detach().double() if t.is_floating_point() else t for n, t in rounded.items()}
    expected = _results(case, {n: t.clone() for n, t in wide.items()}, reference=True)
    mine = _results(case, {n: t.detach().to(device, copy=True) for n, t in rounded.items()}, reference=False)
    worst = ("result", 0.0)
    for name, tensor in mine.items():
        other = expected[name].double()
        is_sum = case.is_sum if name == "result" else tensor.shape[0] != _rows(case, drawn)
        allowed = (LONG if is_sum else SHORT)[case.dtype] * torch.finfo(case.dtype).eps
        error = (tensor.double().cpu() - other).abs().max() / other.abs().max().clamp_min(1e-30) / allowed
        if not error <= worst[1]:  # not a number, too
            worst = (name, float(error))
    return worst


def _rows(case: Case, drawn: Tensors) -> int:
    """The rows of the case's first leaf: gradients of another shape are sums over them."""
    return drawn[case.leaves[0]].shape[0]
