"""Long sequences: the steps of the FFT path that Triton does in one pass."""

# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from core.ops.fft_conv import spectral


@triton.jit
def _gated_copy_kernel(
    x_ptr: tl.tensor,
    gate_ptr: tl.tensor,
    out_ptr: tl.tensor,
    channels: tl.tensor,
    length: tl.tensor,
    x_batch: tl.tensor,
    x_channel: tl.tensor,
    gate_batch: tl.tensor,
    gate_channel: tl.tensor,
    out_batch: tl.tensor,
    out_channel: tl.tensor,
    pieces: tl.tensor,
    HAS_GATE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """out = gate * x in float32, rows of any stride."""
    pid = tl.program_id(0).to(tl.int64)
    row = pid // pieces
    b, c = row // channels, row % channels
    t = (pid % pieces) * BLOCK + tl.arange(0, BLOCK)
    mask = t < length
    x = tl.load(x_ptr + b * x_batch + c * x_channel + t, mask=mask, other=0.0).to(tl.float32)
    if HAS_GATE:
        at = b * gate_batch + c * gate_channel + t
        x = x * tl.load(gate_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + b * out_batch + c * out_channel + t, x, mask=mask)


@triton.jit
def _cross_spectrum_kernel(
    v_ptr: tl.tensor,
    g_ptr: tl.tensor,
    out_ptr: tl.tensor,
    batch: tl.tensor,
    size: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """out = sum over the batch of conj(v) g; complex numbers as neighbouring pairs."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < size
    real = tl.full((BLOCK,), 0.0, tl.float32)
    imaginary = tl.full((BLOCK,), 0.0, tl.float32)
    for b in range(batch):
        at = 2 * (tl.cast(b, tl.int64) * size + i)
        v_real = tl.load(v_ptr + at, mask=mask, other=0.0)
        v_imaginary = tl.load(v_ptr + at + 1, mask=mask, other=0.0)
        g_real = tl.load(g_ptr + at, mask=mask, other=0.0)
        g_imaginary = tl.load(g_ptr + at + 1, mask=mask, other=0.0)
        real += v_real * g_real + v_imaginary * g_imaginary
        imaginary += v_real * g_imaginary - v_imaginary * g_real
    tl.store(out_ptr + 2 * i, real, mask=mask)
    tl.store(out_ptr + 2 * i + 1, imaginary, mask=mask)


def gated_copy(out: Tensor, x: Tensor, gate: Tensor | None) -> None:
    """out = gate * x, (batch, channels, length); positions of ``out`` stand next to each other."""
    if x.stride(-1) != 1 or (gate is not None and gate.stride(-1) != 1):
        spectral.gated_copy(out, x, gate)
        return
    batch, channels, length = x.shape
    block = min(1024, triton.next_power_of_2(length))
    pieces = triton.cdiv(length, block)
    other = x if gate is None else gate
    _gated_copy_kernel[(batch * channels * pieces,)](
        x,
        other,
        out,
        channels,
        length,
        *x.stride()[:2],
        *other.stride()[:2],
        *out.stride()[:2],
        pieces,
        HAS_GATE=gate is not None,
        BLOCK=block,
    )


def cross_spectrum(v_f: Tensor, g_f: Tensor) -> Tensor:
    """Sum over the batch of conj(v_f) g_f, both (batch, channels, frequencies)."""
    out = torch.empty_like(v_f[0])
    block = 512
    _cross_spectrum_kernel[(triton.cdiv(out.numel(), block),)](
        torch.view_as_real(v_f.contiguous()),
        torch.view_as_real(g_f.contiguous()),
        torch.view_as_real(out),
        v_f.shape[0],
        out.numel(),
        BLOCK=block,
    )
    return out


FUSED = spectral.Steps(gated_copy=gated_copy, cross_spectrum=cross_spectrum)
