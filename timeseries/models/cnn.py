"""Strided convolutions as a classifier of raw waveforms."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from core.sequences import Sequences
from timeseries.models.sizes import check_sizes


class ConvClassifier(nn.Module):
    """Convolutions with strides, each with layer norm and GELU -> mean over time -> a linear layer.

    The feature encoder of wav2vec 2.0 (Baevski et al. 2020, arXiv 2006.11477) with layer norm in
    every layer and, as the mean says, nothing behind it that orders what was found. Layer k has
    ``taps`` taps and makes a step of every ``strides[k]``: with (8, 4, 4, 2) a feature sees
    (taps - 1) * 169 + 1 steps. ``dropout`` acts before the last layer. Raises ValueError for a size
    below 1 or an even number of taps.
    """

    def __init__(
        self,
        dim: int = 64,
        strides: Sequence[int] = (8, 4, 4, 2),
        taps: int = 9,
        channels: int = 0,
        classes: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(channels=channels, classes=classes, dim=dim, taps=taps, strides=min(strides))
        if taps % 2 == 0:
            raise ValueError(f"taps is {taps}; it must be odd")
        widths = pairwise([channels] + [dim] * len(strides))
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, taps, stride, padding=taps // 2)
            for (before, after), stride in zip(widths, strides, strict=True)
        )
        self.strides = tuple(strides)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in strides)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, classes))

    def forward(self, x: Tensor, sequences: Sequences | None = None) -> Tensor:
        """(batch, time, channels) -> logits (batch, classes)."""
        layers = zip(self.convolutions, self.norms, self.strides, strict=True)
        for convolution, norm, stride in layers:
            if sequences is not None:
                x = sequences.zero_padding(x)
                # outputs stand at every stride-th step, from the first one on
                sequences = Sequences(sequences.document[:, ::stride])
            x = F.gelu(norm(convolution(x.transpose(1, 2)).transpose(1, 2)))
        if sequences is None:
            return self.head(x.mean(1))
        lengths = sequences.real.sum(1, keepdim=True).clamp(min=1)
        return self.head(sequences.zero_padding(x).sum(1) / lengths)
