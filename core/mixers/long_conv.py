"""Directly learned long convolutions (Fu et al. 2023, "Simple Hardware-Efficient Long
Convolutions for Sequence Modeling", arXiv 2302.06646)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.arguments import check_choice, check_integers, check_share, is_number
from core.mixers.base import CAUSAL_SELF, NONCAUSAL_SELF, Mixer
from core.mixers.documents import by_document
from core.ops.fft_conv import fft_conv
from core.sequences import Sequences

Initialisation = Literal["geometric", "random"]


def initial_taps(kind: Initialisation, channels: int, length: int) -> Tensor:
    """(channels, length), normal: of deviation 0.002, or decaying by channel from 0.02.

    ``geometric``: tap t of channel c has 0.02 exp(-(t / length) (channels / 2)^(c / channels)).
    Scales and division as in the authors' code (HazyResearch/safari).
    """
    noise = torch.randn(channels, length)
    if kind == "random":
        return 0.002 * noise
    rate = max(channels // 2, 1) ** (torch.arange(channels) / channels)
    return 0.02 * noise * torch.exp(-rate[:, None] * torch.arange(length) / length)


class LongFilter(nn.Module):
    """One parameter a tap: (directions, channels, max_length), regularised at every use.

    The paper's Smooth, the mean of ``smooth`` taps around each with zeros outside the filter; its
    Squash, sign(k) max(|k| - squash, 0); then dropout of taps.
    """

    def __init__(
        self,
        directions: int,
        channels: int,
        max_length: int,
        *,
        squash: float,
        smooth: int,
        dropout: float,
        initialisation: Initialisation,
    ) -> None:
        super().__init__()
        check_integers("LongFilter", max_length=max_length, smooth=smooth)
        if not is_number(squash) or not 0 <= squash < math.inf:
            raise ValueError(f"LongFilter: squash must be at least 0 and finite, got {squash!r}")
        if smooth % 2 == 0:
            raise ValueError(f"LongFilter: smooth must be an odd window, got {smooth}")
        check_choice("LongFilter", ("geometric", "random"), initialisation=initialisation)
        check_share("LongFilter", kernel_dropout=dropout)
        self.max_length, self.squash, self.smooth = max_length, squash, smooth
        taps = [initial_taps(initialisation, channels, max_length) for _ in range(directions)]
        self.taps = nn.Parameter(torch.stack(taps))
        self.dropout = nn.Dropout(dropout)

    def extra_repr(self) -> str:
        return f"max_length={self.max_length}, squash={self.squash}, smooth={self.smooth}"

    def forward(self, length: int) -> Tensor:
        """The first ``length`` taps (directions, channels, length)."""
        # an average reaches half a window further
        taps = self.taps[..., : length + self.smooth // 2]
        if self.smooth > 1:
            taps = F.avg_pool1d(taps, self.smooth, stride=1, padding=self.smooth // 2)
        return self.dropout(F.softshrink(taps[..., :length], self.squash))


class LongConv(Mixer):
    """x -> W2 GELU-GLU(K * x + D x) with K learned tap by tap, up to ``max_length`` of them.

    ``squash`` is the threshold lambda of Squash (0: none), ``smooth`` the odd number of taps that
    Smooth averages (1: none), ``kernel_dropout`` the share of taps dropped in training. Not causal:
    a second filter runs backward in time; both have a tap at lag 0. More than ``max_length``
    tokens in a document raise ValueError, as do options out of range.
    """

    patterns = frozenset({CAUSAL_SELF, NONCAUSAL_SELF})

    def __init__(
        self,
        dim: int,
        causal: bool = True,
        *,
        max_length: int = 1024,
        squash: float = 1e-3,
        smooth: int = 1,
        kernel_dropout: float = 0.0,
        initialisation: Initialisation = "geometric",
    ) -> None:
        super().__init__(dim, causal)
        self.filter = LongFilter(
            1 if causal else 2,
            dim,
            max_length,
            squash=squash,
            smooth=smooth,
            dropout=kernel_dropout,
            initialisation=initialisation,
        )
        self.D = nn.Parameter(torch.randn(dim))
        self.out_proj = nn.Linear(dim, 2 * dim)

    def forward(
        self, x: Tensor, context: Tensor | None = None, sequences: Sequences | None = None
    ) -> Tensor:
        """(batch, length, dim) -> the same."""
        self.check_input(x, context, sequences)
        y = self._by_document(x, sequences)
        out = F.glu(self.out_proj(F.gelu(y)), dim=-1)
        return out if sequences is None else sequences.zero_padding(out)

    def _by_document(self, x: Tensor, sequences: Sequences | None) -> Tensor:
        return by_document(lambda rows, _: self.convolve(rows), x, sequences)

    def convolve(self, x: Tensor) -> Tensor:
        """K * x + D x for rows (batch, length, dim), before anything mixes channels."""
        self._check_length(x)
        taps = self.filter(x.shape[1])
        y = fft_conv(
            x.transpose(1, 2).contiguous(),
            taps[0],
            skip=self.D,
            reverse_k=None if self.causal else taps[1],
        )
        return y.transpose(1, 2)

    def _check_length(self, x: Tensor) -> None:
        if x.shape[1] > self.filter.max_length:
            raise ValueError(
                f"{type(self).__name__}: {x.shape[1]} tokens, but its filters have "
                f"max_length={self.filter.max_length}; build it with more, or cut the sequence"
            )
