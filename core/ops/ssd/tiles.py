"""Tiles of states and decays, for the Triton kernels of state space duality."""

# Triton's decorators carry no types.
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl

from core.ops.tiles import exp


@triton.jit
def load_state(
    pointer: tl.tensor,
    place: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    P: tl.constexpr,
    N: tl.constexpr,
) -> tl.tensor:
    """A tile of the state (head_dim, state) at ``place``, an index over (batch, chunk, head)."""
    return tl.load(
        pointer + place * P * N + rows[:, None] * N + columns[None, :],
        mask=(rows < P)[:, None] & (columns < N)[None, :],
        other=0.0,
    )


@triton.jit
def load_sums(pointer: tl.tensor, place: tl.tensor, CHUNK: tl.constexpr) -> tl.tensor:
    """Cumulative log-decays as pairs of float32; ``place`` indexes (batch, head, chunk)."""
    at = pointer + place * 2 * CHUNK + tl.arange(0, CHUNK)
    return tl.load(at), tl.load(at + CHUNK)


@triton.jit
def decay_within(
    high: tl.tensor,
    low: tl.tensor,
    segment: tl.tensor,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """How much of position s (column) position t (row) sees."""
    i = tl.arange(0, CHUNK)
    difference = (high[:, None] - high[None, :]) + (low[:, None] - low[None, :])
    seen = (i[:, None] >= i[None, :]) & (segment[:, None] == segment[None, :])
    return exp(tl.where(seen, difference, -float("inf")), PRECISION)


@triton.jit
def decay_from_entry(
    high: tl.tensor, segment: tl.tensor, entering: tl.tensor, PRECISION: tl.constexpr
) -> tl.tensor:
    """How much of the entering state each position sees."""
    return tl.where(segment == entering, exp(high, PRECISION), 0.0)


@triton.jit
def decay_to_exit(
    pointer: tl.tensor,
    place: tl.tensor,
    high: tl.tensor,
    low: tl.tensor,
    segment: tl.tensor,
    leaving: tl.tensor,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """How much of each position the leaving state sees."""
    end = pointer + place * 2 * CHUNK + CHUNK - 1
    difference = (tl.load(end) - high) + (tl.load(end + CHUNK) - low)
    return tl.where(segment == leaving, exp(difference, PRECISION), 0.0)
