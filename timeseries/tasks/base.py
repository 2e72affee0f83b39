"""What the forecasting tasks share: metrics, figures, rows, the optimiser."""

from __future__ import annotations

from typing import Any, NamedTuple

import lightning as L
import numpy as np
import pyarrow as pa
from torch import Tensor, nn

from core.jobs.errors import UsageError
from core.jobs.optim import Optimisation, adamw
from core.jobs.tracking import log_figure
from timeseries.tasks.errors import Coverage, ForecastErrors, seasonal_naive
from timeseries.tasks.figures import Shown, forecasts_figure, horizon_figure

_SHOWN = 4


class Outcome(NamedTuple):
    """A forecast (batch, horizon, channels), the ends of its intervals and its quantiles
    (number, batch, horizon, channels), all standardised. Ends are not a number where unknown."""

    forecast: Tensor
    low: Tensor
    high: Tensor
    quantiles: Tensor


class ForecastTask(L.LightningModule):
    """``levels`` are the coverages that the intervals of ``outcome`` promise, ``quantiles`` the
    shares below its quantiles.

    Metrics: ``mse`` and ``mae`` on the standardised scale, as published tables have them;
    ``mse_original`` and ``mae_original`` in the data's units, ``mase``; each beside the seasonal
    naive forecast's; ``coverage_80``, the share of the test span inside that interval. Every window
    of a span counts, the last ones too.
    """

    def __init__(
        self,
        model: nn.Module,
        horizon: int,
        channels: int,
        season: int,
        levels: list[float],
        quantiles: list[float],
        optimisation: Optimisation,
    ) -> None:
        super().__init__()
        self.model = model
        self.horizon, self.season = horizon, season
        self.levels, self.quantiles = levels, quantiles
        self.optimisation = optimisation
        self.val_errors = ForecastErrors(horizon, channels)
        self.test_errors = ForecastErrors(horizon, channels)
        self.naive_errors = ForecastErrors(horizon, channels)
        self.coverage = Coverage(len(levels))
        self._shown: list[Shown] = []

    def outcome(self, batch: dict[str, Any]) -> Outcome:
        raise NotImplementedError

    def raw(self, batch: dict[str, Any]) -> Tensor:
        """What the model gives. Raises UsageError for another horizon than its own."""
        steps = batch["future_time"].shape[1]
        if steps != self.horizon:
            raise UsageError(
                f"the model forecasts {self.horizon} steps and data.protocol.horizon is {steps}; "
                "give the horizon that it was trained with"
            )
        return self.model(batch["past"], batch["past_time"], batch["future_time"]).float()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        forecast = self.outcome(batch).forecast
        self.val_errors.update(forecast, batch["future"], batch["std"], batch["seasonal_error"])

    def on_validation_epoch_end(self) -> None:
        self.log_dict(_named("val", self.val_errors.totals()), prog_bar=True)
        self.val_errors.reset()

    # Test

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.tested(batch, self.outcome(batch), batch_idx)

    def tested(self, batch: dict[str, Any], found: Outcome, batch_idx: int) -> None:
        scale = batch["std"], batch["seasonal_error"]
        self.test_errors.update(found.forecast, batch["future"], *scale)
        naive = seasonal_naive(batch["past"], self.horizon, self.season)
        self.naive_errors.update(naive, batch["future"], *scale)
        if self.levels and not found.low.isnan().any():
            self.coverage.update(batch["future"], found.low, found.high)
        batches = int(self.trainer.num_test_batches[0])
        if batch_idx in np.linspace(0, batches - 1, _SHOWN).astype(int):
            self._shown.append(_shown(batch, found))

    def on_test_epoch_end(self) -> None:
        naive = {f"{kind}_seasonal_naive": v for kind, v in self.naive_errors.totals().items()}
        self.log_dict(_named("test", {**self.test_errors.totals(), **naive}))
        if self.coverage.values:
            for share, inside in zip(self.levels, self.coverage.compute(), strict=True):
                self.log(f"test/coverage_{share * 100:g}", inside)
        errors = {"model": self.test_errors, "seasonal naive": self.naive_errors}
        by_step = {name: e.compute()["mse"].mean(1).cpu().numpy() for name, e in errors.items()}
        if self.trainer.is_global_zero:
            log_figure(self.trainer, horizon_figure(by_step), "plots/test_by_horizon.png")
            figure = forecasts_figure(self._shown, self.levels)
            log_figure(self.trainer, figure, "plots/test_forecasts.png")
        for metric in (*errors.values(), self.coverage):
            metric.reset()
        self._shown.clear()

    # Prediction

    def predict_step(self, batch: dict[str, Any], *_: Any) -> dict[str, Any]:
        """One row for each stamp and channel: id, series, origin, step (from 1), stamp, channel,
        forecast, lower and upper end of each interval, quantiles, and actual where it is known."""
        found = self.outcome(batch)
        mean, std = batch["mean"].double()[:, None], batch["std"].double()[:, None]
        records, steps, channels = found.forecast.shape
        each = steps * channels

        def original(values: Tensor) -> Tensor:
            return (values.double() * std + mean).flatten()

        columns: dict[str, Any] = {
            key: [value for value in batch[key] for _ in range(each)]
            for key in ("id", "series", "origin")
        }
        columns["step"] = np.tile(np.repeat(np.arange(1, steps + 1), channels), records)
        columns["stamp"] = np.repeat(np.concatenate(batch["stamps"]), channels)
        columns["channel"] = list(batch["channels"]) * (records * steps)
        columns["forecast"] = original(found.forecast)
        for share, low, high in zip(self.levels, found.low, found.high, strict=True):
            columns[f"lower_{share * 100:g}"] = original(low)
            columns[f"upper_{share * 100:g}"] = original(high)
        for share, values in zip(self.quantiles, found.quantiles, strict=True):
            columns[f"q_{share * 100:g}"] = original(values)
        unknown = np.full((steps, channels), np.nan)
        actual = [unknown if a is None else np.asarray(a, np.float64) for a in batch["actual"]]
        columns["actual"] = pa.array(np.stack(actual).reshape(-1), from_pandas=True)
        return columns

    def configure_optimizers(self) -> Any:
        if not any(p.requires_grad for p in self.model.parameters()):
            name = type(self.model).__name__
            raise UsageError(f"{name} has nothing to train; use test or predict without fit")
        steps = int(self.trainer.estimated_stepping_batches)
        o = self.optimisation
        return adamw(self, lr=o.lr, weight_decay=o.weight_decay, warmup=o.warmup, steps=steps)


def _shown(batch: dict[str, Any], found: Outcome) -> Shown:
    """The last channel of a batch's first window, in the data's units."""
    mean, std = batch["mean"][0, -1], batch["std"][0, -1]
    past, future, forecast = (
        (x[0, :, -1].float() * std + mean).cpu().numpy()
        for x in (batch["past"], batch["future"], found.forecast)
    )
    low, high = ((x[:, 0, :, -1] * std + mean).cpu().numpy() for x in (found.low, found.high))
    return Shown(batch["stamps"][0].cpu().numpy(), past, future, forecast, low, high)


def _named(split: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{split}/{kind}": value for kind, value in values.items()}
