"""Definition of the gated long convolution, by FFT, left to autograd."""

from __future__ import annotations

import torch
from torch import Tensor


def fft_conv_reference(
    u: Tensor,
    k: Tensor,
    *,
    skip: Tensor | None = None,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    reverse_k: Tensor | None = None,
    circular: bool = False,
) -> Tensor:
    """See `core.ops.fft_conv.fft_conv`; half precision is computed in float32."""
    length = u.shape[-1]
    dtype = torch.promote_types(u.dtype, torch.float32)
    period = length if circular else 2 * length

    v = u.to(dtype)
    if pre_gate is not None:
        v = v * pre_gate
    v_f = torch.fft.rfft(v, n=period)
    z = torch.fft.irfft(v_f * torch.fft.rfft(k.to(dtype), n=period), n=period)
    if reverse_k is not None:  # a correlation: the conjugate spectrum
        z = z + torch.fft.irfft(
            v_f * torch.fft.rfft(reverse_k.to(dtype), n=period).conj(), n=period
        )
    z = z[..., :length]
    if skip is not None:
        z = z + skip[:, None] * v
    if post_gate is not None:
        z = z * post_gate
    return z.to(u.dtype)
