"""Frequencies of stamps: their grids, and calendar features."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import numpy as np
import polars as pl
from numpy.typing import NDArray

from core.jobs.errors import UsageError

_PIECE = 1 << 20  # stamps at a time: a series may be long
_SECOND = 1_000_000
_DAY = 86_400 * _SECOND
_MICROSECONDS = {
    **{"w": 7 * _DAY, "d": _DAY, "h": 3600 * _SECOND, "m": 60 * _SECOND},
    **{"s": _SECOND, "ms": 1000, "us": 1},
}
_MONTHS = {"mo": 1, "me": 1, "q": 3, "y": 12}


def split_frequency(frequency: str) -> tuple[int, str]:
    """``15m`` as (15, "m"). Units are those of polars, and ``me`` for the last days of months.

    Raises UsageError for another text.
    """
    found = re.fullmatch(r"(\d+)([a-z]+)", frequency)
    if found is None or found[2] not in {**_MICROSECONDS, **_MONTHS} or int(found[1]) < 1:
        raise UsageError(f"frequency {frequency!r}: give one such as 10m, 1h, 1d, 1w or 1mo")
    return int(found[1]), found[2]


def normal(frequency: str) -> str:
    """The one way in which a step is written here: ``24h`` is ``1d``, ``1w`` is ``7d``, ``1q`` is
    ``3mo``. Raises UsageError for what is no step."""
    count, unit = split_frequency(frequency)
    if unit in _MONTHS:
        return f"{count * _MONTHS[unit]}{'me' if unit == 'me' else 'mo'}"
    return _written(count * _MICROSECONDS[unit])


def _written(step: int) -> str:
    for unit, size in _MICROSECONDS.items():
        if step % size == 0 and unit != "w":
            return f"{step // size}{unit}"
    raise AssertionError("every step is so many microseconds")


def infer_frequency(stamps: NDArray) -> str:
    """The most common step of two or more rising stamps, datetime64[us]: ``10m``, ``1h``, ``7d``;
    ``1mo`` where every stamp is of the same day of the month, ``1me`` where each is of its month's
    last. The shortest step of several as common."""
    step = most_common(np.diff(stamps).view(np.int64))
    if step < 28 * _DAY:
        return _written(step)
    months = stamps.astype("datetime64[M]")
    days, last = _days(stamps), _lengths(months) - 1
    steps = np.diff(months).astype(np.int64)
    if days.max() > 27 and (days == last).all():
        return f"{most_common(steps)}me"
    return f"{most_common(steps)}mo" if (days == days[0]).all() else _written(step)


def most_common(steps: NDArray[np.int64]) -> int:
    """The smallest of several as common."""
    if (steps == steps[0]).all():
        return int(steps[0])
    values, counts = np.unique(steps, return_counts=True)
    return int(values[counts.argmax()])


def _days(stamps: NDArray) -> NDArray[np.int64]:
    """Day of the month, from 0."""
    first = stamps.astype("datetime64[M]").astype("datetime64[D]")
    return (stamps.astype("datetime64[D]") - first).astype(np.int64)


def _lengths(months: NDArray) -> NDArray[np.int64]:
    """Days of each month."""
    first, following = months.astype("datetime64[D]"), (months + 1).astype("datetime64[D]")
    return (following - first).astype(np.int64)


def grid(stamp: np.datetime64, frequency: str, start: int, stop: int) -> NDArray:
    """Stamps ``stamp`` + k steps for k in [start, stop), datetime64[us]. A month too short for the
    stamp's day has its last day instead."""
    count, unit = split_frequency(frequency)
    k = np.arange(start, stop)
    if unit not in _MONTHS:
        step = np.timedelta64(count * _MICROSECONDS[unit], "us")
        return stamp.astype("datetime64[us]") + step * k
    first = np.array([stamp], "datetime64[us]")
    months = first.astype("datetime64[M]") + count * _MONTHS[unit] * k
    last = _lengths(months) - 1
    days = last if unit == "me" else np.minimum(_days(first), last)
    clock = first - first.astype("datetime64[D]")
    return months.astype("datetime64[us]") + days * np.timedelta64(_DAY, "us") + clock


def places(stamps: NDArray, frequency: str) -> NDArray[np.int64]:
    """Number of each stamp on the grid that begins at the first; -1 for one that is not on it."""
    count, unit = split_frequency(frequency)
    if unit not in _MONTHS:
        place = (stamps - stamps[0]).view(np.int64)
        for start in range(0, len(place), _PIECE):
            piece = place[start : start + _PIECE]
            whole, rest = np.divmod(piece, count * _MICROSECONDS[unit])
            piece[:] = np.where(rest == 0, whole, -1)
        return place
    months = stamps.astype("datetime64[M]").astype(np.int64)
    place = (months - months[0]) // (count * _MONTHS[unit])
    on = grid(stamps[0], frequency, 0, int(place[-1]) + 1)[place] == stamps
    return np.where(on, place, -1)


def nearest(stamps: NDArray, frequency: str | None) -> NDArray:
    """``stamps`` moved to the nearest multiple of a step, counted from midnight; the later of two
    as near. Raises UsageError for a step that does not divide a day."""
    count, unit = split_frequency(frequency or "1y")
    step = count * _MICROSECONDS.get(unit, 2 * _DAY)
    if _DAY % step:
        raise UsageError(
            "data.policies.irregular: nearest needs data.frequency, a step that divides a day such "
            f"as 15m; it is {frequency or 'not given'}"
        )
    whole = (stamps.astype("datetime64[us]").astype(np.int64) + step // 2) // step
    return (whole * step).astype("datetime64[us]")


def stamp(text: str) -> np.datetime64:
    """An ISO 8601 text as datetime64[us]; with an offset, in UTC. Raises ValueError for another."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC).replace(tzinfo=None)
    return np.datetime64(moment, "us")


def names(frequency: str | None) -> list[str]:
    """The features that vary at a frequency: none for numbered rows."""
    if frequency is None:
        return []
    count, unit = split_frequency(frequency)
    if unit in _MONTHS:
        return ["month"] if count * _MONTHS[unit] % 12 else []
    step = count * _MICROSECONDS[unit]
    minute, hour = 60 * _SECOND, 3600 * _SECOND
    cycles = {"second": minute, "minute": hour, "hour": _DAY, "day_of_week": 7 * _DAY}
    varying = [name for name, cycle in cycles.items() if step % cycle]
    return [*varying, "day_of_month", "day_of_year"]


def features(stamps: NDArray, frequency: str | None) -> NDArray[np.float32]:
    """(time, features), each scaled to [-0.5, 0.5]: the hour 0 is -0.5 and the hour 23 is 0.5."""
    wanted = names(frequency)
    columns = np.empty((len(stamps), len(wanted)), np.float32)
    if not wanted:
        return columns
    time = pl.Series(stamps.astype("datetime64[us]")).dt
    all_features = {
        "second": lambda: time.second() / 59,
        "minute": lambda: time.minute() / 59,
        "hour": lambda: time.hour() / 23,
        "day_of_week": lambda: (time.weekday() - 1) / 6,
        "day_of_month": lambda: (time.day() - 1) / 30,
        "day_of_year": lambda: (time.ordinal_day() - 1) / 365,
        "month": lambda: (time.month() - 1) / 11,
    }
    for i, name in enumerate(wanted):
        columns[:, i] = all_features[name]().to_numpy() - 0.5
    return columns


def season(frequency: str | None) -> int:
    """Steps of the most natural season: a day, a week of days, a year of weeks or months."""
    if frequency is None:
        return 1
    count, unit = split_frequency(frequency)
    if unit in _MONTHS:
        return max(1, 12 // (count * _MONTHS[unit]))
    step = count * _MICROSECONDS[unit]
    cycle = _DAY if step < _DAY else 7 * _DAY if step < 7 * _DAY else 52 * 7 * _DAY
    return max(1, round(cycle / step))
