"""Errors of forecasts, summed over windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

_KINDS = ("mse", "mae", "mse_original", "mae_original", "mase")


def point_errors(
    forecast: Tensor, truth: Tensor, std: Tensor, seasonal_error: Tensor
) -> dict[str, Tensor]:
    """kind -> (batch, horizon, channels), the errors whose means are the metrics. ``mase`` divides
    by the seasonal naive forecast's error one step ahead in the training span."""
    error = (forecast - truth).double()
    original = error * std.double()[:, None]
    scaled = original.abs() / seasonal_error.double()[:, None]
    kinds = (error**2, error.abs(), original**2, original.abs(), scaled)
    return dict(zip(_KINDS, kinds, strict=True))


def quantile_losses(quantiles: Tensor, truth: Tensor, shares: Tensor) -> Tensor:
    """(number, batch, horizon, channels), of ``quantiles`` of that shape with ``shares`` of values
    below them."""
    error = truth.double() - quantiles.double()
    share = shares[:, None, None, None]
    return torch.maximum(share * error, (share - 1) * error)


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
        self.kinds = _KINDS
        zeros = torch.zeros(len(_KINDS), horizon, channels, dtype=torch.float64)
        self.add_state("sums", zeros, dist_reduce_fx="sum")
        self.add_state("windows", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, forecast: Tensor, truth: Tensor, std: Tensor, seasonal_error: Tensor) -> None:
        kinds = point_errors(forecast, truth, std, seasonal_error)
        self.sums += torch.stack([kind.sum(0) for kind in kinds.values()])
        self.windows += len(forecast)

    def compute(self) -> dict[str, Tensor]:
        """kind -> (horizon, channels), means over windows."""
        means = self.sums / self.windows
        return dict(zip(self.kinds, means, strict=True))

    def totals(self) -> dict[str, Any]:
        """kind -> mean over windows, steps and channels, as published tables have it."""
        return {kind: value.mean().float() for kind, value in self.compute().items()}


class SeriesErrors(Metric):
    """Means of any errors by series and channel; memory is kinds x series x channels, whatever the
    number of windows.

    Update with numbers of the series (batch,) and, by kind, errors (batch, horizon, channels).
    """

    full_state_update = False
    sums: Tensor
    values: Tensor

    def __init__(self, kinds: Sequence[str], series: int, channels: int) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        zeros = torch.zeros(len(self.kinds), series, channels, dtype=torch.float64)
        self.add_state("sums", zeros, dist_reduce_fx="sum")
        self.add_state("values", torch.zeros(series, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, series: Tensor, errors: dict[str, Tensor]) -> None:
        found = torch.stack([errors[kind].double().sum(1) for kind in self.kinds])
        self.sums.index_add_(1, series, found)
        steps = next(iter(errors.values())).shape[1]
        self.values.index_add_(0, series, torch.full_like(series, steps))

    def compute(self) -> dict[str, Tensor]:
        """kind -> (series, channels), not a number for a series without windows."""
        return dict(zip(self.kinds, self.sums / self.values[:, None], strict=True))


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
        loss = quantile_losses(quantiles, truth, self.shares)
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
