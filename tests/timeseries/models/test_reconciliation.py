"""Reconciliation heads and their loss against definitions written out in float64."""

from __future__ import annotations

import pytest
import torch
from patchtsmixer_cases import forecast, forecaster, window
from torch.testing import assert_close

from timeseries.models.reconciliation import (
    ChannelReconciliation,
    PatchReconciliation,
    hierarchy_loss,
    patch_sums,
)


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
