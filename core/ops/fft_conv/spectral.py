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

from core.ops.fft_conv.plan import Gradients, Targets, chunks, cut, input_targets

# Real numbers in one buffer of a chunk. 2 MiB of float32 measured best on a CPU with 1 MiB of
# second-level cache a core (twice or half as much: 5 to 20 % slower).
CPU_CHUNK = 2**19
# On an H100, 256 MiB run as fast as more; a quarter of it is up to twice as slow.
CUDA_CHUNK = 2**26


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


def gated_copy(out: Tensor, x: Tensor, gate: Tensor | None) -> None:
    """out = gate * x; the product of two half-precision numbers is not rounded to half."""
    if gate is None:
        out.copy_(x)
    elif x.dtype == gate.dtype == out.dtype:
        torch.mul(x, gate, out=out)
    else:
        out.copy_(x).mul_(gate)


def finish(z: Tensor, x: Tensor, skip: Tensor | None, targets: Targets) -> None:
    """out = gate * (z + skip * x), rounded once, for each target; overwrites ``z``."""
    if skip is not None:
        z.addcmul_(x, skip[:, None])
    for out, gate in targets:
        if gate is None:
            out.copy_(z)
        else:
            torch.mul(z, gate, out=out)


def cross_spectrum(v_f: Tensor, g_f: Tensor) -> Tensor:
    """Sum over the batch of conj(v_f) g_f; overwrites ``v_f``."""
    return v_f.conj_physical_().mul_(g_f).sum(0)


@dataclass(frozen=True)
class Steps:
    """What stands between the transforms; each as the function of that name here."""

    gated_copy: Callable[[Tensor, Tensor, Tensor | None], None]
    finish: Callable[[Tensor, Tensor, Tensor | None, Targets], None]
    cross_spectrum: Callable[[Tensor, Tensor], Tensor]


PLAIN = Steps(gated_copy=gated_copy, finish=finish, cross_spectrum=cross_spectrum)


class _Padded:
    """gate * x of one chunk after another, zero-padded to ``n``; the tail is zero and stays so."""

    def __init__(self, batch: int, channels: int, n: int, like: Tensor, steps: Steps) -> None:
        self.buffer = like.new_zeros(batch, channels, n)
        self.steps = steps

    def load(self, x: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns gate * x, valid until the next load, and its rfft."""
        buffer = self.buffer[:, : x.shape[1]]
        head = buffer[..., : x.shape[-1]]
        self.steps.gated_copy(head, x, gate)
        return head, torch.fft.rfft(buffer)


def _filter_spectrum(h: Tensor, zero: int, n: int) -> Tensor:
    """rfft / n of a filter whose lag 0 stands at ``zero``; negative lags sit at the end."""
    padded = h.new_zeros(h.shape[0], n)
    padded[:, : h.shape[1] - zero] = h[:, zero:]
    padded[:, n - zero :] = h[:, :zero]
    return torch.fft.rfft(padded, norm="forward")


def _invert(spectrum: Tensor, n: int, length: int) -> Tensor:
    """irfft, unscaled as the filter's spectrum is scaled."""
    return torch.fft.irfft(spectrum, n=n, norm="forward")[..., :length]


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
    parts = chunks(u, n, CUDA_CHUNK if u.is_cuda else CPU_CHUNK)
    padded = _Padded(batch, parts[0].stop, n, h, steps)
    for part in parts:
        v, spectrum = padded.load(cut(u, part), cut(pre_gate, part))
        spectrum.mul_(_filter_spectrum(h[part], zero, n))
        targets = [(cut(y, part), cut(post_gate, part))]
        steps.finish(_invert(spectrum, n, length), v, cut(skip, part), targets)
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
) -> Gradients:
    """Gradients of u, h, skip, pre_gate, post_gate; an empty tensor for each not ``wanted``.

    With v = pre_gate * u, g = post_gate * dy and capitals for spectra: dv = irfft(G conj H),
    dh = irfft(sum over the batch of G conj V), and dpost_gate = dy * irfft(V H), skip apart.
    """
    batch, length, taps = u.shape[0], u.shape[-1], h.shape[1]
    gradients = empty_gradients(u, h, skip, pre_gate, post_gate, wanted)
    du, dh, dskip, dpre, dpost = gradients
    if u.numel() == 0:
        return du, dh.zero_(), dskip.zero_(), dpre, dpost
    n = transform_length(length, taps, zero, circular)
    parts = chunks(u, n, CUDA_CHUNK if u.is_cuda else CPU_CHUNK)
    padded_g = _Padded(batch, parts[0].stop, n, h, steps)
    padded_v = _Padded(batch, parts[0].stop, n, h, steps)
    for part in parts:
        u_part, dy_part, skip_part = cut(u, part), cut(dy, part), cut(skip, part)
        pre_part = cut(pre_gate, part)
        filter_f = _filter_spectrum(h[part], zero, n)
        g, g_f = padded_g.load(dy_part, cut(post_gate, part))
        if wanted[1] or wanted[2] or wanted[4]:
            v, v_f = padded_v.load(u_part, pre_part)
            if wanted[2]:
                dskip[part] = (g * v).sum((0, 2))
            if wanted[4]:
                z = _invert(v_f * filter_f, n, length)
                steps.finish(z, v, skip_part, [(cut(dpost, part), dy_part)])
            if wanted[1]:
                lags = torch.fft.irfft(steps.cross_spectrum(v_f, g_f), n=n)
                dh[part, zero:] = lags[:, : taps - zero]
                dh[part, :zero] = lags[:, n - zero :]
        targets = input_targets(gradients, wanted, u, pre_gate, part)
        if targets:
            dv = _invert(g_f.mul_(filter_f.conj_physical_()), n, length)
            steps.finish(dv, g, skip_part, targets)
    return du, dh, dskip, dpre, dpost


def empty_gradients(
    u: Tensor,
    h: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    wanted: Sequence[bool],
) -> Gradients:
    """Room for the gradients of u, h, skip, pre_gate, post_gate; none for those not wanted."""
    du, dh, dskip, dpre, dpost = (
        torch.empty(x.shape if want else (0,), dtype=x.dtype, device=x.device)
        if x is not None
        else u.new_empty(0)
        for x, want in zip((u, h, skip, pre_gate, post_gate), wanted, strict=True)
    )
    return du, dh, dskip, dpre, dpost
