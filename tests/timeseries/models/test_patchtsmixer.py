"""PatchTSMixer against transformers' model on the same random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from patchtsmixer_cases import ATOL, SMALL, forecast, forecaster, published, under_our_names, window
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import PatchTSMixerConfig, PatchTSMixerForPrediction, PatchTSMixerModel
from transformers.models.patchtsmixer.modeling_patchtsmixer import PatchTSMixerPatchify

from timeseries.models.patches import patches
from timeseries.models.patchtsmixer import PatchTSMixer

CASES: dict[str, tuple[int, int, int, dict[str, Any]]] = {
    "common": (96, 24, 3, {}),
    "mixed": (96, 24, 3, {"mode": "mix_channel"}),
    "mixed, no gates": (64, 16, 2, {"mode": "mix_channel", "gated_attention": False}),
    "no gates, odd": (101, 23, 1, {"gated_attention": False}),
    "mixed, odd": (51, 7, 5, {"mode": "mix_channel", "stride": 8, "expansion": 3}),
    "batch norm": (60, 12, 3, {"mode": "mix_channel", "norm": "batch"}),
    "attention": (64, 16, 3, {"attention_heads": 3, "positions": "random"}),
    "attention, batch norm": (
        64,
        16,
        2,
        {"attention_heads": 2, "norm": "batch", "mode": "mix_channel", "gated_attention": False},
    ),
    "sines": (64, 16, 3, {"positions": "sincos"}),
    "mean scaling": (64, 16, 3, {"scaling": "mean"}),
    "no scaling": (64, 16, 3, {"scaling": "none"}),
    "etth1 checkpoint": (
        512,
        96,
        7,
        {"patch_length": 16, "stride": 16, "dim": 48, "expansion": 3},
    ),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def pair(
    case: tuple[int, int, int, dict[str, Any]],
) -> tuple[PatchTSMixer, PatchTSMixerForPrediction]:
    *sizes, options = case
    theirs = published(PatchTSMixerForPrediction, *sizes, **{**SMALL, **options})
    ours = forecaster(*sizes, **options)
    ours.load_state_dict(under_our_names(theirs.state_dict(), options.get("mode", "")))
    return ours, theirs


@each_case
def test_forecast_and_loss_are_those_of_transformers(case: Any) -> None:
    lookback, horizon, channels, _ = case
    ours, theirs = (model.eval() for model in pair(case))
    past, future = window(4, lookback, channels), window(4, horizon, channels)
    want = theirs(past, future_values=future)
    assert_close(forecast(ours, past), want.prediction_outputs, atol=ATOL, rtol=ATOL)
    none = past[..., :0]
    loss = ours.training_loss(past, none, none, future)
    assert_close(loss, want.loss, atol=ATOL, rtol=ATOL)


@each_case
def test_gradients_are_those_of_transformers(case: Any) -> None:
    check_gradients(case)


def check_gradients(case: tuple[int, int, int, dict[str, Any]]) -> None:
    lookback, horizon, channels, options = case
    ours, theirs = (model.train() for model in pair(case))
    past, future = window(4, lookback, channels), window(4, horizon, channels)
    our_past, their_past = past.clone().requires_grad_(), past.clone().requires_grad_()
    torch.manual_seed(1)
    F.mse_loss(forecast(ours, our_past), future).backward()
    torch.manual_seed(1)
    theirs(their_past, future_values=future).loss.backward()
    assert_close(our_past.grad, their_past.grad, atol=ATOL, rtol=1e-4)
    wanted = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    wanted = under_our_names(wanted, options.get("mode", ""))
    got = {name: p.grad for name, p in ours.named_parameters()}
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        # Sums over batch, channels and patches, so relative to the largest.
        largest = float(gradient.abs().max())
        assert_close(got[name], gradient, atol=ATOL * max(1.0, largest), rtol=1e-4, msg=name)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("mode", ["common_channel", "mix_channel"])
def test_dropout_is_that_of_transformers(mode: str, gated: bool) -> None:
    """From the same state of the generator the same values drop, at the same places."""
    options = {"mode": mode, "gated_attention": gated, "dropout": 0.4, "head_dropout": 0.3}
    case = (64, 16, 3, options)
    ours, theirs = (model.train() for model in pair(case))
    past = window(4, 64, 3)
    torch.manual_seed(1)
    want = theirs(past).prediction_outputs
    torch.manual_seed(1)
    assert_close(forecast(ours, past), want, atol=ATOL, rtol=ATOL)
    check_gradients(case)


@each_case
def test_encoding_is_that_of_transformers(case: Any) -> None:
    lookback, horizon, channels, options = case
    theirs = published(PatchTSMixerModel, lookback, horizon, channels, **{**SMALL, **options})
    ours = forecaster(lookback, horizon, channels, **{"scaling": "std", **options}).eval()
    state = under_our_names(theirs.state_dict(), options.get("mode", ""))
    ours.load_state_dict(state, strict=False)
    past = window(3, lookback, channels)
    want = theirs.eval()(past)
    assert_close(ours.encoder(want.patch_input), want.last_hidden_state, atol=ATOL, rtol=ATOL)


@pytest.mark.parametrize(("length", "dim"), [(15, 12), (1, 4), (63, 48)])
def test_table_of_sines_is_that_of_transformers(length: int, dim: int) -> None:
    lookback = 8 * length
    model = forecaster(lookback, 4, 1, stride=8, dim=dim, positions="sincos")
    if length == 1:  # transformers refuses a look-back of one patch
        lookback += 1
    options = {**SMALL, "stride": 8, "dim": dim, "positions": "sincos"}
    theirs = published(PatchTSMixerModel, lookback, 4, 1, **options)
    assert_close(model.encoder.position, theirs.encoder.positional_encoder.position_enc.detach())
    assert "encoder.position" not in dict(model.named_parameters())


# Patches


@pytest.mark.parametrize(("time", "length", "stride"), [(37, 8, 4), (16, 16, 8), (40, 5, 9)])
def test_patches_are_slices_that_end_at_the_last_point(time: int, length: int, stride: int) -> None:
    x = torch.randn(2, time, 3)
    got = patches(x, length, stride)
    ends = sorted(range(time, length - 1, -stride))
    assert got.shape == (2, 3, len(ends), length)
    for i, end in enumerate(ends):
        assert_close(got[:, :, i], x[:, end - length : end].transpose(1, 2), atol=0, rtol=0)
    if time > length:
        config = PatchTSMixerConfig(
            context_length=time, patch_length=length, patch_stride=stride, num_input_channels=3
        )
        assert_close(got, PatchTSMixerPatchify(config)(x), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("length", "stride", "message"),
    [(0, 1, "at least 1"), (4, 0, "at least 1"), (11, 1, "10 points are fewer than a patch")],
)
def test_patches_refuse(length: int, stride: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        patches(torch.zeros(1, 10, 1), length, stride)


# What every forecaster promises

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "mixed": {"mode": "mix_channel"},
    "all": {
        "mode": "mix_channel",
        "attention_heads": 4,
        "positions": "random",
        "reconcile_channels": True,
        "reconcile_patches": True,
    },
    "batch norm": {"norm": "batch", "gated_attention": False},
}
each_variant = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


@each_variant
@pytest.mark.parametrize(
    ("lookback", "horizon", "channels"), [(96, 24, 3), (37, 13, 1), (16, 1, 3)]
)
def test_promises_of_a_forecaster(
    lookback: int, horizon: int, channels: int, options: dict[str, Any]
) -> None:
    model = PatchTSMixer(lookback, horizon, channels, 4, **options)
    past, future = window(5, lookback, channels), window(5, horizon, channels)
    model.train()
    time = past.new_zeros(5, 1, 4)
    model.training_loss(past, time, time, future).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    model.eval()
    got = forecast(model, past, features=4)
    assert got.shape == (5, horizon, channels)
    assert_close(forecast(model, past, features=4), got, atol=0, rtol=0)
    assert_close(forecast(model, past[2:3], features=0), got[2:3], atol=ATOL, rtol=ATOL)
    with torch.autocast("cpu", torch.bfloat16):
        rough = forecast(model, past)
    assert rough.isfinite().all()
    assert ((rough - got).square().mean() / got.square().mean()).sqrt().item() < 0.02


def test_common_channels_are_apart_and_mixed_ones_are_not() -> None:
    past = window(2, 64, 3)
    other = past.clone()
    other[:, :, 0] = torch.randn(2, 64)
    for mode, apart in (("common_channel", True), ("mix_channel", False)):
        model = forecaster(64, 8, 3, mode=mode).eval()
        same = torch.equal(forecast(model, past)[..., 1:], forecast(model, other)[..., 1:])
        assert same is apart
    model = forecaster(64, 8, 3, reconcile_channels=True).eval()
    assert not torch.equal(forecast(model, past)[..., 1:], forecast(model, other)[..., 1:])


def test_forecast_follows_level_and_spread_of_the_window() -> None:
    model = forecaster(64, 8, 2, reconcile_patches=True, reconcile_channels=True).double().eval()
    past = torch.randn(2, 64, 2, dtype=torch.float64)
    # The variance carries 1e-5, so the equality is not exact.
    assert_close(forecast(model, past * 3 - 7), forecast(model, past) * 3 - 7, atol=1e-3, rtol=1e-3)
    constant = torch.full((1, 64, 2), 5.0, dtype=torch.float64)
    assert forecast(model, constant).isfinite().all()


def test_dropout_acts_in_training_only() -> None:
    past = window(2, 64, 2)
    for rates in ({"dropout": 0.5}, {"head_dropout": 0.5}):
        model = forecaster(64, 8, 2, **rates).train()
        assert not torch.equal(forecast(model, past), forecast(model, past))
        model.eval()
        assert torch.equal(forecast(model, past), forecast(model, past))


def test_options_reach_the_encoder_from_the_command_line() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "model")
    sizes = ["--model.lookback=64", "--model.horizon=8", "--model.channels=2"]
    path = "timeseries.models.patchtsmixer.PatchTSMixer"
    given = parser.parse_args([f"--model={path}", *sizes, "--model.dim=20", "--model.stride=16"])
    assert given.model.init_args.layers == 3  # defaults are in the saved configuration
    model = parser.instantiate(given).model
    assert model.encoder.embedding.out_features == 20
    assert model.encoder.patches == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lookback": 0}, "lookback is 0"),
        ({"horizon": 0}, "horizon is 0"),
        ({"channels": 0}, "channels is 0"),
        ({"lookback": 15}, "15 points are fewer than a patch of length 16"),
        ({"dim": 0}, "dim is 0"),
        ({"expansion": 0}, "expansion is 0"),
        ({"layers": 0}, "layers is 0"),
        ({"stride": 0}, "at least 1"),
        ({"mode": "mixed"}, "mode is 'mixed'; give one of common_channel, mix_channel"),
        ({"norm": "LayerNorm"}, "norm is 'LayerNorm'"),
        ({"positions": True}, "positions is True"),
        ({"scaling": "max"}, "scaling is 'max'"),
        ({"attention_heads": 5}, "heads=5 must divide dim=32"),
        ({"reconcile_channels": True, "channel_context": -1}, "channel context is -1"),
    ],
)
def test_forecaster_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchTSMixer(**{"lookback": 96, "horizon": 24, "channels": 3, **options})
