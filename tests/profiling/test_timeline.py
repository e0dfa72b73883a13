"""Where the time went, on timelines small enough to add up by hand; the two readers on files of their formats."""

from __future__ import annotations

import gzip
import json
import sqlite3

import pytest

from fashionbert_fast.errors import InputError
from fashionbert_fast.profiling.nsight import commands, read_nsys
from fashionbert_fast.profiling.ranges import DOMAIN
from fashionbert_fast.profiling.timeline import Kernel, Segments, Span, Timeline, break_down, units
from fashionbert_fast.profiling.trace import read_trace

RANGES = [Span("step 1", 0, 10), Span("forward", 1, 5), Span("encoder layer 0", 2, 4), Span("optimizer", 6, 10)]


def _phases(breakdown):
    return {row.name: row for row in breakdown.phases}


def test_segments_give_each_moment_to_the_innermost():
    segments = Segments(RANGES)
    assert [segments.at(t) for t in (0.5, 1.5, 3, 4.5, 5.5, 9)] == [
        "step 1", "forward", "encoder layer 0", "forward", "step 1", "optimizer",
    ]  # fmt: skip
    assert list(segments.within(3, 7)) == [("encoder layer 0", 1), ("forward", 1), ("step 1", 1), ("optimizer", 1)]


def test_a_cpu_step_adds_up():
    operators = [Span("aten::linear", 1, 4), Span("aten::mm", 2, 4), Span("aten::add", 6, 9)]
    found = break_down(Timeline("cpu", RANGES, operators))
    phases = _phases(found)
    assert {name: row.host_seconds for name, row in phases.items()} == {
        "step": 2, "forward": 2, "encoder layer": 2, "optimizer": 4,
    }  # fmt: skip
    assert sum(row.host_seconds for row in found.phases) == found.wall_seconds == 10
    assert found.explained == pytest.approx(0.8)  # 2 s are in no phase but the step
    assert {row.name: row.seconds for row in found.kernels} == {"aten::linear": 1, "aten::mm": 2, "aten::add": 3}
    assert found.idle_share == pytest.approx(0.4)
    assert phases["optimizer"].idle_seconds == 1 and phases["forward"].idle_seconds == 1


def test_kernels_belong_to_the_phase_that_launched_them():
    kernels = [Kernel("gemm", 4, 7, launched=3), Kernel("adam", 7, 9, launched=6.5), Kernel("copy", 4, 5, launched=4.5)]
    found = break_down(Timeline("cuda", RANGES, [Span("aten::mm", 2.5, 3.5)], kernels))
    phases = _phases(found)
    assert phases["encoder layer"].device_seconds == 3 and phases["optimizer"].device_seconds == 2
    assert phases["forward"].device_seconds == 1
    assert [(row.name, row.seconds) for row in found.operators] == [("aten::mm", 3)]
    assert found.idle_share == pytest.approx(0.5)  # before 4 and after 9, overlapping kernels counted once
    assert [(gap.start, gap.seconds, gap.before) for gap in found.gaps] == [(0, 4, "gemm"), (9, 1, "the end")]


def test_units_take_what_they_call():
    spans = [Span("fashionbert_fast::a", 0, 4), Span("aten::mm", 1, 3), Span("aten::x", 5, 9), Span("aten::mm", 6, 8)]
    assert {(span.name, seconds) for span, seconds in units(spans, ())} == {
        ("fashionbert_fast::a", 4), ("aten::x", 2), ("aten::mm", 2),
    }  # fmt: skip
    assert {(span.name, seconds) for span, seconds in units(spans[2:], {"aten::x"})} == {("aten::x", 4)}


EVENTS = [
    {"ph": "X", "cat": "user_annotation", "name": "step 1", "ts": 100, "dur": 1000, "pid": 1, "tid": 1},
    {"ph": "X", "cat": "user_annotation", "name": "forward", "ts": 150, "dur": 800, "pid": 1, "tid": 1},
    {"ph": "X", "cat": "user_annotation", "name": "somebody's own", "ts": 150, "dur": 10, "pid": 1, "tid": 1},
    {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 200, "dur": 50, "pid": 1, "tid": 1},
    {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 220, "dur": 5, "args": {"correlation": 7}},
    {"ph": "X", "cat": "kernel", "name": "gemm", "ts": 400, "dur": 300, "args": {"correlation": 7, "stream": 3}},
    {"ph": "i", "name": "[memory]", "ts": 210, "args": {"Device Type": 1, "Bytes": 512, "Total Allocated": 4096}},
    {"ph": "i", "name": "[memory]", "ts": 211, "args": {"Device Type": 0, "Bytes": 64, "Total Allocated": 64}},
]


def test_a_pytorch_trace_is_read(tmp_path):
    path = tmp_path / "trace.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": EVENTS}).encode()))
    timeline = read_trace(path)
    assert timeline.device == "cuda" and [span.name for span in timeline.ranges] == ["step 1", "forward"]
    (kernel,) = timeline.kernels
    assert (kernel.name, kernel.launched, kernel.stream) == ("gemm", pytest.approx(220e-6), 3)
    assert [size for _, size in timeline.memory] == [4096]
    assert _phases(break_down(timeline))["forward"].device_seconds == pytest.approx(300e-6)


def test_a_trace_on_a_cpu_sums_its_memory(tmp_path):
    memory = [{"ph": "i", "name": "[memory]", "ts": t, "args": {"Device Type": 0, "Bytes": b, "Total Allocated": 0}}
              for t, b in ((1, 100), (2, 50), (3, -120), (4, -100))]  # fmt: skip
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": memory}))
    assert [size for _, size in read_trace(path).memory] == [170, 220, 100, 0]


def test_no_trace_is_said(tmp_path):
    path = tmp_path / "trace.json"
    path.write_text("[]")
    with pytest.raises(InputError, match="cannot be read as a PyTorch trace"):
        read_trace(path)


PROCESS = 0x0123 << 24  # the high bits of a globalTid; the thread is in the low ones


def write_export(path, domain=DOMAIN):
    """An export in the schema of NVIDIA's documentation: one step, two phases, an operator, a kernel, a copy."""
    connection = sqlite3.connect(path)
    connection.executescript("""
        CREATE TABLE StringIds (id INTEGER PRIMARY KEY, value TEXT NOT NULL);
        CREATE TABLE NVTX_EVENTS (start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL, rangeId INTEGER,
            category INTEGER, color INTEGER, text TEXT, globalTid INTEGER, endGlobalTid INTEGER, textId INTEGER,
            domainId INTEGER, uint64Value INTEGER);
        CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INTEGER NOT NULL, end INTEGER NOT NULL, eventClass INTEGER,
            globalTid INTEGER, correlationId INTEGER, nameId INTEGER NOT NULL, returnValue INTEGER NOT NULL);
        CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER,
            contextId INTEGER, streamId INTEGER, correlationId INTEGER, globalPid INTEGER, demangledName INTEGER,
            shortName INTEGER, gridX INTEGER);
        CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER,
            contextId INTEGER, streamId INTEGER, correlationId INTEGER, globalPid INTEGER, bytes INTEGER,
            copyKind INTEGER);
    """)
    connection.executemany("INSERT INTO StringIds VALUES (?, ?)", [(1, "forward"), (2, "gemm<float>"), (3, "gemm")])
    event = "INSERT INTO NVTX_EVENTS (start, end, eventType, text, textId, domainId, globalTid) VALUES (?,?,?,?,?,?,?)"
    connection.executemany(event, [
        (0, None, 75, domain, None, 1, PROCESS + 5),
        (0, None, 75, "NCCL", None, 2, PROCESS + 5),
        (1000, 9000, 60, "step 1", None, 1, PROCESS + 5),
        (2000, 5000, 60, None, 1, 1, PROCESS + 5),  # its text is in StringIds
        (2500, 3500, 60, "packed_attention", None, 1, PROCESS + 6),
        (5000, 9000, 60, "optimizer", None, 1, PROCESS + 5),
        (2000, 9000, 59, "step 1", None, 2, PROCESS + 5),  # of another domain
    ])  # fmt: skip
    launches = [(3000, 3100, 0, PROCESS + 6, 11, 3, 0), (6000, 6100, 0, PROCESS + 5, 12, 3, 0)]
    connection.executemany("INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (?,?,?,?,?,?,?)", launches)
    kernel, copy = (4000, 6500, 0, 1, 7, 11, PROCESS, 2, 3, 1), (7000, 8000, 0, 1, 7, 12, PROCESS, 4096, 1)
    connection.execute("INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (?,?,?,?,?,?,?,?,?,?)", kernel)
    connection.execute("INSERT INTO CUPTI_ACTIVITY_KIND_MEMCPY VALUES (?,?,?,?,?,?,?,?,?)", copy)
    connection.commit()
    connection.close()
    return path


def test_an_nsight_systems_export_is_read(tmp_path):
    timeline = read_nsys(write_export(tmp_path / "run.sqlite"))
    assert [span.name for span in timeline.ranges] == [
        "step 1", "forward", "fashionbert_fast::packed_attention", "optimizer",
    ]  # fmt: skip
    found = break_down(timeline)
    phases = _phases(found)
    assert phases["forward"].device_seconds == pytest.approx(2.5e-6)
    assert phases["optimizer"].device_seconds == pytest.approx(1e-6)
    assert found.explained == pytest.approx(7 / 8) and found.idle_share == pytest.approx(4.5 / 8)
    assert [row.name for row in found.kernels] == ["gemm", "copy"]
    assert [row.name for row in found.operators] == ["fashionbert_fast::packed_attention"]


@pytest.mark.parametrize("content", [b"", b"not a database at all, but long enough to be one" * 50])
def test_what_is_no_export_is_said_with_the_remedy(tmp_path, content):
    path = tmp_path / "run.sqlite"
    path.write_bytes(content)
    with pytest.raises(InputError, match="nsys"):
        read_nsys(path)


def test_an_export_without_our_ranges_is_said(tmp_path):
    with pytest.raises(InputError, match=r"train\.nvtx"):
        read_nsys(write_export(tmp_path / "run.sqlite", domain="another"))


def test_the_command_lines_watch_the_captured_range_alone(tmp_path):
    lines = commands(["python", "-m", "x"], tmp_path)
    assert all(line[-3:] == ["python", "-m", "x"] for line in lines.values())
    assert "--capture-range=cudaProfilerApi" in lines["nsys"] and "--profile-from-start=off" in lines["ncu"]
    assert any(DOMAIN in word for word in lines["ncu"])
