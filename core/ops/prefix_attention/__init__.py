"""Softmax attention of one query over every prefix, in linear time and memory (see README.md)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from core.ops.dispatch import use_triton
from core.ops.prefix_attention import reference
from core.ops.prefix_attention.reference import PrefixState, prefix_attention_step
from core.ops.segments import encode_segments

__all__ = ["PrefixState", "prefix_attention", "prefix_attention_step"]


def prefix_attention(
    scores: Tensor,
    values: Tensor,
    *,
    initial_state: PrefixState | None = None,
    document: Tensor | None = None,
) -> tuple[Tensor, PrefixState]:
    """``o_t = sum_{s <= t} exp(scores_s) values_s / sum_{s <= t} exp(scores_s)``.

    The many-to-many attention of Feng et al. 2024 ("Attention as an RNN", arXiv 2405.13956).

    Args:
        scores: (batch, length, heads), float32 (float64 if ``values`` is), of any size: only
            differences are exponentiated. A score of minus infinity hides its position.
        values: (batch, length, heads, head_dim).
        initial_state: ``(m, u, w)`` of the positions before, dtype of ``scores``; none if not
            given. ``m`` (batch, heads), ``u`` (batch, heads), ``w`` (batch, heads, head_dim).
        document: integer (batch, length) as in ``core.sequences``. Attention starts anew where a
            document starts; one that starts at position 0 goes on from ``initial_state``. In
            padding (negative) the output is zero and inputs are ignored.

    Returns:
        The output (batch, length, heads, head_dim) in the dtype of ``values``, zero where nothing
        was seen, and the state after the last real position in the dtype of ``scores``. ``m``
        carries no gradient: it cancels in whatever is computed from the three together.

    Under ``torch.autocast``, values are cast to its dtype. Raises ValueError for shapes, dtypes or
    devices that do not fit.
    """
    if torch.is_autocast_enabled(values.device.type) and values.dtype != torch.float64:
        values, scores = values.to(torch.get_autocast_dtype(values.device.type)), scores.float()
        if initial_state is not None:
            initial_state = PrefixState(*(tensor.float() for tensor in initial_state))
    _check(scores, values, initial_state, document)
    state = reference.empty_state(values) if initial_state is None else initial_state
    segments = None if document is None else encode_segments(document)
    out, m, u, w = _prefix_attention(
        scores, values, state[0].detach(), state[1], state[2], segments
    )
    return out, PrefixState(m.detach(), u, w)


def _check(
    scores: Tensor, values: Tensor, state: PrefixState | None, document: Tensor | None
) -> None:
    if values.ndim != 4 or not values.is_floating_point():
        raise ValueError(
            "prefix_attention: values must be floating point (batch, length, heads, head_dim), "
            f"got {values.dtype} of shape {tuple(values.shape)}"
        )
    batch, length, heads, head_dim = values.shape
    accumulate = torch.promote_types(values.dtype, torch.float32)
    m, u, w = (None, None, None) if state is None else state
    expected: dict[str, tuple[Tensor | None, tuple[int, ...], torch.dtype | None]] = {
        "scores": (scores, (batch, length, heads), accumulate),
        "m of initial_state": (m, (batch, heads), accumulate),
        "u of initial_state": (u, (batch, heads), accumulate),
        "w of initial_state": (w, (batch, heads, head_dim), accumulate),
        "document": (document, (batch, length), None),
    }
    for name, (tensor, shape, dtype) in expected.items():
        if tensor is None:
            continue
        fits = tensor.dtype == dtype if dtype else not tensor.dtype.is_floating_point
        if not fits or tensor.shape != shape or tensor.device != values.device:
            raise ValueError(
                f"prefix_attention: {name} must be {dtype or 'an integer dtype'} of shape {shape} "
                f"on {values.device}, got {tensor.dtype} of shape {tuple(tensor.shape)} on "
                f"{tensor.device}"
            )


def _takes_kernel(values: Tensor) -> bool:
    """Triton accumulates in float32, so float64 stays with PyTorch; so do sizes past a tile."""
    fits = values.numel() > 0 and values.shape[-1] <= 128
    return use_triton(values) and values.dtype != torch.float64 and fits


def _own(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Each in memory of its own, as the fakes promise and custom operators demand."""
    return tuple(tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors)


@torch.library.custom_op("longspan::prefix_attention", mutates_args=())
def _prefix_attention(
    scores: Tensor, values: Tensor, m: Tensor, u: Tensor, w: Tensor, segments: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if _takes_kernel(values):
        from core.ops.prefix_attention import kernel

        return kernel.forward(scores, values, m, u, w, segments)
    out, *state = reference.prefix_attention_chunked(scores, values, m, u, w, segments)
    m, u, w = _own(tuple(state))
    return out.contiguous(), m, u, w


@_prefix_attention.register_fake
def _(
    scores: Tensor, values: Tensor, m: Tensor, u: Tensor, w: Tensor, segments: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out, m, u, w = (t.new_empty(t.shape) for t in (values, m, u, w))
    return out, m, u, w


@torch.library.custom_op("longspan::prefix_attention_backward", mutates_args=())
def _prefix_attention_backward(
    grad_out: Tensor,
    grad_u: Tensor,
    grad_w: Tensor,
    scores: Tensor,
    values: Tensor,
    m: Tensor,
    u: Tensor,
    w: Tensor,
    segments: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs = (grad_out, grad_u, grad_w, scores, values, m, u, w, segments)
    if _takes_kernel(values):
        from core.ops.prefix_attention import kernel

        return kernel.backward(*inputs)
    d_scores, d_values, d_u, d_w = _own(reference.prefix_attention_chunked_backward(*inputs))
    return d_scores, d_values, d_u, d_w


@_prefix_attention_backward.register_fake
def _(
    grad_out: Tensor,
    grad_u: Tensor,
    grad_w: Tensor,
    scores: Tensor,
    values: Tensor,
    m: Tensor,
    u: Tensor,
    w: Tensor,
    segments: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_scores, d_values = scores.new_empty(scores.shape), values.new_empty(values.shape)
    return d_scores, d_values, grad_u.new_empty(grad_u.shape), grad_w.new_empty(grad_w.shape)


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(
    ctx: Any, grad_out: Tensor, grad_m: Tensor, grad_u: Tensor, grad_w: Tensor
) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: checkpointing recomputes them at each access
    grads = _prefix_attention_backward(grad_out, grad_u, grad_w, *saved)
    d_scores, d_values, d_u, d_w = grads
    return d_scores, d_values, None, d_u, d_w, None


_prefix_attention.register_autograd(_differentiate, setup_context=_save)
