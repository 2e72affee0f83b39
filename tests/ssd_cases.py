"""Inputs and a plain PyTorch version for the tests of state space duality."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from core.ops.ssd import ssd


def draw(
    batch: int,
    length: int,
    heads: int,
    head_dim: int,
    groups: int,
    state: int,
    *,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    seed: int = 0,
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """Random inputs by name; ``scale`` multiplies log-decays, which lie in -1..0."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int, to: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(to)

    wide = torch.promote_types(dtype, torch.float32)
    log_decay = -scale * torch.rand(batch, length, heads, generator=generator, device=device)
    return {
        "x": normal(batch, length, heads, head_dim),
        "log_decay": log_decay.to(wide),
        "B": normal(batch, length, groups, state),
        "C": normal(batch, length, groups, state),
        "initial_state": normal(batch, heads, head_dim, state, to=wide),
    }


def quadratic(
    x: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    document: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The op as masked attention without a softmax, products in the dtype of x.

    ``document`` must have no padding before its end.
    """
    share = x.shape[2] // B.shape[2]
    if document is not None:
        real = document >= 0
        x, log_decay, B, C = (
            torch.where(real.reshape(real.shape + (1,) * (t.ndim - 2)), t, 0)
            for t in (x, log_decay, B, C)
        )
        document = torch.where(real, document, document.amax(1, keepdim=True))
    else:
        document = torch.zeros(x.shape[:2], dtype=torch.int32, device=x.device)
    x, B, C = (t.transpose(1, 2) for t in (x, B, C))
    B, C = B.repeat_interleave(share, 1), C.repeat_interleave(share, 1)
    total = log_decay.double().cumsum(1).transpose(1, 2)
    seen = (document[:, None, :, None] == document[:, None, None, :]).tril()
    # Sums in two parts keep the decays' digits; everything else stays in the given precision.
    high = total.to(log_decay.dtype)
    low = (total - high).to(log_decay.dtype)
    difference = (high[..., :, None] - high[..., None, :]) + (low[..., :, None] - low[..., None, :])
    decay = difference.masked_fill(~seen, -torch.inf).exp().to(x.dtype)
    y = ((C @ B.mT) * decay) @ x
    state = (x * decay[..., -1, :, None]).mT @ B
    if initial_state is not None:
        first = (document == document[:, :1])[:, None]
        entry = torch.where(first, high.exp(), 0).to(x.dtype)[..., None]
        y = y + entry * (C @ initial_state.to(x.dtype).mT)
        state = state + entry[..., -1:, :] * initial_state
    return y.transpose(1, 2), state


def run(
    function: Callable[..., tuple[Tensor, Tensor]],
    inputs: dict[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    seed: int = 1,
    **options: Any,
) -> dict[str, Tensor]:
    """Output, final state and gradients by name, for fixed random gradients of both results.

    With ``dtype`` everything is cast to it, the gradients of the results too.
    """
    leaves = {
        name: tensor.detach().to(dtype or tensor.dtype).requires_grad_()
        for name, tensor in inputs.items()
    }
    y, final = function(**leaves, **options)
    generator = torch.Generator(y.device).manual_seed(seed)
    # Rounded as x is, so that every version is given the same gradient.
    like = inputs["x"].dtype
    grad_y = torch.randn(y.shape, generator=generator, device=y.device).to(like).to(y.dtype)
    grad_final = torch.randn(final.shape, generator=generator, device=y.device).to(final.dtype)
    document = options.get("document")
    if document is not None:  # a gradient that arrives in padding must not matter
        grad_y = grad_y.masked_fill((document < 0)[..., None, None], 0)
    grads = torch.autograd.grad((y, final), list(leaves.values()), (grad_y, grad_final))
    named = {f"gradient of {name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return {"output": y.detach(), "final state": final.detach(), **named}


def plain(inputs: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """What plain PyTorch makes of it in the dtype of x, to judge a kernel's largest errors by.

    Half precision: masked attention throughout in that dtype. float32: the chunked form, whose
    sums are as long as a kernel's; over one or two positions the matrix products of masked
    attention are dot products, which PyTorch sums better than any matrix product.
    """
    if inputs["x"].dtype != torch.float32:
        return run(quadratic, inputs, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LONGSPAN_OPS", "reference")
        return run(ssd, inputs, **options)


def fill_empty_with_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh tensors hold NaN, so that a value that a kernel forgets to write is seen."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        original = getattr(owner, name)

        def filled(*args: Any, original: Any = original, **options: Any) -> Tensor:
            tensor = original(*args, **options)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        monkeypatch.setattr(owner, name, filled)
