"""State space duality: the linear recurrence of Mamba-2, on any device (see README.md)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from core.arguments import FLOATS, INTEGERS, check_fit, check_kind, check_tensors
from core.ops.dispatch import autocast_dtype, refuse_tangents, use_triton
from core.ops.segments import encode_segments
from core.ops.ssd import reference

__all__ = ["ssd", "ssd_step"]


def ssd(
    x: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    initial_state: Tensor | None = None,
    document: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``S_t = exp(log_decay_t) S_{t-1} + x_t B_t^T``, ``y_t = S_t C_t`` (Dao and Gu 2024).

    Args:
        x: (batch, length, heads, head_dim), already multiplied by the step size.
        log_decay: (batch, length, heads), at most 0, float32 (float64 if ``x`` is).
        B, C: (batch, length, groups, state), dtype of ``x``; ``heads`` is a multiple of ``groups``
            and consecutive heads share a group.
        initial_state: (batch, heads, head_dim, state), dtype of ``log_decay``; zero if not given.
        document: integer (batch, length) as in ``core.sequences``. The state restarts at zero
            where a document starts; one that starts at position 0 starts from ``initial_state``.
            In padding (negative) y is zero, the state stands still, and inputs are ignored.

    Returns:
        y (batch, length, heads, head_dim) in the dtype of ``x``, and the state after the last real
        position, (batch, heads, head_dim, state), in the dtype of ``log_decay``.

    Under ``torch.autocast``, x, B and C are cast to its dtype. Raises ValueError for shapes,
    dtypes or devices that do not fit, NotImplementedError under forward-mode differentiation.
    """
    optional = {"initial_state": initial_state, "document": document}
    check_tensors("ssd", {"x": x, "log_decay": log_decay, "B": B, "C": C}, optional)
    check_kind("ssd", "x", x, "batch, length, heads, head_dim")
    half = autocast_dtype(x)
    if half is not None:
        x, B, C = x.to(half), B.to(half), C.to(half)
        log_decay = log_decay.float()
        initial_state = None if initial_state is None else initial_state.float()
    _check(x, log_decay, B, C, initial_state, document)
    refuse_tangents("ssd", x, log_decay, B, C, initial_state)
    segments = None if document is None else encode_segments(document)
    return _ssd(x, log_decay, B, C, initial_state, segments)


def ssd_step(
    x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: ``S = exp(log_decay) S + x B^T``, ``y = S C``.

    ``x`` (batch, heads, head_dim), ``log_decay`` (batch, heads), ``B`` and ``C`` (batch, groups,
    state), ``state`` (batch, heads, head_dim, state), computed in the dtype of ``state``.
    Returns y in the dtype of ``x``, and the new state. Raises ValueError for shapes or
    devices that do not fit.
    """
    given = {"x": x, "log_decay": log_decay, "B": B, "C": C, "state": state}
    check_tensors("ssd_step", given)
    check_kind("ssd_step", "x", x, "batch, heads, head_dim")
    batch, heads, head_dim = x.shape
    _check_groups("ssd_step", B, heads, "batch, groups, state")
    expected = {
        "log_decay": (log_decay, (batch, heads), FLOATS),
        "B": (B, (batch, *B.shape[1:]), FLOATS),
        "C": (C, (batch, *B.shape[1:]), FLOATS),
        "state": (state, (batch, heads, head_dim, B.shape[2]), FLOATS),
    }
    check_fit("ssd_step", x.device, expected)
    return reference.ssd_step(x, log_decay, B, C, state)


def _check(
    x: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None,
    document: Tensor | None,
) -> None:
    batch, length, heads, head_dim = x.shape
    _check_groups("ssd", B, heads, "batch, length, groups, state")
    wide = (torch.promote_types(x.dtype, torch.float32),)
    expected = {
        "log_decay": (log_decay, (batch, length, heads), wide),
        "B": (B, (batch, length, *B.shape[2:]), (x.dtype,)),
        "C": (C, (batch, length, *B.shape[2:]), (x.dtype,)),
        "initial_state": (initial_state, (batch, heads, head_dim, B.shape[3]), wide),
        "document": (document, (batch, length), INTEGERS),
    }
    check_fit("ssd", x.device, expected)


def _check_groups(where: str, B: Tensor, heads: int, dimensions: str) -> None:
    if B.ndim != dimensions.count(",") + 1 or B.shape[-2] < 1 or heads % B.shape[-2]:
        raise ValueError(
            f"{where}: B must be ({dimensions}) with groups dividing {heads} heads, "
            f"got {tuple(B.shape)}"
        )


def _takes_kernel(x: Tensor, B: Tensor) -> bool:
    """Triton accumulates in float32, so float64 stays with PyTorch; so do sizes past a tile."""
    fits = x.numel() > 0 and x.shape[-1] <= 128 and 0 < B.shape[-1] <= 256
    return use_triton(x) and x.dtype != torch.float64 and fits


@torch.library.custom_op("longspan::ssd", mutates_args=())
def _ssd(
    x: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None,
    segments: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if _takes_kernel(x, B):
        from core.ops.ssd import kernel

        return kernel.forward(x, log_decay, B, C, initial_state, segments)
    y, state = reference.ssd_chunked(x, log_decay, B, C, initial_state, segments)
    return y.contiguous(), state.contiguous()  # the strides that the fake promises


@_ssd.register_fake
def _(
    x: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None,
    segments: Tensor | None,
) -> tuple[Tensor, Tensor]:
    state = log_decay.new_empty(x.shape[0], x.shape[2], x.shape[3], B.shape[3])
    return x.new_empty(x.shape), state


@torch.library.custom_op("longspan::ssd_backward", mutates_args=())
def _ssd_backward(
    grad_y: Tensor,
    grad_final: Tensor,
    x: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None,
    segments: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = (grad_y, grad_final, x, log_decay, B, C, initial_state, segments)
    if _takes_kernel(x, B):
        from core.ops.ssd import kernel

        return kernel.backward(*inputs)
    dx, d_decay, dB, dC, d_state = reference.ssd_chunked_backward(*inputs)
    return (
        dx.contiguous(),
        d_decay.contiguous(),
        dB.contiguous(),
        dC.contiguous(),
        d_state.contiguous(),
    )


@_ssd_backward.register_fake
def _(
    grad_y: Tensor,
    grad_final: Tensor,
    x: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None,
    segments: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    x_like, decay_like, B_like, C_like = (t.new_empty(t.shape) for t in (x, log_decay, B, C))
    return x_like, decay_like, B_like, C_like, grad_final.new_empty(grad_final.shape)


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad_y: Tensor, grad_final: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: checkpointing recomputes them at each access
    *grads, grad_initial = _ssd_backward(grad_y, grad_final, *saved)
    return (*grads, None if saved[4] is None else grad_initial, None)


_ssd.register_autograd(_differentiate, setup_context=_save)
