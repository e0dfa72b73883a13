"""docs/measurements.md, the tables of docs/quality.md and the measured section of README.md, written from the rows in
benchmarks/results/.

make results          # or python -m benchmarks.measurements; a test says where a page is not what this writes
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS, PAGE, README = ROOT / "benchmarks" / "results", ROOT / "docs" / "measurements.md", ROOT / "README.md"
QUALITY = RESULTS / "quality.json"
BEGIN, END = "<!-- from rows, by make results -->\n", "<!-- end -->\n"

HEAD = """# Measurements

Written by `make results` from the rows in [benchmarks/results/](../benchmarks/results):
every figure has its device, versions and commit there. *Times better* is the median over alternating pairs of
ours and the alternative in one run, above 1 where ours is better, with the 20th and 80th percentile; results
were found equal before anything was timed. An **aim** was set before the measurement; a missed one stays
missed.

What no row says is not claimed: nothing has been timed on a GPU yet, nor on an Intel processor, and absolute
times are left to the rows, since machines differ.
"""


@dataclass(frozen=True)
class Section:
    """A results file of the page. ``about``: what the rows cannot say of themselves."""

    file: str
    title: str
    command: str
    about: str


SECTIONS = (
    Section("step_cpu.json", "A whole training step",
            "fashionbert bench step --json step.json",
            "Forward, backward and AdamW of BERT-base, 32 pairs a batch, titles of N(25, 10) tokens, dropout 0.1,"
            " bfloat16 weights (a peer's are float32 under autocast, unless its name says otherwise): medians of passes"
            " in turn over 128 samples. The processor is an AMD EPYC of Zen "
            "5. Below 1 under DeepSpeed means: its ZeRO engine, with one process, takes that much of the rate. "
            "[Picture](images/bench_step.png)."),
    Section("step_store_cpu.json", "The step on titles of 5,000 real products",
            "fashionbert bench step --store stores/real",
            "The same with the title lengths of a store, beside those of Fashion-Gen. Zen 5."),
    Section("step_zen4_cpu.json", "The step on Zen 4, and peers with bf16 weights",
            "fashionbert bench step --only b b-weights d d-weights",
            "An AMD EPYC of family 25, model 17, whose matmuls are slower: they take more of every step, ours and the "
            "peers'. The host was not quiet: spreads are wide."),
    Section("step_zero_zen4_cpu.json", "The step under ZeRO on Zen 4", "fashionbert bench step --only zero-1 zero-2",
            "On a quiet host: one process under DeepSpeed beside the same model and optimizer without it."),
    Section("step_ladder_cpu.json", "What each technique is worth",
            "fashionbert bench step --only ladder",
            "Ours beside ours with one technique switched off. Zen 5. Packing saves what it would if all time "
            "were in proportion to tokens but for the weights' update, the heads and the patch projection, which "
            "take as long for any title."),
    Section("contrastive_cpu.json", "What the contrastive loss costs a step",
            "fashionbert bench contrastive --json contrastive.json",
            "The same pairs with it and without. With `data.pairs: both`, as in `configs/small.yaml`, 64 pairs have 32 "
            "products, which stand alone as half as many tokens again; with `coin` 64, and the step has twice "
            "the tokens. The aim: at most 0.6 of a step on top, a ratio of 0.625. Zen 5."),
    Section("save_zen4_cpu.json", "How long training waits for a checkpoint",
            "fashionbert bench save --json save.json",
            "BERT-base under ZeRO-1: 1.3 GB of masters and moments, on disk. Zen 4. Ours and torch's copy them and "
            "write beside training, ours flushed, hashed and named when whole. One process: what ranks agree on is "
            "not in it."),
    Section("reliability.json", "A run that cannot be lost, input that cannot hurt",
            "python -m tests.reliability --json reliability.json",
            "Trials at random moments and places, from a seed that is in the rows; [what each proof tries]"
            "(reliability.md). gloo, 2 to 4 processes on two cores of Zen 4. The guards' cost scatters: each row says "
            "how far."),
    Section("ops_cpu.json", "The operators",
            "fashionbert bench ops --json ops.json",
            "Forward and backward. Zen 5. `masked_patch_embed`, `task_gram` and `task_mix` were changed since: "
            "their rows of Zen 4 are below. The floor of `masked_patch_embed` in bfloat16: its bare products "
            "alone are 1.2 to 1.4 times faster than plain PyTorch. The floor of `adaptive_loss`: one built-in "
            "operator and its backward, which autograd alone makes expensive. [Picture](images/bench_ops.png)."),
    Section("ops_zen4_cpu.json", "Operators on Zen 4",
            "fashionbert bench ops --only masked_patch_embed task_gradients",
            "An AMD EPYC of family 25, model 17."),
    Section("ops_zen4_avx2_cpu.json", "`masked_patch_embed` kept to AVX2",
            "fashionbert bench ops --only masked_patch_embed",
            "The same processor with oneDNN and MKL kept to AVX2; 1,024 rows only."),
    Section("pace_zen4_cpu.json", "The move into rooms cost no speed",
            "python -m benchmarks.pace be2688a --json pace.json",
            "This tree beside the commit before the move, each by its own measurement, in turn: medians of 3 rounds, "
            "of 5 for `patch_kld`, `bias_gelu`, `dropout_add_layer_norm` and `packed_attention`. The aim is 0.95."),
    Section("layer_bytes.json", "Passes over memory",
            "python -m benchmarks.models.layer_bytes --json layer_bytes.json",
            "Bytes that an encoder layer of BERT-base moves in a step of 256 pairs on a GPU in bfloat16, counted, not "
            "timed: a test holds the list of kernels against the launchers, to the byte."),
    Section("loss_curve_cpu.json", "It learns the same",
            "python -m benchmarks.steps.loss_curve",
            "300 steps on the real products, 4 layers, beside a plain padded PyTorch model of the same weights "
            "and batches. In bfloat16 the measure is how far three seeds of the reference lie apart. "
            "[Picture](images/loss_curve.png)."),
    Section("queries_zen4_cpu.json", "Queries find their items",
            "python -m benchmarks.services.queries --json queries.json",
            "Drawn garments, 2,400 to train on; of the 1,248 held out what shoppers ask for, nearly all of it in no "
            "training, each ranking all 1,248 (`fashionbert demo --shoppers` is a longer one of these). A model of two "
            "layers, 400 steps with queries after 600 without: Recall@10 of 0.44 on average, 0.38 to 0.50 by seed, "
            "where it was 0.01, as by chance, and stays there without queries. *Times better* compares recalls, one "
            "below chance counting as chance; the spread is that of the seeds. Zen 4; begun at commit `5eedbd6`, the "
            "rows name the one at its end."),
    Section("search_zen4_cpu.json", "Search",
            "fashionbert bench search --json search.json",
            "MiniLM's size, weights and vectors drawn; the photo's encoder is a small ResNet, of which its time is for "
            "the most part. In a process that has started. Zen 4."),
    Section("evaluate_zen4_cpu.json", "Scoring pairs",
            "fashionbert bench evaluate --quick --json evaluate.json",
            "MiniLM's size, 64 patches a photo; the pairs of a few queries. At this rate 1,000 queries in both "
            "directions take near twice the 10 minutes aimed at on these two cores: 200,000 pairs are that many "
            "products of matrices. Beside a loop of the same precision packing gains about 2; beside the float32 loop "
            "that one writes first bfloat16 gains as much again. Zen 4."),
    Section("cluster_cpu.json", "A cluster's model, checked on gloo",
            "python -m benchmarks.models.cluster --json cluster.json",
            "Times of a step's collectives of 3, 8 and 24 MiB over 2 to 4 processes on two cores, predicted "
            "from other sizes; the bytes are exact, by a test. [Picture](images/cluster.png) up to 1,024 GPUs, whose "
            "compute, feed and links are assumed: the file says of every input what it is."),
    Section("mutants.json", "Faults that the tests notice",
            "python -m tests.mutants",
            "Deliberate faults, one at a time; a proof is a fault that a test failed on. The survivors got tests "
            "afterwards, which killed them one by one; the whole was not run again."),
)  # fmt: skip


def demo(result: dict) -> str:
    """The demo's evaluation."""
    ways = ", ".join(f"{way.replace('_', ' ')} {result[way]['R@1']:.3f}" for way in ("image_to_text", "text_to_image"))
    return f"""## The demo

`make demo`, seed 0, {result["device"]}, commit `{result["commit"][:7]}`: alignment accuracy
{result["alignment_accuracy"]:.3f} on held-out drawn garments (guessing 0.50), R@1 {ways} among
{result["candidates"]}, with a seeded random encoder; [figures](../benchmarks/results/demo_cpu.json).
"""


def table(rows: list[dict]) -> str:
    """Timed rows as a table in Markdown."""
    lines = ["| what | than | times better | aim | |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        low, high = row["spread"]
        spread = "" if low == high else f" ({low:.2f} to {high:.2f})"
        what = row["case"] + (", peak memory" if row["unit"] == "MiB" and "memory" not in row["case"] else "")
        met = "" if row["met"] else "missed"
        lines.append(f"| {what} | {row['peer']} | {row['ratio']:.2f}{spread} | {row['target']:.2f} | {met} |")
    return "\n".join(lines)


def proofs(rows: list[dict]) -> str:
    """Proofs, each k of n places where it holds, as a table in Markdown."""
    lines = ["| what | holds at | |", "| --- | --- | --- |"]
    lines += [f"| {r['proof']} | {r['k']:,} of {r['n']:,} | {'' if r['met'] else 'missed'} |" for r in rows]
    return "\n".join(lines)


def mutants(rows: list[dict]) -> str:
    """How many were noticed, and the names of those that were not."""
    faults = [row for row in rows if "file" in row]
    survivors = [row["proof"] for row in faults if not row["met"]]
    named = f" Not noticed: {', '.join(survivors)}." if survivors else ""
    return f"{len(faults) - len(survivors)} of {len(faults)} noticed.{named}"


def section(one: Section, result: dict) -> str:
    """A results file as a section of the page."""
    versions = ", ".join(f"{name} {result['versions'][name]}" for name in ("torch", "deepspeed", "transformers"))
    rows = [row for row in result["rows"] if "peer" in row or "proof" in row]  # not the figures that stand alone
    if one.file == "mutants.json":
        body = mutants(rows)
    else:
        body = proofs(rows) if "proof" in rows[0] else table(rows)
    where = (
        f"{result['device']}; {versions}; commit `{result['commit'][:7]}`; [rows](../benchmarks/results/{one.file})."
    )
    return f"## {one.title}\n\n{one.about}\n\n`{one.command}`. {where}\n\n{body}\n"


def speedrun(result: dict) -> str:
    """The records of `python -m benchmarks.speedrun --record`, oldest first."""
    lines = ["| date | commit | machine | seeds | ours, s | plain, s | times faster |",
             "| --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for of in result["records"]:
        low, high = of["spread"]
        lines.append(f"| {of['date']} | `{of['commit'][:7]}` | {of['machine']} | {of['seeds']} | {of['seconds']:.1f} | "
                     f"{of['peer_seconds']:.1f} | {of['ratio']:.2f} ({low:.2f} to {high:.2f}) |")  # fmt: skip
    about = "Seconds to 0.80 of held-out alignment accuracy: [what is timed](quality.md#the-speedrun)."
    return f"## The speedrun\n\n{about}\n\n`python -m benchmarks.speedrun`.\n\n" + "\n".join(lines) + "\n"


def find(rows: list[dict], case: str, peer: str) -> dict:
    """The row of that case and peer; ValueError where there is not just one."""
    found = [row for row in rows if row["case"] == case and row.get("peer") == peer]
    if len(found) != 1:
        raise ValueError(f"{len(found)} rows of {case!r} have the peer {peer!r}, not one")
    return found[0]


def learned(result: dict) -> str:
    """What the recipe for real products comes to on the first store, beside the baseline that is best on validation."""

    def found(of: dict) -> dict:
        return of["scores"][of["score"]]

    small = next(of for of in result["systems"] if of["system"] == "small")
    beside = [of for of in result["systems"] if of["kind"] == "baseline" and of["store"] == small["store"]]
    best = max(beside, key=lambda of: found(of)["validation"])
    own, other = found(small)["both"], found(best)["both"]
    return (
        f"Of {result['settings']['candidates']} real products of a kind `--config small` has the right one first for "
        f"{own['R@1']:.0%} of held-out titles and photos and among ten for {own['R@10']:.0%}; {best['system']}, which "
        f"validation found best of {len(beside)} baselines, {other['R@1']:.0%} and {other['R@10']:.0%} "
        "([docs/quality.md](docs/quality.md))."
    )


def measured(read: dict[str, dict]) -> str:
    """README's section of figures."""
    step, operators = read["step_cpu.json"], read["ops_cpu.json"]
    case = "base, Fashion-Gen-like titles, 32 a batch"

    def times(peer: str) -> str:
        return f"{find(step['rows'], case, peer)['ratio']:.1f}"

    attention = [
        row["ratio"] for row in operators["rows"]
        if row["case"].startswith("packed_attention") and "bfloat16, dropout 0.1" in row["case"]
        and row["peer"] == "SDPA padded, with a mask"
    ]  # fmt: skip
    norm = "dropout_add_layer_norm T=2848 H=768 bfloat16 p=0.1 forward+backward"
    curve = [row for row in read["loss_curve_cpu.json"]["rows"] if "bf16" in row.get("proof", "")]
    exact = [row for row in read["loss_curve_cpu.json"]["rows"] if "fp32" in row.get("proof", "")]
    holds, places = sum(row["k"] for row in curve), sum(row["n"] for row in curve)
    if not all(row["met"] for row in exact):
        raise ValueError("loss_curve_cpu.json: a float32 loss is not within its tolerance; say so in the README")
    versions = step["versions"]
    memory = find(step["rows"], f"{case}, peak memory", "(b) HF + SDPA, bf16 autocast")["ratio"]
    share = find(step["rows"], case, "bf16 GEMM rate of this run")["ratio"]
    zero = 1 / find(step["rows"], f"{case}, (f) ours under ZeRO-1", "ours without DeepSpeed")["ratio"]
    steps = {
        "than Hugging Face `BertModel` + SDPA, heads on masked rows":
            f"{times('(b) HF + SDPA, bf16 autocast')} (peak memory 1 / {memory:.2f})",
        "than the same under torch.compile": times("(c) HF + SDPA + torch.compile"),
        "than the released recipe: padded, dense heads, eager, bf16 autocast / float32":
            f"{times('(a) released recipe, bf16 autocast')} / {times('(a) released recipe, float32')}",
        "`packed_attention`, dropout 0.1, than SDPA padded with a mask":
            f"{min(attention):.1f} to {max(attention):.1f}",
        "`dropout_add_layer_norm` than torch.compile":
            f"{find(operators['rows'], norm, 'torch.compile')['ratio']:.0f}",
    }  # fmt: skip
    head = ["| BERT-base, a whole training step of 32 pairs, bf16 | times faster |", "| --- | --- |"]
    table = "\n".join(head + [f"| {than} | {ratio} |" for than, ratio in steps.items()])
    torch_version, deepspeed = versions["torch"].split("+")[0], versions["deepspeed"]
    above = f"""
        Ours beside the named alternative in one run, results found equal first, on {step["device"]} (Zen 5, bf16),
        torch {torch_version}, DeepSpeed {deepspeed}. **No row is of a GPU yet**, none of an Intel processor: `make
        test` compiles every CUDA and Triton kernel for A100 and H100, runs Triton's in its interpreter and CUDA's
        on host threads, and `python -m benchmarks.gpu.gpu_suite`, rehearsed on a CPU, waits to prove and time them all.
        [What a GPU still has to tell](docs/gpu.md), point by point.
    """
    below = f"""Useful FLOPs come to {share:.0%} of the bf16 matrix products of the same run; under DeepSpeed ZeRO-1
        the step takes {zero:.2f} of the time. It learns the same: in float32 every loss of 300 steps is within 1e-4 of
        a plain padded PyTorch model's, in bf16 no further from it than three seeds are apart at {holds:,} of {places:,}
        places. {learned(read[QUALITY.name])} Every row, what missed its aim and how to measure again:
        [docs/measurements.md](docs/measurements.md)."""
    return "\n\n".join([_wrapped(above), table, _wrapped(below)]) + "\n"


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 130, break_long_words=False, break_on_hyphens=False)


def readme() -> str:
    """The whole of README.md, its figures anew."""
    text = README.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + measured(_read()) + END + after


def _read() -> dict[str, dict]:
    return {path.name: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}


def page() -> str:
    """The whole of docs/measurements.md."""
    read = _read()
    parts = [HEAD, *(section(one, read.pop(one.file)) for one in SECTIONS)]
    parts.append(demo(read.pop("demo_cpu.json")))
    read.pop(QUALITY.name, None)  # docs/quality.md shows it
    if "speedrun.json" in read:
        parts.append(speedrun(read.pop("speedrun.json")))
    if read:
        raise ValueError(f"benchmarks/results/{min(read)}: no section of the page shows it; add one to SECTIONS")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
    README.write_text(readme())
    if QUALITY.exists():
        from benchmarks.quality import page as quality

        quality.write(json.loads(QUALITY.read_text()))
