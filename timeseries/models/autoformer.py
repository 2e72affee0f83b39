"""Autoformer (Wu, Xu, Wang and Long 2021, arXiv 2106.13008).

Where the authors' code (thuml/Autoformer) departs from the paper, the model here follows the code:

- The paper's heads each choose their own delays. The code averages the correlation over heads and
  channels first, so the number of heads changes nothing, and there is no such option here.
- In training the code chooses one set of delays for the batch.
- The paper projects each of a decoder layer's three trends by itself. The code projects their sum,
  with a circular convolution over three steps.
- A layer norm less its mean over time follows the last layer of encoder and decoder. Decoders are
  not masked, and Auto-Correlation has no dropout of its own.
- Queries longer than the keys meet zeros; longer keys lose their last steps, not their first.

Departures from the code: the delays number at least one and at most the length, a look-back below
``label_length`` is refused, and that layer norm has no bias, which the mean would take off again.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.backbone import Dropout
from timeseries.models.autocorrelation import AutoCorrelation
from timeseries.models.decomposition import SeriesDecomposition
from timeseries.models.sizes import check_sizes


class Autoformer(nn.Module):
    """Encoder and decoder that split a trend off after each step and sum the trends separately.

    The decoder starts from the last ``label_length`` steps of the look-back: their seasonal part
    continued with zeros, their trend with the look-back's mean. Defaults are the authors' for ETTh1
    with a look-back of 96. In training the forecasts of a batch depend on each other (see
    ``AutoCorrelation``), in eval mode not. Raises ValueError for a size below 1, for
    ``time_features`` below 0 and for a ``label_length`` outside 0 to ``lookback``.
    """

    reads_time = True

    def __init__(
        self,
        lookback: int = 0,
        horizon: int = 0,
        channels: int = 0,
        time_features: int = 0,
        dim: int = 512,
        encoder_layers: int = 2,
        decoder_layers: int = 1,
        feedforward: int = 2048,
        moving_average: int = 25,
        factor: float = 3.0,
        dropout: float = 0.05,
        label_length: int = 48,
    ) -> None:
        super().__init__()
        check_sizes(lookback=lookback, horizon=horizon, channels=channels, dim=dim)
        check_sizes(encoder_layers=encoder_layers, decoder_layers=decoder_layers)
        check_sizes(feedforward=feedforward, moving_average=moving_average)
        if time_features < 0:
            raise ValueError(f"time_features is {time_features}; it must be at least 0")
        if not 0 <= label_length <= lookback:
            raise ValueError(
                f"label_length is {label_length}; give 0 to {lookback}, the length of the look-back"
            )
        self.horizon, self.label_length = horizon, label_length
        self.decomposition = SeriesDecomposition(moving_average)
        self.encoder_embedding = Embedding(channels, time_features, dim, dropout)
        self.decoder_embedding = Embedding(channels, time_features, dim, dropout)
        layer = (dim, feedforward, moving_average, factor, dropout)
        self.encoder = nn.Sequential(
            *(EncoderLayer(*layer) for _ in range(encoder_layers)), SeasonalNorm(dim)
        )
        self.decoder = nn.ModuleList(DecoderLayer(channels, *layer) for _ in range(decoder_layers))
        self.seasonal = nn.Sequential(SeasonalNorm(dim), nn.Linear(dim, channels))

    def forward(self, past: Tensor, past_time: Tensor, future_time: Tensor) -> Tensor:
        """(batch, horizon, channels) from ``past`` (batch, lookback, channels)."""
        encoded = self.encoder(self.encoder_embedding(past, past_time))
        start = past.shape[1] - self.label_length
        seasonal, trend = (part[:, start:] for part in self.decomposition(past))
        mean = past.mean(1, keepdim=True).expand(-1, self.horizon, -1)
        seasonal = torch.cat([seasonal, torch.zeros_like(mean)], 1)
        trend = torch.cat([trend, mean], 1)
        x = self.decoder_embedding(seasonal, torch.cat([past_time[:, start:], future_time], 1))
        for layer in self.decoder:
            x, found = layer(x, encoded)
            trend = trend + found
        return (self.seasonal(x) + trend)[:, self.label_length :]


class EncoderLayer(nn.Module):
    """Auto-Correlation, then a feed-forward net; of each sum only the seasonal part goes on
    (equation 3)."""

    def __init__(
        self, dim: int, feedforward: int, moving_average: int, factor: float, dropout: float
    ) -> None:
        super().__init__()
        self.attention = AutoCorrelation(dim, factor)
        self.feedforward = _feedforward(dim, feedforward, dropout)
        self.decomposition = SeriesDecomposition(moving_average)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, dim) -> the same."""
        x, _ = self.decomposition(x + self.dropout(self.attention(x, x)))
        x, _ = self.decomposition(x + self.feedforward(x))
        return x


class DecoderLayer(nn.Module):
    """Auto-Correlation with itself and with the encoder's output, then a feed-forward net; the
    trends split off are projected to the series' channels (equation 4)."""

    def __init__(
        self,
        channels: int,
        dim: int,
        feedforward: int,
        moving_average: int,
        factor: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention = AutoCorrelation(dim, factor)
        self.cross_attention = AutoCorrelation(dim, factor)
        self.feedforward = _feedforward(dim, feedforward, dropout)
        self.decomposition = SeriesDecomposition(moving_average)
        self.dropout = Dropout(dropout)
        self.trend = CircularConv(dim, channels)

    def forward(self, x: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """(seasonal, trend) of shapes (batch, time, dim) and (batch, time, channels)."""
        x, first = self.decomposition(x + self.dropout(self.attention(x, x)))
        x, second = self.decomposition(x + self.dropout(self.cross_attention(x, encoded)))
        x, third = self.decomposition(x + self.feedforward(x))
        return x, self.trend(first + second + third)


class Embedding(nn.Module):
    """Values by a convolution plus calendar features by a linear map, without positions."""

    def __init__(self, channels: int, time_features: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.value = CircularConv(channels, dim)
        nn.init.kaiming_normal_(self.value.weight, nonlinearity="leaky_relu")
        self.time = nn.Linear(time_features, dim, bias=False) if time_features else None
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(batch, time, dim) from (batch, time, channels) and (batch, time, time_features)."""
        y = self.value(x)
        return self.dropout(y if self.time is None else y + self.time(time))


class CircularConv(nn.Conv1d):
    """Convolution over three steps of (batch, time, inputs); the ends of time are neighbours."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1, padding_mode="circular", bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class SeasonalNorm(nn.LayerNorm):
    """Layer norm of (batch, time, dim) over dim, less its mean over time."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y - y.mean(1, keepdim=True)


def _feedforward(dim: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dim, hidden, bias=False),
        nn.GELU(),
        Dropout(dropout),
        nn.Linear(hidden, dim, bias=False),
        Dropout(dropout),
    )
