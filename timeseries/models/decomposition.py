"""Trend and the rest of a series."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class SeriesDecomposition(nn.Module):
    """(seasonal, trend) of x (batch, time, channels): the trend is a centred moving average over
    ``window`` steps of the series continued with its end values (Autoformer, equation 1).

    For an even window the extra step is one of the past. Raises ValueError for a window below 1.
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        if window < 1:
            raise ValueError(f"window is {window}; it must be at least 1")
        self.window = window

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        before = self.window // 2
        rows = x.transpose(1, 2)
        padded = F.pad(rows, (before, self.window - 1 - before), mode="replicate")
        trend = F.avg_pool1d(padded, self.window, stride=1).transpose(1, 2)
        return x - trend, trend
