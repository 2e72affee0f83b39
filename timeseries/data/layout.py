"""Which column of a table is what, and how that is decided where nobody says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from core.jobs.errors import DataError, UsageError
from core.jobs.tables import read_table
from timeseries.data.columns import OFFSET
from timeseries.data.covariates import Covariates

AUTO = "auto"
TIMES = ("ds", "date")
SERIES = "unique_id"

_ROWS = 100  # that are looked at


@dataclass(frozen=True)
class Roles:
    """What the columns of a table are.

    Long: column ``series`` names the series of a row, ``targets`` its values (``y`` by default).
    Wide: with ``series`` None the table is one series of many channels: ``targets``, or all columns
    but ``time`` and the covariates. With ``time`` None the rows of a series are numbered from 1.
    """

    time: str | None = "ds"
    series: str | None = "unique_id"
    targets: Sequence[str] | None = None
    covariates: Covariates = field(default_factory=Covariates)

    @property
    def named(self) -> list[str]:
        columns = [self.time, self.series, *(self.targets or ()), *self.covariates.names]
        return [column for column in columns if column is not None]

    @property
    def numbers(self) -> list[str]:
        """Of each row: targets, then the covariates that change."""
        return [*(self.targets or ()), *self.covariates.known, *self.covariates.observed]


def layout(path: Path, roles: Roles) -> Roles:
    """The roles with a ``time`` and ``series`` of ``auto`` decided, by names alone: the stamps are
    in ``ds`` or ``date``, whichever there is; a table with ``unique_id`` is long, another wide.

    Raises DataError, which names the keys to set, for a table with both or none of the two, for a
    wide one in which a column holds text, and for a column that is not there.
    """
    table = read_table(path, (), rows=_ROWS)
    _check_named(path, table.columns, roles)
    if roles.time == AUTO:
        beside = roles.covariates.names
        roles = replace(roles, time=_time(path, [c for c in table.columns if c not in beside]))
    if roles.series == AUTO:
        roles = replace(roles, series=SERIES if SERIES in table.columns else None)
        if roles.series is None and roles.targets is None:
            _check_wide(path, table.drop(roles.named))
    return roles


def with_targets(path: Path, columns: Sequence[str], roles: Roles) -> Roles:
    """The roles in a table of those ``columns``, with the targets named.

    Raises DataError for a target that is not there, UsageError for none and for a column that has
    two parts to play.
    """
    beside, targets = roles.covariates.names, roles.targets
    if targets is None:
        others = [c for c in columns if c != roles.time and c not in beside]
        targets = ["y"] if roles.series is not None else others
    if not targets:
        raise UsageError(f"{path}: no column is left as a target; name data.targets")
    taken = [*targets, *beside]
    twice = [column for i, column in enumerate(taken) if column in taken[:i]]
    if twice:
        raise UsageError(f"column {twice[0]!r} is named twice among data's targets and covariates")
    absent = [name for name in targets if name not in columns]
    if absent:
        has = ", ".join(columns[:8])
        raise DataError(f"{path}: no column {absent[0]!r}; it has {has}; name data.targets")
    return replace(roles, targets=targets)


def has_offset(path: Path, time: str | None) -> bool:
    """Whether the stamps of a table say how far they are from UTC; the first does if any does."""
    if time is None:
        return False
    first = read_table(path, (time,), rows=1)[time]
    if first.dtype == pl.String:
        return bool(first.str.contains(OFFSET).any())
    return isinstance(first.dtype, pl.Datetime) and first.dtype.time_zone is not None


def _check_named(path: Path, columns: Sequence[str], roles: Roles) -> None:
    given = {
        "time": [roles.time],
        "series": [roles.series],
        "targets": roles.targets or (),
        **vars(roles.covariates),
    }
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
