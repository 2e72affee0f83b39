"""Sizes that every forecaster is built with."""

from __future__ import annotations

from torch import Tensor


def check_sizes(**sizes: int) -> None:
    """Raises ValueError for a size below 1; the command line fills the data's sizes in."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")


def split_outputs(y: Tensor, outputs: int) -> Tensor:
    """(batch, channels, horizon * outputs) of a head -> (batch, horizon, channels), with a last
    axis of ``outputs`` if there are several."""
    if outputs == 1:
        return y.transpose(1, 2)
    return y.unflatten(2, (-1, outputs)).transpose(1, 2)
