"""A stand-in for CUDA graphs where there is no GPU: see `FakeCapture`."""

from __future__ import annotations

import torch


class FakeCapture:
    """As `torch.cuda.make_graphed_callables`: copies inputs in, returns aliases of what the last call returned."""

    def __init__(self) -> None:
        self.captured: list[tuple[torch.Tensor, ...]] = []

    def __call__(self, module, samples):
        self.captured.append(samples)
        parameters = tuple(module.parameters())
        places: dict[str, list] = {}

        def put(name: str, values) -> list:
            for place, value in zip(
                places.setdefault(name, [torch.empty_like(v) for v in values]), values, strict=True
            ):
                place.copy_(value)
            return [place.detach() for place in places[name]]

        class Replay(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *inputs):
                for sample, value in zip(samples, inputs, strict=False):
                    sample.copy_(value)
                with torch.enable_grad():
                    ctx.out_TH = module(*samples)
                return put("out", [ctx.out_TH])[0]

            @staticmethod
            def backward(ctx, grad_TH):
                found = torch.autograd.grad(ctx.out_TH, [samples[0], *parameters], grad_TH)
                of_hidden, *of_parameters = put("gradients", found)
                return of_hidden, *[None] * (len(samples) - 1), *of_parameters

        return lambda *inputs: Replay.apply(*inputs, *parameters)
