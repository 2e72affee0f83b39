"""Softmax attention of one query over every prefix, in linear time and memory (see README.md)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from core.arguments import FLOATS, INTEGERS, check_fit, check_kind, check_tensors
from core.ops.dispatch import autocast_dtype, refuse_tangents, use_triton
from core.ops.prefix_attention import reference
from core.ops.prefix_attention.reference import PrefixState
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
    devices that do not fit, NotImplementedError under forward-mode differentiation.
    """
    op = "prefix_attention"
    check_tensors(op, {"scores": scores, "values": values}, {"document": document})
    check_kind(op, "values", values, "batch, length, heads, head_dim")
    if initial_state is not None:
        _check_state(op, "initial_state", initial_state)
    half = autocast_dtype(values)
    if half is not None:
        values, scores = values.to(half), scores.float()
        if initial_state is not None:
            initial_state = PrefixState(*(tensor.float() for tensor in initial_state))
    _check(scores, values, initial_state, document)
    refuse_tangents(op, scores, values, *(initial_state or ()))
    state = reference.empty_state(values) if initial_state is None else initial_state
    segments = None if document is None else encode_segments(document)
    out, m, u, w = _prefix_attention(
        scores, values, state[0].detach(), state[1], state[2], segments
    )
    return out, PrefixState(m.detach(), u, w)


def prefix_attention_step(
    scores: Tensor, values: Tensor, state: PrefixState
) -> tuple[Tensor, PrefixState]:
    """One position: ``scores`` (batch, heads), ``values`` (batch, heads, head_dim).

    ``state`` is that before it. Returns the output in the dtype of ``values`` and the new state in
    its own. Raises ValueError for shapes or devices that do not fit.
    """
    op = "prefix_attention_step"
    check_tensors(op, {"scores": scores, "values": values})
    check_kind(op, "values", values, "batch, heads, head_dim")
    _check_state(op, "state", state)
    batch, heads, head_dim = values.shape
    expected = {
        "scores": (scores, (batch, heads), FLOATS),
        "m of state": (state[0], (batch, heads), FLOATS),
        "u of state": (state[1], (batch, heads), FLOATS),
        "w of state": (state[2], (batch, heads, head_dim), FLOATS),
    }
    check_fit(op, values.device, expected)
    return reference.prefix_attention_step(scores, values, PrefixState(*state))


def _check_state(op: str, name: str, state: object) -> None:
    if not isinstance(state, tuple) or len(state) != 3:
        raise ValueError(
            f"{op}: {name} must be a PrefixState (m, u, w), got {type(state).__name__}"
        )
    check_tensors(op, {f"{part} of {name}": x for part, x in zip("muw", state, strict=True)})


def _check(
    scores: Tensor, values: Tensor, state: PrefixState | None, document: Tensor | None
) -> None:
    batch, length, heads, head_dim = values.shape
    wide = (torch.promote_types(values.dtype, torch.float32),)
    m, u, w = (None, None, None) if state is None else state
    expected = {
        "scores": (scores, (batch, length, heads), wide),
        "m of initial_state": (m, (batch, heads), wide),
        "u of initial_state": (u, (batch, heads), wide),
        "w of initial_state": (w, (batch, heads, head_dim), wide),
        "document": (document, (batch, length), INTEGERS),
    }
    check_fit("prefix_attention", values.device, expected)


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
