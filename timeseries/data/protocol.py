"""What an experiment on series fixes in writing: look-back, horizon, split borders, scale."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from core.jobs.errors import DataError, UsageError
from timeseries.data import calendar
from timeseries.data.series import Series

Border = int | float | str


@dataclass
class Protocol:
    """How series are cut and scaled.

    Args:
        lookback: steps that a forecast sees.
        horizon: steps that it gives.
        train_end: where training ends: a share of each series, a number of rows, or the first
            stamp that is no longer part of it, in UTC unless it has an offset. A forecast belongs
            to the split that holds all of its horizon; its look-back may reach into the split
            before.
        val_end: the same for validation.
        test_end: the same for the test; null is the end.
        stride: steps between the origins of training windows. Validation takes every origin, the
            last one too.
        test_stride: steps between the origins of the test. 1 takes every one; more samples them,
            for models that fit each window anew. One that divides a season sees but a part of it.
        scale: ``standard`` subtracts each channel's mean over its training span and divides by its
            standard deviation there.
    """

    lookback: int = 96
    horizon: int = 96
    train_end: Border = 0.7
    val_end: Border = 0.8
    test_end: Border | None = None
    stride: int = 1
    test_stride: int = 1
    scale: Literal["standard", "none"] = "standard"

    def check(self) -> None:
        """Raises UsageError for sizes below 1. Not on construction, where the command line's
        parser would hide the error behind its own."""
        for name in ("lookback", "horizon", "stride", "test_stride"):
            if getattr(self, name) < 1:
                raise UsageError(f"data.protocol.{name} is {getattr(self, name)}; it must be >= 1")

    def spans(self, series: Series) -> dict[str, tuple[int, int]]:
        """Rows [start, end) of train, val and test. Raises UsageError for borders out of order and
        sizes below 1."""
        self.check()
        ends = [_row(series, border) for border in (self.train_end, self.val_end, self.test_end)]
        if not 0 < ends[0] <= ends[1] <= ends[2] <= len(series):
            raise UsageError(
                f"series {series.name!r} has {len(series)} rows; the borders of data.protocol are "
                f"rows {ends[0]}, {ends[1]}, {ends[2]}, and must rise and lie within it"
            )
        return {"train": (0, ends[0]), "val": (ends[0], ends[1]), "test": (ends[1], ends[2])}

    def origins(self, span: tuple[int, int], stride: int = 1) -> range:
        """Rows at which a forecast begins whose horizon lies within ``span``."""
        start, end = span
        return range(max(start, self.lookback), end - self.horizon + 1, stride)


def _row(series: Series, border: Border | None) -> int:
    if border is None:
        return len(series)
    if isinstance(border, str):
        if series.frequency is None:
            raise UsageError(f"border {border!r} is a stamp, but the rows have none; give a number")
        try:
            stamp = calendar.stamp(border)
        except ValueError as error:
            raise UsageError(f"border {border!r} is no stamp such as 2024-01-31") from error
        return int(np.searchsorted(series.stamps, stamp))
    if isinstance(border, float):
        if not 0 < border <= 1:
            raise UsageError(f"border {border} is no share; give 0 to 1, or a whole number of rows")
        return int(len(series) * border)
    return border


def check_length(
    series: Sequence[Series], protocol: Protocol, where: object, skip: bool, ahead: bool = True
) -> list[Series]:
    """Series with room for one window at least; without ``ahead``, for a look-back.

    Raises DataError that names and counts the others. If they are to be skipped it is a warning,
    unless nothing is left.
    """
    needed = protocol.lookback + (protocol.horizon if ahead else 0)
    short = [s for s in series if len(s) < needed]
    if not short:
        return list(series)
    what = (
        f"{where}: {len(short)} of {len(series)} series are shorter than look-back"
        f"{' + horizon' if ahead else ''} = {needed}, first {short[0].name!r} with {len(short[0])}"
    )
    if not skip or len(short) == len(series):
        raise DataError(f"{what}; shorten data.protocol, or set data.policies.short to skip")
    warnings.warn(f"{what}; they are skipped", stacklevel=2)
    return [s for s in series if len(s) >= needed]
