"""Point forecasts with conformal intervals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.jobs.errors import UsageError
from core.jobs.optim import Optimisation
from timeseries.data.repairs import say_once
from timeseries.tasks.base import ForecastTask, Outcome
from timeseries.tasks.pretraining import load_encoder
from timeseries.tasks.ranks import of_all_ranks

_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.huber_loss,
}
_RESIDUALS = 1 << 23  # kept of a validation pass, for the intervals


class Forecasting(ForecastTask):
    """Forecasts of all channels over the horizon.

    ``model`` maps (past, past_time, future_time) to (batch, horizon, channels), standardised;
    ``horizon``, ``channels`` and ``season`` come from the data where they are 0. ``intervals`` are
    coverages of prediction intervals by split conformal prediction (Lei et al. 2018): the forecast
    plus and minus the quantile of absolute errors on the validation span, by step and channel. They
    hold if the future is like the validation span, which is also what chose the checkpoint, and if
    that span has windows enough (19 for 0.95): with fewer, the largest error and a warning.

    ``loss`` null is the model's own if it has one (``training_loss``), else the squared error.
    ``pretrained`` names a run of ``MaskedPretraining`` whose encoder ``fit`` starts from.
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
        if not all(0 < share < 1 for share in intervals):
            raise UsageError(f"model.intervals are {intervals}; give shares between 0 and 1")
        super().__init__(model, horizon, channels, season, sorted(intervals), [], optimisation)
        self.save_hyperparameters(ignore=["model"])
        own = getattr(model, "training_loss", None)
        self.own_loss: Callable[..., Tensor] | None = own if loss is None else None
        self.loss = _LOSSES[loss or "mse"]
        self.pretrained = pretrained
        self.register_buffer("widths", torch.full((len(intervals), horizon, channels), torch.nan))
        self.widths: Tensor
        self._residuals: list[Tensor] = []

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.pretrained is not None:  # a resumed run then loads its own
            load_encoder(self.model, Path(self.pretrained))

    def outcome(self, batch: dict[str, Any]) -> Outcome:
        forecast = self.raw(batch)
        widths = self.widths[:, None]
        return Outcome(forecast, forecast - widths, forecast + widths, forecast[None][:0])

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        if self.own_loss is not None:
            given = ("past", "past_time", "future_time", "future")
            loss = self.own_loss(*(batch[key] for key in given))
        else:
            loss = self.loss(self.raw(batch), batch["future"])
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["past"]))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        forecast = self.raw(batch)
        self.val_errors.update(forecast, batch["future"], batch["std"], batch["seasonal_error"])
        self._residuals.append(self._thinned((forecast - batch["future"]).abs(), batch_idx))

    def _thinned(self, residuals: Tensor, batch_idx: int) -> Tensor:
        """Every n-th window, so that a long validation span does not fill the memory."""
        batches = float(self.trainer.num_val_batches[0])
        every = max(1, int(np.ceil(batches * residuals.numel() / _RESIDUALS)))
        return residuals[(-batch_idx * len(residuals)) % every :: every].cpu()

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        residuals = of_all_ranks(torch.cat(self._residuals))
        self._residuals.clear()
        if self.trainer.sanity_checking or not len(residuals):
            return
        n = len(residuals)
        ordered = residuals.sort(0).values
        for i, share in enumerate(self.levels):
            rank = int(np.ceil((n + 1) * share - 1e-9))  # of split conformal prediction
            if rank > n:
                say_once(
                    f"the validation span has {n} windows, and an interval of {share:g} needs "
                    f"{int(np.ceil(share / (1 - share) - 1e-9))}: it will hold less often"
                )
            self.widths[i] = ordered[min(rank, n) - 1]
