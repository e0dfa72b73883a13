"""A run goes on with other numbers of ranks and other ZeRO stages as if nothing had changed: the same global batches,
in the same order, and the same losses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fashionbert_fast.engine.reporting.metrics import read_metrics
from tests.reliability.trial import Trial, attempt
from tests.reliability.workload import NO_DROPOUT, Ranks, fashionbert, overrides, pretrain_words, shared_store

NAME = "elastic"
TARGET = "4 -> 2 -> 3 -> 4 ranks, stages changing, constant global batch: the same samples, fp32 losses to 1e-6"
RANKS, GLOBAL_BATCH, STEPS = (4, 2, 3, 4), 12, 4  # steps of a leg
CHAINS = ((1, 3, 0, 2), (0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1))  # ZeRO stages of the legs
TOLERANCE = 1e-6  # relative: the losses are sums in float32, whose order the ranks change
# With the usual eps Adam would make full steps of gradients that are zero up to rounding; and each step passes the
# rounding of those before on, by the more the longer it is.
SETTINGS = (*NO_DROPOUT, "train.schedule=constant", "train.warmup_ratio=0", "train.eps=1e-3", "train.lr=1e-4")


def trials(folder: Path, seed: int, quick: bool) -> Iterator[Trial]:
    store = shared_store(folder)
    for chain in CHAINS[: 1 if quick else None]:
        title = f"stages {' '.join(map(str, chain))}"
        home = folder / f"elastic {title}"
        settings = overrides(store, folder, *SETTINGS, f"train.seed={seed}")
        legs = list(enumerate(zip(RANKS, chain, strict=True), start=1))
        whole = partial(trains, home / "whole", [(len(legs) * STEPS, RANKS[0], chain[0])], settings)
        parts = partial(trains, home / "parts", [(leg * STEPS, *how) for leg, how in legs], settings)
        yield attempt(folder, NAME, f"{title}, trained throughout", whole)
        yield attempt(folder, NAME, f"{title}, trained in legs", parts)
        for leg, (ranks, stage) in legs:
            for what, compare in (("samples", same_samples), ("losses", same_losses)):
                name = f"{title}, leg {leg} of {ranks} ranks at stage {stage}, {what}"
                yield attempt(folder, NAME, name, partial(compare, home / "whole", home / "parts", leg))


def trains(home: Path, legs: list[tuple[int, int, int]], settings: list[str], _: Path) -> None:
    """Train up to each leg's step, on its ranks, at its ZeRO stage."""
    home.mkdir(parents=True)
    for last, ranks, stage in legs:
        own = [*settings, f"train.output={home / 'run'}", f"train.steps={last}", f"train.zero_stage={stage}",
               f"train.micro_batch_size={GLOBAL_BATCH // ranks}"]  # fmt: skip
        words = pretrain_words(home, own, resume=last != legs[0][0])
        with Ranks(ranks, home, recorded, home, *words) as running:
            running.succeed()


def same_samples(whole: Path, parts: Path, leg: int, _: Path) -> None:
    """Each place of each step was taken by the same title and photo, whichever rank it fell to."""
    right, found = (samples(home, leg) for home in (whole, parts))
    assert len(right) == STEPS * GLOBAL_BATCH, f"{len(right)} samples were seen"
    assert found == right, f"{sum(found.get(place) != pair for place, pair in right.items())} samples differ"


def same_losses(whole: Path, parts: Path, leg: int, _: Path) -> str:
    """Each task's loss at each step; the largest difference."""
    right, found = ({r["step"]: r["losses"] for r in read_metrics(home / "run")} for home in (whole, parts))
    differences = {
        (step, task): abs(found[step][task] - loss) / abs(loss)
        for step in steps_of(leg)
        for task, loss in right[step].items()
    }
    (step, task), largest = max(differences.items(), key=lambda one: one[1])
    said = f"{task} of step {step} is off by {largest:.1e}"
    assert largest <= TOLERANCE, said
    return said


def steps_of(leg: int) -> range:
    return range((leg - 1) * STEPS + 1, leg * STEPS + 1)


def samples(home: Path, leg: int) -> dict[tuple[int, int], list[str]]:
    """(step, place in the global batch) -> ids of the title's and the photo's products."""
    found = {}
    for path in home.glob("samples-*.jsonl"):
        for line in path.read_text().splitlines():
            step, place, pair = json.loads(line)
            if step in steps_of(leg):
                assert found.setdefault((step, place), pair) == pair, f"step {step} saw {place} twice"
    return found


def recorded(home: Path, *words: str) -> int:
    """`fashionbert WORDS`, with a line of samples-RANK.jsonl for each pair that this rank assembles."""
    from fashionbert_fast.data.pairs import PairDataset

    assemble = PairDataset._collate

    def noting(data, plan, spans, epoch):
        span = spans[data.rank]
        with (home / f"samples-{data.rank}.jsonl").open("a") as file:
            for i in range(span.start, span.stop):
                step, place = divmod(epoch * data.steps_per_epoch * data.global_batch + i, data.global_batch)
                pair = [data.store.ids[plan.text_rows[i]], data.store.ids[plan.image_rows[i]]]
                print(json.dumps([step + 1, place, pair]), file=file)
        return assemble(data, plan, spans, epoch)

    PairDataset._collate = noting
    return fashionbert(*words)
