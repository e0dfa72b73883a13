"""Two steps at every ZeRO stage, accumulation, way of weighting, with tasks missing and with queries, against float64
in one process.

The engine's AdamW is made to descend plainly: with betas of 0 and an epsilon beyond any gradient its step is
lr / eps x gradient. The word embedding is the decoder as well, so every case is one of tied weights."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

from fashionbert_fast.model.config import METHODS
from tests.reliability import workload
from tests.reliability.trial import Trial, attempt
from tests.reliability.workload import NO_DROPOUT, STAGES, Ranks, overrides, shared_store

NAME = "gradients"
TARGET = "stages x accumulation 1/2/4 x tied weights x missing tasks x adaptive modes against float64: no silent error"
ACCUMULATIONS = (1, 2, 4)
MISSING = {  # what is missing -> by which setting
    "nothing": (),
    "words": ("data.mlm_rate=0",),
    "patches": ("data.patch_rate=0",),
    "words and patches of some micro-batches": ("data.predict_negatives=false", "data.negative_rate=0.7"),
    "nothing, with queries,": ("queries.weight=0.5", "data.negative_rate=0.3"),
    "nothing, with the contrastive loss beside,": (
        "contrastive.weight=0.7",
        "model.alignment_head=pooled",
        "contrastive.size=24",
        "model.patch_objective=selfie",
        "data.patch_rate=0.5",
    ),
    "nothing, with a contrastive step first and queries,": (
        "contrastive.weight=2",
        "contrastive.first_steps=1",
        "contrastive.batch_size=6",
        "queries.weight=0.5",
        "data.negative_rate=0.3",
    ),
}
STEPS, LR, EPS = 2, 0.1, 1e8
DESCENT = (f"train.steps={STEPS}", f"train.lr={LR * EPS}", f"train.eps={EPS}", "train.betas=[0,0]",
           "train.schedule=constant", "train.warmup_ratio=0", "train.gradient_clipping=0",
           "model.initializer_range=0.1")  # fmt: skip
# ZeRO-3 parts matrices above 10,000 numbers: at this width all, the tied one too.
WIDE, PARTED = "model.hidden_size=192", {"encoder.layers.0.qkv.weight", "text_embeddings.word.weight"}
# Of the largest movement of any weight. Rounding to float32 comes to 5e-6; DeepSpeed's silent errors began at 3e-3.
TOLERANCE = 2e-5

Case = tuple[int, str, str]  # accumulation, method, missing


def trials(folder: Path, seed: int, quick: bool) -> Iterator[Trial]:
    store = shared_store(folder)
    for stage in STAGES:
        cases: list[Case] = list(product(ACCUMULATIONS, METHODS, MISSING))
        if quick:
            cases = random.Random(f"{seed} {stage}").sample(cases, 6)
        home = folder / f"gradients-stage-{stage}"
        home.mkdir()
        settings = overrides(
            store, home, *NO_DROPOUT, *DESCENT, WIDE, f"train.zero_stage={stage}", f"train.seed={seed}",
            "train.micro_batch_size=2", "weighting.preference=[0.5,1.0,2.0]",
        )  # fmt: skip
        begun = 0
        while begun < len(cases):  # what ends the ranks is the fault of one case: the others have ranks of their own
            with Ranks(workload.PROCESSES, home, descended, settings, cases[begun:], begun) as ranks:
                why = f"exit statuses {ranks.wait(600)}: {ranks.last_words()}"
            ended = begun
            while (home / f"{ended}.pt").exists():
                ended += 1
            ended = max(ended, begun + 1)
            for number in range(begun, ended):
                accumulation, method, missing = cases[number]
                title = f"stage {stage}, accumulation {accumulation}, {method}, {missing} missing"
                work = partial(agrees, settings, cases[number], home / f"{number}.pt", why)
                yield attempt(folder, NAME, title, work)
            begun = ended


def settings_of(case: Case) -> list[str]:
    accumulation, method, missing = case
    return [f"train.gradient_accumulation_steps={accumulation}", f"weighting.method={method}", *MISSING[missing]]


def agrees(settings: list[str], case: Case, kept: Path, why: str, _: Path) -> str:
    """What the ranks of a case kept against the oracle; the error."""
    import torch

    from fashionbert_fast.config import load_config
    from fashionbert_fast.data.tokenizer import load_tokenizer
    from fashionbert_fast.engine.build import build_dataset, build_model
    from fashionbert_fast.features.store import FeatureStore
    from tests.reliability.oracle import descend

    assert kept.exists(), why
    found = torch.load(kept, weights_only=True)
    config = load_config(None, [*settings, *settings_of(case)])
    store = FeatureStore.open(Path(config.data.store))
    tokenizer = load_tokenizer(Path(config.train.output) / "tokenizer")
    by_rank = [build_dataset(config, store, tokenizer, r, workload.PROCESSES) for r in range(workload.PROCESSES)]
    lacking = [
        bool((batch.targets.counts_T == 0).any())
        for data in by_rank
        for i in range(config.contrastive.first_steps, STEPS)
        for batch in data[i]
    ]
    assert any(lacking) != case[2].startswith("nothing"), "the batches do not lack what the case says"
    config.train.micro_batch_size *= workload.PROCESSES  # one process with the whole global batch
    config.contrastive.batch_size *= workload.PROCESSES
    whole = build_dataset(config, store, tokenizer, 0, 1)
    model = build_model(config, store, len(tokenizer))
    right = descend(found["start"], [whole[i] for i in range(STEPS)], model.config, LR,
                    config.queries if config.queries.weight else None)  # fmt: skip
    moved = max((right[name] - found["start"][name]).abs().max() for name in right)
    error, name = max(((found["end"][name] - right[name]).abs().max().item(), name) for name in right)
    assert moved > 1e-3, f"nothing moved: {moved:.1e}"
    said = f"{name} is off by {error / moved:.1e} of the largest movement"
    assert error <= TOLERANCE * moved, said
    return said


# In a rank ------------------------------------------------------------------------------------------------------------
def descended(settings: list[str], cases: list[Case], begun: int) -> int:
    """The weights before and after `STEPS` steps of each case, as N.pt from ``begun`` on."""
    import torch

    from benchmarks.steps.weights import master_weights, partitioned
    from fashionbert_fast.config import load_config
    from fashionbert_fast.distributed import barrier, init_distributed, shutdown
    from fashionbert_fast.engine.build import build
    from fashionbert_fast.engine.step import train_step

    device = init_distributed()
    for number, case in enumerate(cases, start=begun):
        config = load_config(None, [*settings, *settings_of(case)])
        folder = Path(config.train.output)
        run = build(config, folder, device)
        run.engine.train()
        start = master_weights(run.engine)
        for step in range(STEPS):
            train_step(run, run.dataset[step], step + 1)
            if config.train.zero_stage == 3:
                assert set(partitioned(run.engine.module)) >= PARTED, "ZeRO-3 keeps these whole"
        end = master_weights(run.engine)
        run.engine.destroy()
        if run.rank == 0:
            torch.save({"start": start, "end": end}, folder / f"{number}.part")
            (folder / f"{number}.part").rename(folder / f"{number}.pt")
        barrier()
    shutdown()
    return 0
