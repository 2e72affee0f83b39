"""Quantile and distribution tasks against torch.distributions and scikit-learn."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from sklearn.metrics import mean_pinball_loss
from torch import Tensor, nn

from core.jobs.errors import UsageError
from timeseries.models import DLinear
from timeseries.tasks import ProbabilisticForecasting

with warnings.catch_warnings():  # of its own imports
    warnings.simplefilter("ignore")
    from pytorch_forecasting.metrics import (
        MAE,
        BetaDistributionLoss,
        ImplicitQuantileNetworkDistributionLoss,
        LogNormalDistributionLoss,
        MultivariateNormalDistributionLoss,
        NegativeBinomialDistributionLoss,
        NormalDistributionLoss,
        QuantileLoss,
    )

BATCH, HORIZON, CHANNELS = 3, 4, 2


class Constant(nn.Module):
    """Gives the same numbers whatever it sees: (batch, horizon, channels, outputs)."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        generator = torch.Generator().manual_seed(0)
        shape = (BATCH, HORIZON, CHANNELS, outputs)
        self.values = nn.Parameter(torch.randn(shape, generator=generator))

    def forward(self, past: Tensor, past_time: Tensor, future_time: Tensor) -> Tensor:
        return self.values


def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "past": torch.zeros(BATCH, 5, CHANNELS),
        "future": torch.randn(BATCH, HORIZON, CHANNELS, generator=generator),
        "past_time": torch.zeros(BATCH, 5, 0),
        "future_time": torch.zeros(BATCH, HORIZON, 0),
    }


def task(model: nn.Module, loss: nn.Module) -> ProbabilisticForecasting:
    return ProbabilisticForecasting(model, loss, horizon=HORIZON, channels=CHANNELS, season=1)


def test_normal_likelihood_and_quantiles() -> None:
    shares = [0.05, 0.5, 0.95]
    model = Constant(2)
    forecasting = task(model, NormalDistributionLoss(quantiles=shares))
    location, scale = model.values[..., 0], nn.functional.softplus(model.values[..., 1])
    normal = torch.distributions.Normal(location, scale)
    loss = forecasting._loss(batch())
    assert torch.allclose(loss, -normal.log_prob(batch()["future"]).mean())
    found = forecasting.outcome(batch())
    for share, values in zip(shares, found.quantiles, strict=True):
        assert torch.allclose(values, normal.icdf(torch.tensor(share)), atol=1e-5)
    assert torch.allclose(found.forecast, location)
    assert forecasting.levels == [0.9]
    assert torch.equal(found.low[0], found.quantiles[0])
    assert torch.equal(found.high[0], found.quantiles[2])


def test_quantile_loss_and_order() -> None:
    shares = [0.1, 0.25, 0.5, 0.75, 0.9]
    model = Constant(5)
    forecasting = task(model, QuantileLoss(quantiles=shares))
    expected = [
        mean_pinball_loss(
            batch()["future"].double().numpy().ravel(),
            model.values[..., i].detach().double().numpy().ravel(),
            alpha=share,
        )
        for i, share in enumerate(shares)
    ]
    # theirs is twice the quantile loss
    assert float(forecasting._loss(batch()).detach()) == pytest.approx(2 * sum(expected) / 5)
    found = forecasting.outcome(batch())
    assert torch.equal(found.quantiles, model.values.sort(-1).values.permute(3, 0, 1, 2))
    assert forecasting.levels == [0.8, 0.5]


OF_NOISE = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor([0.1, 0.5, 0.9]))


def learnt_of_noise(
    forecasting: ProbabilisticForecasting, windows: int, steps: int, lr: float
) -> Tensor:
    """Quantiles (3, horizon 2) of a standard normal future that nothing announces."""
    optimizer = torch.optim.Adam(forecasting.parameters(), lr=lr)
    given = {"past": torch.zeros(windows, 4, 1), "past_time": torch.zeros(windows, 4, 0)}
    given |= {"future_time": torch.zeros(windows, 2, 0), "future": torch.randn(windows, 2, 1)}
    for _ in range(steps):
        optimizer.zero_grad()
        forecasting._loss(given).backward()
        optimizer.step()
    return forecasting.outcome(given).quantiles[:, 0, :, 0]


def test_a_model_learns_quantiles_of_its_noise() -> None:
    torch.manual_seed(0)
    model = DLinear(lookback=4, horizon=2, outputs=3)
    forecasting = ProbabilisticForecasting(
        model, QuantileLoss(quantiles=[0.1, 0.5, 0.9]), horizon=2, channels=1, season=1
    )
    quantiles = learnt_of_noise(forecasting, windows=4_000, steps=150, lr=0.05)
    assert torch.allclose(quantiles, OF_NOISE[:, None], atol=0.1)


@pytest.mark.parametrize(
    ("outputs", "loss", "said"),
    [
        (3, MAE(), "distribution is MAE"),
        (2, QuantileLoss(quantiles=[0.1, 0.9]), "must rise and hold 0.5"),
        (2, QuantileLoss(quantiles=[0.1, 0.5, 0.9]), "needs 3 outputs and Constant gives 2"),
        (3, NormalDistributionLoss(), "needs 2 outputs and Constant gives 3"),
        (2, LogNormalDistributionLoss(), "LogNormal.* is not for standardised values"),
        (2, NegativeBinomialDistributionLoss(), "NegativeBinomial.* is not for standardised"),
        (2, BetaDistributionLoss(), "Beta.* is not for standardised values"),
        (12, MultivariateNormalDistributionLoss(), "depends on the other windows of a batch"),
    ],
)
def test_what_does_not_fit_together(outputs: int, loss: nn.Module, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        task(Constant(outputs), loss)


def test_a_normalised_window_has_no_parameters() -> None:
    model = Constant(2)
    model.normalise = True  # type: ignore[assignment]
    with pytest.raises(UsageError, match="set normalise of the model to false"):
        task(model, NormalDistributionLoss())


def test_an_implicit_network_learns_quantiles_of_its_noise() -> None:
    torch.manual_seed(0)
    loss = ImplicitQuantileNetworkDistributionLoss(quantiles=[0.1, 0.5, 0.9], input_size=4)
    model = DLinear(lookback=4, horizon=2, outputs=4)
    forecasting = ProbabilisticForecasting(model, loss, horizon=2, channels=1, season=1)
    quantiles = learnt_of_noise(forecasting, windows=2_000, steps=200, lr=0.02)
    assert torch.allclose(quantiles, OF_NOISE[:, None].expand(3, 2), atol=0.2)
