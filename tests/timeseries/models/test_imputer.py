"""Interpolation against other libraries, and a model that sees nothing of what is hidden."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from core.backbone import MLP, Backbone
from core.mixers import Attention
from timeseries.models import MixerImputer
from timeseries.models.interpolation import linear, previous
from timeseries.tasks.fills import baseline_fills

BATCH, TIME, CHANNELS, FEATURES = 3, 50, 4, 2


def example(seed: int = 0, rate: float = 0.6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(BATCH, TIME, CHANNELS, generator=generator, dtype=torch.float64)
    seen = torch.rand(BATCH, TIME, CHANNELS, generator=generator) > rate
    seen[1, :10], seen[1, -10:], seen[2, :, 0] = False, False, False
    return values.where(seen, 0.0), seen


def frames(values: torch.Tensor, seen: torch.Tensor) -> list[pd.DataFrame]:
    marked = values.where(seen, torch.nan).numpy()
    return [pd.DataFrame(one) for one in marked]


def test_linear_is_that_of_pandas() -> None:
    values, seen = example()
    expected = [f.interpolate(limit_direction="both").fillna(0) for f in frames(values, seen)]
    assert np.allclose(linear(values, seen), np.stack(expected))


def test_previous_is_that_of_pandas() -> None:
    values, seen = example()
    expected = [frame.ffill().bfill().fillna(0) for frame in frames(values, seen)]
    assert np.allclose(previous(values, seen), np.stack(expected))


@pytest.mark.parametrize("season", [1, 7, 12, 80])
def test_seasonal_baselines_by_brute_force(season: int) -> None:
    values, seen = example()
    found = baseline_fills(values, seen, season)
    line = linear(values, seen)
    for b, t, c in np.ndindex(BATCH, TIME, CHANNELS):
        phase = [k for k in range(t % season, TIME, season) if seen[b, k, c]]
        naive = mean = line[b, t, c]
        if phase:
            naive = values[b, min(phase, key=lambda k: (abs(k - t), k)), c]
            mean = values[b, phase, c].mean()
        assert found["seasonal_naive"][b, t, c] == pytest.approx(naive)
        assert found["seasonal_mean"][b, t, c] == pytest.approx(mean)


def model(**options: float) -> MixerImputer:
    torch.manual_seed(0)
    attention = lambda dim: Attention(dim, causal=False, heads=2)  # noqa: E731
    backbone = Backbone(8, {"attention": attention, "mlp": MLP}, "attention mlp")
    return MixerImputer(backbone, channels=CHANNELS, time_features=FEATURES)


def test_training_begins_at_linear_interpolation() -> None:
    values, seen = (x.float() if x.is_floating_point() else x for x in example())
    found = model()(values, seen, torch.zeros(BATCH, TIME, FEATURES))
    assert torch.equal(found, linear(values, seen))


def test_nothing_that_is_not_seen_changes_anything() -> None:
    imputer = model().double()
    torch.nn.init.normal_(imputer.head.weight)
    values, seen = example()
    time = torch.randn(BATCH, TIME, FEATURES, dtype=torch.float64)
    found = imputer(values, seen, time)
    other = torch.where(seen, values, 1e6)
    assert torch.equal(imputer(other, seen, time), found)
    assert not torch.allclose(imputer(values, seen, time + 1), found)
    assert found.isfinite().all()
    # what is seen behind a gap does
    later = values.clone()
    later[0, -5:] += seen[0, -5:]
    assert not torch.allclose(imputer(later, seen, time)[0, 0], found[0, 0])


def test_a_size_of_0_is_refused() -> None:
    with pytest.raises(ValueError, match="channels is 0"):
        MixerImputer(Backbone(8, {"mlp": MLP}, "mlp"))
