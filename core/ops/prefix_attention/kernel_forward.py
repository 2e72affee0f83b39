"""Triton kernels of the forward pass of prefix attention; README.md derives every line."""

# Triton's decorators carry no types.
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl

from core.ops.prefix_attention.tiles import finite, load_column, look_back, segment_before
from core.ops.tiles import dot, exp, load_rows, load_segments, locate


@triton.jit(do_not_specialize=["length", "chunks"])
def chunk_states_kernel(
    scores: tl.tensor,
    values: tl.tensor,
    segments: tl.tensor,
    m: tl.tensor,
    u: tl.tensor,
    w: tl.tensor,
    length: tl.tensor,
    chunks: tl.tensor,
    score_strides: tl.tensor,
    value_strides: tl.tensor,
    HEADS: tl.constexpr,
    P: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """The state of a chunk by itself, of its last segment; float32 throughout."""
    b, chunk, head = locate(chunks, HEADS)
    start = chunk * CHUNK
    columns = tl.arange(0, BLOCK_P)
    real, segment, _, leaving = load_segments(segments, b, start, length, CHUNK, PACKED)
    kept = real & (segment == leaving)
    t = start + tl.arange(0, CHUNK)
    score = load_column(scores, score_strides, b, t, head, kept, -float("inf"))
    value = load_rows(values, value_strides, b, start, head, kept, columns, P).to(tl.float32)
    largest = tl.max(score, 0)
    weight = exp(score - finite(largest), "ieee")
    place = (b * HEADS + head) * chunks + chunk
    tl.store(m + place, largest)
    tl.store(u + place, tl.sum(weight, 0))
    tl.store(w + place * P + columns, tl.sum(weight[:, None] * value, 0), mask=columns < P)


@triton.jit(do_not_specialize=["length", "chunks"])
def pass_kernel(
    chunk_m: tl.tensor,
    chunk_u: tl.tensor,
    chunk_w: tl.tensor,
    segments: tl.tensor,
    first_m: tl.tensor,
    first_u: tl.tensor,
    first_w: tl.tensor,
    m: tl.tensor,
    u: tl.tensor,
    w: tl.tensor,
    length: tl.tensor,
    chunks: tl.tensor,
    HEADS: tl.constexpr,
    P: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PACKED: tl.constexpr,
) -> None:
    """States at the borders, a block of chunks at a time; a chunk looks back as a position does."""
    row = tl.program_id(0).to(tl.int64)
    b = row // HEADS
    i = tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    known_columns = columns < P
    at = row * (chunks + 1)
    m_in = tl.load(first_m + row)
    u_in = tl.load(first_u + row)
    w_in = tl.load(first_w + row * P + columns, mask=known_columns, other=0.0)
    entering = tl.min(i, 0)
    tl.store(m + at, m_in)
    tl.store(u + at, u_in)
    tl.store(w + at * P + columns, w_in, mask=known_columns)
    for block in range(0, chunks, BLOCK):
        chunk = block + i
        known = chunk < chunks
        here = row * chunks + chunk
        both = known[:, None] & known_columns[None, :]
        largest = tl.load(chunk_m + here, mask=known, other=-float("inf"))
        sums = tl.load(chunk_u + here, mask=known, other=0.0)
        tile = tl.load(chunk_w + here[:, None] * P + columns[None, :], mask=both, other=0.0)
        # Chunks past the end have no weight and the last segment: they hand the state on.
        end = tl.minimum((chunk + 1).to(tl.int64) * CHUNK, length)
        leaving = segment_before(segments, b, end, length, PACKED)
        largest, weights, entry = look_back(largest, leaving, m_in, entering, BLOCK, "ieee")
        sums = tl.sum(weights * sums[None, :], 1) + entry * u_in
        tile = dot(weights, tile, "ieee") + entry[:, None] * w_in[None, :]
        to = at + chunk + 1
        tl.store(m + to, largest, mask=known)
        tl.store(u + to, sums, mask=known)
        tl.store(w + to[:, None] * P + columns[None, :], tile, mask=both)
        last = i == BLOCK - 1
        m_in = tl.max(tl.where(last, largest, -float("inf")), 0)
        u_in = tl.sum(tl.where(last, sums, 0.0), 0)
        w_in = tl.sum(tl.where(last[:, None], tile, 0.0), 0)
        entering = tl.max(leaving, 0)


@triton.jit(do_not_specialize=["length", "chunks"])
def output_kernel(
    scores: tl.tensor,
    values: tl.tensor,
    segments: tl.tensor,
    m: tl.tensor,
    u: tl.tensor,
    w: tl.tensor,
    out: tl.tensor,
    length: tl.tensor,
    chunks: tl.tensor,
    score_strides: tl.tensor,
    value_strides: tl.tensor,
    HEADS: tl.constexpr,
    P: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Outputs of a chunk behind the state that enters it."""
    b, chunk, head = locate(chunks, HEADS)
    start = chunk * CHUNK
    columns = tl.arange(0, BLOCK_P)
    real, segment, entering, _ = load_segments(segments, b, start, length, CHUNK, PACKED)
    t = start + tl.arange(0, CHUNK)
    score = load_column(scores, score_strides, b, t, head, real, -float("inf"))
    value = load_rows(values, value_strides, b, start, head, real, columns, P)

    at = (b * HEADS + head) * (chunks + 1) + chunk
    w_in = tl.load(w + at * P + columns, mask=columns < P, other=0.0)
    _, weights, entry = look_back(score, segment, tl.load(m + at), entering, CHUNK, PRECISION)
    total = tl.sum(weights, 1) + entry * tl.load(u + at)
    tile = dot(weights.to(value.dtype), value, PRECISION) + entry[:, None] * w_in[None, :]
    tile = tl.where(real[:, None], tl.div_rn(tile, tl.where(total == 0, 1.0, total)[:, None]), 0.0)

    to = (b * length + t) * HEADS + head
    inside = t < length
    tl.store(
        out + to[:, None] * P + columns[None, :],
        tile.to(value.dtype),
        mask=inside[:, None] & (columns < P)[None, :],
    )
