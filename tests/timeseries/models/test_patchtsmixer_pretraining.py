"""Masked pretraining of PatchTSMixer against transformers' on the same random weights and masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from patchtsmixer_cases import ATOL, SMALL, forecast, published, under_our_names, window
from torch import Tensor
from torch.testing import assert_close
from transformers import PatchTSMixerForPretraining

from timeseries.models.patches import patches
from timeseries.models.patchtsmixer import (
    PatchTSMixer,
    PatchTSMixerPretraining,
    Reconstruction,
    masked_loss,
)

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
