"""What the forecasting tasks share: metrics, figures, rows, the optimiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import polars as pl
import pyarrow as pa
import torch
from torch import Tensor, nn

from core.jobs.data import RecordDataModule
from core.jobs.errors import UsageError
from core.jobs.optim import Optimisation, adamw
from core.jobs.tracking import log_figure, log_table
from timeseries.data.forecasts import ForecastWindows
from timeseries.data.windows import Windows, check_horizon
from timeseries.tasks import fans
from timeseries.tasks.errors import (
    Coverage,
    ForecastErrors,
    SeriesErrors,
    point_errors,
    quantile_losses,
    seasonal_naive,
    within,
)
from timeseries.tasks.figures import Shown, forecasts_figure, horizon_figure


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
    of a span counts, the last ones too. A tracked test also stores them by step of the horizon and
    by series and channel as ``tables/test_by_horizon.csv`` and ``tables/test_by_series.csv``, with
    coverage where there are intervals and ``wql`` and ``crps`` where there are quantiles.
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
        self.coverage = Coverage(len(levels), horizon)
        self.series_errors: SeriesErrors | None = None
        self._shown: list[Shown] = []

    def outcome(self, batch: dict[str, Any]) -> Outcome:
        raise NotImplementedError

    def raw(self, batch: dict[str, Any]) -> Tensor:
        """What the model gives. Raises UsageError for another horizon than its own."""
        check_horizon(self.horizon, batch["future_time"].shape[1])
        return self.model(batch["past"], batch["past_time"], batch["future_time"]).float()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        forecast = self.outcome(batch).forecast
        self.val_errors.update(forecast, batch["future"], batch["std"], batch["seasonal_error"])

    def on_validation_epoch_end(self) -> None:
        self.log_dict(_named("val", self.val_errors.totals()), prog_bar=True)
        self.val_errors.reset()

    # Test

    def on_test_start(self) -> None:
        data = self._tested_windows()
        if data is not None:
            kinds = [*self.test_errors.kinds, *map(_naive, self.test_errors.kinds)]
            kinds += self._coverage_names()
            kinds += ["loss", "loss_original", "size"] if self.quantiles else []
            errors = SeriesErrors(kinds, len(data.series), len(data.fitted.channels))
            self.series_errors = errors.to(self.device)

    def _tested_windows(self) -> Windows | None:
        """What is tested, if it is windows of named series."""
        data = getattr(self.trainer.test_dataloaders, "dataset", None)
        return data if isinstance(data, Windows) else None

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.tested(batch, self.outcome(batch), batch_idx)

    def tested(self, batch: dict[str, Any], found: Outcome, batch_idx: int) -> None:
        scale = batch["std"], batch["seasonal_error"]
        self.test_errors.update(found.forecast, batch["future"], *scale)
        naive = seasonal_naive(batch["past"], self.horizon, self.season)
        self.naive_errors.update(naive, batch["future"], *scale)
        if self.series_errors is not None:
            errors = point_errors(found.forecast, batch["future"], *scale)
            beside = point_errors(naive, batch["future"], *scale)
            errors |= {_naive(kind): values for kind, values in beside.items()}
            inside = within(batch["future"], found.low, found.high).double()
            inside[found.low.isnan()] = torch.nan  # of intervals that are unknown
            errors |= dict(zip(self._coverage_names(), inside, strict=True))
            if self.quantiles:
                errors |= _quantile_errors(batch, found, self.quantiles)
            self.series_errors.update(batch["series"], errors)
        if self.levels and not found.low.isnan().any():
            self.coverage.update(batch["future"], found.low, found.high)
        shown = fans.spread(int(self.trainer.num_test_batches[0]))
        if batch_idx in shown:
            channels = np.linspace(0, batch["mean"].shape[1] - 1, len(shown)).astype(int)
            channel, ends = int(channels[len(self._shown)]), (found.low, found.high)
            fan = fans.tested(batch, found.forecast, ends, channel, self._tested_windows())
            self._shown.append(fan)

    def on_test_epoch_end(self) -> None:
        naive = {_naive(kind): v for kind, v in self.naive_errors.totals().items()}
        self.log_dict(_named("test", {**self.test_errors.totals(), **naive}))
        by_step = self.errors_by_step()
        for name in self._coverage_names():
            if name in by_step:
                self.log(f"test/{name}", by_step[name].mean().float())
        self._log_by_series()
        windows: Any = self.trainer.strategy.reduce(self.test_errors.windows, reduce_op="sum")
        if self.trainer.is_global_zero:
            table = pl.DataFrame({name: values.cpu().numpy() for name, values in by_step.items()})
            step = pl.int_range(1, pl.len() + 1).alias("step")
            table = table.select(step, pl.lit(int(windows)).alias("windows"), pl.all())
            log_table(self.trainer, table, "tables/test_by_horizon.csv")
            log_figure(self.trainer, horizon_figure(table), "plots/test_by_horizon.png")
            figure = forecasts_figure(self._shown, self.levels)
            log_figure(self.trainer, figure, "plots/test_forecasts.png")
        for metric in (self.test_errors, self.naive_errors, self.coverage):
            metric.reset()
        self._shown.clear()

    def errors_by_step(self) -> dict[str, Tensor]:
        """kind -> (horizon,), means over windows and channels: the model's, seasonal naive's, and
        coverage where intervals are known."""
        # torchmetrics takes the axes off what has one element
        shape = self.horizon, -1
        found = {k: v.view(shape).mean(1) for k, v in self.test_errors.compute().items()}
        naive = self.naive_errors.compute()
        found |= {_naive(kind): v.view(shape).mean(1) for kind, v in naive.items()}
        if self.coverage.values.any():
            inside = self.coverage.compute().double().view(-1, self.horizon)
            found |= dict(zip(self._coverage_names(), inside, strict=True))
        return found

    def _coverage_names(self) -> list[str]:
        return [f"coverage_{share * 100:g}" for share in self.levels]

    def _log_by_series(self) -> None:
        data = self._tested_windows()
        if self.series_errors is None or data is None:
            return
        means = {
            kind: values.cpu().numpy() for kind, values in self.series_errors.compute().items()
        }
        self.series_errors = None
        if self.quantiles:
            means["wql"] = 2 * means.pop("loss_original") / means.pop("size")
            means["crps"] = 2 * means.pop("loss")
        if not self.coverage.values.any():  # no interval was known
            means = {k: v for k, v in means.items() if k not in self._coverage_names()}
        channels = data.fitted.channels
        table = pl.DataFrame(
            {
                "series": np.repeat([one.name for one in data.series], len(channels)),
                "channel": list(channels) * len(data.series),
                "windows": np.repeat([len(origins) for origins in data.origins], len(channels)),
                **{kind: values.ravel() for kind, values in means.items()},
            }
        )
        table = table.filter(pl.col("windows") > 0)
        log_table(self.trainer, table, "tables/test_by_series.csv")

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

    def predictions_written(self, folder: Path, data: RecordDataModule) -> None:
        """Log ``plots/predicted_forecasts.png``, fans of the predictions in ``folder``."""
        if self.trainer.loggers and isinstance(data, ForecastWindows):
            shown = fans.predicted(folder, data, self.levels)
            if shown:
                figure = forecasts_figure(shown, self.levels)
                log_figure(self.trainer, figure, "plots/predicted_forecasts.png")

    def configure_optimizers(self) -> Any:
        if not any(p.requires_grad for p in self.model.parameters()):
            name = type(self.model).__name__
            raise UsageError(f"{name} has nothing to train; use test or predict without fit")
        steps = int(self.trainer.estimated_stepping_batches)
        return adamw(self, steps=steps, **vars(self.optimisation))


def _naive(kind: str) -> str:
    return f"{kind}_seasonal_naive"


def _quantile_errors(
    batch: dict[str, Any], found: Outcome, shares: list[float]
) -> dict[str, Tensor]:
    """(batch, horizon, channels): mean quantile losses on both scales, and absolute values."""
    std, mean = batch["std"].double()[:, None], batch["mean"].double()[:, None]
    at = torch.tensor(shares, dtype=torch.float64, device=std.device)
    loss = quantile_losses(found.quantiles, batch["future"], at).mean(0)
    size = (batch["future"].double() * std + mean).abs()
    return {"loss": loss, "loss_original": loss * std, "size": size}


def _named(split: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{split}/{kind}": value for kind, value in values.items()}
