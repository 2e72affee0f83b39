"""Next events: which, and when."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from core.jobs.optim import Optimisation, adamw
from core.jobs.tracking import log_figure
from core.objectives import IGNORE
from timeseries.data.events import EventSequences
from timeseries.models.events import EventModel
from timeseries.tasks.event_baselines import Baselines
from timeseries.tasks.figures import history_figure

_BINS = 12


class EventModelling(L.LightningModule):
    """The type of the next event and the time to it; the loss is their negative log-likelihood.

    Metrics, in nats: ``nll_type`` an event, ``nll_time`` a gap between two events (given the type;
    of a density in the data's unit of time, or of a mass with ``data.grid``), ``loss`` both an
    event; ``accuracy`` of the likeliest type. The test has beside them those of the training
    types' frequencies (``_unigram``), of a Markov chain (``_markov``) and the accuracy of naming
    the last event again (``_repeat``).
    """

    def __init__(
        self,
        model: EventModel,
        optimisation: Optimisation = Optimisation(),  # noqa: B008  # read only
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["model"])
        self.model = model
        self.optimisation = optimisation
        self.baselines: Baselines | None = None
        self._sums: dict[str, float] = {}
        self._history: list[tuple[Any, Any, Any]] = []

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.model.set_clock(*_clock(self._data()))

    def _data(self) -> EventSequences:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, EventSequences)
        return data

    def nll(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Of types (pieces, length) and of gaps, 0 where there is none; logits."""
        features = self.model(
            batch["type_in"], batch["gap_in"], batch["time_in"], batch["sequences"]
        )
        logits, target = self.model.logits(features), batch["target"]
        kind = F.cross_entropy(
            logits.flatten(0, 1), target.flatten(), ignore_index=IGNORE, reduction="none"
        ).view_as(target)
        gaps = self.model.gaps(features, target.clamp(min=0))
        time = torch.where(batch["timed"], gaps.nll(batch["gap"]), 0.0)
        return kind, time, logits

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        kind, time, _ = self.nll(batch)
        events = (batch["target"] != IGNORE).sum()
        loss = (kind.sum() + time.sum()) / events
        self.log("train/loss", loss, prog_bar=True, batch_size=int(events))
        return loss

    # Validation and test

    def _add(self, **sums: Tensor | float) -> None:
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)

    def _evaluate(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        kind, time, logits = self.nll(batch)
        right = logits.argmax(-1) == batch["target"]
        self._add(
            events=(batch["target"] != IGNORE).sum(),
            timed=batch["timed"].sum(),
            type_model=kind.double().sum(),
            time_model=time.double().sum(),
            right_model=right.sum(),
        )
        return kind, time

    def _finish(self, split: str) -> None:
        sums, self._sums = self._sums, {}
        if self.trainer.world_size > 1:
            names = sorted(sums)
            total = torch.tensor([sums[n] for n in names], dtype=torch.float64, device=self.device)
            total = self.trainer.strategy.reduce(total, reduce_op="sum")
            sums = dict(zip(names, total.tolist(), strict=True))
        # of sequences of one event each there is no gap to be right about
        events, timed = max(sums["events"], 1), sums["timed"] or math.nan
        for name in ("model", "unigram", "markov"):
            if f"type_{name}" in sums:
                after = "" if name == "model" else f"_{name}"
                both = sums[f"type_{name}"] + sums[f"time_{name}"]
                self.log(f"{split}/loss{after}", both / events, prog_bar=True)
                self.log(f"{split}/nll_type{after}", sums[f"type_{name}"] / events)
                self.log(f"{split}/nll_time{after}", sums[f"time_{name}"] / timed)
        for name in ("model", "unigram", "markov", "repeat"):
            if f"right_{name}" in sums:
                after = "" if name == "model" else f"_{name}"
                self.log(f"{split}/accuracy{after}", sums[f"right_{name}"] / events)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def on_test_start(self) -> None:
        data = self._data()
        assert data.types is not None
        self.baselines = Baselines.fit(data.sequences("train"), data.types, data.grid)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        assert self.baselines is not None
        kind, time = self._evaluate(batch)
        sums = self.baselines.sums(*(batch[k].cpu() for k in ("type_in", "target", "gap", "timed")))
        self._add(**sums)
        real = batch["target"] != IGNORE
        columns = batch["event"][real], kind[real], time[real]
        self._history.append(tuple(x.cpu().numpy() for x in columns))  # type: ignore[arg-type]

    def on_test_epoch_end(self) -> None:
        self._finish("test")
        event, kind, time = (np.concatenate(x) for x in zip(*self._history, strict=True))
        self._history.clear()
        if self.trainer.is_global_zero:
            log_figure(self.trainer, history_figure(event, kind, time), "plots/test_history.png")

    # Prediction

    def predict_step(self, batch: dict[str, Any], *_: Any) -> dict[str, Any]:
        """One row for each event and one for that after the last: id, event (from 1), time, type
        (none for the last), predicted_type and its probability, median_gap of the time to it,
        nll_type, nll_time (none for a sequence's first event). Every column but time and type
        speaks of what was known before the event; nll_time also of its type."""
        features = self.model(
            batch["type_in"], batch["gap_in"], batch["time_in"], batch["sequences"]
        )
        real = batch["sequences"].real
        target, features = batch["target"][real], features[real]
        logits = self.model.logits(features)
        share, predicted = logits.softmax(-1).max(-1)
        known, timed = target != IGNORE, batch["timed"][real]
        nll = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
        late = self.model.gaps(features, target.clamp(min=0)).nll(batch["gap"][real])
        types: list[str] = batch["types"]
        lengths = real.sum(1).tolist()
        return {
            "id": [name for name, n in zip(batch["id"], lengths, strict=True) for _ in range(n)],
            "event": batch["event"][real],
            "time": _where(known, batch["time"][real]),
            "type": [types[k] if k != IGNORE else None for k in target.tolist()],
            "predicted_type": [types[k] for k in predicted.tolist()],
            "probability": share,
            "median_gap": self.model.gaps(features, predicted).median(),
            "nll_type": _where(known, nll),
            "nll_time": _where(timed, late),
        }

    def configure_optimizers(self) -> Any:
        steps = int(self.trainer.estimated_stepping_batches)
        return adamw(self, steps=steps, **vars(self.optimisation))


def _where(known: Tensor, values: Tensor) -> list[float | None]:
    pairs = zip(known.tolist(), values.tolist(), strict=True)
    return [value if there else None for there, value in pairs]


def _clock(data: EventSequences) -> tuple[float, float, float | None]:
    """Mean and standard deviation of the logs of positive gaps in training, and the grid."""
    gaps = np.concatenate([one.gaps for one in data.sequences("train")])
    logs = np.log(gaps[gaps > 0])
    if not len(logs):
        return 0.0, 1.0, data.grid
    return float(logs.mean()), float(max(logs.std(), 1e-2)), data.grid
