"""The distribution of gaps against scipy's log-normal; steps against whole sequences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from core.backbone import MLP, Backbone
from core.mixers import Attention, Mamba2, RelativeAttention
from timeseries.models.events import EventModel, Gaps

ZERO, WEIGHT = -0.4, [0.3, -1.0, 0.7]
MEAN, WIDTH = [-1.0, 0.5, 2.0], [0.3, 1.2, 0.05]


def gaps(grid: float = 0.0, rows: int = 1) -> Gaps:
    def of(values: object) -> Tensor:
        found = torch.tensor(values, dtype=torch.float64)
        return found.expand(rows, *found.shape)

    return Gaps(of(ZERO), of(WEIGHT), of(MEAN), of(WIDTH), grid)


def scipy_cdf(x: np.ndarray) -> np.ndarray:
    """Of the mixture of positive gaps."""
    share = np.exp(WEIGHT) / np.exp(WEIGHT).sum()
    each = [stats.lognorm(s, scale=np.exp(m)).cdf(x) for m, s in zip(MEAN, WIDTH, strict=True)]
    return sum(p * c for p, c in zip(share, each, strict=True))


P_ZERO = 1 / (1 + np.exp(-ZERO))


def test_density_is_scipys() -> None:
    x = np.array([1e-3, 0.2, 0.9, 3.0, 7.4, 50.0])
    share = np.exp(WEIGHT) / np.exp(WEIGHT).sum()
    density = sum(
        p * stats.lognorm(s, scale=np.exp(m)).pdf(x)
        for p, m, s in zip(share, MEAN, WIDTH, strict=True)
    )
    found = gaps(rows=len(x)).nll(torch.from_numpy(x))
    np.testing.assert_allclose(found, -np.log((1 - P_ZERO) * density), rtol=1e-10)
    zero = gaps().nll(torch.zeros(1, dtype=torch.float64))
    np.testing.assert_allclose(zero, -np.log(P_ZERO), rtol=1e-12)


def test_density_and_zero_sum_to_one() -> None:
    def density(log: float) -> float:
        x = torch.tensor([np.exp(log)], dtype=torch.float64)
        return float((-gaps().nll(x)).exp()) * np.exp(log)

    total, _ = integrate.quad(density, -12, 8, points=[-1, 0.5, 2], limit=200)
    assert total + P_ZERO == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("grid", [0.25, 1.0])
def test_masses_on_the_grid_are_differences_of_scipys_cdf(grid: float) -> None:
    k = np.arange(1, 60)
    low = np.where(k == 1, 0, (k - 0.5) * grid)
    mass = scipy_cdf((k + 0.5) * grid) - scipy_cdf(low)
    found = gaps(grid, len(k)).nll(torch.from_numpy(k * grid))
    clear = mass > 1e-10  # the difference of two values of scipy's has no digits below
    np.testing.assert_allclose(found[clear], -np.log((1 - P_ZERO) * mass[clear]), rtol=1e-5)
    many = torch.arange(1, 40_000, dtype=torch.float64) * grid
    total = float((-gaps(grid, len(many)).nll(many)).exp().sum())
    assert total + P_ZERO == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("grid", [0.0, 0.25])
def test_gradients_are_finite_far_away(grid: float) -> None:
    for mean in (-8.0, 8.0):
        parameters = [torch.tensor(v, requires_grad=True) for v in (0.0, [0.0], [mean], [0.01])]
        nll = Gaps(*parameters, grid).nll(torch.tensor(0.25))  # type: ignore[arg-type]
        assert nll.isfinite()
        for gradient in torch.autograd.grad(nll, parameters):
            assert gradient.isfinite().all()


def test_gradients_of_the_grid() -> None:
    parameters = [
        torch.tensor(v, dtype=torch.float64, requires_grad=True)
        for v in ([ZERO] * 4, [WEIGHT] * 4, [MEAN] * 4, [WIDTH] * 4)
    ]
    at = torch.tensor([0.0, 0.5, 1.5, 8.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *p: Gaps(*p, 0.5).nll(at), parameters)


@pytest.mark.parametrize("grid", [0.0, 0.25])
def test_samples_follow_the_distribution(grid: float) -> None:
    number = 20_000
    drawn = gaps(grid, number).sample(torch.Generator().manual_seed(0)).numpy()
    assert (drawn == 0).mean() == pytest.approx(P_ZERO, abs=0.01)
    positive = drawn[drawn > 0]
    if grid:
        assert np.abs(positive / grid - np.round(positive / grid)).max() < 1e-9
        for k in (1, 2, 6):
            mass = float((-gaps(grid).nll(torch.tensor([k * grid]).double())).exp())
            assert (drawn == k * grid).mean() == pytest.approx(mass, abs=0.01)
    else:
        assert stats.kstest(positive, scipy_cdf).pvalue > 1e-4


def test_median_splits_the_distribution() -> None:
    median = gaps().median().numpy()
    assert P_ZERO + (1 - P_ZERO) * scipy_cdf(median) == pytest.approx(0.5, abs=1e-9)
    assert gaps(0.25).median().item() == pytest.approx(0.25 * np.round(median.item() / 0.25))
    mostly_zero = gaps()._replace(zero=torch.tensor([0.1]))
    assert mostly_zero.median().item() == 0


MIXERS = {
    "relative": lambda dim: RelativeAttention(dim, heads=2, max_distance=5),
    "rotary": lambda dim: Attention(dim, heads=2),
    "mamba2": lambda dim: Mamba2(dim, state=8, head_dim=8),
}


@pytest.mark.parametrize("mixer", MIXERS)
def test_steps_equal_the_whole(mixer: str) -> None:
    """Features, logits and gaps from one event at a time are those of the same events at once."""
    torch.manual_seed(0)
    backbone = Backbone(16, {"mixer": MIXERS[mixer], "mlp": MLP}, "(mixer mlp)*2")
    model = EventModel(backbone, types=5, components=3, periods=[1.0, 24.0]).double()
    model.set_clock(0.3, 1.1, None)
    generator = torch.Generator().manual_seed(1)
    kind = torch.randint(0, 6, (3, 13), generator=generator)
    gap = torch.rand(3, 13, generator=generator).double() * (kind > 1)
    time = gap.cumsum(1)
    whole = model(kind, gap, time)
    state = model.backbone.init_state(3, dtype=torch.float64)
    for i in range(13):
        features, state = model.step(kind[:, i], gap[:, i], time[:, i], state)
        torch.testing.assert_close(features, whole[:, i], rtol=1e-9, atol=1e-9)
    of_type = model.gaps(whole[:, -1], torch.tensor([0, 1, 2]))
    torch.testing.assert_close(
        model.gaps(features, torch.tensor([0, 1, 2])).nll(torch.ones(3)), of_type.nll(torch.ones(3))
    )


def test_gaps_depend_on_the_type_that_comes() -> None:
    torch.manual_seed(0)
    model = EventModel(Backbone(8, {"mlp": MLP}, "mlp"), types=3)
    features = torch.randn(1, 8)
    first, second = (model.gaps(features, torch.tensor([k])).zero for k in (0, 1))
    assert first.item() != second.item()
