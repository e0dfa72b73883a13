"""`fashionbert pretrain` as a person runs it: files, resuming, launchers, precisions, optimizers, bad input.

In processes of their own where that is what is tested, else in this one (`training.fashionbert`), which is quicker.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY_MODEL, write_store
from safetensors.torch import load_file
from training import ENVIRONMENT, fashionbert

from fashionbert_fast import FashionBertForPreTraining
from fashionbert_fast.engine.build import loader_workers
from fashionbert_fast.engine.checkpointing.resume import check_same_products, resumes, sole_writer
from fashionbert_fast.engine.health.signals import StopRequest
from fashionbert_fast.engine.reporting.metrics import read_metrics
from fashionbert_fast.errors import InputError
from fashionbert_fast.run_directory import damage, list_checkpoints, newest_valid, resolve_model_dir

TINY = [override for override in TINY_MODEL if "dropout" not in override]  # dropout as it is by default
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def config(store_path, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(
        f"data:\n  store: {store_path}\ntrain:\n  output: unset\n  steps: 8\n  micro_batch_size: 8\n  lr: 1.0e-3\n"
        "  log_every: 2\n  checkpoint_every: 4\n"
    )
    return path


def _words(config: Path, output: Path, *extra: str) -> list[str]:
    return ["pretrain", "--config", str(config), *TINY, f"train.output={output}", *extra]


def _pretrain(config: Path, output: Path, *extra: str) -> subprocess.CompletedProcess:
    return fashionbert(*_words(config, output, *extra))


def _started(launcher: list[str], config: Path, output: Path, *extra: str) -> subprocess.CompletedProcess:
    """The same in processes of its own."""
    command = [*launcher, "-m", "fashionbert_fast", *_words(config, output, *extra)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)


def _succeeds(*args) -> None:
    done = _pretrain(*args)
    assert done.returncode == 0, done.stderr[-3000:]


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(resolve_model_dir(run) / "model.safetensors")


@pytest.fixture(scope="module")
def whole_run(config, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    done = _started([sys.executable], config, run)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr  # DeepSpeed's of its accelerator, where it is imported before it was chosen
    return run


def test_a_run_directory_is_a_model_directory_to_python(whole_run):
    model = FashionBertForPreTraining.from_pretrained(whole_run)
    for name, tensor in _weights(whole_run).items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_a_run_directory_holds_what_the_contract_says(whole_run):
    names = {path.name for path in whole_run.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "tensorboard", "losses.png", "weights.png"} <= names
    records = read_metrics(whole_run)
    assert [record["step"] for record in records] == [2, 4, 6, 8]
    for record in records:
        assert set(record["losses"]) == set(record["weights"]) == {"mlm", "tia", "mpm"}
        assert record["loss"] == pytest.approx(
            sum(record["losses"][t] * record["weights"][t] for t in record["losses"])
        )
        assert record["samples"] == 8 * record["step"]
        assert all(record[key] > 0 for key in ("samples_per_s", "tokens_per_s", "mfu", "grad_norm"))
    assert "max_text_tokens: 64" in (whole_run / "config.yaml").read_text()  # resolved: defaults written out
    assert list((whole_run / "tensorboard").glob("events*"))
    assert [path.name for path in list_checkpoints(whole_run)] == ["step-00000004", "step-00000008"]


def test_the_logged_rate_is_the_one_the_step_used(config, whole_run, tmp_path):
    """Of 8 steps one warms up: step s uses the schedule's value at s - 1."""
    assert [r["lr"] for r in read_metrics(whole_run)] == pytest.approx([1e-3 * (9 - s) / 7 for s in (2, 4, 6, 8)])


def test_resuming_gives_the_uninterrupted_run(config, whole_run, tmp_path):
    run = tmp_path / "resumed"
    shutil.copytree(whole_run, run)
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    _succeeds(config, run, "--resume")
    assert [r["step"] for r in read_metrics(run)] == [2, 4, 6, 8]
    for a, b in zip(read_metrics(run), read_metrics(whole_run), strict=True):
        assert a["losses"] == b["losses"]
        assert (a["lr"], a["weights"]) == (b["lr"], b["weights"])
    resumed, whole = _weights(run), _weights(whole_run)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_resume_passes_over_a_damaged_checkpoint(config, whole_run, tmp_path):
    run = tmp_path / "damaged"
    shutil.copytree(whole_run, run)
    assert newest_valid(run)[0].name == "step-00000008"
    victim = next((run / "checkpoints" / "step-00000008" / "state").glob("rank-*"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1  # one flipped bit, which torch.load would not notice
    victim.write_bytes(content)
    assert "damaged" in damage(victim.parent.parent)
    assert newest_valid(run)[0].name == "step-00000004"
    done = _pretrain(config, run, "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "passed over" in done.stdout


def test_resume_refuses_another_configuration(config, whole_run):
    done = _pretrain(config, whole_run, "train.lr=5e-4", "--resume")
    _is_one_line_error(done, "train.lr")


def test_a_finished_run_goes_on_for_more_steps_and_not_for_fewer(config, whole_run, tmp_path):
    run = tmp_path / "longer"
    shutil.copytree(whole_run, run)
    _is_one_line_error(_pretrain(config, run, "train.steps=6", "--resume"), "train.steps")
    done = _pretrain(config, run, "train.steps=12", "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"resuming from {run}/checkpoints/step-00000008\n" in done.stdout
    assert [record["step"] for record in read_metrics(run)] == [2, 4, 6, 8, 10, 12]


def test_two_runs_do_not_write_one_output(config, tmp_path):
    """Not a second start and not a resume beside it; a killed owner does not hold the directory."""
    run = tmp_path / "run"
    words = _words(config, run, "train.steps=100000", "train.log_every=1", "data.workers=1")
    command = [sys.executable, "-m", "fashionbert_fast", *words]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _until(lambda: list_checkpoints(run))
    second = _started([sys.executable], config, run, "train.steps=100000", "--resume")
    _is_one_line_error(second, "another run is writing it", f"process {process.pid}")
    assert process.poll() is None
    process.kill()
    process.communicate()
    with sole_writer(run):  # at once, though the loader's process may live a moment longer
        pass


def test_without_a_terminal_every_logged_step_is_a_line(config, tmp_path):
    done = _pretrain(config, tmp_path / "run")
    lines = [line for line in done.stdout.splitlines() if " step " in line]
    assert [line.split()[2] for line in lines] == ["2", "4", "6", "8"]
    assert all("mlm" in line and "pairs/s" in line and line.endswith("left") for line in lines)


def test_the_deepspeed_launcher(config, tmp_path):
    launcher = Path(sys.executable).parent / "deepspeed"
    environment = ENVIRONMENT | {"DS_ACCELERATOR": "cpu"}
    words = _words(config, tmp_path / "run")
    command = [str(launcher), "--num_accelerators", "2", "--module", "fashionbert_fast", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_metrics(tmp_path / "run")[-1]["samples"] == 2 * 8 * 8


def test_bf16_follows_fp32(config, whole_run, tmp_path):
    _succeeds(config, tmp_path / "bf16", "train.precision=bf16")
    for low, full in zip(read_metrics(tmp_path / "bf16"), read_metrics(whole_run), strict=True):
        for task, loss in full["losses"].items():
            assert low["losses"][task] == pytest.approx(loss, rel=0.02)


@pytest.mark.parametrize("stage", [0, 1])
def test_checkpoints_of_16_bit_runs_hold_the_whole_weights(stage, config, tmp_path):
    """What a step rounds to 16 bits the optimizer keeps in 32: that is what goes on from a checkpoint."""
    _succeeds(config, tmp_path / "run", "train.precision=bf16", f"train.zero_stage={stage}")
    weights = _weights(tmp_path / "run")
    rounded = [name for name, weight in weights.items() if weight.equal(weight.bfloat16().float())]
    assert all(weight.dtype == torch.float32 for weight in weights.values()) and len(rounded) < len(weights) / 4, (
        rounded
    )


def test_loader_workers_change_nothing(config, whole_run, tmp_path):
    _succeeds(config, tmp_path / "run", "data.workers=2")
    assert [r["losses"] for r in read_metrics(tmp_path / "run")] == [r["losses"] for r in read_metrics(whole_run)]


@pytest.mark.parametrize("backend", ["auto", "pytorch_optimizer"])
def test_lamb(config, tmp_path, backend):
    _succeeds(
        config, tmp_path / "run", "train.optimizer=lamb", f"train.optimizer_backend={backend}", "train.zero_stage=0"
    )
    assert read_metrics(tmp_path / "run")[-1]["losses"]["mlm"] > 0


# Bad input ------------------------------------------------------------------------------------------------------------
def _is_one_line_error(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 2, done.stderr[-3000:]
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in errors[0]


def test_wrong_values_and_missing_files(config, tmp_path, store_path):
    run = tmp_path / "run"
    (tmp_path / "broken.yaml").write_text("train: [unclosed")
    (tmp_path / "empty").mkdir()
    cases = [
        (config, ["train.steps=0"], ["train.steps"]),
        (config, ["train.learning_rate=1"], ["train.learning_rate"]),
        (config, ["train.lr=fast"], ["train.lr"]),
        (config, ["data.store=/nowhere"], ["/nowhere"]),
        (config, [f"data.store={tmp_path / 'empty'}"], ["not a feature store"]),
        (config, ["model.core=/nowhere"], ["/nowhere"]),
        (config, ["train.micro_batch_size=1000"], ["micro_batch_size"]),
        (config, ["train.optimizer_backend=apex"], ["apex"]),
        (config, ["model.layer_norm=apex"], ["model.layer_norm", "apex"]),
        (config, ["train.cuda_graphs=true"], ["train.cuda_graphs"]),
        (config, ["train.fp8=true", "train.precision=bf16"], ["train.fp8"]),
        (config, ["train.output=/proc/nowhere"], ["/proc/nowhere"]),
        (tmp_path / "missing.yaml", [], ["missing.yaml"]),
        (tmp_path / "broken.yaml", [], ["broken.yaml"]),
    ]
    for file, overrides, words in cases:
        _is_one_line_error(_pretrain(file, run, *overrides), *words)


def test_a_run_is_not_resumed_on_features_of_another_encoder(config, whole_run, tmp_path):
    other = write_store(tmp_path / "other", feature_size=16)
    _is_one_line_error(_pretrain(config, whole_run, f"data.store={other}", "--resume"), "patch features differ")


def test_a_run_is_not_resumed_on_other_products_of_the_same_encoder(config, whole_run, tmp_path, store_path):
    other = write_store(tmp_path / "other", products=104)
    done = _pretrain(config, whole_run, f"data.store={other}", "--resume")
    _is_one_line_error(done, str(other), str(store_path), "set data.store")


def test_products_are_the_same_by_content_or_where_a_hash_is_unknown_by_number():
    began = {"content_sha256": "aa", "products": 96, "splits": {"train": 84, "validation": 12}}

    def complaint(**changes) -> str:
        store = SimpleNamespace(path="stores/now", manifest=SimpleNamespace(to_dict=lambda: began | changes))
        try:
            check_same_products(began, store, "stores/began")
        except InputError as error:
            return str(error)
        return ""

    assert complaint() == complaint(content_sha256="") == ""
    named = "stores/now: not what this run began with, stores/began: "
    assert complaint(content_sha256="bb").startswith(named + "content_sha256 bb against aa; set data.store")
    assert complaint(content_sha256="", products=97).startswith(named + "products 97 against 96; set data.store")
    assert "splits {'train': 96} against" in complaint(content_sha256="", splits={"train": 96})


def test_a_store_that_moved_is_resumed_on(config, whole_run, tmp_path, store_path):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    shutil.copytree(store_path, tmp_path / "moved")
    _succeeds(config, run, f"data.store={tmp_path / 'moved'}", "--resume")


def test_an_existing_run_is_not_overwritten(config, whole_run):
    before = (whole_run / "metrics.jsonl").read_text()
    _is_one_line_error(_pretrain(config, whole_run), "--resume")
    assert (whole_run / "metrics.jsonl").read_text() == before


def test_zero_3_says_nothing_that_is_no_news(config, tmp_path, capfd):
    with warnings.catch_warnings(record=True) as told:
        warnings.resetwarnings()
        warnings.simplefilter("ignore", DeprecationWarning)  # as outside of tests
        done = _pretrain(config, tmp_path / "run", "train.zero_stage=3", "train.steps=4")
    assert done.returncode == 0
    lines = [str(warning.message) for warning in told] + done.stderr.splitlines() + capfd.readouterr().err.splitlines()
    assert lines == []


def test_bad_input_ends_every_process_at_once(config, whole_run):
    done = _started(TORCHRUN, config, whole_run)
    assert done.returncode != 0
    assert len([line for line in done.stderr.splitlines() if line.startswith("fashionbert pretrain: error:")]) == 1
    assert "forcefully" not in done.stderr  # torchrun's word for a rank left waiting that it had to kill


@pytest.mark.parametrize("late", [0, 1])
def test_bad_input_is_told_though_torchrun_ends_the_slower_rank_first(tmp_path, late):
    script = tmp_path / "late.py"
    script.write_text(
        f"import os, sys, time\nfrom fashionbert_fast.cli import main\n"
        f"time.sleep(30 * (os.environ['LOCAL_RANK'] == '{late}'))\nsys.exit(main(['pretrain', '--config', 'absent']))\n"
    )
    done = subprocess.run([*TORCHRUN, str(script)], env=ENVIRONMENT, capture_output=True, text=True)
    assert len([line for line in done.stderr.splitlines() if line.startswith("fashionbert pretrain: error:")]) == 1


def _until(condition, seconds: float = 120) -> None:
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, "it did not come to that in time"
        time.sleep(0.05)


def _ended(process: subprocess.Popen, run: Path) -> tuple[int, str]:
    """The step that a signalled run saved, and its line: no step that was logged is lost, and it was quick."""
    start = time.time()
    _, stderr = process.communicate(timeout=60)
    assert time.time() - start < 10
    (line,) = [line for line in stderr.splitlines() if line.startswith("fashionbert pretrain: error: interrupted")]
    newest = newest_valid(run)[0]
    assert newest is not None
    step = int(newest.name.removeprefix("step-"))
    assert f"step {step} is saved" in line
    assert read_metrics(run)[-1]["step"] == step  # every step is logged
    return step, line


ALSO = [pytest.param(sent, marks=pytest.mark.slow) for sent in (signal.SIGINT, signal.SIGUSR1)]  # one handler for all


@pytest.mark.parametrize("sent", [signal.SIGTERM, *ALSO])
def test_a_signalled_run_saves_its_step_and_the_command_it_offers_goes_on(config, tmp_path, sent):
    """The whole process group is signalled, loader processes too, as a terminal and Slurm do."""
    run = tmp_path / "run"
    words = _words(config, run, "train.steps=100000", "train.log_every=1", "train.checkpoint_every=0", "data.workers=1")
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen([sys.executable, "-m", "fashionbert_fast", *words], env=ENVIRONMENT, **pipes)
    _until(lambda: len(read_metrics(run)) > 3)
    os.killpg(process.pid, sent)
    step, line = _ended(process, run)
    assert process.returncode == 2
    command = line.partition("`")[2].rstrip("`")
    assert command.endswith("--resume")
    path = os.pathsep.join([str(Path(sys.executable).parent), ENVIRONMENT["PATH"]])
    process = subprocess.Popen(["bash", "-c", f"exec {command}"], env=ENVIRONMENT | {"PATH": path}, **pipes)
    _until(lambda: read_metrics(run)[-1]["step"] > step + 1)
    os.killpg(process.pid, sent)
    assert _ended(process, run)[0] > step + 1
    assert [record["step"] for record in read_metrics(run)] == list(range(1, read_metrics(run)[-1]["step"] + 1))


@pytest.mark.parametrize("signalled", ["one rank", pytest.param("the launcher", marks=pytest.mark.slow)])
def test_a_signal_to_one_process_stops_all_after_the_same_step(config, tmp_path, signalled):
    run = tmp_path / "run"
    words = _words(config, run, "train.steps=100000", "train.log_every=1", "train.checkpoint_every=0")
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*TORCHRUN, "-m", "fashionbert_fast", *words], env=ENVIRONMENT, **pipes)
    _until(lambda: len(read_metrics(run)) > 3)
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(ranks) == 2
    os.kill(int(ranks[1]) if signalled == "one rank" else process.pid, signal.SIGTERM)
    _, line = _ended(process, run)
    assert process.returncode != 0
    assert "`torchrun --nproc-per-node 2 -m fashionbert_fast pretrain --config" in line
    assert not any(map(_lives, ranks))


def test_ranks_end_with_a_launcher_that_is_killed(config, tmp_path):
    """And save their step first."""
    run = tmp_path / "run"
    words = _words(config, run, "train.steps=100000", "train.log_every=1", "train.checkpoint_every=0")
    process = subprocess.Popen(
        [*TORCHRUN, "-m", "fashionbert_fast", *words], env=ENVIRONMENT, stdout=subprocess.DEVNULL
    )
    _until(lambda: len(read_metrics(run)) > 3)
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(ranks) == 2
    process.kill()
    process.wait()
    _until(lambda: not any(_lives(rank) for rank in ranks), 15)
    newest = newest_valid(run)[0]
    assert newest is not None
    assert newest.name == f"step-{read_metrics(run)[-1]['step']:08d}"


@pytest.mark.slow
def test_a_run_that_torchrun_starts_again_goes_on(config, tmp_path):
    """By the command line of its first start: a rank was killed, and the others say no more than a line of it."""
    words = ["train.steps=60", "train.log_every=1", "train.checkpoint_every=8"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    done = _started(TORCHRUN, config, whole, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    command = [*TORCHRUN, "--max-restarts", "2", "-m", "fashionbert_fast", *_words(config, run, *words)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _until(lambda: list_checkpoints(run))
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(ranks[0]), signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr[-3000:]
    assert "resuming from " in stdout and "fashionbert_fast/engine" not in stderr
    for ours, theirs in zip(read_metrics(run), read_metrics(whole), strict=True):
        assert (ours["step"], ours["losses"]) == (theirs["step"], theirs["losses"])
    assert all(torch.equal(weight, _weights(whole)[name]) for name, weight in _weights(run).items())


@pytest.mark.parametrize("name", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_what_is_started_again_resumes_where_there_is_something(tmp_path, monkeypatch, name):
    settings = SimpleNamespace(train=SimpleNamespace(output=str(tmp_path / "run")))
    monkeypatch.setenv(name, "1")
    assert not resumes(settings, False)
    (tmp_path / "run").mkdir()
    assert not resumes(settings, False)
    (tmp_path / "run" / "config.yaml").touch()
    assert resumes(settings, False)
    monkeypatch.setenv(name, "0")
    assert not resumes(settings, False) and resumes(settings, True)


@pytest.mark.parametrize(
    "told", ["[/gloo/transport/tcp/pair.cc:537] Read error [::1]: reset", "NCCL error: ncclRemoteError: A call failed"]
)
def test_a_peer_that_is_gone_is_one_line_and_another_error_stays_what_it_is(config, tmp_path, monkeypatch, told):
    def fails(*_):
        raise RuntimeError(told)

    monkeypatch.setattr("fashionbert_fast.engine.train.train", fails)
    done = _pretrain(config, tmp_path / "run")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert "a process of this run has died or cannot be reached; continue with `fashionbert pretrain --config" in line
    told = "shapes differ"
    with pytest.raises(RuntimeError, match="shapes differ"):
        _pretrain(config, tmp_path / "other")


def _lives(process: str) -> bool:
    """Whether it runs; one that nobody has waited for yet has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_later_ctrl_c_interrupts_at_once(monkeypatch):
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        for sent in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):  # as a launcher's end brings them
            os.kill(os.getpid(), sent)
        assert stop.asked
        monkeypatch.setattr("fashionbert_fast.engine.health.signals.PATIENCE", 0)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("it was not interrupted")
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_a_run_interrupted_before_its_first_checkpoint(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{}")
    with pytest.raises(InputError, match="interrupted before its first checkpoint"):
        resolve_model_dir(tmp_path / "run")
    with pytest.raises(InputError, match="neither a run directory nor a model"):
        resolve_model_dir(tmp_path)


def test_metrics_are_strict_json(whole_run):
    for line in (whole_run / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))


@pytest.mark.gpu
def test_fp16_on_a_gpu(config, tmp_path):
    _succeeds(config, tmp_path / "run", "train.precision=fp16")


@pytest.mark.gpu
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_cuda_graphs_change_nothing_that_is_learned(config, tmp_path, stage):
    runs = []
    for switch in ("false", "true"):
        runs.append(tmp_path / switch)
        _succeeds(config, runs[-1], "train.precision=bf16", f"train.zero_stage={stage}", f"train.cuda_graphs={switch}")
    for plain, graphed in zip(*map(read_metrics, runs), strict=True):
        assert graphed["losses"] == pytest.approx(plain["losses"], rel=0.02)


def test_a_gpu_has_batches_assembled_ahead_unless_told_otherwise():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert [loader_workers(None, gpu, cores, 2) for cores in (2, 4, 8, 64)] == [1, 1, 3, 4]
    assert loader_workers(None, cpu, 64, 1) == 0
    assert loader_workers(0, gpu, 64, 1) == 0 and loader_workers(7, cpu, 2, 2) == 7
