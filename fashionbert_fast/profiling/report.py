"""What `fashionbert profile` leaves to look at: profile.html with its pictures, and profile.json."""

from __future__ import annotations

import base64
import html
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fashionbert_fast.files import write_json
from fashionbert_fast.profiling.ranges import OPERATORS, PHASES
from fashionbert_fast.profiling.roofline import Ceilings, Point, plot_roofline
from fashionbert_fast.profiling.timeline import Breakdown, KernelRow, Timeline

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}img{max-width:100%}table{border-collapse:collapse}
td,th{padding:.15rem .8rem;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child{text-align:left}
pre{background:#f4f4f4;padding:.6rem;white-space:pre-wrap;overflow-wrap:anywhere}p.note{color:#666}
i{display:inline-block;width:.8em;height:.8em;margin-right:.5em}"""
MOST_KERNELS = 30


@dataclass
class Profile:
    """A captured run, or a part of one. ``facts``: lines of (what, value) for the head of the page.

    plain_seconds: a step's without any profiler, where that was measured. operators: with FLOPs and bytes, where those
    were counted. commands: tool -> the line that watches this very run.
    """

    device: str
    versions: dict[str, str | None]
    breakdown: Breakdown
    timeline: Timeline
    facts: list[tuple[str, str]] = field(default_factory=list)
    plain_seconds: float | None = None
    precision: str = "float32"
    ceilings: Ceilings | None = None
    points: list[Point] = field(default_factory=list)
    commands: dict[str, str] = field(default_factory=dict)


def rows(profile: Profile) -> list[dict]:
    """The profile as lines of benchmark JSON, a figure each, of one step."""
    breakdown = profile.breakdown
    figures = [
        ("step with the profiler", breakdown.wall_seconds / breakdown.steps * 1e6, "us"),
        ("wall time in a named phase", breakdown.explained, "share"),
        ("device idle", breakdown.idle_share, "share"),
    ]
    if profile.plain_seconds is not None:
        figures.insert(0, ("step", profile.plain_seconds * 1e6, "us"))
    for phase in breakdown.phases:
        figures.append((f"phase {phase.name}, host", phase.host_seconds / breakdown.steps * 1e6, "us"))
        figures.append((f"phase {phase.name}, device", phase.device_seconds / breakdown.steps * 1e6, "us"))
    figures += [(f"kernel {row.name}", row.seconds / breakdown.steps * 1e6, "us") for row in breakdown.kernels]
    return [{"case": case, "value": value, "unit": unit} for case, value, unit in figures]


def write_profile(profile: Profile, directory: Path) -> Path:
    """profile.json, profile.html and the pictures phases.png, memory.png and roofline.png, as far as there is something
    to draw; returns the page."""
    head = {"device": profile.device, "versions": profile.versions}
    write_json(directory / "profile.json", head | {"rows": rows(profile), "breakdown": asdict(profile.breakdown)})
    pictures = [("phases.png", "time by phase")]
    plot_phases(profile.breakdown, directory / "phases.png")
    if profile.timeline.memory:
        plot_memory(profile.timeline, directory / "memory.png")
        pictures.append(("memory.png", "memory over time"))
    if profile.ceilings is not None:
        plot_roofline(profile.points, profile.ceilings, profile.precision, directory / "roofline.png")
        figures = [
            {"case": f"{point.name} of its ceiling", "value": point.attained, "unit": "share"}
            for point in profile.points
        ]
        roof = {"dtype": profile.precision, "ceilings": asdict(profile.ceilings)}
        write_json(
            directory / "roofline.json",
            head | roof | {"rows": figures, "points": [asdict(point) for point in profile.points]},
        )
        pictures.append(("roofline.png", "roofline"))
    page = directory / "profile.html"
    page.write_text(_page(profile, [(directory / name, alternative) for name, alternative in pictures]))
    return page


def _table(head: list[str], lines: list[list[str]]) -> str:
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in lines)
    return f"<table><tr>{top}</tr>{body}</table>"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.3f}"


def _work(row: KernelRow, steps: int) -> list[str]:
    if row.bytes is None:
        return ["", "", "", ""]
    flops = row.flops or 0.0
    return [
        f"{flops / steps / 1e9:,.2f}", f"{row.bytes / steps / 2**20:,.1f}",
        f"{flops / row.seconds / 1e9:,.0f}" if row.seconds else "",
        f"{row.bytes / row.seconds / 1e9:,.1f}" if row.seconds else "",
    ]  # fmt: skip


def _page(profile: Profile, pictures: list[tuple[Path, str]]) -> str:
    b = profile.breakdown
    facts = [
        ("device", profile.device),
        *([("a step, no profiler on", f"{_ms(profile.plain_seconds)} ms")] if profile.plain_seconds else []),
        ("a step while captured", f"{_ms(b.wall_seconds / b.steps)} ms, over {b.steps}"),
        ("wall time in a named phase", f"{b.explained:.1%}"),
        ("GPU idle" if profile.timeline.device == "cuda" else "host outside any operator", f"{b.idle_share:.1%}"),
        *profile.facts,
    ]
    on_gpu = profile.timeline.device == "cuda"
    device = "GPU ms, launched here" if on_gpu else "in operators ms"
    phases = [
        [f'<i style="background:{PHASES.get(row.name, "#fff")}"></i>{html.escape(row.name)}', str(row.calls),
         _ms(row.host_seconds / b.steps), f"{row.host_seconds / b.wall_seconds:.1%}",
         _ms(row.device_seconds / b.steps), _ms(row.idle_seconds / b.steps)]
        for row in b.phases
    ]  # fmt: skip
    kernels = [
        [html.escape(row.name), f"{row.calls / b.steps:,.1f}", _ms(row.seconds / b.steps),
         f"{row.seconds / b.wall_seconds:.1%}", *_work(row, b.steps)]
        for row in b.kernels[:MOST_KERNELS]
    ]  # fmt: skip
    gaps = [[_ms(gap.start), _ms(gap.seconds), html.escape(gap.phase), html.escape(gap.before)] for gap in b.gaps]
    what = "Kernels" if on_gpu else "Operators"
    shown = "".join(
        f'<p><img alt="{text}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"></p>'
        for path, text in pictures
    )
    lines = "".join(
        f"<h3>{html.escape(tool)}</h3><pre>{html.escape(line)}</pre>" for tool, line in profile.commands.items()
    )
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>fashionbert_fast profile</title>
<style>{STYLE}</style></head><body><h1>Where a training step's time goes</h1>
{_table(["", ""], [[html.escape(a), html.escape(c)] for a, c in facts])}
<h2>Time by phase, a step</h2>
<p class="note">Host: what the innermost named range alone took. Idle: host time of the phase in which
{"the GPU had nothing to do" if on_gpu else "no operator ran"}.</p>
{_table(["phase", "ranges", "host ms", "of the step", device, "idle ms"], phases)}
<h2>{what}, a step</h2>
<p class="note">The longest {len(kernels)} of {len(b.kernels)}. Bytes: each tensor read or written once; GFLOP
of products by their sizes, of anything else one for each element read or written.</p>
{_table([what.lower()[:-1], "calls", "ms", "of the step", "GFLOP", "MiB", "GFLOP/s", "GB/s"], kernels)}
<h2>Longest gaps</h2>
{_table(["at ms", "ms", "phase", "ended by"], gaps)}
<h2>Pictures</h2>{shown}
<h2>With Nsight</h2><p class="note">The same run: Nsight Systems for the timeline (then
<code>fashionbert profile --nsys FILE.sqlite</code> gives this page of it), Nsight Compute for single kernels.</p>
{lines}
</body></html>
"""


def plot_phases(breakdown: Breakdown, path: Path) -> None:
    """A bar a phase: host and device milliseconds a step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = breakdown.phases[:16][::-1]
    figure, axis = plt.subplots(figsize=(9, 0.6 + 0.34 * len(shown)), constrained_layout=True)
    places = range(len(shown))
    colours = [PHASES.get(row.name, "#cccccc") for row in shown]
    host = [row.host_seconds / breakdown.steps * 1e3 for row in shown]
    device = [row.device_seconds / breakdown.steps * 1e3 for row in shown]
    axis.barh([p + 0.2 for p in places], host, 0.38, color=colours, label="host")
    axis.barh([p - 0.2 for p in places], device, 0.38, color=colours, alpha=0.5, hatch="//", label="device")
    axis.set_yticks(list(places), [row.name for row in shown], fontsize=8)
    axis.set_xlabel("ms a step (plain: host; hatched: device)", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_memory(timeline: Timeline, path: Path) -> None:
    """Memory in use over the captured steps, phases as the ground."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from fashionbert_fast.profiling.ranges import phase_of

    steps = timeline.steps
    start, end = steps[0].start, steps[-1].end
    inside = [(time, size) for time, size in timeline.memory if start <= time <= end]
    figure, axis = plt.subplots(figsize=(10, 3.2), constrained_layout=True)
    axis.step([(t - start) * 1e3 for t, _ in inside], [size / 2**20 for _, size in inside], where="post", color="#333")
    for span in timeline.ranges:
        if start <= span.start < end and not span.name.startswith(OPERATORS) and phase_of(span.name) != "step":
            axis.axvspan((span.start - start) * 1e3, (span.end - start) * 1e3, color=PHASES[phase_of(span.name)],
                         alpha=0.35, linewidth=0)  # fmt: skip
    axis.set(xlabel="ms", ylabel="MiB in use")
    axis.set_title("Memory over the captured steps, by phase", loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
