"""The convolution and its gradients through torch.fft, on any device.

Channels are independent, so they are worked off in chunks: on a CPU the buffers of one chunk stay
in cache, on a GPU they bound the memory. Gradients transform the inputs again rather than keep
their spectra: what is saved between forward and backward is the inputs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Real numbers in one buffer of a chunk. 2 MiB of float32 measured best on a CPU with 1 MiB of
# second-level cache a core (twice or half as much: 5 to 20 % slower).
CPU_CHUNK = 2**19
CUDA_CHUNK = 2**27


def fast_length(least: int) -> int:
    """The length >= ``least`` whose FFT is cheapest: even and without a prime factor above 5.

    Odd lengths have no fast real transform (3 times slower); mixed radices cost about a third more
    per element than powers of two.
    """
    if least <= 16:
        return max(1, 1 << (least - 1).bit_length())
    power = 1 << (least - 1).bit_length()
    best, cost = power, float(power)
    five = 1
    while five < power:
        three = five
        while three < power:
            half = -(-least // (2 * three))
            length = 2 * three << (half - 1).bit_length()
            if 1.3 * length < cost:
                best, cost = length, 1.3 * length
            three *= 3
        five *= 5
    return best


def transform_length(length: int, taps: int, zero: int, circular: bool) -> int:
    """FFT length at which nothing wraps into the outputs (or exactly the circular period).

    Filter lags run from -zero to taps - 1 - zero. Only outputs 0 .. length - 1 are read, so the
    room needed past them is the longer side of the filter, not the sum of both sides.
    """
    if circular:
        return length
    return fast_length(length + max(zero, taps - 1 - zero))


def _chunks(u: Tensor, n: int) -> list[slice]:
    """Channels in parts, the first one the largest."""
    batch, channels, _ = u.shape
    step = max(1, (CUDA_CHUNK if u.is_cuda else CPU_CHUNK) // (batch * n))
    return [slice(i, min(i + step, channels)) for i in range(0, channels, step)]


def gated_copy(out: Tensor, x: Tensor, gate: Tensor | None) -> None:
    """out = gate * x; the product of two half-precision numbers is not rounded to half."""
    if gate is None:
        out.copy_(x)
    elif x.dtype == gate.dtype == out.dtype:
        torch.mul(x, gate, out=out)
    else:
        out.copy_(x).mul_(gate)


def cross_spectrum(v_f: Tensor, g_f: Tensor) -> Tensor:
    """Sum over the batch of conj(v_f) g_f; overwrites ``v_f``."""
    return v_f.conj_physical_().mul_(g_f).sum(0)


@dataclass(frozen=True)
class Steps:
    """The steps that a kernel may do in one pass; both as the functions of that name here."""

    gated_copy: Callable[[Tensor, Tensor, Tensor | None], None]
    cross_spectrum: Callable[[Tensor, Tensor], Tensor]


PLAIN = Steps(gated_copy=gated_copy, cross_spectrum=cross_spectrum)


class _Padded:
    """gate * x of one chunk after another, zero-padded to ``n``; the tail is zero and stays so."""

    def __init__(self, batch: int, channels: int, n: int, like: Tensor, steps: Steps) -> None:
        self.buffer = like.new_zeros(batch, channels, n)
        self.steps = steps

    def load(self, x: Tensor, gate: Tensor | None, part: slice) -> tuple[Tensor, Tensor]:
        """Returns gate * x, valid until the next load, and its rfft."""
        x = x[:, part]
        buffer = self.buffer[:, : x.shape[1]]
        head = buffer[..., : x.shape[-1]]
        self.steps.gated_copy(head, x, None if gate is None else gate[:, part])
        return head, torch.fft.rfft(buffer)


def _filter_spectrum(h: Tensor, zero: int, n: int) -> Tensor:
    """rfft / n of a filter whose lag 0 stands at ``zero``; negative lags sit at the end."""
    padded = h.new_zeros(h.shape[0], n)
    padded[:, : h.shape[1] - zero] = h[:, zero:]
    padded[:, n - zero :] = h[:, :zero]
    return torch.fft.rfft(padded, norm="forward")


def _invert(spectrum: Tensor, n: int, x: Tensor, skip: Tensor | None, part: slice) -> Tensor:
    """irfft (unscaled, as the filter's spectrum is) plus skip * x."""
    z = torch.fft.irfft(spectrum, n=n, norm="forward")[..., : x.shape[-1]]
    return z if skip is None else z.addcmul_(x, skip[part, None])


def _write(out: Tensor, z: Tensor, gate: Tensor | None) -> None:
    """out = z * gate, rounded once."""
    if gate is None:
        out.copy_(z)
    else:
        torch.mul(z, gate, out=out)


def forward(
    u: Tensor,
    h: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    zero: int,
    circular: bool,
    steps: Steps = PLAIN,
) -> Tensor:
    """post_gate * ((h + skip at lag 0) * (pre_gate * u)).

    u and gates (B, D, L), h (D, taps) with lag 0 at ``zero``, skip (D,).
    """
    batch, length = u.shape[0], u.shape[-1]
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    if u.numel() == 0:
        return y
    n = transform_length(length, h.shape[1], zero, circular)
    parts = _chunks(u, n)
    padded = _Padded(batch, parts[0].stop, n, h, steps)
    for part in parts:
        v, spectrum = padded.load(u, pre_gate, part)
        spectrum.mul_(_filter_spectrum(h[part], zero, n))
        z = _invert(spectrum, n, v, skip, part)
        _write(y[:, part], z, None if post_gate is None else post_gate[:, part])
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
    steps: Steps = PLAIN,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, h, skip, pre_gate, post_gate; an empty tensor for each not ``wanted``.

    With v = pre_gate * u, g = post_gate * dy and capitals for spectra: dv = irfft(G conj H),
    dh = irfft(sum over the batch of G conj V), and dpost_gate = dy * irfft(V H), skip apart.
    """
    batch, length, taps = u.shape[0], u.shape[-1], h.shape[1]
    du, dh, dskip, dpre, dpost = empty_gradients(u, h, skip, pre_gate, post_gate, wanted)
    if u.numel() == 0:
        return du, dh.zero_(), dskip.zero_(), dpre, dpost
    n = transform_length(length, taps, zero, circular)
    parts = _chunks(u, n)
    padded_g = _Padded(batch, parts[0].stop, n, h, steps)
    padded_v = _Padded(batch, parts[0].stop, n, h, steps)
    for part in parts:
        filter_f = _filter_spectrum(h[part], zero, n)
        g, g_f = padded_g.load(dy, post_gate, part)
        if wanted[1] or wanted[2] or wanted[4]:
            v, v_f = padded_v.load(u, pre_gate, part)
            if wanted[4]:
                z = _invert(v_f * filter_f, n, v, skip, part)
                _write(dpost[:, part], z, dy[:, part])
            if wanted[2]:
                dskip[part] = (g * v).sum((0, 2))
            if wanted[1]:
                lags = torch.fft.irfft(steps.cross_spectrum(v_f, g_f), n=n)
                dh[part, zero:] = lags[:, : taps - zero]
                dh[part, :zero] = lags[:, n - zero :]
        if wanted[0] or wanted[3]:
            dv = _invert(g_f.mul_(filter_f.conj_physical_()), n, g, skip, part)
            if wanted[3]:
                _write(dpre[:, part], dv, u[:, part])
            if wanted[0]:
                _write(du[:, part], dv, None if pre_gate is None else pre_gate[:, part])
    return du, dh, dskip, dpre, dpost


def empty_gradients(
    u: Tensor,
    h: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Room for the gradients of u, h, skip, pre_gate, post_gate; none for those not wanted."""
    du, dh, dskip, dpre, dpost = (
        torch.empty(x.shape if want else (0,), dtype=x.dtype, device=x.device)
        if x is not None
        else u.new_empty(0)
        for x, want in zip((u, h, skip, pre_gate, post_gate), wanted, strict=True)
    )
    return du, dh, dskip, dpre, dpost
