"""Errors of forecasts, summed over windows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class ForecastErrors(Metric):
    """Squared and absolute errors by horizon step and channel, on both scales.

    Update with standardised forecast and truth (batch, horizon, channels) and the scale's ``std``
    and ``seasonal_error`` (batch, channels). Every window counts once, whatever its batch.
    """

    full_state_update = False
    sums: Tensor
    windows: Tensor

    def __init__(self, horizon: int, channels: int) -> None:
        super().__init__()
        kinds = ("mse", "mae", "mse_original", "mae_original", "mase")
        self.kinds = kinds
        zeros = torch.zeros(len(kinds), horizon, channels, dtype=torch.float64)
        self.add_state("sums", zeros, dist_reduce_fx="sum")
        self.add_state("windows", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, forecast: Tensor, truth: Tensor, std: Tensor, seasonal_error: Tensor) -> None:
        error = (forecast - truth).double()
        original = error * std.double()[:, None]
        scaled = original.abs() / seasonal_error.double()[:, None]
        kinds = (error**2, error.abs(), original**2, original.abs(), scaled)
        self.sums += torch.stack([kind.sum(0) for kind in kinds])
        self.windows += len(error)

    def compute(self) -> dict[str, Tensor]:
        """kind -> (horizon, channels), means over windows. ``mase`` divides by the seasonal naive
        forecast's error one step ahead in the training span."""
        means = self.sums / self.windows
        return dict(zip(self.kinds, means, strict=True))

    def totals(self) -> dict[str, Any]:
        """kind -> mean over windows, steps and channels, as published tables have it."""
        return {kind: value.mean().float() for kind, value in self.compute().items()}


class Coverage(Metric):
    """Share of values within each of some intervals around their forecasts.

    Update with errors (batch, horizon, channels) and half-widths (levels, horizon, channels).
    """

    full_state_update = False
    inside: Tensor
    values: Tensor

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.add_state("inside", torch.zeros(levels, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("values", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, errors: Tensor, widths: Tensor) -> None:
        self.inside += torch.stack([(errors.abs() <= width).sum() for width in widths])
        self.values += errors.numel()

    def compute(self) -> Tensor:
        """(levels,); not a number where a width is not."""
        return self.inside / self.values


def seasonal_naive(past: Tensor, horizon: int, season: int) -> Tensor:
    """The last season of ``past`` (batch, lookback, channels), over and over; the last value where
    the look-back holds no whole season."""
    season = season if season <= past.shape[1] else 1
    index = torch.arange(horizon, device=past.device) % season
    return past[:, -season:][:, index]
