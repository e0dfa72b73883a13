"""Ends a run that goes no further: a rank that is stopped or whose machine is gone, a step that does not end.

Rank 0 and each other rank send one another a byte a second over a connection of their own, since collectives and files
are what may hang. Silence and steps are counted in own seconds, not by the clock: where a whole job is suspended and
continued, nobody has missed anything.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hmac
import os
import secrets
import socket
import sys
import threading
import time
from dataclasses import dataclass

import torch.distributed as dist

from fashionbert_fast.engine.build import Run
from fashionbert_fast.errors import is_first_to_tell

TICK = 1.0  # seconds between heartbeats
MOST_SILENT = 10  # ticks without one before a rank is given up
LINGER = 3  # ticks that a rank stays after a finding: until all have heard of it and written their stacks
PATIENCE = 10.0  # seconds for connections at the start, and for a disk to take the stacks
BEAT, FAREWELL, FINDING = b".", b"-", b"!"  # the last is followed by its text and a new line


@dataclass
class Peer:
    """The other end of a connection. silent: ticks. left: it said farewell. told: of a finding, as much as has come."""

    rank: int
    connection: socket.socket
    silent: int = 0
    left: bool = False
    told: bytes = b""

    def send(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # it is stopped or gone, which its silence tells
            self.connection.send(message)

    def hear(self) -> str | None:
        """Take what has come since the last tick; a finding, where that is whole."""
        try:
            data = self.connection.recv(1 << 16)
        except OSError:
            data = b""
        self.silent = 0 if data else self.silent + 1
        said, mark, text = (b"", b"", data) if self.told else data.partition(FINDING)
        self.left |= FAREWELL in said
        self.told += mark + text
        return self.told[1:-1].decode(errors="replace") if self.told.endswith(b"\n") else None


def _meet(rank: int, ranks: int) -> list[Peer]:
    """Connections from rank 0 to all others; a collective. A rank that cannot connect is not watched."""
    if ranks == 1:
        return []
    listener = _listening(ranks) if rank == 0 else None
    told = [(listener.getsockname()[1], secrets.token_bytes(16)) if listener else None]
    dist.broadcast_object_list(told)
    assert told[0] is not None
    port, token = told[0]
    if listener is None:
        return _joined(port, token + rank.to_bytes(4))
    with listener:
        return _welcomed(listener, token, ranks - 1)


def _listening(ranks: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", 0), family=family, dualstack_ipv6=both, backlog=ranks)


def _joined(port: int, hello: bytes) -> list[Peer]:
    host = os.environ["MASTER_ADDR"]
    try:
        connection = socket.create_connection((host, port), PATIENCE)
        connection.sendall(hello)
    except OSError as error:
        print(f"no watch over stopped processes: {host}:{port} cannot be reached ({error})", file=sys.stderr)
        return []
    connection.setblocking(False)
    return [Peer(0, connection)]


def _welcomed(listener: socket.socket, token: bytes, others: int) -> list[Peer]:
    peers: list[Peer] = []
    deadline = time.monotonic() + PATIENCE
    while len(peers) < others and (left := deadline - time.monotonic()) > 0:
        listener.settimeout(left)
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            connection.settimeout(left)
            hello = connection.recv(len(token) + 4, socket.MSG_WAITALL)
            if hmac.compare_digest(hello[:-4], token):
                connection.setblocking(False)
                peers.append(Peer(int.from_bytes(hello[-4:]), connection))
            else:
                connection.close()
    return peers


class Watchdog:
    """While it is entered, by all ranks, one that is silent or whose step lasts longer than ``train.step_timeout`` ends
    all: each writes the stacks of its threads to RUN/stacks/rank-N.txt, one a machine says a line, all exit with 1."""

    def __init__(self, run: Run) -> None:
        self.rank, self.ranks = run.rank, run.world_size
        self.stacks = run.directory / "stacks"
        self.timeout = run.config.train.step_timeout
        self.idle = 0  # ticks since a step, a validation or a save ended
        self.leaving = threading.Event()

    def __enter__(self) -> Watchdog:
        self.peers = _meet(self.rank, self.ranks)
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.leaving.set()
        self.thread.join()  # which has no end but the process's where there is a finding

    def progress(self) -> None:
        """A step, a validation or a save has ended."""
        self.idle = 0

    def _watch(self) -> None:
        while not self.leaving.wait(TICK):
            finding = self._finding()
            if finding is not None:
                self._end(finding)
        for peer in self.peers:
            peer.send(FAREWELL)
            peer.connection.close()

    def _finding(self) -> str | None:
        """What ends the run, after one more tick."""
        self.idle += 1
        for peer in self.peers:
            peer.send(BEAT)
            told = peer.hear()
            if told is not None:
                return told
        for peer in self.peers:
            if peer.silent >= MOST_SILENT and not peer.left:
                return f"nothing was heard of rank {peer.rank} for {peer.silent * TICK:.0f} s: it is stopped or gone"
        if 0 < self.timeout <= self.idle * TICK:
            return f"rank {self.rank} has ended no step for {self.timeout} s (train.step_timeout)"
        return None

    def _end(self, finding: str) -> None:
        for peer in self.peers:
            peer.send(FINDING + finding.encode() + b"\n")
        if is_first_to_tell():
            remedy = f"the stacks of all that still run are in {self.stacks}; continue with --resume"
            print(f"fashionbert pretrain: error: {finding}; {remedy}", file=sys.stderr, flush=True)
        # The disk may be what hangs.
        writing = threading.Thread(target=self._write_stacks, args=(finding,), daemon=True)
        writing.start()
        time.sleep(LINGER * TICK)
        writing.join(PATIENCE)
        os._exit(1)  # no thread that hangs is waited for

    def _write_stacks(self, finding: str) -> None:
        self.stacks.mkdir(exist_ok=True)
        with (self.stacks / f"rank-{self.rank}.txt").open("a") as file:
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {finding}", file=file, flush=True)
            faulthandler.dump_traceback(file, all_threads=True)
