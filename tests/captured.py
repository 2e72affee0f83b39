"""A step captured as a CUDA graph, which a program replays to spare the host's time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def check_captured(op: Callable[..., Tensor], tensors: dict[str, Tensor]) -> None:
    """Replayed on other numbers, the graph of ``op`` and its gradients gives what a call gives."""
    leaves = [x.detach().requires_grad_() for x in tensors.values()]
    named = dict(zip(tensors, leaves, strict=True))
    dy = torch.randn_like(op(**named))

    def step() -> list[Tensor]:
        y = op(**named)
        return [y.detach(), *torch.autograd.grad(y, leaves, dy)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = step()
    with torch.no_grad():
        for x in (*leaves, dy):
            x.mul_(0.5)
    graph.replay()
    for name, got, expected in zip(("y", *named), held, step(), strict=True):
        assert torch.equal(got, expected), name
