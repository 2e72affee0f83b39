"""Sizes, models and inputs shared by the tests of Informer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from timeseries.models.informer import Informer

DIM, HEADS, HIDDEN, FACTOR = 12, 3, 20, 2
SMALL: dict[str, Any] = {"dim": DIM, "heads": HEADS, "feedforward": HIDDEN, "factor": FACTOR}
ATOL = 1e-5  # float32 through some layers of values around 1


def small(lookback: int, horizon: int, channels: int, features: int, **options: Any) -> Informer:
    given = {**SMALL, "dropout": 0.0, "label_length": lookback // 2, **options}
    return Informer(lookback, horizon, channels, features, **given)


def inputs(
    batch: int, lookback: int, horizon: int, channels: int, features: int
) -> tuple[Tensor, Tensor, Tensor]:
    past = torch.randn(batch, lookback, channels)
    return past, torch.rand(batch, lookback, features) - 0.5, torch.rand(batch, horizon, features)
