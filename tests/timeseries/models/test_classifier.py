"""MixerClassifier: padding, pooling, sizes."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from core.backbone import Backbone, GatedMLP
from core.mixers import Mamba2
from core.sequences import Sequences
from timeseries.models import MixerClassifier


def build() -> MixerClassifier:
    torch.manual_seed(0)
    mamba2 = partial(Mamba2, state=4, head_dim=4)
    backbone = Backbone(8, {"mamba2": mamba2, "mlp": GatedMLP}, "mamba2 mlp")
    return MixerClassifier(backbone, channels=3, classes=4).double().eval()


def test_padded_equals_unpadded() -> None:
    model, x = build(), torch.randn(3, 11, 3, dtype=torch.float64)
    lengths = [11, 4, 1]
    sequences = Sequences.padded(lengths, 11)
    alone = torch.cat([model(x[i : i + 1, :n]) for i, n in enumerate(lengths)])
    x[~sequences.real] = torch.nan
    torch.testing.assert_close(model(x, sequences), alone)


def test_the_mean_is_over_all_steps() -> None:
    model, x = build(), torch.randn(2, 7, 3, dtype=torch.float64)
    features = model.backbone(model.embedding(x))
    torch.testing.assert_close(model(x), model.head(features.sum(1) / 7))


def test_bad_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="classes"):
        MixerClassifier(build().backbone, channels=3)
