"""Prefix attention in Triton, forward and backward; README.md derives every line used here.

A chunk is one tile. States lie at the borders of chunks: number c enters chunk c, number
``chunks`` leaves the last one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from core.ops.prefix_attention.kernel_backward import (
    chunk_grads_kernel,
    grads_kernel,
    pass_back_kernel,
)
from core.ops.prefix_attention.kernel_forward import (
    chunk_states_kernel,
    output_kernel,
    pass_kernel,
)

CHUNK = 64
PASS_COLUMNS = 32  # of w, a program of the passes along the chunks


class _Launch(NamedTuple):
    """What every launch needs to know."""

    programs: int  # one a chunk of a head
    passes: tuple[int, int]
    sizes: tuple[int, int]  # length, chunks
    constants: dict[str, Any]
    pass_constants: dict[str, Any]


def _launch(values: Tensor, segments: Tensor | None) -> _Launch:
    batch, length, heads, head_dim = values.shape
    chunks = triton.cdiv(length, CHUNK)
    block_p = max(16, triton.next_power_of_2(head_dim))
    columns = min(PASS_COLUMNS, block_p)
    common = {
        "HEADS": heads,
        "P": head_dim,
        "CHUNK": CHUNK,
        "PACKED": segments is not None,
        "num_warps": 4,
    }
    precision = "tf32" if values.element_size() == 2 else "ieee"
    return _Launch(
        programs=batch * chunks * heads,
        passes=(batch * heads, triton.cdiv(head_dim, columns)),
        sizes=(length, chunks),
        constants={**common, "BLOCK_P": block_p, "PRECISION": precision},
        pass_constants={**common, "BLOCK": 64, "BLOCK_P": columns},
    )


def _rows(tensor: Tensor) -> Tensor:
    """The tensor itself if its rows are contiguous, else a copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _border(states: Tensor, number: int) -> Tensor:
    """One of the states (batch, heads, chunks + 1, ...), in memory of its own."""
    return states[:, :, number].clone(memory_format=torch.contiguous_format)


def forward(
    scores: Tensor, values: Tensor, m: Tensor, u: Tensor, w: Tensor, segments: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As ``reference.prefix_attention_chunked``, for float32, bfloat16 and float16 values."""
    with torch.cuda.device_of(values):
        launch, values = _launch(values, segments), _rows(values)
        batch, length, heads, head_dim = values.shape
        chunks = launch.sizes[1]
        strides = (scores.stride(), values.stride()[:3])
        own_m, own_u = (scores.new_empty(batch, heads, chunks) for _ in range(2))
        own_w = scores.new_empty(batch, heads, chunks, head_dim)
        chunk_states_kernel[(launch.programs,)](
            scores, values, segments, own_m, own_u, own_w, *launch.sizes, *strides,
            **launch.constants,
        )  # fmt: skip
        at_m, at_u = (scores.new_empty(batch, heads, chunks + 1) for _ in range(2))
        at_w = scores.new_empty(batch, heads, chunks + 1, head_dim)
        pass_kernel[launch.passes](
            own_m, own_u, own_w, segments, m.contiguous(), u.contiguous(), w.contiguous(),
            at_m, at_u, at_w, *launch.sizes, **launch.pass_constants,
        )  # fmt: skip
        out = torch.empty_like(values, memory_format=torch.contiguous_format)
        maxima, sums = (scores.new_empty(batch, length, heads) for _ in range(2))
        output_kernel[(launch.programs,)](
            scores, values, segments, at_m, at_u, at_w, out, maxima, sums, *launch.sizes, *strides,
            **launch.constants,
        )  # fmt: skip
    return out, _border(at_m, -1), _border(at_u, -1), _border(at_w, -1), maxima, sums


def backward(
    grad_out: Tensor,
    grad_u: Tensor,
    grad_w: Tensor,
    scores: Tensor,
    values: Tensor,
    initial_m: Tensor,
    segments: Tensor | None,
    out: Tensor,
    maxima: Tensor,
    sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As ``reference.prefix_attention_chunked_backward``."""
    with torch.cuda.device_of(values):
        launch, values, dy = _launch(values, segments), _rows(values), _rows(grad_out)
        batch, _, heads, head_dim = values.shape
        chunks = launch.sizes[1]
        maxima, sums, first = maxima.contiguous(), sums.contiguous(), initial_m.contiguous()
        out = _rows(out)
        means = torch.empty_like(maxima)
        own_u = scores.new_empty(batch, heads, chunks)
        own_w = scores.new_empty(batch, heads, chunks, head_dim)
        chunk_grads_kernel[(launch.programs,)](
            dy, out, maxima, sums, segments, first, means, own_u, own_w, *launch.sizes,
            dy.stride()[:3], out.stride()[:3], **launch.constants,
        )  # fmt: skip
        at_u = scores.new_empty(batch, heads, chunks + 1)
        at_w = scores.new_empty(batch, heads, chunks + 1, head_dim)
        pass_back_kernel[launch.passes](
            own_u, own_w, maxima, segments, first, grad_u.contiguous(), grad_w.contiguous(),
            at_u, at_w, *launch.sizes, **launch.pass_constants,
        )  # fmt: skip
        d_scores = scores.new_empty(scores.shape)
        d_values = torch.empty_like(values, memory_format=torch.contiguous_format)
        grads_kernel[(launch.programs,)](
            dy, scores, values, maxima, sums, means, segments, first, at_u, at_w,
            d_scores, d_values, *launch.sizes, dy.stride()[:3], scores.stride(),
            values.stride()[:3], **launch.constants,
        )  # fmt: skip
    return d_scores, d_values, _border(at_u, 0), _border(at_w, 0)
