"""Filling in missing values."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from core.jobs.optim import Optimisation
from core.jobs.tracking import log_figure, log_table
from timeseries.data.masks import Kind
from timeseries.tasks.errors import HiddenErrors
from timeseries.tasks.figures import Gap, imputation_figure
from timeseries.tasks.fills import BASELINES, baseline_fills
from timeseries.tasks.reconstruction import Reconstruction

KINDS: tuple[str, ...] = get_args(Kind)


class Imputation(Reconstruction):
    """What stood in series where nothing is known.

    ``model`` maps (values, seen, time) to values (batch, time, channels), standardised;
    ``channels`` and ``season`` come from the data where they are 0.

    Metrics, over the values that a test hides, each once: ``mse``, ``mae`` on the standardised
    scale, ``mse_original``, ``mae_original`` in the data's units, for all kinds of masks together;
    ``mse_points``, ``mae_outages`` and so on for each; all of them also with the name of a baseline
    (``timeseries.tasks.fills``), which fills in from the same window. A tracked test stores them by
    kind of mask, channel and method as ``tables/test_by_mask.csv``.
    """

    def __init__(
        self,
        model: nn.Module,
        channels: int = 0,
        season: int = 0,
        optimisation: Optimisation = Optimisation(),  # noqa: B008  # read only
    ) -> None:
        super().__init__(model, optimisation)
        self.save_hyperparameters(ignore=["model"])
        self.season = season
        self.val_errors = HiddenErrors(("model",), KINDS, channels)
        self.test_errors = HiddenErrors(("model", *BASELINES), KINDS, channels)
        self._shown: dict[str, Gap] = {}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._score(self.val_errors, batch, {"model": self.filled(batch, batch["hidden"])})

    def _score(self, errors: HiddenErrors, batch: dict[str, Any], fills: dict[str, Tensor]) -> None:
        kinds = torch.tensor([KINDS.index(kind) for kind in batch["kind"]], device=self.device)
        scored = batch["hidden"] & batch["own"][..., None]
        errors.update(fills, batch["values"], scored, kinds, batch["std"])

    def on_validation_epoch_end(self) -> None:
        totals = self.val_errors.totals()
        named = {f"val/{kind}": totals[kind] for kind in ("mse", "mae")}
        self.log_dict(named, prog_bar=True)
        self.val_errors.reset()

    # Test

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        seen = batch["known"] & ~batch["hidden"]
        fills = {"model": self.filled(batch, batch["hidden"])}
        fills |= baseline_fills(torch.where(seen, batch["values"], 0), seen, self.season)
        self._score(self.test_errors, batch, fills)
        for i, kind in enumerate(batch["kind"]):
            hidden = int((batch["hidden"][i, :, 0] & batch["own"][i]).sum())
            if hidden and kind not in self._shown:
                self._shown[kind] = _shown(batch, fills, i)

    def on_test_epoch_end(self) -> None:
        self.log_dict({f"test/{key}": value for key, value in self.test_errors.totals().items()})
        if self.trainer.is_global_zero:
            table = self.test_errors.table(self._channels())
            log_table(self.trainer, table, "tables/test_by_mask.csv")
            log_figure(self.trainer, imputation_figure(self._shown), "plots/test_imputed.png")
        self.test_errors.reset()
        self._shown.clear()

    def _channels(self) -> tuple[str, ...]:
        fitted = getattr(getattr(self.trainer, "datamodule", None), "fitted", None)
        if fitted is None:
            return tuple(str(k) for k in range(self.test_errors.channels))
        return fitted.channels

    # Prediction

    def predict_step(self, batch: dict[str, Any], *_: Any) -> dict[str, Any]:
        """One row for each stamp and channel that is asked for: id, series, stamp, channel, the
        kind of mask if it was hidden, imputed, and actual where it is known."""
        own = batch["own"][..., None].cpu().numpy()
        filled = self.filled(batch, batch["hidden"]).double()
        original = filled * batch["std"][:, None].double() + batch["mean"][:, None].double()
        window, step, channel = np.nonzero(batch["asked"] & own)
        stamps = np.stack(batch["stamps"])
        columns: dict[str, Any] = {
            "id": [batch["id"][i] for i in window],
            "series": [batch["series"][i] for i in window],
            "stamp": stamps[window, step],
            "channel": [batch["channels"][k] for k in channel],
        }
        if batch["kind"][0] is not None:
            columns["mask"] = [batch["kind"][i] for i in window]
        columns["imputed"] = original.cpu().numpy()[window, step, channel]
        actual = batch["original"].cpu().numpy()[window, step, channel]
        columns["actual"] = pa.array(actual, from_pandas=True)
        return columns


def _shown(batch: dict[str, Any], fills: dict[str, Tensor], i: int) -> Gap:
    """The first channel of a window, in the data's units."""

    def original(x: Tensor) -> np.ndarray:
        return (x[i, :, 0].double() * batch["std"][i, 0] + batch["mean"][i, 0]).cpu().numpy()

    known, hidden = (batch[key][i, :, 0].cpu().numpy() for key in ("known", "hidden"))
    values = np.where(known, original(batch["values"]), np.nan)
    found = [original(fills[name]) for name in ("model", "linear")]
    return Gap(batch["stamps"][i], batch["channels"][0], values, hidden, *found)
