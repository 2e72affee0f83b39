"""The long convolution with learned transforms (Fu et al. 2023, arXiv 2302.06646, the learned
extension of FlashButterfly)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.mixers.base import NONCAUSAL_SELF, at_least_float32
from core.mixers.long_conv import LongConv
from core.sequences import Sequences


def exponentials(product: Tensor, period: int) -> Tensor:
    """exp(-2 pi i product / period), as real pairs (..., 2) of the default dtype."""
    angle = -2 * math.pi * product / period
    return torch.stack([angle.cos(), angle.sin()], -1).to(torch.get_default_dtype())


class ButterflyTransform(nn.Module):
    """A transform of N = N1 N2 numbers as two matrices and twiddle factors, each entry learned.

    With n = n1 N2 + n2 and k = k1 + N1 k2,

        X[k1, k2] = sum_n2 T[k1, n2] F2[n2, k2] sum_n1 F1[k1, n1] x[n1, n2].

    It begins as sum_n x_n exp(-2 pi i n (k + 1/4) / N), a quarter of a step beside the usual
    frequencies, whose products convolve real sequences of N without padding (derivation:
    ``core/ops/fft_conv/README.md``). Parameters: 2 (N1^2 + N1 N2 + N2^2), shared by all channels.
    """

    def __init__(self, n1: int, n2: int) -> None:
        super().__init__()
        self.n1, self.n2 = n1, n2
        first, second = (torch.arange(n, dtype=torch.float64) for n in (n1, n2))
        shifted = first[:, None] + 0.25
        self.F1 = nn.Parameter(exponentials(shifted * first, n1))
        self.twiddle = nn.Parameter(exponentials(shifted * second, n1 * n2))
        self.F2 = nn.Parameter(exponentials(second[:, None] * second, n2))

    def extra_repr(self) -> str:
        return f"n1={self.n1}, n2={self.n2}"

    def _factors(self) -> list[Tensor]:
        learned = (self.F1, self.twiddle, self.F2)
        return [torch.view_as_complex(at_least_float32(p)) for p in learned]

    def forward(self, x: Tensor) -> Tensor:
        """Real (..., length <= N), zeros behind it -> complex (..., N1, N2)."""
        F1, T, F2 = self._factors()
        x = F.pad(x, (0, self.n1 * self.n2 - x.shape[-1])).unflatten(-1, (self.n1, self.n2))
        return ((F1 @ x.to(F1.dtype)) * T) @ F2

    def inverse(self, X: Tensor) -> Tensor:
        """Complex (..., N1, N2) -> complex (..., N) by the conjugate transposes, divided by N.

        The inverse of ``forward`` while the entries are those they began with.
        """
        F1, T, F2 = self._factors()
        x = F1.mH @ ((X @ F2.mH) * T.conj())
        return x.flatten(-2) / (self.n1 * self.n2)


class ButterflyConv(LongConv):
    """`LongConv` whose three transforms are learned: y = Re S^-1(Fx (Fk + conj(Fr))) + D x.

    F transforms the input, another the filters k (forward) and r (backward in time), and a third
    turns back (`ButterflyTransform`). They begin as Fourier transforms, so that the layer begins as
    `LongConv` with ``causal=False`` and the same options, which it takes.

    A learned transform knows neither causality nor shifts: every output sees every input of its
    document, and the place in the document counts. So it claims the noncausal pattern alone, and
    each document starts at place 0 whatever stands before it in the row. Behind its end are zeros,
    up to the N >= ``max_length`` that the transforms have: any length costs the same.
    """

    patterns = frozenset({NONCAUSAL_SELF})

    def __init__(self, dim: int, causal: bool = False, **options: Any) -> None:
        super().__init__(dim, causal, **options)
        n2 = math.isqrt(self.filter.max_length - 1) + 1
        n1 = -(-self.filter.max_length // n2)
        self.of_input, self.of_filter, self.back = (ButterflyTransform(n1, n2) for _ in range(3))

    def _by_document(self, x: Tensor, sequences: Sequences | None) -> Tensor:
        if sequences is None:
            return self.convolve(x)
        apart, _ = sequences.unpack(x)
        return sequences.repack(self.convolve(apart))

    def convolve(self, x: Tensor) -> Tensor:
        """As `LongConv.convolve`, by the learned transforms; in float32 at least."""
        self._check_length(x)
        with torch.autocast(x.device.type, enabled=False):
            u = at_least_float32(x).transpose(1, 2)
            forward, backward = self.of_filter(self.filter(self.filter.max_length))
            product = self.of_input(u) * (forward + backward.conj())
            y = self.back.inverse(product).real[..., : x.shape[1]] + self.D[:, None] * u
        return y.transpose(1, 2).to(x.dtype)
