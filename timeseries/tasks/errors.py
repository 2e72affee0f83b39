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
    """Share of values within each of some intervals.

    Update with values (batch, horizon, channels) and the intervals' ends (levels, batch, horizon,
    channels).
    """

    full_state_update = False
    inside: Tensor
    values: Tensor

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.add_state("inside", torch.zeros(levels, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("values", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        self.inside += ((low <= values) & (values <= high)).flatten(1).sum(1)
        self.values += values.numel()

    def compute(self) -> Tensor:
        """(levels,)"""
        return self.inside / self.values


class QuantileErrors(Metric):
    """Quantile losses, weighted as in the M5 competition and GluonTS, and the CRPS they come near.

    Update with quantiles (number, batch, horizon, channels) and truth (batch, horizon, channels),
    standardised, and the scale's ``mean`` and ``std`` (batch, channels).
    """

    full_state_update = False
    losses: Tensor
    original: Tensor
    size: Tensor
    values: Tensor
    shares: Tensor

    def __init__(self, shares: list[float]) -> None:
        super().__init__()
        self.register_buffer("shares", torch.tensor(shares, dtype=torch.float64), persistent=False)
        for name in ("losses", "original"):
            zeros = torch.zeros(len(shares), dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")
        self.add_state("size", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("values", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, quantiles: Tensor, truth: Tensor, mean: Tensor, std: Tensor) -> None:
        error = truth.double() - quantiles.double()
        share = self.shares[:, None, None, None]
        loss = torch.maximum(share * error, (share - 1) * error)
        self.losses += loss.flatten(1).sum(1)
        self.original += (loss * std.double()[:, None]).flatten(1).sum(1)
        self.size += (truth.double() * std.double()[:, None] + mean.double()[:, None]).abs().sum()
        self.values += truth.numel()

    def compute(self) -> dict[str, Tensor]:
        """``wql``: twice the quantile losses over the sum of absolute values, in the data's units,
        mean over quantiles; ``crps``: twice the mean quantile loss, standardised."""
        wql = (2 * self.original / self.size).mean().float()
        return {"wql": wql, "crps": (2 * self.losses / self.values).mean().float()}


def seasonal_naive(past: Tensor, horizon: int, season: int) -> Tensor:
    """The last season of ``past`` (batch, lookback, channels), over and over; the last value where
    the look-back holds no whole season."""
    season = season if season <= past.shape[1] else 1
    index = torch.arange(horizon, device=past.device) % season
    return past[:, -season:][:, index]
