"""Prefix attention in plain PyTorch: the recurrence, and the chunked form with gradients.

Feng et al. 2024, "Attention as an RNN", arXiv 2405.13956; the README derives what is used here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 64


class PrefixState(NamedTuple):
    """All that later positions need of earlier ones.

    ``m`` (batch, heads) is the largest score so far, ``u`` (batch, heads) the sum of
    ``exp(score - m)`` and ``w`` (batch, heads, head_dim) the sum of ``exp(score - m) value``.
    """

    m: Tensor
    u: Tensor
    w: Tensor


def empty_state(values: Tensor) -> PrefixState:
    """The state before the first of ``values`` (batch, length, heads, head_dim)."""
    dtype = torch.promote_types(values.dtype, torch.float32)
    batch, _, heads, head_dim = values.shape
    m = torch.full((batch, heads), -torch.inf, dtype=dtype, device=values.device)
    return PrefixState(m, torch.zeros_like(m), m.new_zeros(batch, heads, head_dim))


def _finite(m: Tensor) -> Tensor:
    """A shift by minus infinity, where nothing was seen, would give NaN; any other will do."""
    return m.masked_fill(m == -torch.inf, 0)


def _divide(w: Tensor, u: Tensor) -> Tensor:
    """w / u, zero where nothing was seen."""
    seen = (u != 0)[..., None]
    return torch.where(seen, w / torch.where(seen, u[..., None], 1), 0)


def prefix_attention_step(
    scores: Tensor, values: Tensor, state: PrefixState
) -> tuple[Tensor, PrefixState]:
    """One position: ``scores`` (batch, heads), ``values`` (batch, heads, head_dim).

    Returns the output in the dtype of ``values`` and the new state in its own dtype.
    """
    dtype = state.u.dtype
    scores = scores.to(dtype)
    m = torch.maximum(state.m, scores).detach()
    shift = _finite(m)
    old, new = (state.m.detach() - shift).exp(), (scores - shift).exp()
    u = old * state.u + new
    w = old[..., None] * state.w + new[..., None] * values.to(dtype)
    return _divide(w, u).to(values.dtype), PrefixState(m, u, w)


def prefix_attention_recurrent(
    scores: Tensor,
    values: Tensor,
    initial_state: PrefixState | None = None,
    document: Tensor | None = None,
) -> tuple[Tensor, PrefixState]:
    """The definition, position by position; arguments and results as in ``prefix_attention``.

    float64 gives the truth that other versions are tested against.
    """
    batch, length, heads, head_dim = values.shape
    nothing = empty_state(values)
    state = nothing if initial_state is None else initial_state
    real = torch.ones(batch, length, dtype=torch.bool, device=values.device)
    restart = torch.zeros_like(real)
    if document is not None:
        real = document >= 0
        restart[:, 1:] = real[:, 1:] & (document[:, 1:] != document[:, :-1])
    outputs = [values.new_zeros(batch, 0, heads, head_dim)]
    for t in range(length):
        here, anew = real[:, t, None], restart[:, t, None]
        state = PrefixState(
            torch.where(anew, nothing.m, state.m),
            torch.where(anew, nothing.u, state.u),
            torch.where(anew[..., None], nothing.w, state.w),
        )
        score = torch.where(here, scores[:, t], -torch.inf)
        value = torch.where(here[..., None], values[:, t], 0)
        out, state = prefix_attention_step(score, value, state)
        outputs.append(torch.where(here[..., None], out, 0)[:, None])
    return torch.cat(outputs, dim=1), state


class _Chunk(NamedTuple):
    """One chunk, heads before positions, in the dtype of the sums; padding hidden."""

    values: Tensor  # (batch, heads, size, head_dim)
    scores: Tensor  # (batch, heads, size, size): of position s as t sees it, else -inf
    carried: Tensor  # (batch, heads, size): m of the entering state as t sees it, else -inf
    real: Tensor | None  # (batch, 1, size)


def _chunk(
    scores: Tensor, values: Tensor, m: Tensor, segments: Tensor | None, part: slice
) -> _Chunk:
    """Positions ``part`` behind a state of maximum ``m`` (batch, heads)."""
    score = scores[:, part].transpose(1, 2)
    value = values[:, part].transpose(1, 2).to(m.dtype)
    size = score.shape[-1]
    unseen = torch.ones(size, size, dtype=torch.bool, device=score.device).triu(1)
    carried = m[..., None].expand(-1, -1, size)
    real = None
    if segments is not None:
        code = segments[:, None, part]
        before = segments[:, None, part.start - 1 : part.start] if part.start else code[..., :1] * 0
        segment, entering = (torch.where(c < 0, -1 - c, c) for c in (code, before))
        real = code >= 0
        value = torch.where(real[..., None], value, 0)
        score = torch.where(real, score, -torch.inf)
        unseen = unseen | (segment[..., :, None] != segment[..., None, :])
        carried = torch.where(segment == entering, carried, -torch.inf)
    seen = score[..., None, :].masked_fill(unseen, -torch.inf)
    return _Chunk(value, seen, carried, real)


class _Weights(NamedTuple):
    """What ``t`` sees, relative to the largest score of it."""

    largest: Tensor  # (batch, heads, size)
    weights: Tensor  # (batch, heads, size, size): of position s
    entry: Tensor  # (batch, heads, size): of the entering state
    total: Tensor  # (batch, heads, size): their sum


def _weigh(chunk: _Chunk, u: Tensor) -> _Weights:
    largest = torch.maximum(chunk.scores.amax(-1), chunk.carried)
    shift = _finite(largest)
    weights, entry = (chunk.scores - shift[..., None]).exp(), (chunk.carried - shift).exp()
    return _Weights(largest, weights, entry, weights.sum(-1) + entry * u[..., None])


def _parts(length: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, length)) for start in range(0, length, CHUNK)]


def _leaving(chunk: _Chunk, u: Tensor, w: Tensor) -> PrefixState:
    """The state behind a chunk that (its m), ``u`` and ``w`` enter."""
    largest, weights, entry, total = (tensor[:, :, -1] for tensor in _weigh(chunk, u))
    w = (weights[..., None, :] @ chunk.values)[:, :, 0] + entry[..., None] * w
    return PrefixState(largest, total, w)


def prefix_attention_chunked(
    scores: Tensor,
    values: Tensor,
    m: Tensor,
    u: Tensor,
    w: Tensor,
    segments: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same as the recurrence, a chunk at a time; ``segments`` from ``encode_segments``.

    Returns the output and the final state. Computes in float32 (float64 for float64 input),
    whatever autocast says. Memory grows with the length, not with its square.
    """
    outputs = [values.new_zeros(values.shape[0], 0, *values.shape[2:])]
    with torch.autocast(values.device.type, enabled=False):
        for part in _parts(values.shape[1]):
            chunk = _chunk(scores, values, m, segments, part)
            _, weights, entry, total = _weigh(chunk, u)
            out = _divide(weights @ chunk.values + entry[..., None] * w[:, :, None], total)
            if chunk.real is not None:
                out = torch.where(chunk.real[..., None], out, 0)
            outputs.append(out.transpose(1, 2).to(values.dtype))
            m, u, w = _leaving(chunk, u, w)
    return torch.cat(outputs, 1), m, u, w


def prefix_attention_chunked_backward(
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
    """Gradients of scores, values, initial u and initial w, from the last chunk to the first."""
    d_scores, d_values = [scores[:, :0]], [values[:, :0]]
    parts, states = _parts(values.shape[1]), [PrefixState(m, u, w)]
    with torch.autocast(values.device.type, enabled=False):
        for part in parts[:-1]:
            m, u, w = states[-1]
            states.append(_leaving(_chunk(scores, values, m, segments, part), u, w))
        for part, (m, u, w) in zip(reversed(parts), reversed(states), strict=False):
            chunk = _chunk(scores, values, m, segments, part)
            _, weights, entry, total = _weigh(chunk, u)
            leaving, through = weights[..., -1, :], entry[..., -1]
            dy = grad_out[:, part].transpose(1, 2).to(m.dtype)
            if chunk.real is not None:
                dy = torch.where(chunk.real[..., None], dy, 0)
            inverse = torch.where(total != 0, 1 / torch.where(total != 0, total, 1), 0)
            weights, entry = weights * inverse[..., None], entry * inverse

            products = dy @ chunk.values.mT
            mean = (weights * products).sum(-1) + entry * (dy @ w[..., None])[..., 0]
            pull = weights * (products - mean[..., None])
            exit_ = (chunk.values * grad_w[:, :, None]).sum(-1) + grad_u[..., None]
            d_scores.append((pull.sum(-2) + leaving * exit_).transpose(1, 2))
            d_value = weights.mT @ dy + leaving[..., None] * grad_w[:, :, None]
            d_values.append(d_value.transpose(1, 2).to(values.dtype))
            grad_w = through[..., None] * grad_w + (entry[..., None] * dy).sum(-2)
            grad_u = through * grad_u - (entry * mean).sum(-1)
    return torch.cat(d_scores[::-1], 1), torch.cat(d_values[::-1], 1), grad_u, grad_w
