"""One number that is none, in one element of one rank's one micro-batch, changes nothing that the run holds.

A NaN comes in twice: by a feature, then losses are NaN on all ranks; and in a gradient, of which one rank knows."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

from tests.reliability import workload
from tests.reliability.trial import Trial, attempt
from tests.reliability.workload import PRECISIONS, STAGES, Ranks, overrides, shared_store

NAME = "nan"
TARGET = "one NaN in one element of one rank or micro-batch: weights and optimizer bitwise unchanged, all ranks agree"
WHERE = ("feature", "gradient")


def trials(folder: Path, seed: int, quick: bool) -> Iterator[Trial]:
    store, draw = shared_store(folder), random.Random(seed)
    for stage, precision, accumulation in product((1,) if quick else STAGES, PRECISIONS, (1, 2)):
        title = f"stage {stage}, {precision}, accumulation {accumulation}"
        home = folder / f"nan {title}"
        home.mkdir()
        settings = overrides(
            store, home, f"train.zero_stage={stage}", f"train.precision={precision}",
            f"train.gradient_accumulation_steps={accumulation}", "model.patch_dropout=0",  # it might drop the NaN
        )  # fmt: skip
        cases = list(product(WHERE, range(workload.PROCESSES), range(accumulation)))
        seeds = [draw.randrange(2**31) for _ in cases]
        with Ranks(workload.PROCESSES, home, poisoned, settings, cases, seeds) as ranks:
            why = f"exit statuses {ranks.wait()}: {ranks.last_words()}"
        found = home / "found.json"
        results = json.loads(found.read_text()) if found.exists() else []
        for where, rank, micro_batch in cases:
            name = f"{title}, in a {where} of rank {rank}, micro-batch {micro_batch}"
            yield attempt(folder, NAME, name, partial(is_unchanged, results, why))


def is_unchanged(results: list[list[dict[str, bool]]], why: str, _: Path) -> None:
    """Take the first case of ``results``: what each rank found."""
    assert results, why
    ranks = results.pop(0)
    wrong = sorted({what for found in ranks for what, holds in found.items() if not holds})
    assert not wrong, f"not so: {'; '.join(wrong)}"


# In a rank ------------------------------------------------------------------------------------------------------------
def poisoned(settings: list[str], cases: list[tuple[str, int, int]], seeds: list[int]) -> int:
    """A good step, then for every case a step with a NaN; at last a good one. The first rank writes what all found."""
    import torch.distributed as dist

    from fashionbert_fast.config import load_config
    from fashionbert_fast.distributed import init_distributed, shutdown
    from fashionbert_fast.engine.build import build
    from fashionbert_fast.engine.step import train_step

    device = init_distributed()
    config = load_config(None, settings)
    run = build(config, Path(config.train.output), device)
    run.engine.train()
    train_step(run, run.dataset[0], 1)
    results = []
    for step, ((where, rank, micro_batch), seed) in enumerate(zip(cases, seeds, strict=True), start=2):
        before = held(run.engine)
        batches = run.dataset[step - 1]
        undo: Callable[[], None] = lambda: None  # noqa: E731
        if run.rank == rank:
            undo = poison(run.engine.module, batches, where, micro_batch, random.Random(seed))
        report = train_step(run, batches, step)
        undo()
        norm = float(run.engine.get_global_grad_norm())
        after = held(run.engine)
        mine = {
            "the gradient's norm is not finite": not math.isfinite(norm),
            "weights and optimizer are unchanged": before.keys() == after.keys()
            and all(same(before[name], after[name]) for name in before),
        }
        everyone = [None] * run.world_size
        dist.all_gather_object(everyone, (mine, report.losses_T.isfinite().tolist(), math.isfinite(norm)))
        agreed = len({str(found) for found in everyone}) == 1
        results.append([found[0] | {"all ranks see the same": agreed} for found in everyone])
    before = held(run.engine)
    train_step(run, run.dataset[len(cases) + 1], len(cases) + 2)
    after = held(run.engine)
    goes_on = math.isfinite(run.engine.get_global_grad_norm()) and not all(
        same(before[name], after[name]) for name in before
    )
    everyone = [None] * run.world_size
    dist.all_gather_object(everyone, goes_on)
    for case in results:
        for found, goes_on in zip(case, everyone, strict=True):
            found["the next step is a good one"] = goes_on
    if run.rank == 0:
        (Path(config.train.output) / "found.json").write_text(json.dumps(results))
    shutdown()
    return 0


def held(engine) -> dict:
    """A copy of all that this rank trains: weights, their float32 masters, the optimizer's state, its step included."""
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    tensors = {}
    for name, parameter in engine.module.named_parameters():
        tensors[f"weight {name}"] = getattr(parameter, "ds_tensor", parameter).detach().clone()
    groups = getattr(engine.optimizer, "fp32_partitioned_groups_flat", None)  # of ZeRO-3
    masters = groups or [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for i, master in enumerate(masters):
        tensors[f"master {i}"] = master.detach().clone()
        for key, value in optimizer.state[master].items():
            tensors[f"{key} {i}"] = value.detach().clone()
    assert len(tensors) > len(list(engine.module.parameters())) + 2, "the optimizer's state was not found"
    return tensors


def same(a, b) -> bool:
    """Bit for bit."""
    import torch

    return torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))


def poison(model, batches: list, where: str, micro_batch: int, draw: random.Random) -> Callable[[], None]:
    """Let one element be NaN: of a micro-batch's features, or of the gradient at the encoder's output while that
    micro-batch goes back. What undoes the latter."""
    if where == "feature":
        pairs = batches[micro_batch].inputs
        shown = [(int(pairs.image_index_B[b]), int(p)) for b, p in (~pairs.patch_mask_BP).nonzero()]
        image, patch = draw.choice(shown)  # a masked patch counts as zeros
        pairs.features_IPD[image, patch, draw.randrange(pairs.features_IPD.shape[2])] = math.nan
        return lambda: None
    passed, share = [], draw.random()

    def on_forward(_module, _inputs, hidden_TH):
        if len(passed) == micro_batch:
            hidden_TH.register_hook(one_nan)
        passed.append(hidden_TH.shape)

    def one_nan(gradient_TH):
        gradient_TH = gradient_TH.clone()
        gradient_TH.view(-1)[int(share * gradient_TH.numel())] = math.nan
        return gradient_TH

    return model.encoder.register_forward_hook(on_forward).remove
