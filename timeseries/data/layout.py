"""Which columns of a table hold its stamps and the names of its series, where nobody says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from core.jobs.errors import DataError
from core.jobs.tables import read_table
from timeseries.data.columns import OFFSET
from timeseries.data.covariates import Covariates

AUTO = "auto"
TIMES = ("ds", "date")
SERIES = "unique_id"

_ROWS = 100  # that are looked at


def layout(
    path: Path,
    time: str | None,
    series: str | None,
    targets: Sequence[str] | None,
    covariates: Covariates,
) -> tuple[str | None, str | None]:
    """``time`` and ``series`` as ``read_series`` takes them, with ``auto`` decided by names alone:
    the stamps are in ``ds`` or ``date``, whichever there is; a table with ``unique_id`` is long,
    another wide.

    Raises DataError, which names the keys to set, for a table with both or none of the two, for a
    wide one in which a column holds text, and for a column that is not there.
    """
    table = read_table(path, (), rows=_ROWS)
    _check_named(path, table.columns, time, series, targets, covariates)
    if time == AUTO:
        time = _time(path, [c for c in table.columns if c not in covariates.names])
    if series == AUTO:
        series = SERIES if SERIES in table.columns else None
        if series is None and targets is None:
            _check_wide(path, table.drop([c for c in (time, *covariates.names) if c is not None]))
    return time, series


def has_offset(path: Path, time: str | None) -> bool:
    """Whether the stamps of a table say how far they are from UTC; the first does if any does."""
    if time is None:
        return False
    first = read_table(path, (time,), rows=1)[time]
    if first.dtype == pl.String:
        return bool(first.str.contains(OFFSET).any())
    return isinstance(first.dtype, pl.Datetime) and first.dtype.time_zone is not None


def _check_named(
    path: Path,
    columns: Sequence[str],
    time: str | None,
    series: str | None,
    targets: Sequence[str] | None,
    covariates: Covariates,
) -> None:
    given = {"time": [time], "series": [series], "targets": targets or (), **vars(covariates)}
    for key, names in given.items():
        for name in names:
            inferred = name is None or (name == AUTO and key in ("time", "series"))
            if not inferred and name not in columns:
                raise DataError(
                    f"{path}: no column {name!r}; it has {_listed(columns)}; add it, or correct "
                    f"--data.{key}"
                )


def _time(path: Path, columns: Sequence[str]) -> str:
    found = [name for name in TIMES if name in columns]
    if len(found) == 1:
        return found[0]
    which = "both a column ds and a column date" if found else "no column ds or date"
    raise DataError(
        f"{path}: has {which}, so the stamps are not known; it has {_listed(columns)}; give "
        "--data.time COLUMN, or --data.time null to number the rows"
    )


def _check_wide(path: Path, table: pl.DataFrame) -> None:
    """Raises DataError for a column of which no value that is looked at is a number."""
    for column in table:
        if not _numbers(column):
            raise DataError(
                f"{path}: column {column.name!r} holds no numbers; if it names the series of a "
                f"row, give --data.series {column.name}, else name the channels with --data.targets"
            )


def _numbers(column: pl.Series) -> bool:
    if column.dtype != pl.String:
        return column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null)
    text = column.str.strip_chars()
    text = text.filter(text != "")
    return text.is_empty() or text.cast(pl.Float64, strict=False).is_not_null().any()


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(columns[:8]) + (", ..." if len(columns) > 8 else "")
