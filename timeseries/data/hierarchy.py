"""Hierarchies of series: which of them add up to which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from core.jobs.errors import DataError, UsageError
from core.jobs.tables import read_table
from timeseries.data.columns import refuse
from timeseries.data.series import Series

TOTAL, BOTTOM, ALL = "total", "bottom", "all"


@dataclass(frozen=True)
class Hierarchy:
    """``levels``: the names of each level's series, from the top down; the last is ``bottom``.
    ``summing`` (series, bottom series) is 1 where a series contains one of the bottom, else 0; its
    rows are the series of all levels, one level after the other."""

    path: Path
    levels: dict[str, list[str]]
    summing: NDArray[np.float64]

    @property
    def names(self) -> list[str]:
        return [name for level in self.levels.values() for name in level]

    @property
    def places(self) -> dict[str, NDArray[np.int64]]:
        """The rows of ``summing`` of each level."""
        ends = np.cumsum([len(level) for level in self.levels.values()])
        parts = np.split(np.arange(ends[-1]), ends[:-1])
        return dict(zip(self.levels, parts, strict=True))

    def check(self, series: Sequence[Series], where: object) -> None:
        """Raises DataError unless these are the series of the hierarchy, all of the same stamps."""
        names = {one.name: None for one in series}
        for level, wanted in self.levels.items():
            absent = [name for name in wanted if name not in names]
            if absent:
                raise DataError(
                    f"{where}: level {level!r} lacks {len(absent)} of its {len(wanted)} series, "
                    f"first {absent[0]!r}; train on a table of all levels, as timeseries "
                    "aggregate writes it"
                )
        known = set(self.names)
        unknown = [name for name in names if name not in known]
        if unknown:
            raise DataError(
                f"{where}: series {unknown[0]!r} is not in the hierarchy of {self.path} "
                f"({len(unknown)} such series); add it there, or leave it out here"
            )
        check_same_stamps(series, where)

    def aggregated(self, bottom: Sequence[Series]) -> NDArray[np.float64]:
        """(series, time, channels): all levels, from the series of the bottom.

        Raises DataError for bottom series of other stamps than the first one has.
        """
        check_same_stamps(bottom, self.path)
        by_name = {one.name: one.values for one in bottom}
        values = np.stack([by_name[name] for name in self.levels[BOTTOM]])
        return np.einsum("sb,btc->stc", self.summing, values)


def read_hierarchy(path: Path, levels: Sequence[str], series: str = "unique_id") -> Hierarchy:
    """The hierarchy that columns of a long table describe.

    Each of the ``levels``, from the top down, is ``total``, the sum of everything; a column; or
    columns joined by ``/``, such as ``region/product``. Its series are named by their values. Below
    the last of them come the series of the table. Only columns are looked at: a table of one row a
    series will do.

    Raises UsageError for a level named twice, DataError with the row's number for one without a
    value and for a series in two places, and for a name in two levels.
    """
    for i, level in enumerate(levels):
        if level in (BOTTOM, ALL):
            raise UsageError(f"level {level!r}: that name has a meaning here; rename the column")
        if level in levels[:i]:
            raise UsageError(f"level {level!r} is named twice")
    parts = {level: [] if level == TOTAL else level.split("/") for level in levels}
    columns = list(dict.fromkeys([series, *(name for part in parts.values() for name in part)]))
    table = read_table(path, columns).select(pl.col(columns).cast(pl.String))
    for column in columns:
        _check_column(path, table[column], table[series])
    names = {
        level: pl.concat_str(part, separator="/") if part else pl.lit(TOTAL)
        for level, part in parts.items()
    }
    above = table.unique(series, keep="first", maintain_order=True).select(
        *(name.alias(level) for level, name in names.items()), pl.col(series).alias(BOTTOM)
    )
    found = {level: above[level].unique(maintain_order=True).to_list() for level in above.columns}
    _check_names(path, found)
    rows = [above[level].to_numpy() == name for level, members in found.items() for name in members]
    return Hierarchy(path, found, np.stack(rows).astype(np.float64))


def check_same_stamps(series: Sequence[Series], where: object) -> None:
    """Raises DataError for a series of other stamps than the first one has."""
    first = series[0]
    for one in series:
        if one.frequency != first.frequency or not np.array_equal(one.stamps, first.stamps):
            raise DataError(
                f"{where}: series {one.name!r} has {len(one)} stamps from {one.stamps[0]} to "
                f"{one.stamps[-1]}, {first.name!r} has {len(first)} from {first.stamps[0]} to "
                f"{first.stamps[-1]}; series that are added up need the same ones"
            )


def _check_column(path: Path, values: pl.Series, series: pl.Series) -> None:
    """Raises RowError for nothing, and for another value than in the first row of its series."""
    number = np.arange(1, len(values) + 1)
    empty = (values.is_null() | (values.str.strip_chars() == "")).to_numpy()
    refuse(path, number, empty, lambda _: f"has no {values.name}")
    both = pl.DataFrame([values.alias("value"), series.alias("series")])
    first = both.select(pl.col("value").first().over("series")).to_series()
    refuse(
        path,
        number,
        (values != first).to_numpy(),
        lambda i: (
            f"{series[i]!r}: {values.name} is {values[i]!r}, before it was {first[i]!r}; a series "
            "has one place in a hierarchy"
        ),
    )


def _check_names(path: Path, levels: dict[str, list[str]]) -> None:
    where: dict[str, str] = {}
    for level, names in levels.items():
        for name in names:
            if name in where:
                raise DataError(
                    f"{path}: {name!r} is a series of level {where[name]!r} and of {level!r}; "
                    "rename one, or leave a level out"
                )
            where[name] = level
