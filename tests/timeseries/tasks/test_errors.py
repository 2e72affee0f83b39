"""Metrics against their definitions in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_pinball_loss, mean_squared_error

from timeseries.tasks.errors import Coverage, ForecastErrors, QuantileErrors, seasonal_naive

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


def test_coverage_counts_values_within_the_ends() -> None:
    coverage = Coverage(2, 2)
    values = torch.tensor([[[0.4], [-0.6]], [[3.0], [-2.0]]])
    ends = torch.tensor([0.5, 2.0])[:, None, None, None].expand(2, 2, 2, 1)
    coverage.update(values, -ends, ends)
    assert coverage.compute().tolist() == [[0.5, 0.0], [0.5, 1.0]]


def test_quantile_losses_are_those_of_scikit_learn() -> None:
    shares = [0.1, 0.5, 0.9]
    _, truth = arrays()
    generator = torch.Generator().manual_seed(4)
    quantiles = torch.randn(3, *truth.shape, generator=generator).sort(0).values
    mean, std = torch.tensor([1.0, -5.0, 100.0]), torch.tensor([0.5, 2.0, 7.0])
    errors = QuantileErrors(shares, HORIZON)
    for some in (slice(0, 4), slice(4, WINDOWS)):
        rows = len(truth[some])
        errors.update(quantiles[:, some], truth[some], mean.expand(rows, -1), std.expand(rows, -1))
    found = {name: float(value) for name, value in errors.totals().items()}

    def loss(forecast: torch.Tensor, actual: torch.Tensor, share: float) -> float:
        flat = actual.double().numpy().ravel(), forecast.double().numpy().ravel()
        return float(mean_pinball_loss(*flat, alpha=share))

    pairs = list(zip(shares, quantiles, strict=True))
    assert found["crps"] == pytest.approx(2 * np.mean([loss(q, truth, s) for s, q in pairs]))
    wide = truth * std + mean
    losses = [loss(q * std + mean, wide, s) for s, q in pairs]
    assert found["wql"] == pytest.approx(2 * np.mean(losses) / float(wide.abs().mean()))


def test_many_quantiles_of_a_normal_give_its_crps() -> None:
    """Closed form for N(0, 1) at 0.7 (Gneiting and Raftery 2007, equation 5)."""
    shares = [(i + 0.5) / 2_000 for i in range(2_000)]
    normal = torch.distributions.Normal(0.0, 1.0)
    quantiles = normal.icdf(torch.tensor(shares))[:, None, None, None]
    errors = QuantileErrors(shares, 1)
    value = torch.tensor(0.7)
    errors.update(quantiles, value.reshape(1, 1, 1), torch.zeros(1, 1), torch.ones(1, 1))
    density = float(normal.log_prob(value).exp())
    crps = 0.7 * (2 * float(normal.cdf(value)) - 1) + 2 * density - 1 / np.sqrt(np.pi)
    assert float(errors.compute()["crps"]) == pytest.approx(crps, abs=1e-4)
