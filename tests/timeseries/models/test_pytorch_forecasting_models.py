"""pytorch-forecasting's networks behind the interface, against the same weights on the batches that
its own data set makes of a table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import pytest
import pytorch_forecasting
import torch
from pytorch_forecasting import TimeSeriesDataSet
from pytorch_forecasting.metrics import MAE, NormalDistributionLoss, QuantileLoss
from pytorch_forecasting.models.temporal_fusion_transformer.sub_modules import (
    TimeDistributedInterpolation,
)
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from timeseries.models.pytorch_forecasting_models import DeepAR, NHiTS, TemporalFusionTransformer
from timeseries.tasks import Forecasting, Optimisation

LOOKBACK, HORIZON, CHANNELS, FEATURES, WINDOWS = 33, 7, 3, 2, 4
STEPS = LOOKBACK + HORIZON + WINDOWS - 1
TIMES = [f"time_{i}" for i in range(FEATURES)]
OPTIONS: dict[str, dict[str, Any]] = {
    "NHiTS": {
        "hidden_size": 16,
        "n_blocks": [2, 1],
        "pooling_sizes": [5, 2],
        "downsample_frequencies": [3, 1],
        "dropout": 0.1,
    },
    "TemporalFusionTransformer": {"hidden_size": 8, "attention_head_size": 2},
    "DeepAR": {"hidden_size": 8},
}
ATOL = 1e-6  # rounding: the same weights and the same operations, in rows of another order

Forecaster = NHiTS | TemporalFusionTransformer | DeepAR


@pytest.fixture(params=[NHiTS, TemporalFusionTransformer, DeepAR], ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> type[Forecaster]:
    return request.param


def build(kind: type[Forecaster], sizes: Any = None, **options: Any) -> Any:
    """With weights away from where they start, so that none of them is a zero."""
    lookback, horizon, channels, features = sizes or (LOOKBACK, HORIZON, CHANNELS, FEATURES)
    given: dict[str, Any] = {**OPTIONS[kind.__name__], **options}
    model = kind(lookback, horizon, channels, features, **given)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def series() -> tuple[Tensor, Tensor]:
    """(STEPS, CHANNELS) of values and (STEPS, FEATURES) of a calendar."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(STEPS, CHANNELS, generator=generator).cumsum(0)
    return values, torch.rand(STEPS, FEATURES, generator=generator) - 0.5


def windows() -> dict[str, Tensor]:
    """What our data module makes of the series: every window."""
    values, times = (x.unfold(0, LOOKBACK + HORIZON, 1).transpose(1, 2) for x in series())
    return {
        "past": values[:, :LOOKBACK],
        "past_time": times[:, :LOOKBACK],
        "future_time": times[:, LOOKBACK:],
        "future": values[:, LOOKBACK:],
    }


def known(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return batch["past"], batch["past_time"], batch["future_time"]


def library_data(relative_time: bool, normalise: bool) -> TimeSeriesDataSet:
    """The library's data set of the same values as a long table."""
    values, times = (x.numpy() for x in series())
    table = pd.DataFrame(
        {
            "channel": np.repeat([f"channel {i}" for i in range(CHANNELS)], STEPS),
            "step": np.tile(np.arange(STEPS), CHANNELS),
            "value": values.T.flatten(),
            **{name: np.tile(times[:, i], CHANNELS) for i, name in enumerate(TIMES)},
        }
    )
    return TimeSeriesDataSet(
        table,
        time_idx="step",
        target="value",
        group_ids=["channel"],
        max_encoder_length=LOOKBACK,
        max_prediction_length=HORIZON,
        time_varying_known_reals=TIMES,
        time_varying_unknown_reals=["value"],
        target_normalizer="auto" if normalise else None,
        scalers=dict.fromkeys(TIMES),
        add_relative_time_idx=relative_time,
    )


def library_batch(data: TimeSeriesDataSet) -> tuple[dict[str, Tensor], tuple[Tensor, None]]:
    """All windows in one batch of the library's loader, in our order: windows, then channels."""
    rows = WINDOWS * CHANNELS
    [(x, (y, weight))] = data.to_dataloader(train=False, batch_size=rows, num_workers=0)
    assert weight is None
    order = torch.argsort(x["decoder_time_idx"][:, 0] * CHANNELS + x["groups"][:, 0])
    return {name: value[order] for name, value in x.items()}, (y[order], None)


def library_pair(kind: type[Forecaster], normalise: bool = True, **options: Any) -> Any:
    """Ours, the library's network that `from_dataset` builds, with our weights, and its batch."""
    ours = build(kind, normalise=normalise, **options)
    data = library_data(kind is TemporalFusionTransformer, normalise)
    loss: Any = NormalDistributionLoss() if kind is DeepAR else MAE()
    if options.get("outputs", 1) > 1:
        loss = QuantileLoss([0.1, 0.5, 0.9])
    given = {name: value for name, value in options.items() if name not in ("outputs", "samples")}
    given = {**OPTIONS[kind.__name__], **given, "loss": loss, "logging_metrics": nn.ModuleList()}
    theirs = getattr(pytorch_forecasting, kind.__name__).from_dataset(data, **given)
    theirs.load_state_dict(ours.network.state_dict())
    return ours.eval(), theirs.eval(), *library_batch(data)


def as_ours(prediction: Tensor) -> Tensor:
    """(rows, horizon, ...) -> (windows, horizon, channels, ...)"""
    return prediction.unflatten(0, (WINDOWS, CHANNELS)).transpose(1, 2)


# The library's keeping of modules as hyper-parameters, which ours silence where they build it.
LIBRARY = pytest.mark.filterwarnings("ignore:Attribute '.*' is an instance of `nn.Module`")


@pytest.mark.parametrize("normalise", [True, False])
@LIBRARY
def test_inputs_are_those_of_the_data_set(kind: type[Forecaster], normalise: bool) -> None:
    ours, _, x, (y, _) = library_pair(kind, normalise)
    batch = windows()
    found = ours.inputs(*known(batch), batch["future"])
    for name, value in found.items():
        assert value.dtype == x[name].dtype, name
        assert_close(value, x[name], atol=ATOL, rtol=0, msg=name)
    assert torch.equal(as_ours(y), batch["future"])


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("kind", [NHiTS, TemporalFusionTransformer])
@LIBRARY
def test_forecast_equals_the_library(kind: type[Forecaster], normalise: bool) -> None:
    """Whose batch holds the future as well, and ours does not."""
    ours, theirs, x, _ = library_pair(kind, normalise)
    expected = as_ours(theirs(x)["prediction"][..., 0])
    assert expected.std() > 0.02
    assert_close(ours(*known(windows())), expected, atol=ATOL, rtol=1e-6)


@pytest.mark.parametrize("kind", [NHiTS, TemporalFusionTransformer])
@LIBRARY
def test_quantiles_equal_the_library(kind: type[Forecaster]) -> None:
    ours, theirs, x, _ = library_pair(kind, outputs=3)
    found = ours(*known(windows()))
    assert found.shape == (WINDOWS, HORIZON, CHANNELS, 3)
    assert_close(found, as_ours(theirs(x)["prediction"]), atol=ATOL, rtol=1e-6)


@LIBRARY
def test_gradients_of_interpolations_by_products_equal_the_library() -> None:
    """Which interpolates by PyTorch's kernel: slow, and with atomic additions, on a GPU."""
    ours, theirs, x, (y, _) = library_pair(TemporalFusionTransformer)
    (as_ours(theirs(x)["prediction"][..., 0]) - as_ours(y)).square().mean().backward()
    (ours(*known(windows())) - windows()["future"]).square().mean().backward()
    expected = dict(theirs.named_parameters())
    assert any(isinstance(m, TimeDistributedInterpolation) for m in theirs.modules())
    assert not any(isinstance(m, TimeDistributedInterpolation) for m in ours.modules())
    for name, parameter in ours.network.named_parameters():
        assert_close(parameter.grad, expected[name].grad, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("samples", [0, 5])
@pytest.mark.parametrize("normalise", [True, False])
@LIBRARY
def test_deep_ar_decodes_as_the_library(
    samples: int, normalise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own decoding, whose draws from a step's distribution are ours instead."""
    ours, theirs, x, _ = library_pair(DeepAR, normalise, samples=samples)
    paths = samples or 2  # the library cannot decode a single path
    noise = ours._noise(torch.zeros(1)).expand(-1, paths)
    means: list[Tensor] = []

    def sample(parameters: Tensor, n_samples: int) -> Tensor:
        assert parameters.shape == (WINDOWS * CHANNELS, paths, 4)
        centre, scale, mean, std = parameters.unbind(-1)
        step = noise[len(means)]
        means.append(mean * scale + centre)
        return ((mean + std * step) * scale + centre)[..., None]

    monkeypatch.setattr(theirs.loss, "sample", sample)
    theirs(x, n_samples=paths)
    expected = as_ours(torch.stack(means, dim=1).mean(-1))
    assert expected.std() > 0.02
    assert_close(ours(*known(windows())), expected, atol=ATOL, rtol=1e-6)


@pytest.mark.parametrize("normalise", [True, False])
@LIBRARY
def test_deep_ar_trains_on_the_loss_of_the_library(normalise: bool) -> None:
    ours, theirs, x, y = library_pair(DeepAR, normalise)
    theirs.train()
    expected = theirs.loss(theirs.apply(_no_dropout)(x)["prediction"], y)
    ours.train().apply(_no_dropout)
    assert_close(ours.training_loss(**windows()), expected, atol=ATOL, rtol=1e-6)


def _no_dropout(module: nn.Module) -> None:
    if isinstance(module, nn.LSTM):
        module.dropout = 0.0


def test_draws_are_standard_normal_and_new_in_every_step() -> None:
    noise = build(DeepAR, samples=4_000)._noise(torch.zeros(1))
    assert_close(noise.mean(1), torch.zeros(HORIZON), atol=0.06, rtol=0)
    assert_close(noise.corrcoef(), torch.eye(HORIZON), atol=0.06, rtol=0)
    assert_close(noise.std(1), torch.ones(HORIZON), atol=0.06, rtol=0)


# The interface

SIZES = [(48, 24, 3, 4), (33, 7, 1, 2), (5, 12, 2, 0), (1, 1, 1, 0)]


def random_batch(sizes: tuple[int, int, int, int]) -> dict[str, Tensor]:
    lookback, horizon, channels, features = sizes
    return {
        "past": torch.randn(5, lookback, channels),
        "past_time": torch.rand(5, lookback, features) - 0.5,
        "future_time": torch.rand(5, horizon, features) - 0.5,
        "future": torch.randn(5, horizon, channels),
    }


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_promises_of_a_forecaster(kind: type[Forecaster], sizes: Any) -> None:
    model, batch = build(kind, sizes).eval(), random_batch(sizes)
    forecast = model(*known(batch))
    assert forecast.shape == batch["future"].shape
    assert forecast.dtype == torch.float32
    assert forecast.isfinite().all()
    assert torch.equal(model(*known(batch)), forecast)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(*known(batch)).float()
    assert (half - forecast).abs().median() < 0.02
    model.train()
    loss = model.training_loss(**batch) if kind is DeepAR else model(*known(batch)).square().mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("samples", [0, 5])
def test_a_window_does_not_see_the_others(kind: type[Forecaster], samples: int) -> None:
    options = {"samples": samples} if kind is DeepAR else {}
    model, batch = build(kind, **options).eval(), windows()
    whole = model(*known(batch))
    for row in range(WINDOWS):
        alone = model(*(x[row : row + 1] for x in known(batch)))
        assert_close(alone[0], whole[row], atol=ATOL, rtol=1e-5)


def test_a_channel_does_not_see_the_others(kind: type[Forecaster]) -> None:
    model, (past, *times) = build(kind).eval(), known(windows())
    whole = model(past, *times)
    moved = past.clone()
    moved[..., 1] += torch.randn(LOOKBACK)
    found = model(moved, *times)
    assert torch.equal(found[..., [0, 2]], whole[..., [0, 2]])
    assert (found[..., 1] - whole[..., 1]).abs().max() > 0.01


def test_the_calendar_counts(kind: type[Forecaster]) -> None:
    model, (past, past_time, future_time) = build(kind).eval(), known(windows())
    whole = model(past, past_time, future_time)
    for times in ((past_time + 0.5, future_time), (past_time, future_time + 0.5)):
        assert (model(past, *times) - whole).abs().max() > 1e-3


def test_paths_are_the_same_in_every_call_and_process() -> None:
    batch = known(windows())
    first, second = (build(DeepAR, samples=3).eval() for _ in range(2))
    second.load_state_dict(first.state_dict())
    expected = first(*batch)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert torch.equal(second(*batch), expected)
    assert torch.equal(torch.get_rng_state(), before)
    assert (build(DeepAR, samples=0).eval()(*batch) - expected).abs().max() > 1e-3


def test_normalised_forecasts_follow_level_and_scale(kind: type[Forecaster]) -> None:
    model, (past, *times) = build(kind).eval().double(), (x.double() for x in known(windows()))
    expected = model(past, *times) * 3 + 2
    assert_close(model(past * 3 + 2, *times), expected, atol=1e-9, rtol=1e-9)
    other = build(kind, normalise=False).eval().double()
    other.load_state_dict(model.state_dict())
    assert (other(past * 3 + 2, *times) - expected).abs().max() > 0.01


def test_a_look_back_that_does_not_change(kind: type[Forecaster]) -> None:
    """Its deviation is 0, by which nothing can be divided; the library takes 1e-7."""
    batch = windows()
    batch["past"] = torch.full_like(batch["past"], 0.7)
    model = build(kind)
    centred = build(kind, normalise=False)
    centred.load_state_dict(model.state_dict())
    past, *times = known(batch)
    expected = centred.eval()(past - 0.7, *times) + 0.7
    assert_close(model.eval()(past, *times), expected, atol=1e-6, rtol=1e-5)
    if kind is DeepAR:
        assert model.training_loss(**batch) < 100


# Training and checkpoints


class Batches(torch.utils.data.Dataset):
    """The windows as one batch of our data module."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ones = torch.ones(WINDOWS, CHANNELS)
        return {**windows(), "std": ones, "mean": ones, "seasonal_error": ones}


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`")  # of Lightning and PyTorch
def test_a_checkpoint_holds_weights_alone(kind: type[Forecaster], tmp_path: Path) -> None:
    model = build(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    task = Forecasting(model, horizon=HORIZON, channels=CHANNELS, season=1, intervals=[])
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
    )
    loader = DataLoader(Batches(), batch_size=None)
    trainer.fit(task, loader, loader)
    # the networks' own steps would log train_loss and the like
    assert {name.split("/")[0] for name in trainer.callback_metrics} == {"train", "val"}
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    # the settings of the task itself, as Lightning saves them outside the command line
    with torch.serialization.safe_globals([Optimisation]):
        saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert set(saved["hyper_parameters"]) == set(task.hparams)
    weights = {
        name.removeprefix("model."): value
        for name, value in saved["state_dict"].items()
        if name.startswith("model.")
    }
    # under several names where the networks share weights
    every = model.named_parameters(remove_duplicate=False)
    assert set(weights) == {name for name, _ in every}
    assert any(not torch.equal(weights[name], before[name]) for name in before)
    again = build(kind)
    again.load_state_dict(weights)
    batch = known(windows())
    assert torch.equal(again.eval()(*batch), model.eval()(*batch))


def test_moved_by_pytorch_alone(kind: type[Forecaster]) -> None:
    """LightningModules learn of moves by Lightning alone; the TFT makes tensors where it thinks."""
    model, batch = build(kind).eval(), known(windows())
    expected = model(*batch)
    outer = nn.Sequential(model)
    outer.double()
    found = model(*(x.double() for x in batch))
    assert found.dtype == torch.float64
    assert_close(found.float(), expected, atol=1e-5, rtol=1e-5)


# Errors and imports


@pytest.mark.parametrize("size", ["lookback", "horizon", "channels"])
def test_a_size_left_out_is_named(kind: type[Forecaster], size: str) -> None:
    sizes: dict[str, Any] = {"lookback": 8, "horizon": 4, "channels": 1} | {size: 0}
    with pytest.raises(ValueError, match=f"{size} is 0"):
        kind(**sizes)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (NHiTS, {"hidden_size": 0}, "hidden_size is 0"),
        (NHiTS, {"outputs": 0}, "outputs is 0"),
        (NHiTS, {"n_blocks": ()}, r"n_blocks is \[\]; give one number"),
        (NHiTS, {"n_blocks": (1, 0)}, r"n_blocks is \[1, 0\]; give one number above 0"),
        (NHiTS, {"pooling_sizes": (2,)}, r"pooling_sizes is \[2\]; give one number"),
        (NHiTS, {"downsample_frequencies": (1, 1, 0)}, r"downsample_frequencies is \[1, 1, 0\]"),
        (TemporalFusionTransformer, {"hidden_size": 3}, "attention_head_size is 4 and hidden_size"),
        (TemporalFusionTransformer, {"lstm_layers": 0}, "lstm_layers is 0"),
        (TemporalFusionTransformer, {"time_features": -1}, "time_features is -1"),
        (DeepAR, {"rnn_layers": 0}, "rnn_layers is 0"),
        (DeepAR, {"samples": -1}, "samples is -1"),
    ],
    ids=str,
)
def test_options_out_of_range_are_named(kind: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(lookback=8, horizon=4, channels=1, **options)


def test_the_libraries_are_imported_when_a_model_is_built() -> None:
    modules = "timeseries.models.pytorch_forecasting_models", "timeseries.models.statistical"
    code = f"import sys, {', '.join(modules)}\n"
    code += "print({'pytorch_forecasting', 'statsforecast', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
