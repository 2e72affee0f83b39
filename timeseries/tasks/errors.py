"""Errors of forecasts, summed over windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
import torch
from torch import Tensor
from torchmetrics import Metric

_KINDS = ("mse", "mae", "mse_original", "mae_original", "mase")
_HIDDEN = _KINDS[:4]


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
    """Share of values within each of some intervals, by horizon step.

    Update with values (batch, horizon, channels) and the intervals' ends (levels, batch, horizon,
    channels).
    """

    full_state_update = False
    inside: Tensor
    values: Tensor

    def __init__(self, levels: int, horizon: int) -> None:
        super().__init__()
        inside = torch.zeros(levels, horizon, dtype=torch.long)
        self.add_state("inside", inside, dist_reduce_fx="sum")
        self.add_state("values", torch.zeros(horizon, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        self.inside += within(values, low, high).sum((1, 3))
        self.values += values[:, 0].numel()

    def compute(self) -> Tensor:
        """(levels, horizon); as many values at each step, so that means over steps are those over
        values."""
        return self.inside / self.values


def within(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """(levels, batch, horizon, channels), which values lie within the ends of each interval."""
    return (low <= values) & (values <= high)


class QuantileErrors(Metric):
    """Quantile losses, weighted as in the M5 competition and GluonTS, and the CRPS they come near,
    by horizon step.

    Update with quantiles (number, batch, horizon, channels) and truth (batch, horizon, channels),
    standardised, and the scale's ``mean`` and ``std`` (batch, channels).
    """

    full_state_update = False
    losses: Tensor
    original: Tensor
    size: Tensor
    values: Tensor
    shares: Tensor

    def __init__(self, shares: list[float], horizon: int) -> None:
        super().__init__()
        self.register_buffer("shares", torch.tensor(shares, dtype=torch.float64), persistent=False)
        for name in ("losses", "original", "size"):
            zeros = torch.zeros(horizon, dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")
        self.add_state("values", torch.zeros(horizon, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, quantiles: Tensor, truth: Tensor, mean: Tensor, std: Tensor) -> None:
        loss = quantile_losses(quantiles, truth, self.shares).mean(0)
        scale = std.double()[:, None]
        self.losses += loss.sum((0, 2))
        self.original += (loss * scale).sum((0, 2))
        self.size += (truth.double() * scale + mean.double()[:, None]).abs().sum((0, 2))
        self.values += truth[:, 0].numel()

    def compute(self) -> dict[str, Tensor]:
        """kind -> (horizon,). ``wql``: twice the quantile losses over the sum of absolute values,
        in the data's units, mean over quantiles; ``crps``: twice the mean quantile loss,
        standardised."""
        return {"wql": 2 * self.original / self.size, "crps": 2 * self.losses / self.values}

    def totals(self) -> dict[str, Tensor]:
        """The same of all steps together."""
        wql = 2 * self.original.sum() / self.size.sum()
        return {"wql": wql.float(), "crps": (2 * self.losses.sum() / self.values.sum()).float()}


def seasonal_naive(past: Tensor, horizon: int, season: int) -> Tensor:
    """The last season of ``past`` (batch, lookback, channels), over and over; the last value where
    the look-back holds no whole season."""
    season = season if season <= past.shape[1] else 1
    index = torch.arange(horizon, device=past.device) % season
    return past[:, -season:][:, index]


class HiddenErrors(Metric):
    """Errors of values that were hidden, by method, kind of mask and channel, on both scales.

    Update with what each method filled in, the truth and which of it counts (batch, time,
    channels), standardised; the number of the kind (batch,) and the scale's ``std`` (batch,
    channels).
    """

    full_state_update = False
    sums: Tensor
    values: Tensor

    def __init__(self, methods: Sequence[str], kinds: Sequence[str], channels: int) -> None:
        super().__init__()
        self.methods, self.kinds, self.channels = tuple(methods), tuple(kinds), channels
        shape = (len(methods), len(_HIDDEN), len(kinds), channels)
        self.add_state("sums", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        values = torch.zeros(shape[2:], dtype=torch.long)
        self.add_state("values", values, dist_reduce_fx="sum")

    def update(
        self, fills: dict[str, Tensor], truth: Tensor, counts: Tensor, kind: Tensor, std: Tensor
    ) -> None:
        self.values.index_add_(0, kind, counts.sum(1))
        for at, method in enumerate(self.methods):
            error = torch.where(counts, fills[method].double() - truth.double(), 0)
            original = error * std.double()[:, None]
            found = (error**2, error.abs(), original**2, original.abs())
            sums = torch.stack([x.sum(1) for x in found])
            self.sums[at].index_add_(1, kind, sums)

    def compute(self) -> Tensor:
        """(methods, measures, kinds, channels), not a number where nothing was hidden."""
        return self.sums / self.values

    def totals(self) -> dict[str, Tensor]:
        """Means over values: ``mse`` of all kinds, ``mse_points`` of one, ``mse_points_linear`` of
        a method that is not the model."""
        values = self.values.sum(1)
        found = {}
        for method, sums in zip(self.methods, self.sums.sum(3), strict=True):
            ending = "" if method == "model" else f"_{method}"
            for measure, by_kind in zip(_HIDDEN, sums, strict=True):
                found[f"{measure}{ending}"] = (by_kind.sum() / values.sum()).float()
                if measure.endswith("original"):  # of other units a channel; the table has them
                    continue
                for name, total, count in zip(self.kinds, by_kind, values, strict=True):
                    if count:
                        found[f"{measure}_{name}{ending}"] = (total / count).float()
        return found

    def table(self, channels: Sequence[str]) -> pl.DataFrame:
        """A row for each kind of mask, channel and method."""
        means, values = self.compute().cpu(), self.values.tolist()
        rows = [
            {
                "mask": kind,
                "channel": channel,
                "method": method,
                "values": values[k][c],
                **dict(zip(_HIDDEN, means[m, :, k, c].tolist(), strict=True)),
            }
            for k, kind in enumerate(self.kinds)
            for c, channel in enumerate(channels)
            for m, method in enumerate(self.methods)
            if values[k][c]
        ]
        return pl.DataFrame(rows)
