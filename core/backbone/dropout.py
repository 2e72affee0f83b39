"""Dropout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """`nn.Dropout`, with the same draws, that holds a byte a number for the backward pass.

    PyTorch's does so on a GPU only; on a CPU it holds a number of the input's type.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        if not self.training or self.p in (0, 1) or x.device.type != "cpu":
            return super().forward(x)
        return _Dropout.apply(x, self.p)[0]


def drop(x: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """``x`` after dropout at a ``rate`` in (0, 1), and what of it was kept, a byte a number."""
    if x.device.type != "cpu":
        return torch.native_dropout(x, rate, True)
    kept = torch.empty_like(x, dtype=torch.uint8).bernoulli_(1 - rate)
    return drop_again(x, kept, rate), kept


def drop_again(x: Tensor, kept: Tensor, rate: float) -> Tensor:
    """``x`` after a dropout that kept ``kept``; of a gradient, the gradient behind it."""
    if x.device.type != "cpu":
        return torch.ops.aten.native_dropout_backward(x, kept, 1 / (1 - rate))
    # A product of two types takes twenty times as long as one after a conversion.
    return kept.to(x.dtype).mul_(x).mul_(1 / (1 - rate))


class _Dropout(torch.autograd.Function):
    generate_vmap_rule = True  # with setup_context: what torch.func asks for

    @staticmethod
    def forward(x: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        return drop(x, rate)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor]
    ) -> None:
        ctx.rate, kept = inputs[1], output[1]
        ctx.set_materialize_grads(False)  # or backward would be given zeros for what was kept
        ctx.mark_non_differentiable(kept)
        ctx.save_for_backward(kept)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, None]:
        (kept,) = ctx.saved_tensors
        return None if grad is None else drop_again(grad, kept, ctx.rate), None
