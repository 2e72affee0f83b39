"""Hyena (Poli et al. 2023, arXiv 2302.10866): gated long convolutions with implicit filters."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.arguments import check_flags, check_integers, check_positive, check_share, is_number
from core.mixers.base import CAUSAL_SELF, NONCAUSAL_SELF, Mixer
from core.mixers.documents import by_document
from core.ops.fft_conv import fft_conv
from core.sequences import Sequences


class Sine(nn.Module):
    """sin(frequency * x) with a learned frequency a feature, shared by the filter's layers."""

    def __init__(self, dim: int, frequency: float) -> None:
        super().__init__()
        self.freq = nn.Parameter(torch.full((1, dim), float(frequency)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.freq * x)


class ImplicitFilter(nn.Module):
    """h(t) = window(t) * MLP(features(t)), equations 7 and 8 of the paper, for t < ``max_length``.

    ``features`` (max_length, bands) are time and complex exponentials; the window is an exponential
    decay of a rate set by channel, plus ``shift``. Returns (channels, length).
    """

    z: Tensor
    t: Tensor
    deltas: Tensor

    def __init__(
        self,
        channels: int,
        max_length: int,
        *,
        features: int = 5,
        width: int = 64,
        inner_layers: int = 2,
        frequency: float = 10.0,
        fast_decay: float = 0.3,
        slow_decay: float = 1.5,
        target: float = 1e-2,
        shift: float = 0.0,
        train_features: bool = False,
    ) -> None:
        super().__init__()
        if features < 3 or features % 2 == 0:
            raise ValueError(f"ImplicitFilter: features must be odd, at least 3, got {features}")
        self.max_length, self.shift = max_length, shift
        time = torch.linspace(0, 1, max_length)[:, None]
        bands = (features - 1) // 2
        angle = 2 * math.pi * torch.arange(max_length)[:, None] / max_length
        angle = angle * torch.linspace(1e-4, bands - 1, bands)
        z = torch.cat([time, angle.cos(), -angle.sin()], dim=1)
        self.register_buffer("t", time)
        if train_features:
            self.z = nn.Parameter(z)
        else:
            self.register_buffer("z", z)
        decay = torch.linspace(
            math.log(target) / slow_decay, math.log(target) / fast_decay, channels
        )
        self.register_buffer("deltas", decay)
        self.sine = Sine(width, frequency)
        self.layers = nn.ModuleList(
            [nn.Linear(features, width)] + [nn.Linear(width, width) for _ in range(inner_layers)]
        )
        self.out = nn.Linear(width, channels, bias=False)

    def forward(self, length: int) -> Tensor:
        # sin(10 x) of a bfloat16 x is wrong by tenths: the filter is small, so it stays in float32
        with torch.autocast(self.z.device.type, enabled=False):
            return self._filters(length)

    def _filters(self, length: int) -> Tensor:
        hidden = self.z[:length]
        for layer in self.layers:
            hidden = self.sine(layer(hidden))
        # (channels, length) straight from the product: no transposed copy before the FFT
        filters = self.out.weight @ hidden.T
        window = torch.exp(-self.deltas.abs()[:, None] * self.t[:length, 0]) + self.shift
        return filters * window.to(filters.dtype)


class Hyena(Mixer):
    """Order-N Hyena operator: ``order`` gates and ``order - 1`` implicit long convolutions.

    Inputs up to ``max_length`` tokens (the filter is a function of t / max_length); longer ones
    raise ValueError. Not causal: each convolution sums a filter forward and one backward in time,
    and the short convolution is centred. ``frequency``, ``features``, ``filter_width``, ``shift``
    and decays as in the paper's appendix. ``train_features`` learns the positional features too.
    """

    patterns = frozenset({CAUSAL_SELF, NONCAUSAL_SELF})

    def __init__(
        self,
        dim: int,
        causal: bool = True,
        *,
        max_length: int = 1024,
        order: int = 2,
        taps: int = 3,
        features: int = 5,
        filter_width: int = 64,
        filter_layers: int = 2,
        frequency: float = 10.0,
        shift: float = 0.0,
        dropout: float = 0.0,
        train_features: bool = False,
    ) -> None:
        super().__init__(dim, causal)
        check_integers("Hyena", 2, order=order)
        check_integers("Hyena", max_length=max_length, taps=taps, filter_width=filter_width)
        check_integers("Hyena", 3, features=features)
        check_integers("Hyena", 0, filter_layers=filter_layers)
        check_positive("Hyena", frequency=frequency)
        if not is_number(shift) or not math.isfinite(shift):
            raise ValueError(f"Hyena: shift must be a finite number, got {shift!r}")
        check_share("Hyena", dropout=dropout)
        check_flags("Hyena", train_features=train_features)
        if taps % 2 == 0 and not causal:
            raise ValueError(f"Hyena: a centred short filter needs odd taps, got {taps}")
        self.order, self.max_length = order, max_length
        inner = dim * (order + 1)
        self.in_proj = nn.Linear(dim, inner)
        self.short_filter = nn.Conv1d(inner, inner, taps, groups=inner)
        directions = 1 if causal else 2
        self.filter = ImplicitFilter(
            directions * dim * (order - 1),
            max_length,
            features=features,
            width=filter_width,
            inner_layers=filter_layers,
            frequency=frequency,
            shift=shift,
            train_features=train_features,
        )
        self.skip = nn.Parameter(torch.randn(dim * (order - 1)))
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, context: Tensor | None = None, sequences: Sequences | None = None
    ) -> Tensor:
        """(batch, length, dim) -> the same."""
        self.check_input(x, context, sequences)
        return by_document(self._mix, x, sequences)

    def _mix(self, x: Tensor, rows: Sequences | None) -> Tensor:
        length = x.shape[1]
        if length > self.max_length:
            raise ValueError(
                f"Hyena: {length} tokens, but its filters have max_length={self.max_length}; "
                "build it with more, or cut the sequence"
            )
        projected = self._project(x)
        taps = self.short_filter.kernel_size[0]
        around = (taps - 1, 0) if self.causal else (taps // 2, taps // 2)
        if rows is not None:  # the projection's bias must not enter from padding
            projected = torch.where(rows.real[:, None], projected, 0)
        mixed = self.short_filter(F.pad(projected, around))
        if rows is not None:
            mixed = torch.where(rows.real[:, None], mixed, 0)
        *gates, v = mixed.split(self.dim, dim=1)
        v = self._convolve(v, gates, length)
        return self.out_proj(v.transpose(1, 2))

    def _project(self, x: Tensor) -> Tensor:
        """(batch, length, dim) -> (batch, channels, length) without a transposing copy."""
        weight = self.in_proj.weight.expand(x.shape[0], -1, -1)
        return torch.baddbmm(self.in_proj.bias[:, None], weight, x.transpose(1, 2))

    def _convolve(self, v: Tensor, gates: list[Tensor], length: int) -> Tensor:
        """Equation 5: v <- x_n * (h_n * v), outermost gate last."""
        directions = 1 if self.causal else 2
        filters = self.filter(length).unflatten(0, (directions, self.order - 1, self.dim))
        skips = self.skip.unflatten(0, (self.order - 1, self.dim))
        for i, gate in enumerate(reversed(gates[1:])):
            last = i == self.order - 2
            dropping = self.training and self.dropout.p > 0
            if dropping:
                v = self.dropout(v * gate)
            v = fft_conv(
                v,
                filters[0, i],
                skip=skips[i],
                pre_gate=None if dropping else gate,
                post_gate=gates[0] if last else None,
                reverse_k=None if self.causal else filters[1, i],
            )
        return v
