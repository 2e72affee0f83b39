"""Triton steps around cuFFT: what stands between two transforms is read and written once."""

# Triton's decorators carry no types.
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from core.ops.fft_conv import spectral
from core.ops.fft_conv.plan import Targets, given, rows_of
from core.ops.fft_conv.tile_kernel import round_store

BLOCK = 1024


@triton.jit
def _gated_copy_kernel(
    out_ptr: tl.tensor,
    x_ptr: tl.tensor,
    gate_ptr: tl.tensor,
    out_batch: tl.tensor,
    out_channel: tl.tensor,
    x_batch: tl.tensor,
    x_channel: tl.tensor,
    gate_batch: tl.tensor,
    gate_channel: tl.tensor,
    channels: tl.tensor,
    length: tl.tensor,
    pieces: tl.tensor,
    HAS_GATE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """out = gate * x in float32, for one piece of one row."""
    pid = tl.program_id(0).to(tl.int64)
    b, c = pid // pieces // channels, pid // pieces % channels
    t = (pid % pieces) * BLOCK + tl.arange(0, BLOCK)
    mask = t < length
    x = tl.load(x_ptr + b * x_batch + c * x_channel + t, mask=mask, other=0.0).to(tl.float32)
    if HAS_GATE:
        at = b * gate_batch + c * gate_channel + t
        x = x * tl.load(gate_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + b * out_batch + c * out_channel + t, x, mask=mask)


@triton.jit
def _finish_kernel(
    z_ptr: tl.tensor,
    x_ptr: tl.tensor,
    skip_ptr: tl.tensor,
    out1_ptr: tl.tensor,
    gate1_ptr: tl.tensor,
    out2_ptr: tl.tensor,
    gate2_ptr: tl.tensor,
    z_batch: tl.tensor,
    z_channel: tl.tensor,
    x_batch: tl.tensor,
    x_channel: tl.tensor,
    out1_batch: tl.tensor,
    out1_channel: tl.tensor,
    gate1_batch: tl.tensor,
    gate1_channel: tl.tensor,
    out2_batch: tl.tensor,
    out2_channel: tl.tensor,
    gate2_batch: tl.tensor,
    gate2_channel: tl.tensor,
    channels: tl.tensor,
    length: tl.tensor,
    pieces: tl.tensor,
    HAS_SKIP: tl.constexpr,
    HAS_GATE1: tl.constexpr,
    HAS_OUT2: tl.constexpr,
    HAS_GATE2: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """out = gate * (z + skip * x), for one piece of one row and one or two (out, gate)."""
    pid = tl.program_id(0).to(tl.int64)
    b, c = pid // pieces // channels, pid // pieces % channels
    t = (pid % pieces) * BLOCK + tl.arange(0, BLOCK)
    mask = t < length
    z = tl.load(z_ptr + b * z_batch + c * z_channel + t, mask=mask, other=0.0)
    if HAS_SKIP:
        x = tl.load(x_ptr + b * x_batch + c * x_channel + t, mask=mask, other=0.0)
        z += tl.load(skip_ptr + c) * x
    out = z
    if HAS_GATE1:
        at = b * gate1_batch + c * gate1_channel + t
        out = z * tl.load(gate1_ptr + at, mask=mask, other=0.0).to(tl.float32)
    round_store(out1_ptr + b * out1_batch + c * out1_channel + t, out, mask)
    if HAS_OUT2:
        out = z
        if HAS_GATE2:
            at = b * gate2_batch + c * gate2_channel + t
            out = z * tl.load(gate2_ptr + at, mask=mask, other=0.0).to(tl.float32)
        round_store(out2_ptr + b * out2_batch + c * out2_channel + t, out, mask)


@triton.jit
def _cross_spectrum_kernel(
    v_ptr: tl.tensor,
    g_ptr: tl.tensor,
    out_ptr: tl.tensor,
    batch: tl.tensor,
    size: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
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
    """As `spectral.gated_copy`; ``out`` has neighbouring positions next to each other."""
    batch, channels, length = x.shape
    x = rows_of(x)
    gate_rows = given(rows_of(gate), x)
    pieces = triton.cdiv(length, BLOCK)
    with torch.cuda.device_of(x):
        _gated_copy_kernel[(batch * channels * pieces,)](
            out,
            x,
            gate_rows,
            *out.stride()[:2],
            *x.stride()[:2],
            *gate_rows.stride()[:2],
            channels,
            length,
            pieces,
            HAS_GATE=gate is not None,
            BLOCK=BLOCK,
        )


def finish(z: Tensor, x: Tensor, skip: Tensor | None, targets: Targets) -> None:
    """As `spectral.finish`; z, x and every out have neighbouring positions next to each other."""
    batch, channels, length = z.shape
    (out1, gate1), (out2, gate2) = targets[0], targets[-1]
    gate1_rows, gate2_rows = given(rows_of(gate1), z), given(rows_of(gate2), z)
    pieces = triton.cdiv(length, BLOCK)
    with torch.cuda.device_of(z):
        _finish_kernel[(batch * channels * pieces,)](
            z,
            x,
            given(rows_of(skip), z),
            out1,
            gate1_rows,
            out2,
            gate2_rows,
            *z.stride()[:2],
            *x.stride()[:2],
            *out1.stride()[:2],
            *gate1_rows.stride()[:2],
            *out2.stride()[:2],
            *gate2_rows.stride()[:2],
            channels,
            length,
            pieces,
            HAS_SKIP=skip is not None,
            HAS_GATE1=gate1 is not None,
            HAS_OUT2=len(targets) == 2,
            HAS_GATE2=gate2 is not None,
            BLOCK=BLOCK,
        )


def cross_spectrum(v_f: Tensor, g_f: Tensor) -> Tensor:
    """As `spectral.cross_spectrum`, both contiguous; leaves ``v_f`` as it is."""
    out = torch.empty_like(v_f[0])
    block = 512
    with torch.cuda.device_of(v_f):
        _cross_spectrum_kernel[(triton.cdiv(out.numel(), block),)](
            torch.view_as_real(v_f),
            torch.view_as_real(g_f),
            torch.view_as_real(out),
            v_f.shape[0],
            out.numel(),
            BLOCK=block,
        )
    return out


FUSED = spectral.Steps(gated_copy=gated_copy, finish=finish, cross_spectrum=cross_spectrum)
