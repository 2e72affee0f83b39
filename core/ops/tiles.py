"""What kernels over chunks of (batch, length, heads, width) share: where a tile lies and how it is
read, products and exponentials."""

# Triton's decorators carry no types.
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import os

import triton
import triton.language as tl
from torch import Tensor

INTERPRET = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


def contiguous_rows(tensor: Tensor) -> Tensor:
    """The tensor itself if its rows are contiguous, else a copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


@triton.jit
def dot(a: tl.tensor, b: tl.tensor, PRECISION: tl.constexpr) -> tl.tensor:
    if INTERPRET:  # it multiplies bf16 wrongly
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def exp(x: tl.tensor, PRECISION: tl.constexpr) -> tl.tensor:
    """exp of float32 at most 0; for float32 products ("ieee") to the last digit or two.

    ``tl.exp`` takes 2 to the power of x log2(e) rounded, and rounding x = -20 costs 30 times the
    last digit of the result; here what was rounded off multiplies the result.
    """
    if PRECISION != "ieee" or INTERPRET:  # its fma rounds in between, and its exp is exact
        return tl.exp(x)
    x = tl.maximum(x, -200.0)  # zero in float32; minus infinity has no remainder
    power = x * 1.4426950408889634
    rest = tl.fma(x, 1.4426950408889634, -power) + x * 1.925963033500911e-08
    return tl.exp2(power) * (1.0 + rest * 0.6931471805599453)


@triton.jit
def locate(chunks: tl.tensor, HEADS: tl.constexpr) -> tl.tensor:
    """Row of the batch, chunk and head of this program, int64 for offsets; heads vary fastest."""
    pid = tl.program_id(0).to(tl.int64)
    return pid // HEADS // chunks, (pid // HEADS) % chunks, pid % HEADS


@triton.jit
def load_rows(
    pointer: tl.tensor,
    strides: tl.tensor,
    b: tl.tensor,
    start: tl.tensor,
    head: tl.tensor,
    mask: tl.tensor,
    columns: tl.tensor,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """A tile (positions, columns) from position ``start`` on; zeros where masked."""
    rows = tl.arange(0, mask.shape[0]).to(tl.int64)
    base = pointer + b * strides[0] + start * strides[1] + head * strides[2]
    return tl.load(
        base + rows[:, None] * strides[1] + columns[None, :],
        mask=mask[:, None] & (columns < WIDTH)[None, :],
        other=0.0,
    )


@triton.jit
def load_segments(
    pointer: tl.tensor,
    b: tl.tensor,
    start: tl.tensor,
    length: tl.tensor,
    CHUNK: tl.constexpr,
    PACKED: tl.constexpr,
) -> tl.tensor:
    """Which positions are real, their segments, those of the entering and of the leaving state."""
    t = start + tl.arange(0, CHUNK)
    real = t < length
    segment = tl.zeros((CHUNK,), tl.int32)
    entering = tl.max(segment, 0)
    if PACKED:
        code = tl.load(pointer + b * length + t, mask=real, other=0)
        real = real & (code >= 0)
        segment = tl.where(code < 0, -1 - code, code)
        before = tl.load(pointer + b * length + start - 1, mask=start > 0, other=0)
        entering = tl.where(before < 0, -1 - before, before)
    # Segments only grow along a row, and positions past its end hold zero.
    return real, segment, entering, tl.max(segment, 0)
