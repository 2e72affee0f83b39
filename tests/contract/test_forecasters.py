"""What every forecaster must do, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.backbone import MLP, Backbone
from core.mixers import Mamba2
from timeseries.models import FORECASTERS, MixerForecaster

FEATURES = 4
SIZES = [(48, 24, 3), (33, 7, 1)]  # look-back, horizon, channels

# Small enough for a test of a second.
OPTIONS: dict[str, dict[str, Any]] = {
    "Autoformer": {"dim": 16, "feedforward": 32, "label_length": 16},
    "DeepAR": {"hidden_size": 8},
    "Informer": {"dim": 16, "heads": 2, "feedforward": 32, "label_length": 16},
    "NHiTS": {"hidden_size": 16},
    "PatchTSMixer": {"dim": 16, "layers": 2, "patch_length": 8, "stride": 8},
    "TemporalFusionTransformer": {"hidden_size": 8, "hidden_continuous_size": 4},
}


def build(
    kind: type[nn.Module], lookback: int, horizon: int, channels: int, features: int = FEATURES
) -> nn.Module:
    torch.manual_seed(0)
    sizes = {
        "lookback": lookback,
        "horizon": horizon,
        "channels": channels,
        "time_features": features,
    }
    if kind is MixerForecaster:
        blocks: dict[str, Callable[[int], nn.Module]] = {
            "mamba2": lambda dim: Mamba2(dim, state=8, head_dim=8),
            "mlp": MLP,
        }
        backbone = Backbone(16, blocks, "mamba2 mlp")
        return MixerForecaster(backbone, lookback=lookback, horizon=horizon, patch=8)
    accepted = kind.__init__.__code__.co_varnames
    given = {name: size for name, size in sizes.items() if name in accepted}
    return kind(**given, **OPTIONS.get(kind.__name__, {}))


def windows(
    lookback: int, horizon: int, channels: int, features: int = FEATURES
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    past = torch.randn(5, lookback, channels, generator=generator)
    times = torch.rand(5, lookback + horizon, features, generator=generator) - 0.5
    return past, times[:, :lookback], times[:, lookback:]


@pytest.fixture(params=FORECASTERS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> type[nn.Module]:
    return request.param


@pytest.fixture(params=SIZES, ids=str)
def sizes(request: pytest.FixtureRequest) -> tuple[int, int, int]:
    return request.param


def test_shape_dtype_and_determinism(kind: type[nn.Module], sizes: tuple[int, int, int]) -> None:
    model = build(kind, *sizes).eval()
    batch = windows(*sizes)
    forecast = model(*batch)
    assert forecast.shape == (5, sizes[1], sizes[2])
    assert forecast.dtype == torch.float32
    assert forecast.isfinite().all()
    assert torch.equal(model(*batch), forecast)


def test_a_window_does_not_see_the_others(
    kind: type[nn.Module], sizes: tuple[int, int, int]
) -> None:
    model = build(kind, *sizes).eval()
    batch = windows(*sizes)
    whole = model(*batch)
    for row in range(5):
        alone = model(*(x[row : row + 1] for x in batch))
        assert torch.allclose(alone[0], whole[row], atol=1e-5)


def test_it_depends_on_the_look_back(kind: type[nn.Module], sizes: tuple[int, int, int]) -> None:
    model = build(kind, *sizes).eval()
    past, *times = windows(*sizes)
    moved = past.clone()
    moved[:, -1] += 1
    assert not torch.allclose(model(moved, *times), model(past, *times), atol=1e-3)


def test_every_parameter_learns(kind: type[nn.Module], sizes: tuple[int, int, int]) -> None:
    model = build(kind, *sizes)
    model(*windows(*sizes)).square().mean().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_bf16_autocast(kind: type[nn.Module], sizes: tuple[int, int, int]) -> None:
    model = build(kind, *sizes).eval()
    batch = windows(*sizes)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(*batch).float()
    whole = model(*batch)
    # the median: a model that picks queries or delays may pick another one where two are close
    assert (half - whole).abs().median() < 0.02


def test_state_dict_round_trip(kind: type[nn.Module], sizes: tuple[int, int, int]) -> None:
    first = build(kind, *sizes).eval()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.01)
    second = build(kind, *sizes).eval()
    second.load_state_dict(first.state_dict())
    batch = windows(*sizes)
    assert torch.equal(first(*batch), second(*batch))


@pytest.mark.parametrize("missing", ["lookback", "horizon"])
def test_a_size_left_out_is_named(kind: type[nn.Module], missing: str) -> None:
    given = {"lookback": 48, "horizon": 24, "channels": 3} | {missing: 0}
    with pytest.raises(ValueError, match=missing):
        build(kind, **given)


def test_no_time_features(kind: type[nn.Module]) -> None:
    """Series without stamps have no calendar."""
    model = build(kind, *SIZES[0], features=0).eval()
    assert model(*windows(*SIZES[0], features=0)).isfinite().all()


def test_reads_time_says_whether_features_change_the_forecast(kind: type[nn.Module]) -> None:
    """Covariates come as such features; a model without ``reads_time`` is refused them."""
    model = build(kind, *SIZES[0]).eval()
    past, past_time, future_time = windows(*SIZES[0])
    changed = model(past, past_time + 1, future_time * -2)
    same = torch.equal(model(past, past_time, future_time), changed)
    assert getattr(model, "reads_time", False) == (not same)
