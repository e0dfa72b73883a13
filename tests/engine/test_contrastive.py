"""The contrastive loss: gradients against float64 in one process, runs as any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from engine import resume_worker
from engine.test_queries import agree_with_one_process, layouts
from in_process import run_here, tiny_fields
from safetensors.torch import load_file
from training import fashionbert

from fashionbert_fast.data.batch import ContrastiveTargets
from fashionbert_fast.engine.reporting.metrics import read_metrics
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.objectives.contrastive import contrastive_sums
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining
from fashionbert_fast.run_directory import best_step, resolve_model_dir
from tests.reliability import workload

BESIDE, FIRST = "nothing, with the contrastive loss beside,", "nothing, with a contrastive step first and queries,"
CASES = [(1, "loss", BESIDE), (2, "min_norm", BESIDE), (2, "loss", FIRST)]


@pytest.mark.parametrize(("processes", "stage"), layouts(((1, 0), (2, 1), (2, 3), (3, 0))))
def test_gradients_are_those_of_one_process_in_float64(tmp_path, monkeypatch, processes, stage):
    agree_with_one_process(tmp_path, monkeypatch, processes, stage, CASES)


def vectors_of(*halves: torch.Tensor) -> torch.Tensor:
    """Of titles and photos alone, (2 C, E), with halves of length sqrt(1/2) each."""
    return torch.cat([F.normalize(half, dim=1) for half in halves], dim=1) / 2**0.5


def test_the_loss_is_clips_of_each_half_where_all_are_wrong_for_each_other():
    """That of Radford et al., Figure 3, on three products, worked with torch's own cross-entropy."""
    halves = torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.manual_seed(0))
    targets = ContrastiveTargets(torch.ones(3, dtype=torch.bool), ~torch.eye(3, dtype=torch.bool))
    other_sequences = torch.full((4, 10), torch.nan, dtype=torch.float64)  # of pairs and queries: not looked at
    expected = []
    for half, scale in zip(halves, (7.0, 3.0), strict=True):
        title_CE, photo_CE = F.normalize(half, dim=1).split(3)
        logits = scale * title_CE @ photo_CE.T
        expected += [F.cross_entropy(one, torch.arange(3)) for one in (logits, logits.T)]
    vectors_SE = torch.cat([other_sequences, vectors_of(*halves)])
    loss, _ = contrastive_sums(vectors_SE, torch.tensor([7.0, 3.0], dtype=torch.float64), targets) / 3
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_duplicates_and_empty_slots_count_for_nothing():
    """Slots: two duplicates, one other, one empty; both halves alike. By hand: the duplicate is in no sum."""
    titles, photos = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [[0.6, 0.8], [0.8, 0.6], [0.0, 1.0], [0.0, 0.0]]
    half = torch.tensor([*titles, *photos], requires_grad=True)
    live_C = torch.tensor([True, True, True, False])
    wrong_CG = torch.tensor([[0, 0, 1, 0], [0, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    sums_2 = contrastive_sums(vectors_of(half, half), torch.tensor([2.0, 2.0]), ContrastiveTargets(live_C, wrong_CG))

    def loss(right: float, *wrong: float) -> float:
        logits = torch.tensor([right, *wrong])
        return F.cross_entropy(2.0 * logits, torch.tensor(0)).item()

    by_title = loss(0.6, 0.0) + loss(0.8, 0.0) + loss(1.0, 0.8, 0.6)
    by_photo = loss(0.6, 0.8) + loss(0.8, 0.6) + loss(1.0, 0.0, 0.0)
    assert sums_2.tolist() == pytest.approx([(by_title + by_photo) / 2, (3 + 2) / 2], rel=1e-5)
    sums_2[0].backward()
    assert half.grad is not None and half.grad.isfinite().all() and not half.grad[[3, 7]].any()


# Runs -----------------------------------------------------------------------------------------------------------------
ON = ("contrastive.weight=1", "contrastive.first_steps=20", "contrastive.batch_size=12", "contrastive.size=16",
      "contrastive.subcategory_steps=8", "data.pairs=both", "train.log_every=1")  # fmt: skip


@pytest.fixture(scope="module")
def trained(store_path, tmp_path_factory) -> Path:
    return run_here(
        store_path, tmp_path_factory.mktemp("contrastive") / "run", *ON, "validation.every=5",
        "validation.keep_best=itc_accuracy", "model.alignment_head=pooled", "train.lr=3e-3", "train.steps=40",
    )  # fmt: skip


def test_a_run_aligns_first_and_tells_of_it(trained):
    records = read_metrics(trained)
    first, rest = records[:20], records[20:]
    losses = [record["losses"]["itc"] for record in first]
    assert sum(losses[-5:]) < sum(losses[:5]) - 2
    for record in first:
        assert record["losses"]["mlm"] == record["losses"]["tia"] == record["losses"]["mpm"] == 0
        assert record["loss"] == pytest.approx(record["losses"]["itc"])
    for record in rest:
        of_tasks = sum(record["weights"][task] * record["losses"][task] for task in record["weights"])
        assert record["loss"] == pytest.approx(of_tasks, rel=1e-5) and record["weights"]["itc"] > 0
        assert record["losses"]["tia"] > 0 and 0 <= record["itc_accuracy"] <= 1
    assert [record["samples"] for record in records[18:22]] == [19 * 12, 20 * 12, 20 * 12 + 8, 20 * 12 + 16]
    accuracies = {r["step"]: r["validation"]["itc_accuracy"] for r in records if "validation" in r}
    assert max(accuracies.values()) > accuracies[5] and best_step(trained) == max(accuracies, key=accuracies.get)


@torch.no_grad()
def test_what_it_saved_has_vectors_of_that_size(trained):
    model = FashionBertForPreTraining.from_pretrained(trained)
    assert model.vector_size == 16 and model.tia_head.reads_sides
    pairs = model.pack(torch.tensor([[2, 5, 3]]), torch.ones(1, 3, dtype=torch.int64),
                       torch.rand(1, model.config.patches, model.config.patch_feature_size))  # fmt: skip
    vectors_SE = model.vectors(pairs)
    assert vectors_SE.shape == (1, 16) and vectors_SE.norm() == pytest.approx(1.0, abs=1e-6)
    hidden_TH = model.encode(pairs)
    title_BH, photo_BH = model.side_means(hidden_TH, pairs)
    torch.testing.assert_close(title_BH[0], hidden_TH[:3].mean(0))
    torch.testing.assert_close(photo_BH[0], hidden_TH[3:].mean(0))


def test_a_run_goes_on_with_what_the_core_has_and_draws_what_it_lacks(trained, store_path, tmp_path):
    def weights(run: Path) -> dict[str, torch.Tensor]:
        return load_file(resolve_model_dir(run) / "model.safetensors")

    core, begins = f"model.core={trained}", ("train.steps=1", "train.lr=1e-9", "validation.every=0")
    on = weights(run_here(store_path, tmp_path / "on", core, *begins))
    before = weights(trained)
    assert on.keys() == before.keys()  # pooled head and projection, though the settings name neither
    for name in ("itc_head.projection.weight", "tia_head.dense.weight"):
        torch.testing.assert_close(on[name], before[name], atol=1e-6, rtol=0)
    changed = weights(run_here(store_path, tmp_path / "other", core, "model.alignment_head=cls", *begins))
    assert "tia_head.dense.weight" not in changed
    torch.testing.assert_close(changed["tia_head.pooler.weight"], before["tia_head.pooler.weight"], atol=1e-6, rtol=0)


def test_a_run_without_it_learns_what_it_did(store_path, tmp_path):
    """Its settings, where it is off, change no bit."""
    runs = [
        run_here(store_path, tmp_path / name, *more)
        for name, more in (("a", ()), ("b", ("contrastive.size=8", "contrastive.batch_size=4")))
    ]
    a, b = (load_file(resolve_model_dir(run) / "model.safetensors") for run in runs)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert not any("itc" in record["losses"] for record in read_metrics(runs[0]))


def test_more_products_than_there_are_is_a_line(store_path, tmp_path):
    fields = tiny_fields(store_path, "contrastive.first_steps=1", "contrastive.batch_size=5000",
                         f"train.output={tmp_path / 'run'}")  # fmt: skip
    (tmp_path / "empty.yaml").write_text("{}")
    done = fashionbert("pretrain", "--config", str(tmp_path / "empty.yaml"), *fields)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "do not fill one global batch of 5000 products; lower contrastive.batch_size" in done.stderr


@pytest.mark.parametrize("stage", [0, 3])
def test_a_resumed_run_is_the_uninterrupted_one(process_group, store_path, tmp_path, stage):
    resume_worker.check(str(store_path), tmp_path, stage, "fp32", process_group,
                        "contrastive.weight=1", "contrastive.first_steps=3", "contrastive.batch_size=8")  # fmt: skip


def test_two_processes_learn_and_validate_as_one(store_path, tmp_path):
    """Validation's last batch is one pair, of which the second process has nothing."""
    fields = ("contrastive.weight=1", "contrastive.first_steps=2", "contrastive.dropout=0", "train.log_every=1",
              "validation.every=1", "validation.pairs=17", "train.steps=4", "train.eps=1e-3")  # fmt: skip
    one = read_metrics(run_here(store_path, tmp_path / "one", *fields, "contrastive.batch_size=8"))
    both = tiny_fields(store_path, *fields, "contrastive.batch_size=4", "train.micro_batch_size=4",
                       f"train.output={tmp_path / 'two'}")  # fmt: skip
    workload.finish(2, tmp_path, both)
    for a, b in zip(one, read_metrics(tmp_path / "two"), strict=True):
        assert b["losses"]["itc"] == pytest.approx(a["losses"]["itc"], abs=1e-5)
        assert b["itc_accuracy"] == pytest.approx(a["itc_accuracy"], abs=1e-5)
        for name in ("itc_accuracy", "alignment_accuracy"):
            assert b["validation"][name] == pytest.approx(a["validation"][name], abs=1e-5)


def test_the_patch_tower_reads_standardised_features_where_the_run_does(store_path, tmp_path):
    """By the statistics of the store, which the checkpoint keeps: an average photo is the origin of what it reads."""
    fields = (
        "contrastive.first_steps=1",
        "contrastive.batch_size=8",
        "train.steps=1",
        "model.standardise_features=true",
    )
    model = FashionBertForPreTraining.from_pretrained(run_here(store_path, tmp_path / "run", *fields))
    found = FeatureStore.open(store_path).manifest.statistics
    mean_D, std_D = (torch.tensor(found[name]) for name in ("mean", "std"))
    torch.testing.assert_close(model.standardised(mean_D[None]), torch.zeros(1, len(mean_D)), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        model.standardised((mean_D + std_D)[None]), torch.ones(1, len(mean_D)), atol=1e-4, rtol=0
    )
    seen = []
    assert model.itc_head is not None
    model.itc_head.patch_tower.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pairs = model.pack(torch.tensor([[2, 3]]), torch.ones(1, 2, dtype=torch.int64),
                       mean_D.expand(1, model.config.patches, -1))  # fmt: skip
    model.vectors(pairs)
    torch.testing.assert_close(seen[0], torch.zeros(1, len(mean_D)), atol=1e-4, rtol=0)
    model.feature_manifest, model._statistics_2D = None, None
    with pytest.raises(InputError, match=r"take its directory with patch_features\.json"):
        model.vectors(pairs)
