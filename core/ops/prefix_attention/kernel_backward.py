"""Triton kernels of the backward pass of prefix attention; README.md derives every line."""

# Triton's decorators carry no types.
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl

from core.ops.prefix_attention.tiles import (
    finite,
    load_column,
    look_back,
    scores_gradient,
    segment_before,
)
from core.ops.tiles import dot, exp, load_rows, load_segments, locate


@triton.jit(do_not_specialize=["length", "chunks"])
def chunk_grads_kernel(
    grad_out: tl.tensor,
    scores: tl.tensor,
    values: tl.tensor,
    segments: tl.tensor,
    m: tl.tensor,
    u: tl.tensor,
    w: tl.tensor,
    grad_u: tl.tensor,
    grad_w: tl.tensor,
    length: tl.tensor,
    chunks: tl.tensor,
    grad_strides: tl.tensor,
    score_strides: tl.tensor,
    value_strides: tl.tensor,
    HEADS: tl.constexpr,
    P: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """What a chunk's outputs pass to the state that enters it."""
    b, chunk, head = locate(chunks, HEADS)
    start = chunk * CHUNK
    columns = tl.arange(0, BLOCK_P)
    real, segment, entering, _ = load_segments(segments, b, start, length, CHUNK, PACKED)
    t = start + tl.arange(0, CHUNK)
    score = load_column(scores, score_strides, b, t, head, real, -float("inf"))
    value = load_rows(values, value_strides, b, start, head, real, columns, P)
    dy = load_rows(grad_out, grad_strides, b, start, head, real, columns, P)

    at = (b * HEADS + head) * (chunks + 1) + chunk
    w_in = tl.load(w + at * P + columns, mask=columns < P, other=0.0)
    _, weights, entry = look_back(score, segment, tl.load(m + at), entering, CHUNK, PRECISION)
    total = tl.sum(weights, 1) + entry * tl.load(u + at)
    _, mean = scores_gradient(dy, value, w_in, weights, entry, total, PRECISION)
    entry = tl.div_rn(entry, tl.where(total == 0, 1.0, total))
    place = (b * HEADS + head) * chunks + chunk
    tl.store(grad_u + place, -tl.sum(entry * mean, 0))
    tile = tl.sum(entry[:, None] * dy.to(tl.float32), 0)
    tl.store(grad_w + place * P + columns, tile, mask=columns < P)


@triton.jit(do_not_specialize=["length", "chunks"])
def pass_back_kernel(
    chunk_u: tl.tensor,
    chunk_w: tl.tensor,
    segments: tl.tensor,
    m: tl.tensor,
    last_u: tl.tensor,
    last_w: tl.tensor,
    grad_u: tl.tensor,
    grad_w: tl.tensor,
    length: tl.tensor,
    chunks: tl.tensor,
    HEADS: tl.constexpr,
    P: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PACKED: tl.constexpr,
) -> None:
    """Gradients of the states at the borders, from those of the last one to those of the first."""
    row = tl.program_id(0).to(tl.int64)
    b = row // HEADS
    i = tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    known_columns = columns < P
    at = row * (chunks + 1)
    u_out = tl.load(last_u + row)
    w_out = tl.load(last_w + row * P + columns, mask=known_columns, other=0.0)
    tl.store(grad_u + at + chunks, u_out)
    tl.store(grad_w + (at + chunks) * P + columns, w_out, mask=known_columns)
    m_out = tl.load(m + at + chunks)
    leaving = segment_before(segments, b, length + b * 0, length, PACKED)
    blocks = (chunks + BLOCK - 1) // BLOCK
    for step in range(blocks):
        chunk = (blocks - 1 - step) * BLOCK + i
        known = chunk < chunks
        here = row * chunks + chunk
        both = known[:, None] & known_columns[None, :]
        sums = tl.load(chunk_u + here, mask=known, other=0.0)
        tile = tl.load(chunk_w + here[:, None] * P + columns[None, :], mask=both, other=0.0)
        # Chunks past the end have nothing to pass on; they count as the last border.
        m_in = tl.load(m + at + tl.minimum(chunk, chunks))
        start = tl.minimum(chunk.to(tl.int64) * CHUNK, length)
        segment = segment_before(segments, b, start, length, PACKED)
        # Along a segment m grows, so that no exponent is positive.
        seen = (i[:, None] <= i[None, :]) & (segment[:, None] == segment[None, :])
        shifted = m_in[:, None] - finite(m_in)[None, :]
        weights = exp(tl.where(seen, shifted, -float("inf")), "ieee")
        behind = tl.where(segment == leaving, m_in, -float("inf"))
        through = exp(behind - finite(m_out), "ieee")
        sums = tl.sum(weights * sums[None, :], 1) + through * u_out
        tile = dot(weights, tile, "ieee") + through[:, None] * w_out[None, :]
        tl.store(grad_u + at + chunk, sums, mask=known)
        tl.store(grad_w + (at + chunk)[:, None] * P + columns[None, :], tile, mask=both)
        first = i == 0
        m_out = tl.max(tl.where(first, m_in, -float("inf")), 0)
        u_out = tl.sum(tl.where(first, sums, 0.0), 0)
        w_out = tl.sum(tl.where(first[:, None], tile, 0.0), 0)
        leaving = tl.min(segment, 0)


@triton.jit(do_not_specialize=["length", "chunks"])
def grads_kernel(
    grad_out: tl.tensor,
    scores: tl.tensor,
    values: tl.tensor,
    segments: tl.tensor,
    m: tl.tensor,
    u: tl.tensor,
    w: tl.tensor,
    grad_u: tl.tensor,
    grad_w: tl.tensor,
    grad_scores: tl.tensor,
    grad_values: tl.tensor,
    length: tl.tensor,
    chunks: tl.tensor,
    grad_strides: tl.tensor,
    score_strides: tl.tensor,
    value_strides: tl.tensor,
    HEADS: tl.constexpr,
    P: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Gradients of scores and values of a chunk."""
    b, chunk, head = locate(chunks, HEADS)
    start = chunk * CHUNK
    columns = tl.arange(0, BLOCK_P)
    real, segment, entering, leaving = load_segments(segments, b, start, length, CHUNK, PACKED)
    t = start + tl.arange(0, CHUNK)
    score = load_column(scores, score_strides, b, t, head, real, -float("inf"))
    value = load_rows(values, value_strides, b, start, head, real, columns, P)
    dy = load_rows(grad_out, grad_strides, b, start, head, real, columns, P)

    at = (b * HEADS + head) * (chunks + 1) + chunk
    w_in = tl.load(w + at * P + columns, mask=columns < P, other=0.0)
    _, weights, entry = look_back(score, segment, tl.load(m + at), entering, CHUNK, PRECISION)
    total = tl.sum(weights, 1) + entry * tl.load(u + at)
    products, mean = scores_gradient(dy, value, w_in, weights, entry, total, PRECISION)
    # As shares of the largest, the weights of a long prefix stay within float16's range.
    least = tl.min(tl.where(total == 0, float("inf"), total), 0)
    least = tl.where(least == float("inf"), 1.0, least)
    share = tl.div_rn(tl.where(total == 0, 0.0, least), tl.where(total == 0, 1.0, total))
    weights *= share[:, None]
    grad_score = tl.sum(weights * (products - mean[:, None]), 0) / least
    tile = dot(tl.trans(weights.to(dy.dtype)), dy, PRECISION) / least

    kept = tl.where(segment == leaving, score, -float("inf"))
    leave = exp(kept - finite(tl.load(m + at + 1)), PRECISION)
    w_out = tl.load(grad_w + (at + 1) * P + columns, mask=columns < P, other=0.0)
    through = tl.sum(value.to(tl.float32) * w_out[None, :], 1) + tl.load(grad_u + at + 1)
    grad_score += leave * through
    tile += leave[:, None] * w_out[None, :]

    to = (b * length + t) * HEADS + head
    inside = t < length
    tl.store(grad_scores + to, grad_score, mask=inside)
    tl.store(
        grad_values + to[:, None] * P + columns[None, :],
        tile.to(value.dtype),
        mask=inside[:, None] & (columns < P)[None, :],
    )
