"""The convolution and its gradients by matrix products on tensor cores (README.md)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.ops.fft_conv import long, short
from core.ops.fft_conv.plan import Gradients, Windows, plan, rows_of
from core.ops.fft_conv.spectral import empty_gradients

LONGEST = 2**22
# Fewer numbers than this in three passes take longer to launch than torch.fft's to compute.
WORTH_THREE_PASSES = 2**23


def fits(u: Tensor, taps: int, circular: bool, band: float = 1.0) -> bool:
    """Whether this version computes it: bfloat16, up to 4M positions, not periodic, worth it."""
    if circular or u.dtype != torch.bfloat16 or u.shape[-1] > LONGEST:
        return False
    one_pass = isinstance(plan(u.shape[-1], taps, 0, band), Windows)
    return u.numel() >= (1 if one_pass else WORTH_THREE_PASSES)


def forward(
    u: Tensor,
    h: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    zero: int,
    band: float,
) -> Tensor:
    """As `spectral.forward`; ``band`` as in `core.ops.fft_conv.fft_conv`."""
    how = plan(u.shape[-1], h.shape[1], zero, band)
    u, pre_gate, post_gate = rows_of(u), rows_of(pre_gate), rows_of(post_gate)
    h, skip = h.contiguous(), rows_of(skip)
    with torch.cuda.device_of(u):
        if isinstance(how, Windows):
            return short.forward(u, h, skip, pre_gate, post_gate, zero, how)
        return long.forward(u, h, skip, pre_gate, post_gate, zero, how)


def backward(
    dy: Tensor,
    u: Tensor,
    h: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    zero: int,
    band: float,
    wanted: Sequence[bool],
) -> Gradients:
    """As `spectral.backward`; ``band`` as in `core.ops.fft_conv.fft_conv`."""
    gradients = empty_gradients(u, h, skip, pre_gate, post_gate, wanted)
    how = plan(u.shape[-1], h.shape[1], zero, band)
    dy, u, pre_gate, post_gate = rows_of(dy), rows_of(u), rows_of(pre_gate), rows_of(post_gate)
    h, skip = h.contiguous(), rows_of(skip)
    with torch.cuda.device_of(u):
        if isinstance(how, Windows):
            short.backward(dy, u, h, skip, pre_gate, post_gate, zero, wanted, how, gradients)
        else:
            long.backward(dy, u, h, skip, pre_gate, post_gate, zero, wanted, how, gradients)
    return gradients
