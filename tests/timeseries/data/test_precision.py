"""Data in its own units is not rounded to half precision."""

from __future__ import annotations

import re

import lightning as L
import pytest
from lightning.pytorch.plugins.precision import HalfPrecision

from core.jobs.data import RecordDataModule
from core.jobs.errors import UsageError
from timeseries.data.anomalies import AnomalyWindows
from timeseries.data.events import EventSequences
from timeseries.data.forecasts import ForecastWindows
from timeseries.data.imputation import ImputationWindows

DATA = [AnomalyWindows, EventSequences, ForecastWindows, ImputationWindows]


@pytest.mark.parametrize("kind", DATA, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_half_precision_throughout_is_refused(kind: type[RecordDataModule], precision: str) -> None:
    data = kind(path="none.csv")
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        plugins=HalfPrecision(precision),
    )
    data.trainer = trainer
    said = f"trainer.precision {precision} .* give {precision.replace('true', 'mixed')}"
    with pytest.raises(UsageError, match=said):
        data.setup("fit")
    data.trainer = None
    with pytest.raises(UsageError, match=said):
        data.check_trainer(trainer)


def test_other_precisions_are_not() -> None:
    for precision in ("32-true", "64-true", "bf16-mixed"):
        data = ForecastWindows()
        data.trainer = L.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, precision=precision
        )
        with pytest.raises(UsageError, match=re.escape("fit needs data.path")):
            data.setup("fit")
