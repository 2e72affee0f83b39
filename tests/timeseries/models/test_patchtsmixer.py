"""PatchTSMixer against transformers' model on the same random weights, and its heads against their
definitions written out in float64."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import (
    PatchTSMixerConfig,
    PatchTSMixerForPrediction,
    PatchTSMixerForPretraining,
    PatchTSMixerModel,
)
from transformers.models.patchtsmixer.modeling_patchtsmixer import PatchTSMixerPatchify

from timeseries.models.patches import patches
from timeseries.models.patchtsmixer import (
    PatchTSMixer,
    PatchTSMixerPretraining,
    Reconstruction,
    masked_loss,
)
from timeseries.models.reconciliation import (
    ChannelReconciliation,
    PatchReconciliation,
    hierarchy_loss,
    patch_sums,
)

SMALL: dict[str, Any] = {"patch_length": 8, "stride": 4, "dim": 12, "expansion": 2, "layers": 2}
ATOL = 1e-5  # float32 through a few matrix products of values around 1


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# The published model: its configuration from ours, and its weights under our names

THEIR_NAME = {
    "patch_length": "patch_length",
    "stride": "patch_stride",
    "dim": "d_model",
    "expansion": "expansion_factor",
    "layers": "num_layers",
    "mode": "mode",
    "gated_attention": "gated_attn",
    "attention_heads": "self_attn_heads",
    "positions": "positional_encoding_type",
    "norm": "norm_mlp",
    "scaling": "scaling",
    "dropout": "dropout",
    "head_dropout": "head_dropout",
    "mask_ratio": "random_mask_ratio",
    "mask_channels_together": "channel_consistent_masking",
}
THEIR_VALUE = {"layer": "LayerNorm", "batch": "BatchNorm"}


def published(
    kind: type[nn.Module], lookback: int, horizon: int, channels: int, **ours: Any
) -> Any:
    """transformers' model with random weights, its options given under our names."""
    theirs = {THEIR_NAME[k]: THEIR_VALUE.get(str(v), v) for k, v in ours.items()}
    theirs["self_attn"] = bool(theirs.setdefault("self_attn_heads", 0))
    theirs["use_positional_encoding"] = "positional_encoding_type" in theirs
    theirs["scaling"] = None if theirs.get("scaling") == "none" else theirs.get("scaling", "std")
    config = PatchTSMixerConfig(
        context_length=lookback,
        prediction_length=horizon,
        num_input_channels=channels,
        **{"dropout": 0.0, "head_dropout": 0.0, **theirs},
    )
    model = kind(config)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "num_batches" in name or ("position" in name and ours["positions"] == "sincos"):
                continue
            value.copy_(torch.rand_like(value) + 0.5 if "running_var" in name else _some(value))
    return model


def _some(value: Tensor) -> Tensor:
    return torch.randn_like(value) * (0.4 if value.ndim == 1 else value.shape[-1] ** -0.5)


BLOCKS = {"channel_feature_mixer": -1, "patch_mixer": 0, "feature_mixer": 1}
RENAMED = (
    (r"\.batchnorm\.", "."),
    (r"gating_block\.attn_layer", "gate.linear"),
    (r"self_attn_layer\.out_proj", "attention.o_proj"),
    (r"self_attn_layer", "attention"),
    (r"norm_attn", "attention_norm"),
    (r"^(model\.)?encoder\.patcher", "encoder.embedding"),
    (r"^(model\.)?encoder\.positional_encoder\.position_enc", "encoder.position"),
    (r"^head\.base_(forecast|pt)_block", "head"),
)


def under_our_names(values: dict[str, Tensor], mode: str) -> dict[str, Tensor]:
    """Tensors by transformers' parameter names -> the same by ours."""
    renamed = {}
    blocks, first = (3, 1) if mode == "mix_channel" else (2, 0)
    for name, value in values.items():
        found = re.search(r"mixers\.(\d+)\.(\w+)\.(.+)", name)
        if found:
            number = blocks * int(found[1]) + BLOCKS[found[2]] + first
            name = f"encoder.mixers.{number}.{found[3]}"
        for theirs, ours in RENAMED:
            name = re.sub(theirs, ours, name)
        renamed[name] = value
    return renamed


def forecaster(lookback: int, horizon: int, channels: int, **options: Any) -> PatchTSMixer:
    options = {**SMALL, "dropout": 0.0, "head_dropout": 0.0, **options}
    return PatchTSMixer(lookback, horizon, channels, **options)


def forecast(model: PatchTSMixer, past: Tensor, features: int = 0) -> Tensor:
    horizon = model.head.out_features
    time = past.new_zeros(past.shape[0], past.shape[1], features)
    return model(past, time, past.new_zeros(past.shape[0], horizon, features))


def window(batch: int, lookback: int, channels: int) -> Tensor:
    return torch.randn(batch, lookback, channels) * 2 + 1


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
    lookback, horizon, channels, options = case
    ours, theirs = (model.train() for model in pair(case))
    past, future = window(4, lookback, channels), window(4, horizon, channels)
    our_past, their_past = past.clone().requires_grad_(), past.clone().requires_grad_()
    F.mse_loss(forecast(ours, our_past), future).backward()
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


@pytest.mark.parametrize("mode", ["common_channel", "mix_channel"])
def test_dropout_is_that_of_transformers(mode: str) -> None:
    """From the same state of the generator the same values drop, at the same places."""
    case = (64, 16, 3, {"mode": mode, "dropout": 0.4, "head_dropout": 0.3})
    ours, theirs = (model.train() for model in pair(case))
    past = window(4, 64, 3)
    torch.manual_seed(1)
    want = theirs(past).prediction_outputs
    torch.manual_seed(1)
    assert_close(forecast(ours, past), want, atol=ATOL, rtol=ATOL)


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


# Masked pretraining

MASKED: dict[str, tuple[int, int, dict[str, Any]]] = {
    "common": (64, 3, {"mask_ratio": 0.5}),
    "mixed": (96, 3, {"mode": "mix_channel", "mask_ratio": 0.4}),
    "gap between patches": (69, 2, {"stride": 11, "mask_ratio": 0.3}),
    "channels apart": (64, 4, {"mask_channels_together": False, "norm": "batch"}),
    "attention": (64, 2, {"attention_heads": 2, "gated_attention": False}),
}


@pytest.mark.parametrize("case", MASKED.values(), ids=MASKED)
def test_pretraining_is_that_of_transformers(case: Any) -> None:
    lookback, channels, options = case
    options = {**SMALL, "stride": 8, **options}
    theirs = published(PatchTSMixerForPretraining, lookback, 1, channels, **options)
    ours = PatchTSMixerPretraining(lookback, channels, head_dropout=0.0, dropout=0.0, **options)
    ours.load_state_dict(under_our_names(theirs.state_dict(), options.get("mode", "")))
    masks: list[Tensor] = []
    theirs.model.masking.register_forward_hook(lambda module, args, out: masks.append(out[1]))
    past = window(4, lookback, channels)
    torch.manual_seed(1)
    want = theirs(past)
    torch.manual_seed(1)
    drawn = ours(past)
    assert_close(drawn.mask, masks[0])  # a mask too is drawn as theirs
    got = ours(past, masks[0])
    assert_close(got.values, want.prediction_outputs, atol=ATOL, rtol=ATOL)
    assert_close(masked_loss(got), want.loss, atol=ATOL, rtol=ATOL)
    masked_loss(got).backward()
    want.loss.backward()
    wanted = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    wanted = under_our_names(wanted, options.get("mode", ""))
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, wanted[name], atol=ATOL, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("count", "ratio", "masked"),
    [(10, 0.5, 5), (10, 0.7, 7), (10, 0.9, 9), (7, 0.2, 2), (2, 0.9, 1), (100, 0.01, 1)],
)
@pytest.mark.parametrize("together", [True, False])
def test_every_window_has_its_share_masked(
    count: int, ratio: float, masked: int, together: bool
) -> None:
    model = PatchTSMixerPretraining(
        4 * count,
        3,
        patch_length=4,
        stride=4,
        mask_ratio=ratio,
        mask_channels_together=together,
        layers=1,
    )
    mask = model(torch.randn(64, 4 * count, 3)).mask
    assert mask.shape == (64, 3, count)
    assert (mask.sum(-1) == masked).all()
    assert bool((mask == mask[:, :1]).all()) is together
    if count < 20:
        assert mask.any(0).any(0).all()  # any patch may be masked
        assert len(mask[:, 0].unique(dim=0)) > 1  # and not the same ones in every window


def test_masked_patches_alone_enter_the_loss() -> None:
    values = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    truth = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    mask = torch.rand(2, 3, 5) < 0.4
    loss = masked_loss(Reconstruction(values, truth, mask))
    squares = [
        ((values[b, c, p, t] - truth[b, c, p, t]) ** 2).item()
        for b, c, p in mask.nonzero().tolist()
        for t in range(4)
    ]
    assert_close(loss.item(), sum(squares) / len(squares))
    (gradient,) = torch.autograd.grad(loss, values)
    assert_close((gradient != 0).any(-1), mask)


def test_masked_values_are_not_seen() -> None:
    model = PatchTSMixerPretraining(48, 2, scaling="none", patch_length=8, stride=8).eval()
    past, mask = window(2, 48, 2), torch.zeros(2, 2, 6, dtype=torch.bool)
    mask[:, :, 2] = True
    other = past.clone()
    other[:, 16:24] += 5
    assert_close(model(past, mask).values, model(other, mask).values, atol=0, rtol=0)
    other[:, 24] += 5
    assert not torch.equal(model(past, mask).values, model(other, mask).values)
    assert_close(model(other, mask).patches, patches(other, 8, 8), atol=0, rtol=0)


def test_pretrained_encoder_goes_into_the_forecaster() -> None:
    options = {"patch_length": 8, "mode": "mix_channel", "positions": "random", "norm": "batch"}
    pretraining = PatchTSMixerPretraining(64, 3, **options).train()
    past = window(8, 64, 3)
    pretraining(past)  # moves the batch norms' statistics
    model = PatchTSMixer(64, 9, 3, stride=16, **options)
    model.encoder.load_state_dict(pretraining.encoder.state_dict())
    seen = torch.zeros(8, 3, 4, dtype=torch.bool)
    hidden: list[Tensor] = []
    for one in (pretraining, model):
        one.encoder.register_forward_hook(lambda module, args, out: hidden.append(out))
    pretraining.eval()(past, seen)
    forecast(model.eval(), past)
    assert_close(hidden[0], hidden[1], atol=0, rtol=0)


# Reconciliation


@pytest.mark.parametrize(("time", "length"), [(12, 4), (11, 4), (3, 4)])
def test_sums_of_patches(time: int, length: int) -> None:
    x = torch.randn(2, time, 3, dtype=torch.float64)
    want = torch.stack([x[:, i : i + length].sum(1) for i in range(0, time, length)], dim=1)
    assert_close(patch_sums(x, length), want)


@pytest.mark.parametrize(("channels", "context"), [(3, 1), (1, 2), (2, 0)])
def test_channel_head_is_its_definition(channels: int, context: int) -> None:
    head = ChannelReconciliation(channels, context).double()
    y = torch.randn(2, 7, channels, dtype=torch.float64)
    got = head(y)
    for b in range(2):
        for t in range(7):
            features = torch.stack(
                [
                    y[b, t + k, c] if 0 <= t + k < 7 else y.new_zeros(())
                    for c in range(channels)
                    for k in range(-context, context + 1)
                ]
            )
            logits = head.gate.linear.weight @ features + head.gate.linear.bias
            gated = features * logits.exp() / logits.exp().sum()
            want = y[b, t] + head.linear.weight @ gated + head.linear.bias
            assert_close(got[b, t], want)


@pytest.mark.parametrize(("horizon", "length"), [(12, 4), (11, 4), (3, 4)])
def test_patch_head_is_its_definition(horizon: int, length: int) -> None:
    head = PatchReconciliation(horizon, length).double()
    y = torch.randn(2, horizon, 3, dtype=torch.float64)
    revised, sums = head(y)
    for b in range(2):
        for c in range(3):
            want_sums = head.aggregate.weight @ y[b, :, c] + head.aggregate.bias
            assert_close(sums[b, :, c], want_sums)
            for i, start in enumerate(range(0, horizon, length)):
                points = [float(v) for v in y[b, start : start + length, c]]
                filled = points + [0.0] * (length - len(points))
                features = torch.tensor([*filled, want_sums[i].item()], dtype=torch.float64)
                change = head.correct.weight @ features + head.correct.bias
                want = y.new_tensor(points) + change[: len(points)]
                assert_close(revised[b, start : start + length, c], want)


def test_hierarchy_loss_is_its_definition() -> None:
    y, truth = torch.randn(2, 2, 11, 3, dtype=torch.float64)
    sums = torch.randn(2, 3, 3, dtype=torch.float64)
    points, level, between = [], [], []
    for b in range(2):
        for c in range(3):
            points += [float(v) ** 2 for v in y[b, :, c] - truth[b, :, c]]
            for i in range(3):
                part = slice(4 * i, 4 * i + 4)
                level.append(float(sums[b, i, c] - truth[b, part, c].sum()) ** 2)
                between.append(float(y[b, part, c].sum() - sums[b, i, c]) ** 2)
    want = sum(points) / 66 + sum(level) / 18 / 16 + sum(between) / 18 / 16
    assert_close(float(hierarchy_loss(y, sums, truth, 4)), want)
    assert_close(float(hierarchy_loss(truth, patch_sums(truth, 4), truth, 4)), 0.0)


def test_sums_come_back_on_the_scale_of_the_window() -> None:
    """With weights that make sums coherent before the scale is restored, they are so after."""
    model = forecaster(40, 11, 2, patch_length=4, reconcile_patches=True).double()
    assert model.patch_head is not None
    with torch.no_grad():
        summing = patch_sums(torch.eye(11, dtype=torch.float64)[None], 4)[0]
        model.patch_head.aggregate.weight.copy_(summing)
        for value in (model.patch_head.aggregate.bias, *model.patch_head.correct.parameters()):
            value.zero_()
    revised, sums = model.with_sums(window(3, 40, 2).double() * 7 + 50)
    assert sums is not None
    assert_close(sums, patch_sums(revised, 4))


def test_channels_are_reconciled_before_patches_and_the_scale_comes_last() -> None:
    both = {"reconcile_channels": True, "channel_context": 2, "reconcile_patches": True}
    model = forecaster(40, 11, 3, **both).double()
    base = forecaster(40, 11, 3, scaling="none").double()
    base.load_state_dict(model.state_dict(), strict=False)
    assert model.channel_head is not None
    assert model.patch_head is not None
    assert model.channel_head.context == 2
    past, future = window(2, 40, 3).double(), window(2, 11, 3).double()
    mean, deviation = past.mean(1, keepdim=True), past.var(1, keepdim=True, correction=0)
    deviation = (deviation + 1e-5).sqrt()
    revised, sums = model.patch_head(model.channel_head(forecast(base, (past - mean) / deviation)))
    got, got_sums = model.with_sums(past)
    assert_close(got, revised * deviation + mean)
    assert_close(forecast(model, past), got)
    assert got_sums is not None
    none = past[..., :0]
    assert_close(
        model.training_loss(past, none, none, future), hierarchy_loss(got, got_sums, future, 8)
    )
    assert sums.shape == got_sums.shape == (2, 2, 3)


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lookback": 0}, "lookback is 0"),
        ({"channels": 0}, "channels is 0"),
        ({"stride": 8}, "stride is 8 and patch_length 16"),
        ({"lookback": 31}, "lookback 31 gives one patch"),
        ({"mask_ratio": 1.0}, "mask_ratio is 1.0"),
        ({"mask_ratio": 0.0}, "mask_ratio is 0.0"),
        ({"scaling": "max"}, "scaling is 'max'"),
    ],
)
def test_pretraining_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchTSMixerPretraining(**{"lookback": 96, "channels": 3, **options})
