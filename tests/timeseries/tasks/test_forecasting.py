"""The task with models whose answers are known."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from core.jobs.errors import UsageError
from timeseries.tasks import Forecasting, ProbabilisticForecasting

with warnings.catch_warnings():  # of its own imports
    warnings.simplefilter("ignore")
    from pytorch_forecasting.metrics import QuantileLoss

LOOKBACK, HORIZON, CHANNELS = 4, 3, 2

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`"),
]


class Zero(nn.Module):
    """Always forecasts 0, so that the errors are the values themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, past: Tensor, past_time: Tensor, future_time: Tensor) -> Tensor:
        return self.weight * past.new_ones(len(past), HORIZON, CHANNELS)


class Noise(Dataset):
    """Windows whose future is independent noise, of a size that grows with the step."""

    def __init__(self, windows: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(windows, HORIZON, CHANNELS, generator=generator)
        self.future = noise * torch.arange(1, HORIZON + 1)[:, None]

    def __len__(self) -> int:
        return len(self.future)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {
            "past": torch.zeros(LOOKBACK, CHANNELS),
            "future": self.future[index],
            "past_time": torch.zeros(LOOKBACK, 0),
            "future_time": torch.zeros(HORIZON, 0),
            "mean": torch.tensor([10.0, -10.0]),
            "std": torch.tensor([2.0, 5.0]),
            "seasonal_error": torch.ones(CHANNELS),
            "stamps": torch.arange(LOOKBACK + HORIZON),
        }


def task(**options: Any) -> Forecasting:
    return Forecasting(Zero(), horizon=HORIZON, channels=CHANNELS, season=1, **options)


def trainer() -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )


def test_intervals_are_the_conformal_quantiles_of_validation_errors() -> None:
    noise = Noise(199, 0)
    forecasting = task(intervals=[0.9, 0.5])
    trainer().validate(forecasting, DataLoader(noise, 32), verbose=False)
    ordered = np.sort(noise.future.abs().numpy(), axis=0)
    # rank ceil((n + 1) * share) of n = 199
    assert np.allclose(forecasting.widths[0], ordered[99])
    assert np.allclose(forecasting.widths[1], ordered[179])


def test_intervals_cover_new_windows_as_often_as_they_say() -> None:
    forecasting = task(intervals=[0.5, 0.9])
    trainer().validate(forecasting, DataLoader(Noise(2_000, 0), 128), verbose=False)
    [found] = trainer().test(forecasting, DataLoader(Noise(2_000, 1), 128), verbose=False)
    assert found["test/coverage_50"] == pytest.approx(0.5, abs=0.03)
    assert found["test/coverage_90"] == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize(("share", "least"), [(0.8, 4), (0.95, 19)])
def test_too_few_windows_for_an_interval_are_said(share: float, least: int) -> None:
    """The largest of n errors is exceeded by the next one with probability 1 / (n + 1)."""
    assert 1 / (least + 1) == pytest.approx(1 - share)
    trainer().validate(task(intervals=[share]), DataLoader(Noise(least, 0), least), verbose=False)
    few = Noise(least - 1, 0)
    forecasting = task(intervals=[share])
    said = f"has {least - 1} windows, and an interval of {share} needs {least}"
    with pytest.warns(UserWarning, match=said):
        trainer().validate(forecasting, DataLoader(few, least), verbose=False)
    assert torch.equal(forecasting.widths[0], few.future.abs().amax(0))


def test_without_validation_there_are_no_widths() -> None:
    forecasting = task()
    [found] = trainer().test(forecasting, DataLoader(Noise(8, 0), 8), verbose=False)
    assert "test/mse" in found
    assert not any(name.startswith("test/coverage") for name in found)


def test_rows_are_in_the_units_of_the_data() -> None:
    forecasting = task(intervals=[0.8])
    forecasting.widths.copy_(torch.arange(6.0).reshape(1, HORIZON, CHANNELS))
    batch = torch.utils.data.default_collate([Noise(1, 0)[0]])
    stamps = np.array(["2024-01-01", "2024-01-02", "2024-01-03"], "datetime64[us]")
    batch |= {"id": ["a@0"], "series": ["a"], "origin": ["0"], "stamps": [stamps]}
    batch |= {"channels": ("x", "y"), "actual": [None]}
    rows = forecasting.predict_step(batch)
    assert rows["step"].tolist() == [1, 1, 2, 2, 3, 3]
    assert rows["channel"] == ["x", "y"] * 3
    assert rows["stamp"].tolist() == np.repeat(stamps, 2).tolist()
    assert rows["forecast"].tolist() == [10, -10] * 3
    assert rows["lower_80"].tolist() == [10, -15, 6, -25, 2, -35]
    assert rows["upper_80"].tolist() == [10, -5, 14, 5, 18, 15]
    assert rows["actual"].null_count == 6


def test_another_horizon_than_trained_is_refused() -> None:
    batch = torch.utils.data.default_collate([Noise(1, 0)[0]])
    batch["future_time"] = torch.zeros(1, HORIZON + 1, 0)
    with pytest.raises(UsageError, match=r"forecasts 3 steps and data.protocol.horizon is 4"):
        task().outcome(batch)


def test_a_share_outside_0_and_1_is_refused() -> None:
    with pytest.raises(UsageError, match="intervals are"):
        task(intervals=[80.0])


class Last(nn.Module):
    """The last value again, for one step ahead; ``outputs`` times if there are several."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.outputs = outputs
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, past: Tensor, past_time: Tensor, future_time: Tensor) -> Tensor:
        last = self.weight * past[:, -1:]
        return last if self.outputs == 1 else last[..., None].expand(-1, -1, -1, self.outputs)


def test_one_channel_and_one_step_ahead() -> None:
    """torchmetrics hands out whatever has one element without its axes."""
    steps = [
        {
            "past": torch.full((LOOKBACK, 1), 1.0),
            "future": torch.full((1, 1), 1.0 + error),
            "past_time": torch.zeros(LOOKBACK, 0),
            "future_time": torch.zeros(1, 0),
            "mean": torch.zeros(1),
            "std": torch.full((1,), 10.0),
            "seasonal_error": torch.ones(1),
            "stamps": torch.arange(LOOKBACK + 1),
        }
        for error in (-2.0, 0.0, 1.0, 3.0)
    ]
    data: Any = DataLoader(steps, 3)  # type: ignore[arg-type]
    point = Forecasting(Last(), horizon=1, channels=1, season=1, intervals=[0.5])
    trainer().validate(point, data, verbose=False)
    [found] = trainer().test(point, data, verbose=False)
    assert found["test/mse"] == pytest.approx(14 / 4)
    assert found["test/mae_original"] == pytest.approx(60 / 4)
    assert found["test/coverage_50"] == 0.75  # rank 3 of 4: 2
    loss = QuantileLoss(quantiles=[0.1, 0.5, 0.9])
    quantiles = ProbabilisticForecasting(Last(3), loss, horizon=1, channels=1, season=1)
    [found] = trainer().test(quantiles, data, verbose=False)
    assert found["test/mse"] == pytest.approx(14 / 4)
    # two thirds of the quantiles' losses are 0.1 and 0.9 of the error, a third its half
    assert found["test/crps"] == pytest.approx(2 * (6 / 4) * (0.1 + 0.5 + 0.9) / 3)
    assert found["test/coverage_80"] == 0.25
