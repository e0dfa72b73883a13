"""What an engine of any ZeRO stage holds of its weights: in parts, and whole."""

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


def master_weights(engine) -> dict[str, torch.Tensor]:
    """Float32 weights by name, whole, of whatever ZeRO stage and precision; a collective."""
    from fashionbert_fast.engine.zero.state import held, shapes_of

    pieces = [(piece.name, piece.start, piece.of(piece.stepped).detach().cpu().clone()) for piece in held(engine)]
    everyone = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, pieces)
    shapes = shapes_of(engine.module)
    weights = {name: torch.full((shape.numel(),), torch.nan) for name, shape in shapes.items()}
    for name, start, part in (piece for pieces in everyone for piece in pieces):
        weights[name][start : start + len(part)] = part
    return {name: weight.view(shapes[name]) for name, weight in weights.items()}
