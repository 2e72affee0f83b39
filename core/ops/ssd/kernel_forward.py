"""Triton kernels of the forward pass; the backward pass runs all but the last of them too."""

# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl

from core.ops.ssd.tiles import (
    decay_from_entry,
    decay_to_exit,
    decay_within,
    load_state,
    load_sums,
)
from core.ops.tiles import dot, load_rows, load_segments, locate

# exp of it is zero in float32; cutting there keeps minus infinity out of differences of sums.
LOWEST_LOG_DECAY = tl.constexpr(-200.0)


@triton.jit(do_not_specialize=["length", "chunks"])
def sums_kernel(
    log_decay: tl.tensor,
    segments: tl.tensor,
    sums: tl.tensor,
    through: tl.tensor,
    length: tl.tensor,
    chunks: tl.tensor,
    strides: tl.tensor,
    HEADS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PACKED: tl.constexpr,
) -> None:
    """Cumulative log-decays of a chunk, summed in float64, kept as a pair of float32.

    After one large log-decay a single float32 would leave later differences without digits.
    """
    b = tl.program_id(0).to(tl.int64) // chunks
    chunk = tl.program_id(0).to(tl.int64) % chunks
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    known = (head < HEADS)[None, :]
    i = tl.arange(0, CHUNK)
    t = chunk * CHUNK + i
    real, _, entering, leaving = load_segments(segments, b, chunk * CHUNK, length, CHUNK, PACKED)
    step = tl.load(
        log_decay + b * strides[0] + t[:, None] * strides[1] + head[None, :] * strides[2],
        mask=real[:, None] & known,
        other=0.0,
    ).to(tl.float64)
    step = tl.where(step < LOWEST_LOG_DECAY, LOWEST_LOG_DECAY, step)
    total = tl.cumsum(step, axis=0)
    high = total.to(tl.float32)
    low = (total - high.to(tl.float64)).to(tl.float32)

    place = (b * HEADS + head) * chunks + chunk
    to = sums + place[None, :] * 2 * CHUNK + i[:, None]
    tl.store(to, high, mask=known & (i >= 0)[:, None])
    tl.store(to + CHUNK, low, mask=known & (i >= 0)[:, None])
    end = tl.exp(tl.sum(step, axis=0).to(tl.float32))
    tl.store(through + place, tl.where(entering == leaving, end, 0.0), mask=head < HEADS)


@triton.jit(do_not_specialize=["length", "chunks"])
def chunk_states_kernel(
    values: tl.tensor,
    keys: tl.tensor,
    sums: tl.tensor,
    segments: tl.tensor,
    states: tl.tensor,
    length: tl.tensor,
    chunks: tl.tensor,
    value_strides: tl.tensor,
    key_strides: tl.tensor,
    HEADS: tl.constexpr,
    SHARE: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
    TO_EXIT: tl.constexpr,
) -> None:
    """Weighted sums of outer products over a chunk.

    TO_EXIT: ``x B^T`` with the decay to the leaving state. Otherwise ``dy C^T`` with the decay from
    the entering state: the gradient that reaches it through this chunk's outputs.
    """
    b, chunk, head = locate(chunks, HEADS)
    start = chunk * CHUNK
    rows = tl.arange(0, BLOCK_P)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    real, segment, entering, leaving = load_segments(segments, b, start, length, CHUNK, PACKED)

    place = (b * HEADS + head) * chunks + chunk
    high, low = load_sums(sums, place, CHUNK)
    if TO_EXIT:
        weight = decay_to_exit(sums, place, high, low, segment, leaving, CHUNK, PRECISION)
    else:
        weight = decay_from_entry(high, segment, entering, PRECISION)
    v = load_rows(values, value_strides, b, start, head, real, rows, P)
    k = load_rows(keys, key_strides, b, start, head // SHARE, real, columns, N)
    state = dot(tl.trans((v * weight[:, None]).to(v.dtype)), k, PRECISION)
    to = tl.program_id(0).to(tl.int64) * P * N + rows[:, None] * N + columns[None, :]
    tl.store(states + to, state, mask=(rows < P)[:, None] & (columns < N)[None, :])


@triton.jit(do_not_specialize=["chunks"])
def pass_kernel(
    chunk_states: tl.tensor,
    through: tl.tensor,
    first: tl.tensor,
    states: tl.tensor,
    last: tl.tensor,
    chunks: tl.tensor,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    REVERSE: tl.constexpr,
    GIVEN: tl.constexpr,
) -> None:
    """``state = through * state + chunk_state`` along the chunks; stores the state before each."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    state = tl.zeros((BLOCK,), tl.float32)
    if GIVEN:
        state = tl.load(first + row * SIZE + i, mask=i < SIZE, other=0.0)
    for step in range(chunks):
        chunk = chunks - 1 - step if REVERSE else step
        at = ((row // HEADS * chunks + chunk) * HEADS + row % HEADS) * SIZE + i
        new = tl.load(chunk_states + at, mask=i < SIZE, other=0.0)
        tl.store(states + at, state.to(states.dtype.element_ty), mask=i < SIZE)
        state = tl.load(through + row * chunks + chunk) * state + new
    tl.store(last + row * SIZE + i, state, mask=i < SIZE)


@triton.jit(do_not_specialize=["length", "chunks"])
def output_kernel(
    x: tl.tensor,
    B: tl.tensor,
    C: tl.tensor,
    sums: tl.tensor,
    segments: tl.tensor,
    states: tl.tensor,
    y: tl.tensor,
    length: tl.tensor,
    chunks: tl.tensor,
    x_strides: tl.tensor,
    B_strides: tl.tensor,
    C_strides: tl.tensor,
    HEADS: tl.constexpr,
    SHARE: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """``y = (C B^T * within) x + entry * (C S^T)`` for one chunk of one head."""
    b, chunk, head = locate(chunks, HEADS)
    start = chunk * CHUNK
    rows = tl.arange(0, BLOCK_P)
    real, segment, entering, _ = load_segments(segments, b, start, length, CHUNK, PACKED)

    scores = tl.zeros((CHUNK, CHUNK), tl.float32)
    out = tl.zeros((CHUNK, BLOCK_P), tl.float32)
    for n in range(0, N, BLOCK_N):
        columns = n + tl.arange(0, BLOCK_N)
        c = load_rows(C, C_strides, b, start, head // SHARE, real, columns, N)
        k = load_rows(B, B_strides, b, start, head // SHARE, real, columns, N)
        s = load_state(states, tl.program_id(0).to(tl.int64), rows, columns, P, N)
        scores += dot(c, tl.trans(k), PRECISION)
        out += dot(c.to(s.dtype), tl.trans(s), PRECISION)

    high, low = load_sums(sums, (b * HEADS + head) * chunks + chunk, CHUNK)
    out *= decay_from_entry(high, segment, entering, PRECISION)[:, None]
    scores *= decay_within(high, low, segment, CHUNK, PRECISION)
    v = load_rows(x, x_strides, b, start, head, real, rows, P)
    out += dot(scores.to(v.dtype), v, PRECISION)

    t = start + tl.arange(0, CHUNK)
    to = y + ((b * length + t) * HEADS + head)[:, None] * P + rows[None, :]
    tl.store(to, out.to(v.dtype), mask=(t < length)[:, None] & (rows < P)[None, :])
