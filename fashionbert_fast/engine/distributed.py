"""Processes and devices: one process, `torchrun` or the `deepspeed` launcher; gloo on CPU, NCCL on GPU."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
import sys

import torch
import torch.distributed as dist


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def is_main() -> bool:
    """True on rank 0, before and after the process group exists."""
    return int(os.environ.get("RANK", "0")) == 0


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
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        with contextlib.redirect_stdout(io.StringIO()):  # it reports its compiled helper on stdout, on every start
            deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False)
    return device


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


def shutdown() -> None:
    """Leave the process group, so that no launcher waits for it and this process may join another."""
    if dist.is_initialized():
        import deepspeed

        deepspeed.comm.destroy_process_group()  # not torch's: DeepSpeed would keep groups of the one that is gone


if __name__ == "__main__":
    init_distributed()
    shutdown()
