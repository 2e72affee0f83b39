"""Point forecasts with conformal intervals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.jobs.errors import UsageError
from core.jobs.optim import Optimisation, adamw
from core.jobs.tracking import log_figure
from timeseries.tasks.errors import Coverage, ForecastErrors, seasonal_naive
from timeseries.tasks.figures import Shown, forecasts_figure, horizon_figure
from timeseries.tasks.pretraining import load_encoder

_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.huber_loss,
}
_RESIDUALS = 1 << 23  # kept of a validation pass, for the intervals
_SHOWN = 4


class Forecasting(L.LightningModule):
    """Forecasts of all channels over the horizon.

    ``model`` maps (past, past_time, future_time) to (batch, horizon, channels), standardised;
    ``horizon``, ``channels`` and ``season`` come from the data where they are 0. ``intervals`` are
    coverages of prediction intervals by split conformal prediction (Lei et al. 2018): the forecast
    plus and minus the quantile of absolute errors on the validation span, by step and channel. They
    hold if the future is like the validation span, which is also what chose the checkpoint.

    ``loss`` null is the model's own if it has one (``training_loss``), else the squared error.
    ``pretrained`` names a run of ``MaskedPretraining`` whose encoder ``fit`` starts from.

    Metrics: ``mse`` and ``mae`` on the standardised scale, as published tables have them;
    ``mse_original`` and ``mae_original`` in the data's units, ``mase``; each beside the seasonal
    naive forecast's; ``coverage_80``, the share of the test span inside that interval. Every window
    of a span counts, the last ones too.
    """

    def __init__(
        self,
        model: nn.Module,
        horizon: int = 0,
        channels: int = 0,
        season: int = 0,
        loss: Literal["mse", "mae", "huber"] | None = None,
        pretrained: str | None = None,
        intervals: list[float] = [0.8, 0.95],  # noqa: B006  # read only
        optimisation: Optimisation = Optimisation(),  # noqa: B008  # read only
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["model"])
        if not all(0 < share < 1 for share in intervals):
            raise UsageError(f"model.intervals are {intervals}; give shares between 0 and 1")
        self.model = model
        self.horizon, self.season = horizon, season
        self.loss = _LOSSES[loss or "mse"]
        self.pretrained = pretrained
        self.intervals = sorted(intervals)
        self.optimisation = optimisation
        self.val_errors = ForecastErrors(horizon, channels)
        self.test_errors = ForecastErrors(horizon, channels)
        self.naive_errors = ForecastErrors(horizon, channels)
        self.coverage = Coverage(len(self.intervals))
        self.register_buffer("widths", torch.full((len(intervals), horizon, channels), torch.nan))
        self.widths: Tensor
        self._residuals: list[Tensor] = []
        self._shown: list[Shown] = []

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.pretrained is not None:  # a resumed run then loads its own
            load_encoder(self.model, Path(self.pretrained))

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """(batch, horizon, channels), standardised."""
        steps = batch["future_time"].shape[1]
        if steps != self.horizon:
            raise UsageError(
                f"the model forecasts {self.horizon} steps and data.protocol.horizon is {steps}; "
                "give the horizon that it was trained with"
            )
        return self.model(batch["past"], batch["past_time"], batch["future_time"]).float()

    @property
    def calibrated(self) -> bool:
        """Whether there are intervals, and a validation pass has set their widths."""
        return bool(self.intervals) and not self.widths.isnan().any()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        own = getattr(self.model, "training_loss", None)  # of a distribution, say
        if own is not None and self.hparams["loss"] is None:
            given = ("past", "past_time", "future_time", "future")
            loss = own(*(batch[key] for key in given))
        else:
            loss = self.loss(self(batch), batch["future"])
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["past"]))
        return loss

    # Validation: errors, and the widths of the intervals

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        forecast = self(batch)
        self.val_errors.update(forecast, batch["future"], batch["std"], batch["seasonal_error"])
        self._residuals.append(self._thinned((forecast - batch["future"]).abs(), batch_idx))

    def _thinned(self, residuals: Tensor, batch_idx: int) -> Tensor:
        """Every n-th window, so that a long validation span does not fill the memory."""
        batches = float(self.trainer.num_val_batches[0])
        every = max(1, int(np.ceil(batches * residuals.numel() / _RESIDUALS)))
        return residuals[(-batch_idx * len(residuals)) % every :: every].cpu()

    def on_validation_epoch_end(self) -> None:
        self.log_dict(_named("val", self.val_errors.totals()), prog_bar=True)
        self.val_errors.reset()
        residuals = torch.cat(self._residuals)
        self._residuals.clear()
        if self.trainer.sanity_checking or not len(residuals):
            return
        n = len(residuals)
        ordered = residuals.sort(0).values
        for i, share in enumerate(self.intervals):
            rank = min(n, int(np.ceil((n + 1) * share)))  # of split conformal prediction
            self.widths[i] = ordered[rank - 1]

    # Test

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        forecast = self(batch)
        scale = batch["std"], batch["seasonal_error"]
        self.test_errors.update(forecast, batch["future"], *scale)
        naive = seasonal_naive(batch["past"], self.horizon, self.season)
        self.naive_errors.update(naive, batch["future"], *scale)
        if self.calibrated:
            self.coverage.update(forecast - batch["future"], self.widths)
        batches = int(self.trainer.num_test_batches[0])
        if batch_idx in np.linspace(0, batches - 1, _SHOWN).astype(int):
            self._shown.append(self._one(batch, forecast))

    def _one(self, batch: dict[str, Any], forecast: Tensor) -> Shown:
        """The last channel of a batch's first window, in the data's units."""
        mean, std = batch["mean"][0, -1], batch["std"][0, -1]
        past, future, ours = (
            (x[0, :, -1].float() * std + mean).cpu().numpy()
            for x in (batch["past"], batch["future"], forecast)
        )
        widths = (self.widths[:, :, -1] * std).cpu().numpy()
        return Shown(batch["stamps"][0].cpu().numpy(), past, future, ours, widths)

    def on_test_epoch_end(self) -> None:
        naive = {f"{kind}_seasonal_naive": v for kind, v in self.naive_errors.totals().items()}
        self.log_dict(_named("test", {**self.test_errors.totals(), **naive}))
        if self.calibrated:
            for share, inside in zip(self.intervals, self.coverage.compute(), strict=True):
                self.log(f"test/coverage_{share * 100:g}", inside)
            self.coverage.reset()
        errors = {"model": self.test_errors, "seasonal naive": self.naive_errors}
        by_step = {name: e.compute()["mse"].mean(1).cpu().numpy() for name, e in errors.items()}
        if self.trainer.is_global_zero:
            log_figure(self.trainer, horizon_figure(by_step), "plots/test_by_horizon.png")
            figure = forecasts_figure(self._shown, self.intervals)
            log_figure(self.trainer, figure, "plots/test_forecasts.png")
        for error in errors.values():
            error.reset()
        self._shown.clear()

    # Prediction

    def predict_step(self, batch: dict[str, Any], *_: Any) -> dict[str, Any]:
        """One row for each stamp and channel: id, series, origin, step (from 1), stamp, channel,
        forecast, lower and upper end of each interval, and actual where it is known."""
        forecast = self(batch).double()
        mean, std = batch["mean"].double()[:, None], batch["std"].double()[:, None]
        records, steps, channels = forecast.shape
        each = steps * channels
        columns: dict[str, Any] = {
            key: [value for value in batch[key] for _ in range(each)]
            for key in ("id", "series", "origin")
        }
        columns["step"] = np.tile(np.repeat(np.arange(1, steps + 1), channels), records)
        columns["stamp"] = np.repeat(np.concatenate(batch["stamps"]), channels)
        columns["channel"] = list(batch["channels"]) * (records * steps)
        columns["forecast"] = (forecast * std + mean).flatten()
        for share, width in zip(self.intervals, self.widths.double(), strict=True):
            for name, sign in (("lower", -1), ("upper", 1)):
                end = (forecast + sign * width) * std + mean
                columns[f"{name}_{share * 100:g}"] = end.flatten()
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


def _named(split: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{split}/{kind}": value for kind, value in values.items()}
