"""Tables of series with a class each: rows of steps, ``.ts`` files, or a row a series."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from core.jobs.errors import DataError, UsageError
from core.jobs.tables import read_table
from timeseries.data.ts_format import read_ts

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class LabelledSeries:
    """``values`` (time, channels); ``label`` and ``split`` where they are known."""

    name: str
    values: NDArray[np.float64]
    label: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Columns:
    """Which column of a long table is what."""

    series: str = "unique_id"
    time: str | None = None
    label: str = "label"
    split: str = "split"
    channels: list[str] | None = None


def read_labelled(
    path: Path, columns: Columns, labels: bool = True
) -> tuple[tuple[str, ...], list[LabelledSeries]]:
    """Names of channels, and every series in the order of the file.

    A ``.ts`` file has no names: its channels are ``channel_1`` and so on, a series is called after
    the file and its number in it. Where the channels of a table are lists, a row is a whole series.
    Raises DataError with the row for an empty, infinite or unreadable value, and for a series whose
    rows lie apart, disagree on class or split, or share a stamp. ``labels`` False reads no splits,
    and classes only where there are some.
    """
    if path.name.endswith(".ts"):
        rows = read_ts(path)
        names = tuple(f"channel_{k + 1}" for k in range(rows[0][0].shape[1]))
        stem = path.name.removesuffix(".ts")
        found = [
            LabelledSeries(f"{stem}-{n}", values, label)
            for n, (values, label) in enumerate(rows, 1)
        ]
        for one in found:
            if not np.isfinite(one.values).all():
                raise DataError(f"{path}: series {one.name!r} has empty or infinite values")
        return names, found
    needed = [columns.series, *([columns.time] if columns.time else []), *(columns.channels or ())]
    table = read_table(path, [*needed, *([columns.label] if labels else [])])
    others = {columns.series, columns.time, columns.label, columns.split}
    names = tuple(columns.channels or [c for c in table.columns if c not in others])
    if not names:
        raise UsageError(f"{path}: no column is left as a channel; name data.channels")
    if isinstance(table.schema[names[0]], pl.List | pl.Array):
        return names, _series_of_lists(path, table, columns, names, labels)
    return names, _series_of(path, table, columns, names, labels)


def _series_of(
    path: Path, table: pl.DataFrame, columns: Columns, names: tuple[str, ...], labels: bool
) -> list[LabelledSeries]:
    values = np.column_stack([_numbers(path, table, name) for name in names])
    which = _text(path, table, columns.series)
    starts = np.flatnonzero(np.append(True, which[1:] != which[:-1]))
    order = _order(path, table, columns.time) if columns.time else None
    classes, splits = _classes_and_splits(path, table, columns, labels)
    found: list[LabelledSeries] = []
    seen: set[str] = set()
    for first, end in zip(starts, np.append(starts[1:], len(which)), strict=True):
        name, rows = str(which[first]), slice(first, end)
        where = f"{path}: row {first + 1}: series {name!r}"
        if name in seen:
            raise DataError(f"{where} was there before; put the rows of a series side by side")
        seen.add(name)
        one = values[rows]
        if order is not None:
            by_time = np.argsort(order[rows], kind="stable")
            if (order[rows][by_time][1:] == order[rows][by_time][:-1]).any():
                raise DataError(f"{where} has two rows with the same {columns.time}")
            one = one[by_time]
        label, split = (None if c is None else _one(c[rows], where) for c in (classes, splits))
        _check_split(split, where)
        found.append(LabelledSeries(name, one, label, split))
    return found


def _series_of_lists(
    path: Path, table: pl.DataFrame, columns: Columns, names: tuple[str, ...], labels: bool
) -> list[LabelledSeries]:
    """A row a series. All values lie in one array, so that long series cost what they hold."""
    if columns.time is not None:
        raise UsageError(f"{path}: a row is a whole series, in order; leave out data.time")
    lengths = [_lengths(path, table, name) for name in names]
    for name, other in zip(names, lengths, strict=True):
        _refuse(path, other != lengths[0], f"has another number of values in {name} than before")
    ends = lengths[0].cum_sum().to_numpy()
    values = np.empty((ends[-1], len(names)))
    for k, name in enumerate(names):
        values[:, k] = table[name].explode().cast(pl.Float64, strict=False).to_numpy()
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    which = _text(path, table, columns.series)
    _refuse(path, ~table[columns.series].is_first_distinct(), f"repeats its {columns.series}")
    if len(bad):
        row = int(np.searchsorted(ends, bad[0], side="right"))
        raise DataError(f"{path}: row {row + 1} has empty or infinite values; fill or drop them")
    classes, splits = _classes_and_splits(path, table, columns, labels)
    found = []
    for n, (name, part) in enumerate(zip(which, np.split(values, ends[:-1]), strict=True)):
        label, split = (None if c is None else str(c[n]) or None for c in (classes, splits))
        _check_split(split, f"{path}: row {n + 1}: series {name!r}")
        found.append(LabelledSeries(str(name), part, label, split))
    return found


def _lengths(path: Path, table: pl.DataFrame, name: str) -> pl.Series:
    """How many values each row's list has."""
    kind = table.schema[name]
    if not isinstance(kind, pl.List | pl.Array):
        raise DataError(f"{path}: column {name!r} holds no lists, as others do; name data.channels")
    listed = table[name].arr.to_list() if isinstance(kind, pl.Array) else table[name]
    lengths = listed.list.len().fill_null(0).cast(pl.Int64)
    _refuse(path, lengths == 0, f"has no values in {name}; leave the series out")
    return lengths


def _classes_and_splits(
    path: Path, table: pl.DataFrame, columns: Columns, labels: bool
) -> tuple[NDArray | None, NDArray | None]:
    asked = [columns.label, columns.split] if labels else [columns.label]
    classes, splits = (
        _text(path, table, c, empty=not labels) if c in table.columns and c in asked else None
        for c in (columns.label, columns.split)
    )
    return classes, splits


def _check_split(split: str | None, where: str) -> None:
    if split not in (None, *SPLITS):
        raise DataError(f"{where}: split {split!r} is none of {', '.join(SPLITS)}")


def _one(values: NDArray, where: str) -> str | None:
    """The value that all rows of a series share; None where it is empty."""
    if (values != values[0]).any():
        other = values[values != values[0]][0]
        raise DataError(f"{where} is {values[0]!r} and {other!r}; give all its rows one")
    return str(values[0]) or None


def _text(path: Path, table: pl.DataFrame, column: str, empty: bool = False) -> NDArray:
    """A column as text, "" where it is empty; DataError there unless ``empty`` is allowed."""
    text = table[column].cast(pl.String).fill_null("")
    if not empty:
        _refuse(path, text == "", f"has no {column}; give every row one")
    return text.to_numpy()


def _numbers(path: Path, table: pl.DataFrame, column: str) -> NDArray[np.float64]:
    numbers = table[column].cast(pl.Float64, strict=False)
    _refuse(
        path,
        ~numbers.is_finite().fill_null(False),
        f"has no finite number in {column}; fill or drop it",
    )
    return numbers.to_numpy()


def _order(path: Path, table: pl.DataFrame, column: str) -> NDArray:
    given = table[column]
    if given.dtype == pl.String:
        given = given.cast(pl.Int64, strict=False)
        if given.null_count():
            with suppress(pl.exceptions.ComputeError):  # no dates either
                given = table[column].str.to_datetime(strict=False)
    _refuse(path, given.is_null(), f"has no whole number or date in {column}; give one")
    return given.to_numpy()


def _refuse(path: Path, bad: pl.Series, what: str) -> None:
    if bad.any():
        raise DataError(f"{path}: row {int(bad.arg_max() or 0) + 1} {what}")
