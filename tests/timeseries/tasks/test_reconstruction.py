"""What the tasks let their model see."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.backbone import MLP, Backbone
from core.jobs.errors import UsageError
from core.jobs.optim import Optimisation
from core.mixers import Attention
from timeseries.models import MixerImputer
from timeseries.tasks import AnomalyScores, Imputation
from timeseries.tasks.anomalies import StampErrors

BATCH, TIME, CHANNELS = 2, 30, 3


def batch(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    known = torch.rand(BATCH, TIME, CHANNELS, generator=generator) > 0.1
    values = torch.randn(BATCH, TIME, CHANNELS, generator=generator)
    hidden = known & (torch.rand(BATCH, TIME, CHANNELS, generator=generator) < 0.3)
    return {
        "values": values.where(known, 0.0),
        "known": known,
        "hidden": hidden,
        "time": torch.zeros(BATCH, TIME, 0),
        "own": torch.ones(BATCH, TIME, dtype=torch.bool),
    }


def model() -> MixerImputer:
    torch.manual_seed(0)

    def attention(dim: int) -> nn.Module:
        return Attention(dim, causal=False, heads=2)

    imputer = MixerImputer(
        Backbone(8, {"attention": attention, "mlp": MLP}, "attention mlp"), channels=CHANNELS
    )
    nn.init.normal_(imputer.head.weight)
    return imputer


def scores(**options: Any) -> AnomalyScores:
    return AnomalyScores(model(), channels=CHANNELS, season=6, **options)


@pytest.mark.parametrize("hide", ["stamps", "channels"])
def test_a_value_is_expected_without_itself(hide: Literal["stamps", "channels"]) -> None:
    task, given = scores(hide=hide, folds=3, block=2), batch()
    t, c = 13, 1
    given["known"][0, t, c] = True
    before = task.expected(given)
    given["values"][0, t, c] += 5
    after = task.expected(given)
    assert torch.equal(after[0, t, c], before[0, t, c])
    assert torch.equal(after[1], before[1])
    # steps 12 and 13 are one block
    changed = (after[0] != before[0]).numpy()
    assert not changed[12:14, c].any()
    assert changed[12:14].any() == (hide == "channels")
    assert changed[[10, 11, 14, 15]].all()


def test_training_does_not_see_what_is_hidden() -> None:
    task, given = Imputation(model(), CHANNELS, 6), batch()
    found = task.filled(given, given["hidden"])
    other = dict(given)
    other["values"] = given["values"] + 100 * given["hidden"]
    assert torch.equal(task.filled(other, given["hidden"]), found)
    task.log = lambda *_, **__: None  # type: ignore[assignment,method-assign]
    error = (found - given["values"])[given["hidden"]]
    assert task.training_step(given, 0).item() == pytest.approx(error.square().mean().item())


def test_every_setting_of_the_optimiser_counts() -> None:
    task = Imputation(model(), CHANNELS, 6, Optimisation(lr=0.2, schedule="halving"))
    task.trainer = type("Trainer", (), {"estimated_stepping_batches": 10})()  # type: ignore[assignment]
    found = task.configure_optimizers()
    assert found["optimizer"].param_groups[0]["lr"] == 0.2
    assert found["lr_scheduler"]["interval"] == "epoch"


class Zero(nn.Module):
    def forward(self, values: Tensor, seen: Tensor, time: Tensor) -> Tensor:
        return torch.zeros_like(values)


def validated(task: AnomalyScores, *batches: dict[str, Any]) -> None:
    for given in batches:
        task.validation_step(given, 0)
    task.log = lambda *_, **__: None  # type: ignore[assignment,method-assign]
    task.trainer = type("Trainer", (), {"sanity_checking": False})()  # type: ignore[assignment]
    task.on_validation_epoch_end()


def test_usual_errors_are_those_of_the_validation_span() -> None:
    task = AnomalyScores(Zero(), channels=CHANNELS, season=6, false_alarms=0.05)
    with pytest.raises(UsageError, match="nothing is known of usual errors; run fit first"):
        task.calibration()
    given = batch()
    given["own"][:, 20:] = False
    validated(task, given)
    expected = given["values"].abs().where(given["known"], torch.nan)[:, :20].flatten(0, 1)
    assert np.array_equal(task.errors[:40], expected, equal_nan=True)
    assert task.errors[40:].isnan().all()
    assert len(task.calibration().errors[0]) == int(given["known"][:, :20, 0].sum())


def test_of_a_long_span_every_hour_of_the_day_is_kept() -> None:
    task = AnomalyScores(Zero(), channels=1)
    days, kept = 8192, len(task.errors)
    hour = torch.arange(24.0).repeat(days)[None, :, None]
    given = {"values": hour, "known": hour >= 0, "own": hour[..., 0] >= 0, "time": hour[..., :0]}
    validated(task, given)
    counts = torch.bincount(task.errors[:, 0].long(), minlength=24)
    assert counts.sum() == kept
    assert counts.min() > 0.8 * kept / 24


def test_stamps_are_put_in_order_and_counted_once() -> None:
    """A sampler that shares windows among processes may repeat some."""
    metric = StampErrors()
    errors = torch.arange(5.0)[:, None].expand(5, CHANNELS)
    series, row = torch.tensor([1, 1, 0, 0, 1]), torch.tensor([0, 1, 7, 6, 0])
    metric.update(errors[:3], errors[:3], series[:3], row[:3])
    metric.update(errors[3:], errors[3:], series[3:], row[3:])
    found = metric.compute()
    assert found.series.tolist() == [0, 0, 1, 1]
    assert found.row.tolist() == [6, 7, 0, 1]
    assert found.errors[:, 0].tolist() == [3, 2, 0, 1]
