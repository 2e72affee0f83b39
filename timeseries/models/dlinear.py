"""DLinear."""

from __future__ import annotations

from torch import Tensor, nn

from timeseries.models.decomposition import SeriesDecomposition
from timeseries.models.sizes import check_sizes, split_outputs


class DLinear(nn.Module):
    """One linear map from look-back to horizon for the trend, one for the rest, and their sum
    (Zeng et al. 2023, "Are Transformers Effective for Time Series Forecasting?", section 4).

    Channels share both maps. Both start as the mean of the look-back, as in the authors' code;
    from PyTorch's own start the loss falls slower. ``outputs`` above 1 gives as many numbers for
    each value, in a last axis: quantiles, or the parameters of a distribution.
    """

    def __init__(
        self, lookback: int = 0, horizon: int = 0, moving_average: int = 25, outputs: int = 1
    ) -> None:
        super().__init__()
        check_sizes(lookback=lookback, horizon=horizon, outputs=outputs)
        self.outputs = outputs
        self.decomposition = SeriesDecomposition(moving_average)
        self.seasonal = nn.Linear(lookback, horizon * outputs)
        self.trend = nn.Linear(lookback, horizon * outputs)
        for layer in (self.seasonal, self.trend):
            nn.init.constant_(layer.weight, 1 / lookback)

    def forward(self, past: Tensor, past_time: Tensor, future_time: Tensor) -> Tensor:
        """(batch, horizon, channels[, outputs]) from ``past`` (batch, lookback, channels)."""
        seasonal, trend = self.decomposition(past)
        y = self.seasonal(seasonal.transpose(1, 2)) + self.trend(trend.transpose(1, 2))
        return split_outputs(y, self.outputs)
