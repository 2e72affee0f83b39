"""Triton versions of the gated long convolution: Toeplitz products for short sequences, FFT beyond.

README.md says where one takes over from the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.ops.fft_conv import spectral
from core.ops.fft_conv.fused import FUSED
from core.ops.fft_conv.toeplitz import convolve, correlate, inner_product

# Longest sequence for which Toeplitz products, quadratic but on tensor cores, beat the FFT. They
# round their operands, so float32 takes the FFT at every length.
TOEPLITZ_LENGTH = 4096


def _long(u: Tensor) -> bool:
    return u.numel() == 0 or u.dtype == torch.float32 or u.shape[-1] > TOEPLITZ_LENGTH


def forward(
    u: Tensor,
    h: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    zero: int,
    circular: bool,
) -> Tensor:
    """As `spectral.forward`, for bf16, fp16 and float32."""
    if _long(u):
        return spectral.forward(u, h, skip, pre_gate, post_gate, zero, circular, FUSED)
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    convolve(u, pre_gate, h.contiguous(), skip, zero, circular, [(y, post_gate)], flip=False)
    return y


def backward(
    dy: Tensor,
    u: Tensor,
    h: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    zero: int,
    circular: bool,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `spectral.backward`, for bf16, fp16 and float32.

    The gradients of u and pre_gate are the forward pass with time reversed and the gates' roles
    exchanged; that of post_gate is the forward pass with dy in its place.
    """
    if _long(u):
        return spectral.backward(dy, u, h, skip, pre_gate, post_gate, zero, circular, wanted, FUSED)
    h = h.contiguous()
    du, dh, dskip, dpre, dpost = spectral.empty_gradients(u, h, skip, pre_gate, post_gate, wanted)
    targets: list[tuple[Tensor, Tensor | None]] = []
    if wanted[0]:
        targets.append((du, pre_gate))
    if wanted[3]:
        targets.append((dpre, u))
    if targets:
        convolve(dy, post_gate, h, skip, zero, circular, targets, flip=True)
    if wanted[1]:
        dh = correlate(dy, post_gate, u, pre_gate, h.shape[1], zero, circular)
    if wanted[2]:
        dskip = inner_product(dy, post_gate, u, pre_gate)
    if wanted[4]:
        convolve(u, pre_gate, h, skip, zero, circular, [(dpost, dy)], flip=False)
    return du, dh, dskip, dpre, dpost
