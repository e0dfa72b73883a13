"""What a measurement was taken on."""

from __future__ import annotations

import os
import platform

import torch

from fashionbert_fast import cpu

# What keeps a library from some of the processor's instructions.
LIMITS = (
    "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY", "FASHIONBERT_FLOAT32_PRODUCTS",
    "FASHIONBERT_CPU_LEVEL",
)  # fmt: skip


def device_name(device: torch.device) -> str:
    """A GPU's name, or the CPU's with its generation, how many threads are used, and its instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = cpu.cpu_info()
    model = info.get("model name", platform.processor() or platform.machine())
    if "cpu family" in info:  # a vendor sells several generations under one name
        model += f" (family {info['cpu family']}, model {info['model']})"
    matrix = [name for name in ("amx_bf16", "avx512_bf16") if name in cpu.flags()]
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ]
    used = [f"{torch.get_num_threads()} threads", torch.backends.cpu.get_cpu_capability()]
    return ", ".join([model, *used, *matrix[:1], *limits])
