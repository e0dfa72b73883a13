"""Processes and devices: one process, `torchrun` or the `deepspeed` launcher; gloo on CPU, NCCL on GPU."""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import socket
import sys
import time
import warnings
import zlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from fashionbert_fast.errors import InputError, PeerLost


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def is_main() -> bool:
    """True on rank 0, before and after the process group exists."""
    return int(os.environ.get("RANK", "0")) == 0


@contextlib.contextmanager
def _own_extensions() -> Iterator[None]:
    """Let what torch compiles at run time go to a folder that is locked while in the block.

    torch's own lock is a file, which outlives a process that is killed: then every later one would wait for ever. The
    kernel's lock ends with its owner, so whoever has it may take such a file away.
    """
    from torch.utils import cpp_extension

    before = os.environ.get("TORCH_EXTENSIONS_DIR")
    # Of this environment: another's headers lie elsewhere, for which ninja compiles anew, and so would this one again.
    environment = f"torch{torch.__version__}-{zlib.crc32(torch.__file__.encode()):08x}"
    folder = Path(before or cpp_extension.get_default_build_root(), "fashionbert_fast", environment)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "owner").open("a")
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}); set TORCH_EXTENSIONS_DIR to a folder that can, where "
            "DeepSpeed's helper is compiled"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left_behind in folder.glob("*/lock"):
            left_behind.unlink()
        os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
        try:
            yield
        finally:
            if before is None:
                del os.environ["TORCH_EXTENSIONS_DIR"]
            else:
                os.environ["TORCH_EXTENSIONS_DIR"] = before


def _store_of_this_attempt() -> Store | None:
    """Where the processes meet under ``torchrun --max-restarts``; None: where torch has them meet by itself.

    That is the launcher's own store, which outlives them: after a restart they would find the addresses of those that
    died (https://github.com/pytorch/pytorch/issues/135712). So rank 0 opens one for each attempt, and leaves its port
    there. A port of an attempt before has nobody behind it.
    """
    environment = os.environ
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or environment["TORCHELASTIC_MAX_RESTARTS"] == "0":
        return None
    host, key = environment["MASTER_ADDR"], "fashionbert_fast/port"
    launchers = TCPStore(host, int(environment["MASTER_PORT"]), is_master=False)
    if is_main():
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        launchers.set(key, str(store.port))
        return store
    deadline = time.monotonic() + dist.default_pg_timeout.total_seconds()
    while True:
        try:
            store = TCPStore(host, int(launchers.get(key)), is_master=False, timeout=timedelta(seconds=2))
        except dist.DistError:
            if time.monotonic() > deadline:
                raise
        else:
            store.set_timeout(dist.default_pg_timeout)
            return store


def init_distributed() -> torch.device:
    """Join the process group under DeepSpeed and return this process's device."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for key, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(key, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(_free_port())
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    # DeepSpeed compiles a helper with the first ninja on PATH, and compiles it anew whenever that is another version:
    # always this environment's, whether it is activated or not.
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    import deepspeed
    from deepspeed.comm.torch import build_shm_op
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # Old names of torch's collectives: DeepSpeed's to change, and said anew at every call of ZeRO-3.
    renamed = r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated"
    warnings.filterwarnings("ignore", renamed, FutureWarning)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        with contextlib.redirect_stdout(io.StringIO()):  # it reports its compiled helper on stdout, on every start
            with _own_extensions():
                build_shm_op()  # from here on it is loaded, also for init_distributed
            backend = "nccl" if device.type == "cuda" else "gloo"
            store = _store_of_this_attempt()
            if store is not None:  # else DeepSpeed does it
                rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
                bound = device if device.type == "cuda" else None
                dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, device_id=bound)
            deepspeed.init_distributed(dist_backend=backend, verbose=False)
    return device


@contextlib.contextmanager
def host_ranks() -> Iterator[None]:
    """While in the block, a process group of the hosts alone (gloo), where a launcher has started several processes:
    for work that is dealt out and gathered, without an engine."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # A day: the gathering waits for the slowest. That a process has died is noticed at once, whatever this is.
    patience = timedelta(days=1)
    dist.init_process_group("gloo", store=_store_of_this_attempt(), rank=rank, world_size=ranks, timeout=patience)
    try:
        yield
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def first_of_all_ranks(value: str | None) -> str | None:
    """The first rank's ``value`` that is not None, on every rank; a collective."""
    values = [value]
    if dist.is_initialized():
        values = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
    return next((value for value in values if value is not None), None)


@contextlib.contextmanager
def peers_needed() -> Iterator[None]:
    """PeerLost where a collective in the block fails because another process can no longer be reached: whatever ended
    that one, it has told itself, and what gloo and NCCL say of it is no more. Other errors stay what they are."""
    try:
        yield
    except RuntimeError as error:
        told = str(error)
        if "gloo/transport" in told or "ncclRemoteError" in told:
            raise PeerLost("a process of this run has died or cannot be reached") from error
        raise


def shutdown() -> None:
    """Leave the process group, so that no launcher waits for it and this process may join another."""
    if dist.is_initialized():
        import deepspeed

        deepspeed.comm.destroy_process_group()  # not torch's: DeepSpeed would keep groups of the one that is gone


def pick_device(name: str | torch.device | None) -> torch.device:
    """The device of that name; None: a GPU where there is one, under a launcher this process's own. InputError where it
    does not exist."""
    if name is None:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0][:100]
        raise InputError(f"--device {name}: cannot be used ({reason}); give cpu or leave it out") from error
    return torch.device(name)


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """In-place sum over all ranks; the tensor itself where there is one process."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows_CH):
        ctx.rows = len(rows_CH)
        gathered_GH = rows_CH.new_empty(world_size() * len(rows_CH), *rows_CH.shape[1:])
        dist.all_gather_into_tensor(gathered_GH, rows_CH.contiguous())
        return gathered_GH

    @staticmethod
    def backward(ctx, grad_GH):
        grad_CH = grad_GH.new_empty(ctx.rows, *grad_GH.shape[1:])
        dist.reduce_scatter_tensor(grad_CH, grad_GH.contiguous())
        return grad_CH


def gather_rows(rows_CH: torch.Tensor) -> torch.Tensor:
    """(ranks x C, H): the rows of all ranks, of each as many, in their order. A row's gradient is the sum of what all
    ranks make of it."""
    return _GatherRows.apply(rows_CH) if world_size() > 1 else rows_CH


class HostSums:
    """Sums of small whole numbers over all ranks, by the host alone (gloo): no device waits. Every rank makes one."""

    def __init__(self) -> None:
        self.group = dist.new_group(backend="gloo") if world_size() > 1 and dist.get_backend() != "gloo" else None

    def __call__(self, *numbers: int) -> list[int]:
        """Of each number its sum; a collective."""
        if world_size() == 1:
            return list(numbers)
        sums = torch.tensor(numbers)
        dist.all_reduce(sums, group=self.group)
        return sums.tolist()


if __name__ == "__main__":
    init_distributed()
    shutdown()
