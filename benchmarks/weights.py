"""Which weights ZeRO-3 truly holds in parts."""

from __future__ import annotations

import torch


def partitioned(model: torch.nn.Module) -> list[str]:
    """Parameters of which this rank holds no more than its part (ZeRO-3), of more than one rank a real part."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    ranks = torch.distributed.get_world_size()
    return [
        name
        for name, parameter in model.named_parameters()
        if getattr(parameter, "ds_status", None) == ZeroParamStatus.NOT_AVAILABLE
        and parameter.numel() == 0
        and parameter.ds_tensor.numel() * ranks >= parameter.ds_numel > (ranks - 1) * parameter.ds_tensor.numel()
    ]
