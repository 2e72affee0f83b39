"""Learned long convolutions against torch's convolution and NumPy, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from core.jobs.optim import adamw
from core.mixers import LongConv
from core.sequences import Sequences

DIM = 4


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def build(causal: bool = True, **options: Any) -> LongConv:
    torch.manual_seed(0)
    return LongConv(DIM, causal, **options).double().eval()


def regularised(taps: Tensor, squash: float, smooth: int) -> Tensor:
    """The paper's Smooth and Squash, a tap at a time."""
    out = np.zeros(taps.shape)
    for index, row in zip(np.ndindex(*taps.shape[:2]), taps.detach().flatten(0, 1), strict=True):
        averaged = np.convolve(row.numpy(), np.full(smooth, 1 / smooth), mode="full")
        middle = averaged[smooth // 2 : smooth // 2 + len(row)]
        out[index] = [math.copysign(max(abs(k) - squash, 0), k) for k in middle]
    return torch.from_numpy(out)


def convolved(x: Tensor, taps: Tensor, skip: Tensor) -> Tensor:
    """K * x + D x by conv1d over lags -(L - 1) .. L - 1, for x (batch, length, dim)."""
    length = x.shape[1]
    lags = torch.zeros(DIM, 2 * length - 1, dtype=x.dtype)  # conv1d correlates: lag 0 in the middle
    lags[:, :length] += taps[0, :, :length].flip(-1)
    if len(taps) == 2:
        lags[:, length - 1 :] += taps[1, :, :length]
    lags[:, length - 1] += skip
    both = F.pad(x.transpose(1, 2), (length - 1, length - 1))
    return F.conv1d(both, lags[:, None], groups=DIM).transpose(1, 2)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("squash", "smooth"), [(0.0, 1), (0.004, 1), (0.0, 5), (0.004, 7)])
@pytest.mark.parametrize("length", [1, 3, 24])
def test_forward_is_the_regularised_convolution(
    causal: bool, squash: float, smooth: int, length: int
) -> None:
    mixer = build(causal, max_length=24, squash=squash, smooth=smooth)
    x = noise(2, length, DIM)
    taps = regularised(mixer.filter.taps, squash, smooth)
    assert (taps == 0).any() == (squash > 0)
    y = convolved(x, taps, mixer.D.detach())
    torch.testing.assert_close(mixer.convolve(x), y, rtol=1e-10, atol=1e-12)
    value, gate = (F.gelu(y) @ mixer.out_proj.weight.T + mixer.out_proj.bias).chunk(2, -1)
    torch.testing.assert_close(mixer(x), value * gate.sigmoid(), rtol=1e-10, atol=1e-12)


def test_squashed_taps_get_no_gradient_and_neighbours_share_it() -> None:
    mixer = build(max_length=6, squash=0.5, smooth=3)
    with torch.no_grad():
        mixer.filter.taps.zero_()
        mixer.filter.taps[..., 4:] = 3.0  # averages 0, 0, 0, 1, 2, 2
    mixer.filter(6).sum().backward()
    grad = mixer.filter.taps.grad
    assert grad is not None
    third = torch.tensor([0, 0, 1, 2, 3, 2], dtype=torch.float64) / 3
    torch.testing.assert_close(grad, third.expand_as(grad))


def test_initial_taps_are_those_of_the_authors_code() -> None:
    torch.manual_seed(3)
    noise = torch.randn(8, 10)
    for kind in ("geometric", "random"):
        torch.manual_seed(3)
        taps = LongConv(8, max_length=10, initialisation=kind).filter.taps[0]  # type: ignore[arg-type]
        for c in range(8):
            for t in range(10):
                decay = 0.02 * math.exp(-(t / 10) * 4 ** (c / 8))
                scale = decay if kind == "geometric" else 0.002
                assert taps[c, t].item() == pytest.approx(scale * noise[c, t].item(), rel=1e-5)


def test_kernel_dropout_drops_taps_in_training_alone() -> None:
    mixer = LongConv(32, max_length=500, squash=0.0, kernel_dropout=0.25)
    taps = mixer.filter.taps[..., :400]
    torch.manual_seed(1)
    kept = mixer.filter(400)
    assert (kept == 0).double().mean().item() == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(kept[kept != 0], taps[kept != 0] / 0.75)
    torch.testing.assert_close(mixer.eval().filter(400), taps, rtol=0, atol=0)


def test_documents_count_for_max_length_not_their_row() -> None:
    mixer = build(max_length=6)
    x = noise(1, 14, DIM)
    packed = mixer(x, sequences=Sequences.packed([[6, 5, 3]], 14))
    torch.testing.assert_close(packed[:, 6:11], mixer(x[:, 6:11]))
    with pytest.raises(ValueError, match="LongConv: 7 tokens, but its filters have max_length=6;"):
        mixer(x, sequences=Sequences.packed([[7, 7]], 14))
    with pytest.raises(ValueError, match="cut the sequence"):
        mixer(x)


def test_taps_are_not_decayed() -> None:
    mixer = LongConv(DIM, max_length=8)
    optimizer = adamw(mixer, lr=1e-3, weight_decay=0.1, warmup=0.0, steps=10)["optimizer"]
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(mixer.out_proj.weight)}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_length": 0}, "max_length must be an integer of at least 1, got 0"),
        ({"squash": -0.1}, "squash must be at least 0"),
        ({"squash": float("nan")}, "squash must be at least 0"),
        ({"squash": float("inf")}, "squash must be at least 0 and finite, got inf"),
        ({"smooth": 4}, "smooth must be an odd window, got 4"),
        ({"smooth": -1}, "smooth must be an integer of at least 1, got -1"),
        ({"kernel_dropout": 1.5}, "kernel_dropout must lie in \\[0, 1\\), got 1.5"),
        ({"initialisation": "hippo"}, "one of geometric, random, got 'hippo'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        LongConv(DIM, **options)
