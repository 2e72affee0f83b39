"""Triton kernels that only the backward pass runs."""

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


@triton.jit(do_not_specialize=["length", "chunks"])
def grad_x_kernel(
    x: tl.tensor,
    B: tl.tensor,
    C: tl.tensor,
    dy: tl.tensor,
    sums: tl.tensor,
    through: tl.tensor,
    segments: tl.tensor,
    states: tl.tensor,
    grad_states: tl.tensor,
    dx: tl.tensor,
    dlog_decay: tl.tensor,
    length: tl.tensor,
    chunks: tl.tensor,
    x_strides: tl.tensor,
    B_strides: tl.tensor,
    C_strides: tl.tensor,
    dy_strides: tl.tensor,
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
    """Gradients of x and log_decay for one chunk of one head."""
    b, chunk, head = locate(chunks, HEADS)
    start = chunk * CHUNK
    rows = tl.arange(0, BLOCK_P)
    real, segment, entering, leaving = load_segments(segments, b, start, length, CHUNK, PACKED)

    scores = tl.zeros((CHUNK, CHUNK), tl.float32)
    from_entry = tl.zeros((CHUNK, BLOCK_P), tl.float32)  # S C
    grad = tl.zeros((CHUNK, BLOCK_P), tl.float32)  # G B, later all of dx
    carried = tl.zeros((BLOCK_P,), tl.float32)
    for n in range(0, N, BLOCK_N):
        columns = n + tl.arange(0, BLOCK_N)
        c = load_rows(C, C_strides, b, start, head // SHARE, real, columns, N)
        k = load_rows(B, B_strides, b, start, head // SHARE, real, columns, N)
        s = load_state(states, tl.program_id(0).to(tl.int64), rows, columns, P, N)
        g = load_state(grad_states, tl.program_id(0).to(tl.int64), rows, columns, P, N)
        scores += dot(c, tl.trans(k), PRECISION)
        from_entry += dot(c.to(s.dtype), tl.trans(s), PRECISION)
        grad += dot(k.to(g.dtype), tl.trans(g), PRECISION)
        carried += tl.sum(s.to(tl.float32) * g.to(tl.float32), axis=1)

    place = (b * HEADS + head) * chunks + chunk
    high, low = load_sums(sums, place, CHUNK)
    v = load_rows(x, x_strides, b, start, head, real, rows, P)
    d = load_rows(dy, dy_strides, b, start, head, real, rows, P)
    flow = tl.sum(from_entry * d, axis=1) * decay_from_entry(high, segment, entering, PRECISION)
    grad *= decay_to_exit(sums, place, high, low, segment, leaving, CHUNK, PRECISION)[:, None]
    left = tl.sum(grad * v, axis=1)
    scores *= decay_within(high, low, segment, CHUNK, PRECISION)
    grad += dot(tl.trans(scores.to(d.dtype)), d, PRECISION)

    # flow counts each pair s < t once; log_decay_k moves the pairs with s < k <= t.
    i = tl.arange(0, CHUNK)
    earlier = i[:, None] > i[None, :]
    pairs = tl.where(earlier, scores * dot(d, tl.trans(v), PRECISION), 0.0)
    flow += tl.sum(pairs, axis=1) - tl.sum(pairs, axis=0)
    # float64, because these sums take back later what they added earlier.
    decay = tl.cumsum(flow.to(tl.float64), axis=0, reverse=True)
    # Not a running sum less its own element, which may be 1e20 times what precedes it.
    decay += tl.sum(tl.where(earlier, left[None, :], 0.0), axis=1)
    decay += tl.load(through + place) * tl.sum(carried, axis=0)

    t = start + i
    token = (b * length + t) * HEADS + head
    tl.store(dlog_decay + token, tl.where(real, decay, 0.0).to(tl.float32), mask=t < length)
    to = dx + token[:, None] * P + rows[None, :]
    tl.store(to, grad.to(v.dtype), mask=(t < length)[:, None] & (rows < P)[None, :])


@triton.jit(do_not_specialize=["length", "chunks", "batch"])
def grad_bc_kernel(
    x: tl.tensor,
    B: tl.tensor,
    C: tl.tensor,
    dy: tl.tensor,
    sums: tl.tensor,
    segments: tl.tensor,
    states: tl.tensor,
    grad_states: tl.tensor,
    dB: tl.tensor,
    dC: tl.tensor,
    length: tl.tensor,
    chunks: tl.tensor,
    batch: tl.tensor,
    x_strides: tl.tensor,
    B_strides: tl.tensor,
    C_strides: tl.tensor,
    dy_strides: tl.tensor,
    HEADS: tl.constexpr,
    SHARE: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLITS: tl.constexpr,
) -> None:
    """Gradients of B and C for one chunk of one group, summed over one part of the group's heads.

    Parts vary fastest, so parts times groups take the place of heads in ``locate``.
    """
    GROUPS: tl.constexpr = HEADS // SHARE
    PART: tl.constexpr = SHARE // SPLITS
    b, chunk, part = locate(chunks, GROUPS * SPLITS)
    group = part // SPLITS
    start = chunk * CHUNK
    rows = tl.arange(0, BLOCK_P)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    real, segment, entering, leaving = load_segments(segments, b, start, length, CHUNK, PACKED)
    k = load_rows(B, B_strides, b, start, group, real, columns, N)
    c = load_rows(C, C_strides, b, start, group, real, columns, N)

    grad_B = tl.zeros((CHUNK, BLOCK_N), tl.float32)
    grad_C = tl.zeros((CHUNK, BLOCK_N), tl.float32)
    for step in range(PART):
        head = part * PART + step
        place = (b * HEADS + head) * chunks + chunk
        high, low = load_sums(sums, place, CHUNK)
        v = load_rows(x, x_strides, b, start, head, real, rows, P)
        d = load_rows(dy, dy_strides, b, start, head, real, rows, P)
        pull = dot(d, tl.trans(v), PRECISION) * decay_within(high, low, segment, CHUNK, PRECISION)
        # One head's sums apart: float32 chains over all heads would lose a digit.
        head_C = dot(pull.to(v.dtype), k, PRECISION)
        head_B = dot(tl.trans(pull.to(v.dtype)), c, PRECISION)
        if PRECISION != "ieee":
            grad_C += head_C
            grad_B += head_B
        at = (b * chunks + chunk) * HEADS + head
        s = load_state(states, at, rows, columns, P, N)
        d = d * decay_from_entry(high, segment, entering, PRECISION)[:, None]
        from_state = dot(d.to(s.dtype), s, PRECISION)
        grad_C += head_C + from_state if PRECISION == "ieee" else from_state
        g = load_state(grad_states, at, rows, columns, P, N)
        v = v * decay_to_exit(sums, place, high, low, segment, leaving, CHUNK, PRECISION)[:, None]
        to_state = dot(v.to(g.dtype), g, PRECISION)
        grad_B += head_B + to_state if PRECISION == "ieee" else to_state

    t = start + tl.arange(0, CHUNK)
    token = ((part % SPLITS * batch + b) * length + t) * GROUPS + group
    to = token[:, None] * N + columns[None, :]
    mask = (t < length)[:, None] & (columns < N)[None, :]
    tl.store(dB + to, grad_B.to(dB.dtype.element_ty), mask=mask)
    tl.store(dC + to, grad_C.to(dC.dtype.element_ty), mask=mask)
