"""Proofs that a run cannot be lost and that input cannot hurt: `python -m tests.reliability --json FILE`.

trial.py               what a trial is and how one is made
workload.py            a store, a tiny run, ranks that start at once (forked from warm.py), what a run came to
disk.py                a disk that fails at the n-th call (faulty_disk.cpp); oracle.py: a step in float64
corpus.py              what hostile.py has commands open
kill.py ... hostile.py a proof each: `NAME`, `TARGET`, `trials(folder, seed, quick)`, an iterator of its trials
"""

from __future__ import annotations

PROOFS = ("kill", "elastic", "damage", "inject", "signals", "nan", "stop", "gradients", "soak", "guards", "hostile")
