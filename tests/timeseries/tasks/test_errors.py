"""Metrics against their definitions in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_squared_error

from timeseries.tasks.errors import Coverage, ForecastErrors, seasonal_naive

WINDOWS, HORIZON, CHANNELS = 11, 5, 3
SCALE = {"std": (0.5, 2.0, 7.0), "seasonal_error": (1.0, 0.25, 4.0)}


def arrays() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = (WINDOWS, HORIZON, CHANNELS)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def filled(batch: int) -> ForecastErrors:
    errors = ForecastErrors(HORIZON, CHANNELS)
    forecast, truth = arrays()
    for start in range(0, WINDOWS, batch):
        some = slice(start, start + batch)
        rows = len(forecast[some])
        scale = [torch.tensor(values).expand(rows, -1) for values in SCALE.values()]
        errors.update(forecast[some], truth[some], *scale)
    return errors


def test_totals_are_those_of_scikit_learn() -> None:
    forecast, truth = (x.double().numpy() for x in arrays())
    std, seasonal_error = (np.array(values) for values in SCALE.values())
    totals = {kind: float(value) for kind, value in filled(4).totals().items()}
    flat = truth.ravel(), forecast.ravel()
    wide = (truth * std).ravel(), (forecast * std).ravel()
    assert totals["mse"] == pytest.approx(mean_squared_error(*flat))
    assert totals["mae"] == pytest.approx(mean_absolute_error(*flat))
    assert totals["mse_original"] == pytest.approx(mean_squared_error(*wide))
    assert totals["mae_original"] == pytest.approx(mean_absolute_error(*wide))
    scaled = np.abs(forecast - truth) * std / seasonal_error
    assert totals["mase"] == pytest.approx(scaled.mean())


def test_the_last_short_batch_counts_like_the_others() -> None:
    whole = filled(WINDOWS).compute()
    for batch in (1, 4, 10):
        for kind, value in filled(batch).compute().items():
            assert torch.allclose(value, whole[kind])


def test_errors_by_step_and_channel() -> None:
    forecast, truth = arrays()
    by_step = filled(4).compute()["mse"]
    assert by_step[2, 1] == pytest.approx(float(((forecast - truth)[:, 2, 1] ** 2).mean()))


@pytest.mark.parametrize(("season", "used"), [(1, 1), (4, 4), (10, 10), (11, 1)])
def test_seasonal_naive_is_the_value_a_season_ago(season: int, used: int) -> None:
    past = torch.arange(2 * 10 * 2).reshape(2, 10, 2)
    forecast = seasonal_naive(past, 23, season)
    series = past.clone()
    for step in range(23):
        series = torch.cat([series, series[:, -used, None]], dim=1)
        assert torch.equal(forecast[:, step], series[:, -1])


def test_coverage_counts_values_within_the_widths() -> None:
    coverage = Coverage(2)
    widths = torch.tensor([0.5, 2.0])[:, None, None].expand(2, 2, 1)
    coverage.update(torch.tensor([[[0.4], [-0.6]], [[3.0], [-2.0]]]), widths)
    assert coverage.compute().tolist() == [0.25, 0.75]
