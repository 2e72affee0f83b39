"""State space duality in Triton, forward and backward; README.md derives every line used here.

A chunk is one tile. Names: S enters a chunk, G is the gradient of the state that leaves it;
``within``, ``entry``, ``exit`` and ``through`` are the decays inside a chunk, from the entering
state, to the leaving state, and from one to the other. All are exp of differences of sums.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from core.ops.ssd.kernel_backward import grad_bc_kernel, grad_x_kernel
from core.ops.ssd.kernel_forward import chunk_states_kernel, output_kernel, pass_kernel, sums_kernel
from core.ops.tiles import contiguous_rows


class _Launch(NamedTuple):
    """Inputs as the kernels take them, with what every launch needs to know."""

    x: Tensor
    B: Tensor
    C: Tensor
    segments: Tensor | None
    sums: Tensor  # (batch, heads, chunks, 2, CHUNK) float32
    through: Tensor  # (batch, heads, chunks) float32
    chunks: int
    constants: dict[str, Any]

    @property
    def programs(self) -> int:
        return self.x.shape[0] * self.chunks * self.x.shape[2]

    @property
    def state_dtype(self) -> torch.dtype:
        """What stored states are rounded to; float16 could not hold a long sum."""
        return torch.bfloat16 if self.x.dtype == torch.bfloat16 else torch.float32

    @property
    def blocks(self) -> int:
        return triton.cdiv(self.constants["N"], self.constants["BLOCK_N"])


def _launch(x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, segments: Tensor | None) -> _Launch:
    batch, length, heads, head_dim = x.shape
    groups, state = B.shape[2:]
    block_p = max(16, triton.next_power_of_2(head_dim))
    half = x.element_size() == 2
    chunk = 128 if half and block_p <= 64 else 64
    if x.dtype == torch.float16 and block_p < 64:
        chunk = 64  # 128 gave wrong gradients of x on an H100 (Triton 3.6); cause unknown
    chunks = triton.cdiv(length, chunk)
    constants = {
        "HEADS": heads,
        "SHARE": heads // groups,
        "P": head_dim,
        "N": state,
        "CHUNK": chunk,
        "BLOCK_P": block_p,
        "BLOCK_N": min(64 if half else 32, max(16, triton.next_power_of_2(state))),
        "PACKED": segments is not None,
        # tf32 is met only where float16 input meets float32 states, and keeps float16's digits.
        "PRECISION": "tf32" if half else "ieee",
        "num_warps": 8,
        "num_stages": 1,  # more took more time on an H100, and shared memory that others lack
    }
    sums = log_decay.new_empty(batch, heads, chunks, 2, chunk)
    through = log_decay.new_empty(batch, heads, chunks)
    block_h = min(16, triton.next_power_of_2(heads))
    sums_kernel[batch * chunks, triton.cdiv(heads, block_h)](
        log_decay, segments, sums, through, length, chunks, log_decay.stride(),
        HEADS=heads, CHUNK=chunk, BLOCK_H=block_h, PACKED=segments is not None,
    )  # fmt: skip
    x, B, C = (contiguous_rows(tensor) for tensor in (x, B, C))
    return _Launch(x, B, C, segments, sums, through, chunks, constants)


def _states(
    launch: _Launch, values: Tensor, keys: Tensor, first: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """States (or, in reverse, their gradients) at every chunk, and the one at the far end."""
    batch, length, heads, head_dim = values.shape
    size = head_dim * keys.shape[-1]
    chunk_states = launch.sums.new_empty(launch.programs, size)
    chunk_states_kernel[launch.programs, launch.blocks](
        values, keys, launch.sums, launch.segments, chunk_states,
        length, launch.chunks, values.stride()[:3], keys.stride()[:3],
        **launch.constants, TO_EXIT=not reverse,
    )  # fmt: skip
    states = torch.empty_like(chunk_states, dtype=launch.state_dtype)
    last = launch.sums.new_empty(batch, heads, head_dim, keys.shape[-1])
    block = min(512, triton.next_power_of_2(size))
    pass_kernel[batch * heads, triton.cdiv(size, block)](
        chunk_states, launch.through, first, states, last, launch.chunks,
        HEADS=heads, SIZE=size, BLOCK=block, REVERSE=reverse, GIVEN=first is not None,
    )  # fmt: skip
    return states, last


def forward(
    x: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None,
    segments: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """As ``reference.ssd_chunked``, for float32, bfloat16 and float16."""
    with torch.cuda.device_of(x):
        launch = _launch(x, log_decay, B, C, segments)
        x, B, C = launch.x, launch.B, launch.C
        initial_state = None if initial_state is None else initial_state.contiguous()
        states, final = _states(launch, x, B, initial_state, reverse=False)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        output_kernel[(launch.programs,)](
            x, B, C, launch.sums, segments, states, y, x.shape[1], launch.chunks,
            x.stride()[:3], B.stride()[:3], C.stride()[:3], **launch.constants,
        )  # fmt: skip
    return y, final


def backward(
    grad_y: Tensor,
    grad_final: Tensor,
    x: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None,
    segments: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As ``reference.ssd_chunked_backward``: gradients of x, log_decay, B, C, initial state."""
    with torch.cuda.device_of(x):
        launch = _launch(x, log_decay, B, C, segments)
        x, B, C, dy = launch.x, launch.B, launch.C, contiguous_rows(grad_y)
        initial_state = None if initial_state is None else initial_state.contiguous()
        states, _ = _states(launch, x, B, initial_state, reverse=False)
        grad_states, grad_initial = _states(launch, dy, C, grad_final.contiguous(), reverse=True)
        strides = (x.stride()[:3], B.stride()[:3], C.stride()[:3], dy.stride()[:3])

        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        dlog_decay = torch.empty_like(log_decay, memory_format=torch.contiguous_format)
        grad_x_kernel[(launch.programs,)](
            x, B, C, dy, launch.sums, launch.through, segments, states, grad_states,
            dx, dlog_decay, x.shape[1], launch.chunks, *strides, **launch.constants,
        )  # fmt: skip

        splits = _splits(launch)
        parts, dtype = ((splits,), torch.float32) if splits > 1 else ((), x.dtype)
        dB, dC = (torch.empty((*parts, *B.shape), dtype=dtype, device=x.device) for _ in range(2))
        programs = launch.programs // launch.constants["SHARE"] * splits
        grad_bc_kernel[programs, launch.blocks](
            x, B, C, dy, launch.sums, segments, states, grad_states, dB, dC,
            x.shape[1], launch.chunks, x.shape[0], *strides, SPLITS=splits, **launch.constants,
        )  # fmt: skip
    if splits > 1:
        dB, dC = dB.sum(0).to(x.dtype), dC.sum(0).to(x.dtype)
    return dx, dlog_decay, dB, dC, grad_initial


def _splits(launch: _Launch) -> int:
    """Into how many parts a group's heads are cut so that the gradients of B and C fill the GPU."""
    share = launch.constants["SHARE"]
    programs = launch.programs // share * launch.blocks
    wanted = 1
    if launch.x.is_cuda:
        wanted = 4 * torch.cuda.get_device_properties(launch.x.device).multi_processor_count
    return next(
        splits
        for splits in range(1, share + 1)
        if share % splits == 0 and (programs * splits >= wanted or splits == share)
    )
