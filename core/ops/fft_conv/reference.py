"""Definition of the gated long convolution, by FFT, left to autograd."""

from __future__ import annotations

import math

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
    band: float = 1.0,
) -> Tensor:
    """See `core.ops.fft_conv.fft_conv`; half precision is computed in float32."""
    length = u.shape[-1]
    if band < 1:
        return _low_frequencies(u, k, skip, pre_gate, post_gate, reverse_k, band)
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


def _shifted(size: int, like: Tensor) -> Tensor:
    """exp(-2 pi i n / (4 size)): moves a transform to the frequencies (k + 1/4) / size."""
    n = torch.arange(size, dtype=torch.float64, device=like.device)
    turn = torch.polar(torch.ones_like(n), -math.pi / 2 * n / size)
    return turn.to(torch.complex64 if like.dtype == torch.float32 else torch.complex128)


def grid_size(length: int, band: float) -> int:
    """N of the frequencies (k + 1/4) / N that ``band`` < 1 is a share of."""
    return max(1 << (length - 1).bit_length(), round(128 / band))


def _mask(size: int, band: float, device: torch.device) -> Tensor:
    k = torch.arange(size, device=device)
    return (k < band * size / 2) | (k >= size - band * size / 2)


def _low_frequencies(
    u: Tensor,
    k: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    reverse_k: Tensor | None,
    band: float,
) -> Tensor:
    """The spectra as they are defined, multiplied where ``band`` keeps them."""
    length = u.shape[-1]
    dtype = torch.promote_types(u.dtype, torch.float32)
    size = grid_size(length, band)

    def spectrum(x: Tensor) -> Tensor:
        x = torch.nn.functional.pad(x.to(dtype), (0, size - x.shape[-1]))
        return torch.fft.fft(x * _shifted(size, x))

    v = u.to(dtype) if pre_gate is None else u.to(dtype) * pre_gate
    h = spectrum(k)
    if reverse_k is not None:
        h = h + spectrum(reverse_k).conj()
    y = torch.fft.ifft(spectrum(v) * h * _mask(size, band, u.device))
    z = (y * _shifted(size, v).conj()).real[..., :length]
    if skip is not None:
        z = z + skip[:, None] * v
    if post_gate is not None:
        z = z * post_gate
    return z.to(u.dtype)


def band_limited(h: Tensor, zero: int, length: int, band: float) -> Tensor:
    """The filter (channels, taps), lag 0 at ``zero``, that keeps the lowest frequencies of ``h``:
    (channels, 2 length - 1), lag 0 at ``length`` - 1.

    What the masked spectrum turns back into has the lags from 0 on in its real part and those
    before in its imaginary part, which is where a circular product of this kind puts what wraps.
    """
    size = grid_size(length, band)
    ahead = torch.nn.functional.pad(h[:, zero:], (0, size - h.shape[1] + zero))
    shifted = _shifted(size, h)
    spectrum = torch.fft.fft(ahead * shifted)
    if zero:
        past = torch.nn.functional.pad(h[:, :zero].flip(1), (1, size - zero - 1))
        spectrum = spectrum + torch.fft.fft(past * shifted).conj()
    z = torch.fft.ifft(spectrum * _mask(size, band, h.device)) * shifted.conj()
    return torch.cat([z.imag[:, size - length + 1 :], z.real[:, :length]], 1)
