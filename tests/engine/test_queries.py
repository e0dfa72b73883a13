"""Queries find their items among those of all ranks: gradients against float64 in one process, runs as any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine import resume_worker
from in_process import run_here, tiny_fields
from safetensors.torch import load_file
from training import fashionbert

from fashionbert_fast.engine.reporting.metrics import read_metrics
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.objectives.query_title_image import am_softmax
from fashionbert_fast.run_directory import best_step, resolve_model_dir
from tests.reliability import gradients, workload
from tests.reliability.workload import NO_DROPOUT, Ranks, overrides

ASKED = "nothing, with queries,"
CASES = [(1, "loss", ASKED), (2, "min_norm", ASKED)]


def layouts(quick: tuple[tuple[int, int], ...]):
    """Processes and ZeRO stages: those of ``quick``, and the rest as slow ones."""
    every = ((processes, stage) for processes in (1, 2, 3) for stage in (0, 1, 2, 3))
    return [pytest.param(*one, marks=() if one in quick else pytest.mark.slow) for one in every]


def agree_with_one_process(tmp_path, monkeypatch, processes: int, stage: int, cases: list[tuple]) -> None:
    """Whether ranks have the weights of a float64 model of the whole batch after each of ``cases``."""
    monkeypatch.setattr(workload, "PROCESSES", processes)
    settings = overrides(
        workload.shared_store(tmp_path), tmp_path, *NO_DROPOUT, *gradients.DESCENT, gradients.WIDE,
        f"train.zero_stage={stage}", "train.micro_batch_size=4", "train.seed=3",
    )  # fmt: skip
    with Ranks(processes, tmp_path, gradients.descended, settings, cases, 0) as ranks:
        ranks.succeed(120)
    for number, case in enumerate(cases):
        gradients.agrees(settings, case, tmp_path / f"{number}.pt", "", tmp_path)


@pytest.mark.parametrize(("processes", "stage"), layouts(((1, 0), (2, 0), (2, 1), (2, 2), (2, 3), (3, 0), (3, 3))))
def test_gradients_are_those_of_one_process_in_float64(tmp_path, monkeypatch, processes, stage):
    agree_with_one_process(tmp_path, monkeypatch, processes, stage, CASES)


def test_the_margin_is_on_the_right_item_alone_and_none_is_wrong_for_many():
    right_C, wrong_CG = torch.tensor([0.5, -0.2], dtype=torch.float64), torch.tensor([[0.1, -torch.inf], [0.3, 0.4]])
    losses_C = am_softmax(right_C, wrong_CG.double(), scale=10.0, margin=0.2)
    logits = [torch.tensor([3.0, 1.0]), torch.tensor([-4.0, 3.0, 4.0])]
    expected = [torch.nn.functional.cross_entropy(row, torch.tensor(0)) for row in logits]
    torch.testing.assert_close(losses_C.float(), torch.stack(expected))
    assert am_softmax(right_C, torch.full((2, 3), -torch.inf, dtype=torch.float64), 10.0, 0.2).tolist() == [0, 0]


# Runs -----------------------------------------------------------------------------------------------------------------
ON = ("queries.weight=1", "validation.every=4", "validation.keep_best=query_accuracy", "data.pairs=both",
      "train.log_every=1")  # fmt: skip


@pytest.fixture(scope="module")
def trained(asked_path, tmp_path_factory) -> Path:
    return run_here(asked_path, tmp_path_factory.mktemp("queries") / "run", *ON, "train.lr=3e-3", "train.steps=40")


def test_a_run_learns_to_find_and_tells_of_it(trained, asked_path):
    records = read_metrics(trained)
    losses = [record["query_loss"] for record in records]
    assert sum(losses[-10:]) < sum(losses[:10]) - 10
    validations = {record["step"]: record["validation"] for record in records if "validation" in record}
    store = FeatureStore.open(asked_path)
    asked = sum(bool(store.queries[row]) for row in store.rows("validation"))
    assert {found["queries"] for found in validations.values()} == {asked}
    accuracies = {step: found["query_accuracy"] for step, found in validations.items()}
    assert max(accuracies.values()) > accuracies[4] and best_step(trained) == max(accuracies, key=accuracies.get)
    for record in records:
        of_tasks = sum(record["weights"][task] * loss for task, loss in record["losses"].items())
        assert record["loss"] == pytest.approx(of_tasks + record["query_loss"], rel=1e-5)
        assert 0 <= record["query_accuracy"] <= 1
    assert len(load_file(resolve_model_dir(trained) / "model.safetensors")["text_embeddings.segment.weight"]) == 3


def test_a_run_without_queries_on_a_store_with_some_learns_what_it_did(asked_path, tmp_path, store_path):
    """The same products, but for queries, by the same tokenizer: bit for bit."""
    tokenizer = run_here(asked_path, tmp_path / "a", "train.steps=1", "validation.every=0") / "tokenizer"
    runs = [run_here(store, tmp_path / name, f"model.tokenizer={tokenizer}", "validation.every=4")
            for name, store in (("b", asked_path), ("c", store_path))]  # fmt: skip
    b, c = (load_file(resolve_model_dir(run) / "model.safetensors") for run in runs)
    assert all(torch.equal(b[name], c[name]) for name in c)
    assert not any("query_loss" in record | record["validation"] for record in read_metrics(runs[0]))


def test_a_store_without_queries_is_a_line(store_path, tmp_path):
    fields = tiny_fields(store_path, "queries.weight=1", f"train.output={tmp_path / 'run'}")
    (tmp_path / "empty.yaml").write_text("{}")
    done = fashionbert("pretrain", "--config", str(tmp_path / "empty.yaml"), *fields)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert (
        f"queries.weight 1: {store_path} has no queries of split 'train'; prepare it with --queries FILE" in done.stderr
    )


@pytest.mark.parametrize("stage", [0, 3])
def test_a_resumed_run_is_the_uninterrupted_one(process_group, asked_path, tmp_path, stage):
    resume_worker.check(str(asked_path), tmp_path, stage, "fp32", process_group, "queries.weight=1")


def test_two_processes_learn_and_validate_as_one(asked_path, tmp_path):
    """Validation's last batch is one pair, of which the second process has nothing."""
    fields = ("queries.weight=1", "train.log_every=1", "validation.every=1", "validation.pairs=17", "train.steps=4",
              "train.eps=1e-3")  # fmt: skip
    one = read_metrics(run_here(asked_path, tmp_path / "one", *fields))
    both = tiny_fields(asked_path, *fields, "train.micro_batch_size=4", f"train.output={tmp_path / 'two'}")
    workload.finish(2, tmp_path, both)
    for a, b in zip(one, read_metrics(tmp_path / "two"), strict=True):
        assert b["validation"]["queries"] == a["validation"]["queries"] > 3
        for name in ("query_loss", "query_accuracy"):
            assert b[name] == pytest.approx(a[name], abs=1e-5)
            assert b["validation"][name] == pytest.approx(a["validation"][name], abs=1e-5)
