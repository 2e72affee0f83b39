"""Columns of a table as stamps, numbers and static values; rows that cannot be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from core.jobs.errors import DataError
from timeseries.data.covariates import Value

_DATES = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
WHOLE = r"^-?\d+$"
OFFSET = r"\s*(Z|[+-]\d\d:?\d\d)$"
_AWAY = r":\d\d.*[+-]\d\d:?\d\d\s*$"
_ZERO = r"[+-]00:?00\s*$"
_INFINITE = "is infinite; correct it, or leave the cell empty"
_NO_NUMBER = ["", "nan", "na", "?"]


class RowError(DataError):
    """Rows that break a rule: ``row`` is the first in the file, ``count`` how many there are."""

    def __init__(self, path: Path, row: int, text: str, count: int) -> None:
        more = f" ({count} such rows)" if count > 1 else ""
        super().__init__(f"{path} row {row}: {text}{more}")
        self.path, self.row, self.text, self.count = path, row, text, count


def refuse(
    path: Path, number: NDArray[np.int64], bad: NDArray[np.bool_], say: Callable[[int], str]
) -> None:
    """RowError if there are ``bad`` rows."""
    places = np.flatnonzero(bad)
    if not len(places):
        return
    first = int(places[number[places].argmin()])
    raise RowError(path, int(number[first]), say(first), len(places))


def stamps_of(
    column: pl.Series, path: Path, whole: bool | None = None, local: bool = False
) -> pl.Series:
    """Int64, or Datetime("us") in UTC, or by the clock of the place for ``local``; none is missing.
    ``whole`` says whether a column of text, of which this is a part, holds numbers alone."""
    number = np.arange(1, len(column) + 1)
    stamps = column
    if column.dtype == pl.String:
        text = column.str.strip_chars()
        whole = bool(text.str.contains(WHOLE).all()) if whole is None else whole
        stamps = text if whole else _dates(text, path, local)
    elif not (column.dtype == pl.Date or column.dtype == pl.Datetime or column.dtype.is_integer()):
        raise DataError(f"{path}: column {column.name!r} holds {column.dtype}, not stamps")
    if isinstance(stamps.dtype, pl.Datetime) and stamps.dtype.time_zone is not None:
        stamps = stamps if local else stamps.dt.convert_time_zone("UTC")
        stamps = stamps.dt.replace_time_zone(None)
    dated = stamps.dtype == pl.Date or stamps.dtype == pl.Datetime
    stamps = stamps.cast(pl.Datetime("us") if dated else pl.Int64, strict=False)
    what = "is not a stamp such as 2024-01-31 13:00:00"
    refuse(
        path,
        number,
        stamps.is_null().to_numpy(),
        lambda i: f"{column.name} {column[i]!r} {what}" if column[i] else f"has no {column.name}",
    )
    return stamps


def offsets_of(column: pl.Series) -> NDArray[np.bool_]:
    """Stamps with an offset from UTC other than 0: what ``stamps_of`` turns into UTC."""
    if isinstance(column.dtype, pl.Datetime):
        return np.full(len(column), column.dtype.time_zone not in (None, "UTC", "Etc/UTC", "GMT"))
    if column.dtype != pl.String:
        return np.zeros(len(column), bool)
    away = column.str.contains(_AWAY) & ~column.str.contains(_ZERO)
    return away.fill_null(False).to_numpy()


def _dates(text: pl.Series, path: Path, local_clock: bool) -> pl.Series:
    """Null where there is none: a year that does not come first could be a day."""
    dates = text.set(~text.str.contains(r"^\d{4}[-/]"), None)
    dates = dates.str.replace_all("/", "-", literal=True).str.replace("T", " ", literal=True)
    local = _first_format(dates, _DATES)
    if not local.null_count():
        return local
    zoned = _first_format(dates, [f"{date}%#z" for date in _DATES[:2]])
    without, with_offset = local.is_not_null().to_numpy(), zoned.is_not_null().to_numpy()
    if not without.any():
        if local_clock:  # of what was read with its offset
            dates = dates.set(zoned.is_null(), None).str.replace(OFFSET, "")
            return _first_format(dates, _DATES[:2])
        return zoned
    if with_offset.any():
        later, has = with_offset, "an"
        if without.argmax() > with_offset.argmax():
            later, has = without, "no"
        what = f"has {has} offset from UTC, unlike the rows before"
        number = np.arange(1, len(text) + 1)
        refuse(path, number, later, lambda i: f"{text.name} {text[i]!r} {what}")
    return local


def _first_format(text: pl.Series, formats: Sequence[str]) -> pl.Series:
    found = text.str.to_datetime(formats[0], time_unit="us", strict=False)
    for other in formats[1:]:
        if not found.null_count():
            break
        parsed = text.str.to_datetime(other, time_unit="us", strict=False)
        found = found.zip_with(found.is_not_null(), parsed)
    return found


def numbers_of(column: pl.Series, path: Path) -> NDArray[np.float64]:
    """Not a number where there is no value."""
    number = np.arange(1, len(column) + 1)
    if not (column.dtype.is_numeric() or column.dtype in (pl.String, pl.Boolean, pl.Null)):
        raise DataError(f"{path}: column {column.name!r} holds {column.dtype}, not numbers")
    raw = column.str.strip_chars() if column.dtype == pl.String else column
    values = raw.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()
    missing = np.isnan(values)
    if column.dtype == pl.String and missing.any():
        unread = ~raw.str.to_lowercase().is_in(_NO_NUMBER).fill_null(True).to_numpy()
        what = "is not a number; correct it, or leave the cell empty"
        refuse(path, number, missing & unread, lambda i: f"{column.name} {column[i]!r} {what}")
    refuse(path, number, np.isinf(values), lambda _: f"{column.name} {_INFINITE}")
    return values


def check_static(
    column: pl.Series,
    path: Path,
    names: list[str],
    which: NDArray[np.int64],
    usual: dict[int, str],
) -> None:
    """Put into ``usual`` what each series has. Raises RowError for rows with nothing, or another
    value than the rows of their series before."""
    number = np.arange(1, len(column) + 1)
    if column.dtype == pl.Boolean:
        column = column.cast(pl.Float64)
    text = column.cast(pl.String).str.strip_chars()
    empty = (text.is_null() | (text == "")).to_numpy()
    refuse(path, number, empty, lambda _: f"has no {column.name}")
    values = text.to_numpy()
    present, first, back = np.unique(which, return_index=True, return_inverse=True)
    for one, value in zip(present.tolist(), values[first], strict=True):
        usual.setdefault(one, value)
    expected = np.array([usual[one] for one in present.tolist()], object)[back]
    what = "name it in data.known or data.observed"
    refuse(
        path,
        number,
        values != expected,
        lambda i: (
            f"{names[which[i]]!r}: static {column.name} is {values[i]!r}, before it was "
            f"{expected[i]!r}; {what}"
        ),
    )


def static_values(usual: Sequence[dict[int, str]], names: Sequence[str]) -> list[tuple[Value, ...]]:
    """The values of each of the series ``names``: numbers where a whole column is, else text."""
    found: list[list[Value]] = []
    for of in usual:
        text = pl.Series([of[i] for i in range(len(names))], dtype=pl.String)
        numbers = text.cast(pl.Float64, strict=False)
        finite = numbers.is_finite().fill_null(False).all()
        found.append((numbers if finite else text).to_list())
    return list(zip(*found, strict=True)) if found else [() for _ in names]
