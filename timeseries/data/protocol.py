"""What an experiment on series fixes in writing: look-back, horizon, split borders, scale."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from core.jobs.errors import DataError, UsageError
from timeseries.data import calendar
from timeseries.data.repairs import say_once
from timeseries.data.series import Series

Border = int | float | str


@dataclass
class Protocol:
    """How series are cut and scaled.

    Args:
        lookback: steps that a forecast sees.
        horizon: steps that it gives.
        train_end: where training ends: a share of each series, a number of rows, or the first
            stamp that is no longer part of it, in UTC unless it has an offset, or without one by
            the clock that ``policies.offsets`` keeps (``stamp 1200`` where stamps are numbers). A
            forecast belongs to the split that holds all of its horizon; its look-back may reach
            into the split before. A stamp is the same for all series; shares and rows of series
            that begin or end at different times are not, so that some are trained on what others
            are tested on: a warning says so.
        val_end: the same for validation.
        test_end: the same for the test; null is the end.
        stride: steps between the origins of training windows. Validation takes every origin, the
            last one too.
        test_stride: steps between the origins of the test. 1 takes every one; more samples them,
            for models that fit each window anew. One that divides a season sees but a part of it.
        scale: ``standard`` subtracts each channel's mean over its training span and divides by its
            standard deviation there.
        season: steps after which the series are alike, for seasonal naive, MASE and the models that
            know of one; null takes a day of what is finer, a week of days, a year of what is
            longer. 5 for business days, 168 for hours that follow the week.
    """

    lookback: int = 96
    horizon: int = 96
    train_end: Border = 0.7
    val_end: Border = 0.8
    test_end: Border | None = None
    stride: int = 1
    test_stride: int = 1
    scale: Literal["standard", "none"] = "standard"
    season: int | None = None

    def check(self) -> None:
        """Raises UsageError for sizes below 1. Not on construction, where the command line's
        parser would hide the error behind its own."""
        for name in ("lookback", "horizon", "stride", "test_stride"):
            if getattr(self, name) < 1:
                raise UsageError(f"data.protocol.{name} is {getattr(self, name)}; it must be >= 1")
        _check_season("protocol", self.season)

    def spans(self, series: Series) -> dict[str, tuple[int, int]]:
        """Rows [start, end) of train, val and test. Raises UsageError for borders out of order and
        sizes below 1."""
        self.check()
        return _spans(series, "protocol", self.train_end, self.val_end, self.test_end)

    def trains(self, series: Series) -> bool:
        """Whether one window has room before training ends, where that is a stamp."""
        if not isinstance(self.train_end, str):
            return True
        return _row(series, self.train_end) >= self.lookback + self.horizon

    def origins(self, series: Series, split: str) -> range:
        """Rows at which a forecast begins whose horizon lies within the span of ``split``, as far
        apart as its stride says."""
        start, end = self.spans(series)[split]
        stride = {"train": self.stride, "test": self.test_stride}.get(split, 1)
        return range(max(start, self.lookback), end - self.horizon + 1, stride)


class Tile(NamedTuple):
    """A window of rows from ``start`` on, of which rows [first, end) are its own."""

    start: int
    first: int
    end: int


@dataclass
class Tiling:
    """How series are cut into windows that look at both sides of what they fill in.

    All of a window lies within one split. Where windows overlap, each stamp belongs to the one
    whose middle is nearer, so that every stamp is decided once. A span shorter than a window is one
    window with nothing behind its end.

    Args:
        length: steps of a window.
        overlap: steps that a window shares with the next one, in validation, test and prediction.
        stride: steps between the beginnings of training windows.
        train_end: where training ends, as in ``Protocol``: a share, rows or a stamp.
        val_end: the same for validation.
        test_end: the same for the test; null is the end.
        scale: as in ``Protocol``.
        season: as in ``Protocol``.
    """

    length: int = 168
    overlap: int = 84
    stride: int = 24
    train_end: Border = 0.7
    val_end: Border = 0.8
    test_end: Border | None = None
    scale: Literal["standard", "none"] = "standard"
    season: int | None = None

    def check(self) -> None:
        """Raises UsageError for sizes that do not go together."""
        for name in ("length", "stride"):
            if getattr(self, name) < 1:
                raise UsageError(f"data.tiling.{name} is {getattr(self, name)}; it must be >= 1")
        _check_season("tiling", self.season)
        if not 0 <= self.overlap < self.length:
            raise UsageError(
                f"data.tiling.overlap is {self.overlap}; give at least 0 and less than the length "
                f"of {self.length}"
            )

    def spans(self, series: Series) -> dict[str, tuple[int, int]]:
        """Rows [start, end) of train, val and test. Raises UsageError for borders out of order and
        sizes that do not go together."""
        self.check()
        return _spans(series, "tiling", self.train_end, self.val_end, self.test_end)

    def tiles(self, span: tuple[int, int], stride: int | None = None) -> list[Tile]:
        """Windows whose own rows are those of ``span`` [start, end), each once. ``stride`` steps
        lie between their beginnings, by default the length less the overlap; fewer before the last
        one, which ends with the span."""
        start, end = span
        if end <= start:
            return []
        last = max(start, end - self.length)
        begins = [*range(start, last, stride or self.length - self.overlap), last]
        # the middle of what two neighbours share
        borders = [(b + a + self.length) // 2 for a, b in itertools.pairwise(begins)]
        return [Tile(*of) for of in zip(begins, [start, *borders], [*borders, end], strict=True)]


def season_of(protocol: Protocol | Tiling, frequency: str | None) -> int:
    return calendar.season(frequency) if protocol.season is None else protocol.season


def _check_season(section: str, season: int | None) -> None:
    if season is not None and season < 1:
        raise UsageError(
            f"data.{section}.season is {season}; give a number of steps, or null for the "
            "frequency's own"
        )


def _spans(series: Series, section: str, *borders: Border | None) -> dict[str, tuple[int, int]]:
    ends = [_row(series, border) for border in borders]
    if not 0 < ends[0] <= ends[1] <= ends[2] <= len(series):
        raise UsageError(
            f"series {series.name!r} has {len(series)} rows; the borders of data.{section} are "
            f"rows {ends[0]}, {ends[1]}, {ends[2]}, and must rise and lie within it"
        )
    return {"train": (0, ends[0]), "val": (ends[0], ends[1]), "test": (ends[1], ends[2])}


def _row(series: Series, border: Border | None) -> int:
    if border is None:
        return len(series)
    if isinstance(border, str):
        return int(np.searchsorted(series.stamps, _stamp(border, series.frequency)))
    if isinstance(border, float):
        if not 0 < border <= 1:
            raise UsageError(f"border {border} is no share; give 0 to 1, or a whole number of rows")
        return int(len(series) * border)
    return border


def _stamp(border: str, frequency: str | None) -> np.datetime64 | int:
    if frequency is None:
        number = re.fullmatch(r"stamp (-?\d+)", border)
        if number is None:
            raise UsageError(
                f"border {border!r} is a stamp, but the rows have none; give a number of rows, or "
                "one of a numbered stamp such as 'stamp 1200'"
            )
        return int(number[1])
    try:
        return calendar.stamp(border)
    except ValueError as error:
        raise UsageError(f"border {border!r} is no stamp such as 2024-01-31") from error


def warn_of_borders_apart(
    series: Sequence[Series], protocol: Protocol | Tiling, where: object
) -> None:
    """A warning if training ends at different times for series with dates."""
    border = protocol.train_end
    if isinstance(border, str) or series[0].frequency is None:
        return
    ends = [(one.stamps[protocol.spans(one)["train"][1] - 1].item(), one.name) for one in series]
    first, last = min(ends), max(ends)
    if first[0] < last[0]:
        section = "tiling" if isinstance(protocol, Tiling) else "protocol"
        say_once(
            f"{where}: data.{section}.train_end {border} is {first[0]} in series {first[1]!r} and "
            f"{last[0]} in {last[1]!r}: some are trained on the time that others are tested on; "
            "give stamps as borders to part them by time"
        )


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
    return _left(series, short, what, skip)


def check_training(
    series: Sequence[Series], protocol: Protocol, where: object, skip: bool
) -> list[Series]:
    """Where training ends at a stamp, the series with room for one window before it; otherwise as
    `check_length`, which has seen them before."""
    short = [one for one in series if not protocol.trains(one)]
    if not short:
        return list(series)
    what = (
        f"{where}: {len(short)} of {len(series)} series have less than look-back + horizon = "
        f"{protocol.lookback + protocol.horizon} rows before training ends ({protocol.train_end}), "
        f"first {short[0].name!r}, which begins at {short[0].stamps[0]}"
    )
    return _left(series, short, what, skip)


def _left(series: Sequence[Series], short: Sequence[Series], what: str, skip: bool) -> list[Series]:
    if not skip or len(short) == len(series):
        raise DataError(f"{what}; shorten data.protocol, or set data.policies.short to skip")
    say_once(f"{what}; they are skipped")
    gone = {one.name for one in short}
    return [one for one in series if one.name not in gone]
