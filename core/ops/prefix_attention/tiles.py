"""What the Triton kernels of prefix attention share, beside `core.ops.tiles`."""

# Triton's decorators carry no types.
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl

from core.ops.tiles import dot, exp


@triton.jit
def finite(m: tl.tensor) -> tl.tensor:
    """A shift by minus infinity, where nothing was seen, would give NaN; any other will do."""
    return tl.where(m == -float("inf"), 0.0, m)


@triton.jit
def look_back(
    scores: tl.tensor,
    segment: tl.tensor,
    m: tl.tensor,
    entering: tl.tensor,
    SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """What each row sees of the columns up to it, in its segment, and of an entering state.

    Returns the largest score (SIZE,), and behind it the weights of columns (SIZE, SIZE) and of the
    state (SIZE,), relative to it.
    """
    i = tl.arange(0, SIZE)
    seen = (i[:, None] >= i[None, :]) & (segment[:, None] == segment[None, :])
    seen_scores = tl.where(seen, scores[None, :], -float("inf"))
    carried = tl.where(segment == entering, m, -float("inf"))
    largest = tl.maximum(tl.max(seen_scores, 1), carried)
    shift = finite(largest)
    weights = exp(seen_scores - shift[:, None], PRECISION)
    return largest, weights, exp(carried - shift, PRECISION)


@triton.jit
def load_column(
    pointer: tl.tensor,
    strides: tl.tensor,
    b: tl.tensor,
    t: tl.tensor,
    head: tl.tensor,
    mask: tl.tensor,
    OTHER: tl.constexpr,
) -> tl.tensor:
    """Positions ``t`` of one head of (batch, length, heads); ``OTHER`` where masked."""
    at = b * strides[0] + t * strides[1] + head * strides[2]
    return tl.load(pointer + at, mask=mask, other=OTHER)


@triton.jit
def segment_before(
    segments: tl.tensor, b: tl.tensor, t: tl.tensor, length: tl.tensor, PACKED: tl.constexpr
) -> tl.tensor:
    """Segment of the state that enters position ``t``, at most ``length``."""
    segment = (t * 0).to(tl.int32)
    if PACKED:
        code = tl.load(segments + b * length + t - 1, mask=t > 0, other=0)
        segment = tl.where(code < 0, -1 - code, code)
    return segment


@triton.jit
def scores_gradient(
    dy: tl.tensor,
    value: tl.tensor,
    w_in: tl.tensor,
    weights: tl.tensor,
    entry: tl.tensor,
    total: tl.tensor,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """``dy_t . v_r`` (rows, columns), and ``mean_t = dy_t . y_t`` from the same numbers.

    The stored y, rounded to half precision, would leave its rounding where the two cancel.
    """
    products = dot(dy, tl.trans(value), PRECISION)
    carried = tl.sum(dy.to(tl.float32) * w_in[None, :], 1)
    mean = tl.sum(weights * products, 1) + entry * carried
    return products, tl.div_rn(mean, tl.where(total == 0, 1.0, total))
