"""Imputations that anything learned must beat, from the same window."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from timeseries.models.interpolation import linear, neighbours, previous

BASELINES = ("linear", "previous", "seasonal_naive", "seasonal_mean")


def baseline_fills(values: Tensor, seen: Tensor, season: int) -> dict[str, Tensor]:
    """(batch, time, channels) by baseline.

    ``linear`` interpolation; the ``previous`` value seen; ``seasonal_naive``, the value seen the
    fewest seasons away, the earlier of two; ``seasonal_mean``, the mean of those seen whole seasons
    away. The last two are the linear interpolation where there is none.
    """
    line = linear(values, seen)
    time, end = values.shape[1], -values.shape[1] % season

    def by_phase(x: Tensor) -> Tensor:
        """(batch * season, cycles, channels)"""
        cycles = F.pad(x, (0, 0, 0, end)).unflatten(1, (-1, season))
        return cycles.transpose(1, 2).flatten(0, 1)

    def in_time(x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, season)).transpose(1, 2).flatten(1, 2)[:, :time]

    rows, marks = by_phase(values), by_phase(seen)
    before, after = neighbours(marks)
    cycles = marks.shape[1]
    cycle = torch.arange(cycles, device=values.device)[None, :, None]
    earlier = (before >= 0) & ((after == cycles) | (cycle - before <= after - cycle))
    at = torch.where(earlier, before, after.clamp(max=cycles - 1))
    count = marks.sum(1, keepdim=True)
    mean = torch.where(marks, rows, 0).sum(1, keepdim=True) / count.clamp(min=1)
    some = in_time((count > 0).expand_as(rows))
    return {
        "linear": line,
        "previous": previous(values, seen),
        "seasonal_naive": torch.where(some, in_time(rows.gather(1, at)), line),
        "seasonal_mean": torch.where(some, in_time(mean.expand_as(rows)), line),
    }
