"""Series out of a table, long or wide, on a regular grid of stamps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from core.jobs.errors import DataError, UsageError
from core.jobs.tables import read_table
from timeseries.data.calendar import (
    grid,
    infer_frequency,
    most_common,
    nearest,
    normal,
    places,
)
from timeseries.data.columns import (
    check_static,
    numbers_of,
    offsets_of,
    refuse,
    stamps_of,
    static_values,
)
from timeseries.data.covariates import Covariates, Value
from timeseries.data.layout import Roles, with_targets
from timeseries.data.repairs import OFFSETS, Repairs


@dataclass
class Policies:
    """What becomes of rows that are not as they should be; ``fail`` names the first of them, and
    whatever else changes rows is said in a warning and kept in the run's record.

    ``unsorted``: stamps that go back. ``duplicates``: one stamp twice in a series. ``gaps``: stamps
    missing from the grid; ``previous`` and ``linear`` fill them, with ``close`` the rows on both
    sides follow each other, as published borders by row have it. ``missing``: empty values, filled
    alike; ``linear`` looks at the value that comes next, which a forecast would not know yet.
    ``keep`` leaves them empty, for tasks that fill them in or pass over them; gaps so kept are
    rows of empty values, which ``missing`` fills if it fills any. ``known``: no value of a
    covariate that is known for the future, in a row that stands there or in a gap; after the last
    target that always fails.
    ``short``: series without room for one window, or for one before the stamp at which training
    ends; a forecast needs room for its look-back only.
    ``offsets``: stamps with an offset from UTC become UTC, or keep the ``local`` clock, which days
    from midnight to midnight need where summer time changes the offset.
    ``irregular``: stamps off the grid; ``nearest`` moves all to the nearest multiple of the given
    ``frequency``, from midnight on, before anything else is looked at.
    Infinite values and unreadable cells always fail.
    """

    unsorted: Literal["fail", "sort"] = "fail"
    duplicates: Literal["fail", "first", "last", "mean"] = "fail"
    gaps: Literal["fail", "previous", "linear", "keep", "close"] = "fail"
    missing: Literal["fail", "previous", "linear", "keep"] = "fail"
    known: Literal["fail", "previous", "linear"] = "fail"
    short: Literal["fail", "skip"] = "fail"
    offsets: Literal["utc", "local"] = "utc"
    irregular: Literal["fail", "nearest"] = "fail"


@dataclass(frozen=True)
class Series:
    """``stamps`` (time,), datetime64[us] in UTC or whole numbers; ``values`` (time, channels).

    ``frequency`` is the step of the grid as polars writes it (``1h``, ``1mo``), ``1me`` for the
    last days of months, or None where the stamps are numbers. Of covariates, ``known`` (time +
    ahead, columns) goes on behind the last target, at the stamps ``later`` (ahead,), ``observed``
    (time, columns) does not, and ``static`` has a number or text a column.
    """

    name: str
    channels: tuple[str, ...]
    stamps: NDArray
    values: NDArray[np.float64]
    frequency: str | None
    known: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    observed: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    static: tuple[Value, ...] = ()
    later: NDArray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.stamps)


@dataclass
class Rows:
    """Rows, series by series: ``number`` in the file, from 1; ``which`` of the ``names``;
    ``stamp``; ``values`` (rows, columns), not a number where missing: ``channels``, then covariates
    that are ``known``, then those observed. ``static`` values by series. ``repairs`` collects what
    the rules change."""

    path: Path
    names: list[str]
    channels: tuple[str, ...]
    number: NDArray[np.int64]
    which: NDArray[np.int64]
    stamp: NDArray
    values: NDArray[np.float64]
    covariates: Covariates = field(default_factory=Covariates)
    static: list[tuple[Value, ...]] = field(default_factory=list)
    repairs: Repairs = field(default_factory=Repairs)

    @property
    def columns(self) -> tuple[str, ...]:
        return self.channels + self.covariates.known + self.covariates.observed

    def known(self) -> NDArray[np.bool_]:
        """Of each column, whether it is a covariate known for the future too."""
        return np.array([name in self.covariates.known for name in self.columns])

    def ahead(self) -> NDArray[np.bool_]:
        """Rows after the last target of their series, which only known covariates may have."""
        if not self.covariates.known:
            return np.zeros(len(self.which), bool)
        has = np.logical_or.reduce(~np.isnan(self.values[:, : len(self.channels)]), axis=1)
        at, which = np.arange(len(has)), self.which - self.which[0]
        last = np.full(which[-1] + 1, -1)
        np.maximum.at(last, which[has], at[has])
        # a series without any target has no end of them either
        return (at > last[which]) & (last[which] >= 0)

    def take(self, chosen: NDArray | slice) -> Rows:
        return replace(
            self,
            number=self.number[chosen],
            which=self.which[chosen],
            stamp=self.stamp[chosen],
            values=self.values[chosen],
        )

    def follows(self) -> NDArray[np.bool_]:
        """Whether the row before is of the same series."""
        return np.append(False, self.which[1:] == self.which[:-1])

    def refuse(self, bad: NDArray[np.bool_], say: Callable[[int], str]) -> None:
        refuse(self.path, self.number, bad, lambda i: f"{self.names[self.which[i]]!r}: {say(i)}")

    def repaired(
        self, policy: str, how: str, rows: NDArray[np.bool_], cells: NDArray[np.bool_] | None = None
    ) -> None:
        """Note that ``rows`` were changed, or of them the ``cells`` (rows, columns)."""
        columns = None
        if cells is not None:
            counts = zip(self.columns, cells.sum(0).tolist(), strict=True)
            columns = {name: count for name, count in counts if count}
        series = [self.names[i] for i in np.unique(self.which[rows])]
        self.repairs.add(policy, how, self.number[rows], series, columns)

    def shown(self, i: int) -> str:
        return str(self.stamp[i].item())

    @property
    def name(self) -> str:
        """Of the one series that there is."""
        return self.names[self.which[0]]


def read_series(
    path: Path,
    roles: Roles = Roles(),  # noqa: B008  # read only
    policies: Policies = Policies(),  # noqa: B008  # read only
    frequency: str | None = None,
    repairs: Repairs | None = None,
) -> list[Series]:
    """Every series of a CSV, TSV or Parquet table, in the order of the file.

    Stamps are dates with the year first, or whole numbers that step by 1; those with an offset are
    turned into UTC, or as the policy has it. The one series of a wide table is named ``table``.
    ``frequency`` is inferred where it is not given. Rows behind the last target of a series are its
    future if there are known covariates; the rules hold for observed covariates as for targets.
    What the ``policies`` change is said in a RepairWarning each, and added to ``repairs``.

    Raises DataError with the row's number, counted from 1 without the header, where a rule of
    ``policies`` is broken or a stamp lies off the grid; UsageError if no target is named or found,
    or ``frequency`` is none.
    """
    step = None if frequency is None else normal(frequency)
    table = read_table(path, roles.named)
    roles = with_targets(path, table.columns, roles)
    rows = _grouped(table, path, roles, policies.offsets == "local")
    if repairs is not None:
        rows.repairs = repairs
    if roles.time is not None:
        away = np.flatnonzero(offsets_of(table[roles.time])) + 1
        rows.repairs.add(*OFFSETS[policies.offsets], away, ())
    del table
    rows = on_grid(rows, step, policies)
    for rule in RULES:
        rows = rule(rows, policies)
    ends = np.flatnonzero(np.diff(rows.which, append=-1)) + 1
    parts = [rows.take(slice(*ab)) for ab in zip([0, *ends[:-1]], ends, strict=True)]
    step = common_frequency(parts, step)
    found = [regular(part, step, policies) for part in parts]
    rows.repairs.say(path)
    return found


# Columns of the table


def _grouped(table: pl.DataFrame, path: Path, roles: Roles, local: bool) -> Rows:
    """The rows of each series together, in the order of the file."""
    stamp = number = np.arange(1, len(table) + 1)
    if roles.time is not None:
        stamp = stamps_of(table[roles.time], path, local=local).to_numpy()
    values = np.empty((len(table), len(roles.numbers)))
    for i, column in enumerate(roles.numbers):
        values[:, i] = numbers_of(table[column], path)
    names, which = ["table"], np.zeros(len(table), np.int64)
    if roles.series is not None:
        name = table[roles.series].cast(pl.String)
        refuse(path, number, name.is_null().to_numpy(), lambda _: f"has no {roles.series}")
        some = name.unique(maintain_order=True)
        names = some.to_list()
        which = name.replace_strict(some, np.arange(len(some)), return_dtype=pl.Int64).to_numpy()
    static = _static(table, path, names, which, roles.covariates.static)
    whole = (path, names, tuple(roles.targets or ()), number, which, stamp, values)
    rows = Rows(*whole, roles.covariates, static)
    if (np.diff(which) < 0).any():
        rows = rows.take(np.argsort(which, kind="stable"))
    if roles.time is None:
        begins = np.maximum.accumulate(np.where(rows.follows(), 0, number))
        rows.stamp = number - begins + 1
    return rows


def _static(
    table: pl.DataFrame,
    path: Path,
    names: list[str],
    which: NDArray[np.int64],
    columns: Sequence[str],
) -> list[tuple[Value, ...]]:
    """The values of each series."""
    usual: list[dict[int, str]] = [{} for _ in columns]
    for name, of in zip(columns, usual, strict=True):
        check_static(table[name], path, names, which, of)
    return static_values(usual, names)


# Rules


def _or_long(rows: Rows) -> str:
    return "; or name the column of the series in data.series" if rows.names == ["table"] else ""


def _sorted(rows: Rows, policies: Policies) -> Rows:
    back = rows.follows()
    back[1:] &= rows.stamp[1:] < rows.stamp[:-1]
    if policies.unsorted == "fail":
        what = f"goes back; sort the file, or set data.policies.unsorted{_or_long(rows)}"
        rows.refuse(back, lambda i: f"stamp {rows.shown(i)} {what}")
    rows.repaired("unsorted", policies.unsorted, back)
    return rows.take(np.lexsort((rows.stamp, rows.which))) if back.any() else rows


def _without_duplicates(rows: Rows, policies: Policies) -> Rows:
    again = rows.follows()
    again[1:] &= rows.stamp[1:] == rows.stamp[:-1]
    if not again.any():
        return rows
    if policies.duplicates == "fail":
        what = f"stands there twice; set data.policies.duplicates{_or_long(rows)}"
        rows.refuse(again, lambda i: f"stamp {rows.shown(i)} {what}")
    rows.repaired("duplicates", policies.duplicates, again)
    if policies.duplicates == "last":
        return rows.take(~np.append(again[1:], False))
    first = rows.take(~again)
    if policies.duplicates == "mean":
        begins = np.flatnonzero(~again)
        known = ~np.isnan(rows.values)
        total = np.add.reduceat(np.where(known, rows.values, 0), begins)
        with np.errstate(invalid="ignore"):
            first.values = total / np.add.reduceat(known, begins, dtype=np.int64)
    return first


def _refuse_missing(
    rows: Rows, what: str, among: NDArray[np.bool_], columns: NDArray[np.bool_]
) -> None:
    """For rows ``among`` which there must be a number in every one of the ``columns``."""
    missing = np.isnan(rows.values)
    if not missing.any():
        return
    missing &= among[:, None] & columns

    def say(i: int) -> str:
        return what.format(channel=rows.columns[missing[i].argmax()], stamp=rows.shown(i))

    somewhere = np.logical_or.reduce(missing, axis=1)
    rows.refuse(somewhere, say)


_AHEAD = "no {channel} at {stamp}, after the last target; give every known covariate there"
_KNOWN = "no {channel} at {stamp}; give it, as it is known ahead, or set data.policies.known"


def _complete_ahead(rows: Rows, policies: Policies) -> Rows:
    _refuse_missing(rows, _AHEAD, rows.ahead(), rows.known())
    return rows


def _complete_known(rows: Rows, policies: Policies) -> Rows:
    if policies.known == "fail":
        _refuse_missing(rows, _KNOWN, ~rows.ahead(), rows.known())
    return rows


def _complete(rows: Rows, policies: Policies) -> Rows:
    if policies.missing == "fail":
        what = "no {channel} at {stamp}; set data.policies.missing"
        _refuse_missing(rows, what, ~rows.ahead(), ~rows.known())
    return rows


# in their order: what one refuses, the next does not see
RULES = (_sorted, _without_duplicates, _complete_ahead, _complete_known, _complete)


def on_grid(rows: Rows, step: str | None, policies: Policies) -> Rows:
    """With dates moved to the nearest of the grid, if ``policies`` ask for that."""
    if policies.irregular == "fail" or rows.stamp.dtype == np.int64:
        return rows
    stamp = nearest(rows.stamp, step)
    rows.repaired("irregular", policies.irregular, stamp != rows.stamp)
    return replace(rows, stamp=stamp)


def common_frequency(parts: Iterable[Rows], given: str | None) -> str | None:
    """The one step of all series. One stamp alone has none, and goes with the others."""
    first = None
    for part in parts:
        if part.stamp.dtype == np.int64:
            if given is not None:
                raise UsageError(f"{part.path}: stamps are numbers; leave out data.frequency")
            return None
        if given is not None:
            return given
        if len(part.stamp) < 2:
            continue
        step = infer_frequency(part.stamp)
        first = first or (step, part.name)
        if step != first[0]:
            raise DataError(
                f"{part.path} row {part.number[0]}: series {part.name!r} has steps of {step}, "
                f"{first[1]!r} of {first[0]}; put them into files of their own, or give "
                "data.frequency"
            )
    return first[0] if first else "1d"


def regular(rows: Rows, step: str | None, policies: Policies) -> Series:
    """One series with a row for every stamp of its grid, and a number in every cell, unless
    ``policies`` close gaps or keep empty cells."""
    if step is None:
        place = rows.stamp - rows.stamp[0]
        usual = most_common(np.diff(place)) if len(place) > 1 else 1
        if usual != 1:
            raise DataError(
                f"{rows.path} row {rows.number[1]}: {rows.name!r}: stamps step by {usual}; numbers "
                "must step by 1; write dates, or give null as data.time to number the rows"
            )
    else:
        place = places(rows.stamp, step)
        policy = "offsets" if "offset" in rows.repairs.found else "irregular"
        what = f"is off the grid of {step}; correct it, or give data.frequency or "
        what += f"data.policies.{policy}"
        rows.refuse(place < 0, lambda i: f"stamp {rows.shown(i)} {what}")
    if policies.gaps == "close" and place[-1] >= len(place):
        holes = np.diff(place, prepend=-1) - 1
        rows.repairs.add("gaps", "close", np.repeat(rows.number, holes), [rows.name])
        place = np.arange(len(place))
    last = len(place) - 1 - int((~rows.ahead()[::-1]).argmax())
    end = int(place[last]) + 1  # behind it nothing is known of the targets
    rows = _without_gaps(rows, place, step, policies) if place[-1] >= len(place) else rows
    _fill_known(rows, end, policies)
    past = rows.take(slice(end))
    # with "fail" what is still empty is a gap that was kept
    filled = policies.missing not in ("fail", "keep")
    if filled and (empty := np.isnan(past.values)).any():
        for channel, holes in zip(past.values.T, empty.T, strict=True):
            _fill(channel, holes, policies.missing)
        every, what = np.ones(end, bool), "nothing to fill {channel} with at {stamp}"
        _refuse_missing(past, what, every, ~rows.known())
        past.repaired("missing", policies.missing, np.logical_or.reduce(empty, axis=1), empty)
    first, second = len(rows.channels), len(rows.channels) + len(rows.covariates.known)
    return Series(
        rows.name,
        rows.channels,
        past.stamp,
        past.values[:, :first] if rows.covariates else past.values,
        step,
        rows.values[:, first:second],
        past.values[:, second:],
        rows.static[rows.which[0]],
        rows.stamp[end:],
    )


def _fill_known(rows: Rows, end: int, policies: Policies) -> None:
    """In place, up to row ``end``, behind the last target; what is known later is not made up."""
    if not rows.covariates.known or not (empty := np.isnan(rows.values) & rows.known()).any():
        return
    past, what = np.arange(len(empty)) < end, _KNOWN
    empty[end:] = False
    if policies.known != "fail":
        what = "nothing to fill {channel} with at {stamp}"
        for i in np.flatnonzero(rows.known()):
            _fill(rows.values[:, i], empty[:, i], policies.known)
        rows.repaired("known", policies.known, np.logical_or.reduce(empty, axis=1), empty)
    _refuse_missing(rows, _AHEAD, ~past, rows.known())
    _refuse_missing(rows, what, past, rows.known())


def _without_gaps(
    rows: Rows, place: NDArray[np.int64], step: str | None, policies: Policies
) -> Rows:
    length = int(place[-1]) + 1
    if policies.gaps == "fail":
        before = int(np.flatnonzero(np.diff(place) > 1)[0])
        k = int(place[before]) + 1
        stamp = rows.stamp[0] + k if step is None else grid(rows.stamp[0], step, k, k + 1)[0]
        raise DataError(
            f"{rows.path} row {rows.number[before + 1]}: {rows.name!r}: {length - len(place)} "
            f"stamps are missing, first {stamp.item()}; set data.policies.gaps"
        )
    stamps = (
        rows.stamp[0] + np.arange(length) if step is None else grid(rows.stamp[0], step, 0, length)
    )
    gap = np.ones(length, bool)
    gap[place] = False
    values = np.full((length, rows.values.shape[1]), np.nan)
    values[place] = rows.values
    if policies.gaps != "keep":
        for i in np.flatnonzero(~rows.known()):
            _fill(values[:, i], gap, policies.gaps)
    # a row that was not there goes by the number of the next one that was
    number = rows.number[np.searchsorted(place, np.arange(length))]
    which = np.full(length, rows.which[0])
    whole = replace(rows, number=number, which=which, stamp=stamps, values=values)
    if policies.gaps != "keep":
        whole.repaired("gaps", policies.gaps, gap)
    return whole


def _fill(values: NDArray[np.float64], holes: NDArray[np.bool_], how: str) -> None:
    """Put numbers into the ``holes`` of (time,), in place, where there is one to take."""
    known = np.flatnonzero(~np.isnan(values))
    at = np.flatnonzero(holes)
    if not len(known):
        return
    if how == "linear":
        values[at] = np.interp(at, known, values[known], left=np.nan, right=np.nan)
    else:
        before = np.searchsorted(known, at) - 1
        values[at] = np.where(before < 0, np.nan, values[known[before]])
