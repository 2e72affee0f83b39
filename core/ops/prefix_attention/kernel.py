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
from core.ops.tiles import contiguous_rows

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


def _border(states: Tensor, number: int) -> Tensor:
    """One of the states (batch, heads, chunks + 1, ...), in memory of its own."""
    return states[:, :, number].clone(memory_format=torch.contiguous_format)


def _buffers(scores: Tensor, values: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """For ``count`` states a head: m, u, w."""
    batch, _, heads, head_dim = values.shape
    m, u = (scores.new_empty(batch, heads, count) for _ in range(2))
    return m, u, scores.new_empty(batch, heads, count, head_dim)


def _states(
    launch: _Launch,
    scores: Tensor,
    values: Tensor,
    first: tuple[Tensor, Tensor, Tensor],
    segments: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """m, u and w at every border."""
    chunks = launch.sizes[1]
    own = _buffers(scores, values, chunks)
    chunk_states_kernel[(launch.programs,)](
        scores, values, segments, *own, *launch.sizes, scores.stride(), values.stride()[:3],
        **launch.constants,
    )  # fmt: skip
    states = _buffers(scores, values, chunks + 1)
    pass_kernel[launch.passes](
        *own, segments, *(tensor.contiguous() for tensor in first), *states, *launch.sizes,
        **launch.pass_constants,
    )  # fmt: skip
    return states


def forward(
    scores: Tensor, values: Tensor, m: Tensor, u: Tensor, w: Tensor, segments: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As ``reference.prefix_attention_chunked``, for float32, bfloat16 and float16 values."""
    with torch.cuda.device_of(values):
        launch, values = _launch(values, segments), contiguous_rows(values)
        states = _states(launch, scores, values, (m, u, w), segments)
        out = torch.empty_like(values, memory_format=torch.contiguous_format)
        output_kernel[(launch.programs,)](
            scores, values, segments, *states, out, *launch.sizes, scores.stride(),
            values.stride()[:3], **launch.constants,
        )  # fmt: skip
    m, u, w = (_border(tensor, -1) for tensor in states)
    return out, m, u, w


def backward(
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
    """As ``reference.prefix_attention_chunked_backward``; states are computed again, not kept."""
    with torch.cuda.device_of(values):
        launch, values = _launch(values, segments), contiguous_rows(values)
        dy = contiguous_rows(grad_out)
        states = _states(launch, scores, values, (m, u, w), segments)
        strides = (dy.stride()[:3], scores.stride(), values.stride()[:3])
        chunks = launch.sizes[1]
        _, own_u, own_w = _buffers(scores, values, chunks)
        chunk_grads_kernel[(launch.programs,)](
            dy, scores, values, segments, *states, own_u, own_w, *launch.sizes, *strides,
            **launch.constants,
        )  # fmt: skip
        _, at_u, at_w = _buffers(scores, values, chunks + 1)
        pass_back_kernel[launch.passes](
            own_u, own_w, segments, states[0], grad_u.contiguous(), grad_w.contiguous(),
            at_u, at_w, *launch.sizes, **launch.pass_constants,
        )  # fmt: skip
        d_scores = scores.new_empty(scores.shape)
        d_values = torch.empty_like(values, memory_format=torch.contiguous_format)
        grads_kernel[(launch.programs,)](
            dy, scores, values, segments, *states, at_u, at_w, d_scores, d_values, *launch.sizes,
            *strides, **launch.constants,
        )  # fmt: skip
    return d_scores, d_values, _border(at_u, 0), _border(at_w, 0)
