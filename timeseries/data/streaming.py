"""Series of a Parquet file too long for the memory, as memory maps in the cache.

One pass over the row groups writes columns as plain arrays; rows of interleaved series are then put
together, and each series goes by itself through the rules of ``series.py``. Memory holds one batch
of rows, or of one series at a time the row numbers and places on the grid, so it grows with the
longest series and not with the file. A file that has not changed is not read again.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from core.jobs.errors import DataError
from core.jobs.files import cached_name
from timeseries.data.calendar import normal
from timeseries.data.columns import (
    OFFSET,
    WHOLE,
    RowError,
    check_static,
    numbers_of,
    offsets_of,
    refuse,
    stamps_of,
    static_values,
)
from timeseries.data.layout import Roles, with_targets
from timeseries.data.repairs import OFFSETS, Repairs
from timeseries.data.series import (
    RULES,
    Policies,
    Rows,
    Series,
    common_frequency,
    on_grid,
    regular,
)

Result = TypeVar("Result")

STREAM_ROWS = 5_000_000  # below, reading all at once takes some hundreds of MB and no disk
_BATCH = 1 << 18
_FORMAT = 3  # of the cache


def streams(path: Path) -> bool:
    """Whether ``path`` is a Parquet file of at least ``STREAM_ROWS`` rows."""
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return False
    try:
        return bool(pq.read_metadata(path).num_rows >= STREAM_ROWS)
    except (pa.ArrowException, OSError):
        return False  # reading it at once says what is wrong


def stream_series(
    path: Path,
    roles: Roles,
    policies: Policies,
    frequency: str | None,
    repairs: Repairs | None = None,
) -> list[Series]:
    """What ``read_series`` gives, with its errors and warnings, on memory maps in the cache
    folder."""
    options = [astuple(roles), astuple(policies), frequency, _FORMAT]
    key = hashlib.sha256(json.dumps(options).encode()).hexdigest()[:16]
    folder = cached_name(path, f".{key}.series")
    if not folder.is_dir():
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            _build(part, path, roles, policies, frequency)
            part.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    repairs = Repairs() if repairs is None else repairs
    found = _opened(folder, repairs)
    repairs.say(path)
    return found


class _Faults:
    """Broken rules, by their order: the first row of the file that breaks one, and how many do."""

    def __init__(self) -> None:
        self.found: dict[int, RowError] = {}

    def call(self, rule: int, function: Callable[[], Result], before: int = 0) -> Result | None:
        """The result, or None for an error in rows that are numbered from ``before``."""
        try:
            return function()
        except RowError as new:
            row, text, count = new.row + before, new.text, new.count
            if rule in self.found:
                old = self.found[rule]
                count += old.count
                row, text = min((row, text), (old.row, old.text))
            self.found[rule] = RowError(new.path, row, text, count)
            return None

    def check(self) -> None:
        if self.found:
            raise self.found[min(self.found)]


class _Table:
    """The columns of a file as arrays on disk: ``stamp``, ``which`` and ``values`` by row."""

    def __init__(self, folder: Path, rows: int, columns: int) -> None:
        self.folder, self.rows = folder, rows
        self.stamp = self._array("stamp", np.int64, (rows,))
        self.which = self._array("which", np.int32, (rows,))
        self.values = self._array("values", np.float64, (rows, columns))
        self.number: NDArray[np.int64] | None = None  # of a row in the file, if not its place

    def _array(self, name: str, kind: Any, shape: tuple[int, ...]) -> NDArray:
        if 0 in shape:
            return np.zeros(shape, kind)
        return np.memmap(self.folder / name, kind, "w+", shape=shape)

    def grouped(self, counts: NDArray[np.int64]) -> None:
        """Put the rows of each series together, in the order of the file."""
        if all((np.diff(self.which[at]) >= 0).all() for at in _pieces(self.rows, overlap=1)):
            return
        stamp, which, values = self.stamp, self.which, self.values
        self.stamp = self._array("stamp_grouped", np.int64, stamp.shape)
        self.values = self._array("values_grouped", np.float64, values.shape)
        self.number = self._array("number", np.int64, stamp.shape)
        free = np.cumsum(counts) - counts
        for at in _pieces(self.rows):
            order = np.argsort(which[at], kind="stable")
            here = np.asarray(which[at])[order]
            present, first, many = np.unique(here, return_index=True, return_counts=True)
            place = np.arange(len(here)) - np.repeat(first, many) + free[here]
            self.stamp[place] = stamp[at][order]
            self.values[place] = values[at][order]
            self.number[place] = at.start + 1 + order
            free[present] += many


def _pieces(rows: int, overlap: int = 0) -> Iterator[slice]:
    for start in range(0, rows, _BATCH):
        yield slice(max(0, start - overlap), min(rows, start + _BATCH))


def _build(
    folder: Path, path: Path, roles: Roles, policies: Policies, frequency: str | None
) -> None:
    step = None if frequency is None else normal(frequency)
    file = pq.ParquetFile(path)
    columns = file.schema_arrow.names
    for name in sorted(set(roles.named) - set(columns)):
        has = ", ".join(columns[:8])
        raise DataError(f"{path}: no column {name!r}; it has {has}; add it, or correct a name")
    roles = with_targets(path, columns, roles)
    read = _Reader(path, roles, policies)
    table = _Table(folder, file.metadata.num_rows, len(roles.numbers))
    dated = read.into(table, file)
    names = read.names
    counts = np.zeros(len(names), np.int64)
    for at in _pieces(table.rows):
        counts += np.bincount(table.which[at], minlength=len(names))
    table.grouped(counts)
    ends = np.cumsum(counts)
    static = static_values(read.usual, names)
    kind = "datetime64[us]" if dated else "int64"

    def rows_of(i: int, repairs: Repairs) -> Rows:
        at = slice(int(ends[i] - counts[i]), int(ends[i]))
        # no copies: what is filled in place is written to a map that is thrown away
        number = np.arange(at.start + 1, at.stop + 1) if table.number is None else table.number[at]
        stamp, values = np.asarray(table.stamp[at]).view(kind), np.asarray(table.values[at])
        if roles.time is None:
            stamp = np.arange(1, len(number) + 1)
        which = np.broadcast_to(np.int64(i), len(number))
        whole = (path, names, tuple(roles.targets or ()), number, which, stamp, values)
        return on_grid(Rows(*whole, roles.covariates, static, repairs), step, policies)

    faults = _Faults()
    unheard = Repairs()  # the rules are tried first, and change what is kept only below
    clean = _kept((rows_of(i, unheard) for i in range(len(names))), policies, faults)
    try:
        step = common_frequency(clean, step)
    finally:
        for _ in clean:  # what breaks a rule is said first
            pass
        faults.check()
    writer = _Writer(folder, kind)
    try:
        for i in range(len(names)):
            rows = rows_of(i, read.repairs)
            for rule in RULES:
                rows = rule(rows, policies)
            writer.add(regular(rows, step, policies))
        writer.index["repairs"] = read.repairs.plain()
    finally:
        writer.close()
    for name in ("stamp", "which", "values", "stamp_grouped", "values_grouped", "number"):
        (folder / name).unlink(missing_ok=True)


def _kept(parts: Iterator[Rows], policies: Policies, faults: _Faults) -> Iterator[Rows]:
    """Series that keep the rules; of the others the ``faults``."""
    for part in parts:
        for number, rule in enumerate(RULES):
            found = faults.call(number, partial(rule, part, policies))
            if found is None:
                break
            part = found
        else:
            yield part


class _Reader:
    """One pass over a file, with the rules that cells must keep."""

    def __init__(self, path: Path, roles: Roles, policies: Policies) -> None:
        self.path, self.time, self.series = path, roles.time, roles.series
        self.numbers, self.static = roles.numbers, roles.covariates.static
        self.offsets = policies.offsets
        self.usual: list[dict[int, str]] = [{} for _ in self.static]
        self.names: list[str] = ["table"] if roles.series is None else []
        self.index: dict[str, int] = {}
        self.whole: bool | None = None
        self.zoned: bool | None = None
        self.repairs = Repairs()

    def into(self, table: _Table, file: pq.ParquetFile) -> bool:
        """Fill the table; whether the stamps are dates. Raises RowError."""
        wanted = dict.fromkeys(c for c in (self.time, self.series) if c is not None)
        wanted.update(dict.fromkeys([*self.numbers, *self.static]))
        self.whole = self._whole(file)
        faults, before, dated = _Faults(), 0, False
        for piece in _read(file, list(wanted)):
            at = slice(before, before + len(piece))
            if self.time is not None:
                stamps = faults.call(0, partial(self._stamps, piece[self.time]), before)
                if stamps is not None:
                    dated = stamps.dtype != pl.Int64
                    away = np.flatnonzero(offsets_of(piece[self.time])) + before + 1
                    self.repairs.add(*OFFSETS[self.offsets], away, ())
                    table.stamp[at] = stamps.to_physical().to_numpy()
            for i, name in enumerate(self.numbers):
                numbers = faults.call(1 + i, partial(numbers_of, piece[name], self.path), before)
                if numbers is not None:
                    table.values[at, i] = numbers
            rule = 1 + len(self.numbers)
            which = faults.call(rule, partial(self._which, piece), before)
            if which is not None:
                table.which[at] = which
                given = (self.path, self.names, which)
                for i, (name, usual) in enumerate(zip(self.static, self.usual, strict=True)):
                    check = partial(check_static, piece[name], *given, usual)
                    faults.call(rule + 1 + i, check, before)
            before = at.stop
        faults.check()
        return dated

    def _whole(self, file: pq.ParquetFile) -> bool | None:
        """Whether a time column of text holds whole numbers alone."""
        if self.time is None:
            return None
        kind = file.schema_arrow.field(self.time).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            return None
        for piece in _read(file, [self.time]):
            text = piece[self.time].str.strip_chars()
            if not text.str.contains(WHOLE).all():
                return False
        return True

    def _stamps(self, column: pl.Series) -> pl.Series:
        if self.whole is False:
            given = next((text for text in column if text), "").strip()
            zoned = re.search(OFFSET, given) is not None
            self.zoned = zoned if self.zoned is None else self.zoned
            if zoned != self.zoned:
                has = "an" if zoned else "no"
                what = f"has {has} offset from UTC, unlike the rows before"
                every = np.ones(len(column), bool)
                number = np.arange(1, len(column) + 1)
                refuse(self.path, number, every, lambda _: f"{column.name} {given!r} {what}")
        return stamps_of(column, self.path, self.whole, self.offsets == "local")

    def _which(self, piece: pl.DataFrame) -> NDArray[np.int64]:
        if self.series is None:
            return np.zeros(len(piece), np.int64)
        name = piece[self.series].cast(pl.String)
        number = np.arange(1, len(name) + 1)
        empty = name.is_null().to_numpy()
        refuse(self.path, number, empty, lambda _: f"has no {self.series}")
        some = name.unique(maintain_order=True)
        for one in some.to_list():
            if one not in self.index:
                self.index[one] = len(self.names)
                self.names.append(one)
        places = [self.index[one] for one in some.to_list()]
        return name.replace_strict(some, places, return_dtype=pl.Int64).to_numpy()


def _read(file: pq.ParquetFile, columns: list[str]) -> Iterator[pl.DataFrame]:
    """Pieces of at most ``_BATCH`` rows. Asked for all row groups at once, Arrow holds the bytes of
    all of them."""
    for group in range(file.num_row_groups):
        for batch in file.iter_batches(_BATCH, row_groups=[group], columns=columns):
            yield pl.DataFrame(pl.from_arrow(batch))


class _Writer:
    """Series one after the other into ``stamps``, ``later``, ``targets``, ``known`` and
    ``observed``."""

    arrays = ("stamps", "later", "targets", "known", "observed")

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.files = {name: (folder / name).open("wb") for name in self.arrays}
        self.index: dict[str, Any] = {"kind": kind, "series": []}

    def add(self, one: Series) -> None:
        self.index |= {"channels": one.channels, "frequency": one.frequency}
        self.index["columns"] = [one.values.shape[1], one.known.shape[1], one.observed.shape[1]]
        self.index["series"].append([one.name, len(one), len(one.known), one.static])
        for name, values in zip(
            self.arrays,
            (one.stamps, one.later, one.values, one.known, one.observed),
            strict=True,
        ):
            for at in _pieces(len(values)):
                np.ascontiguousarray(values[at]).tofile(self.files[name])

    def close(self) -> None:
        for file in self.files.values():
            file.close()
        (self.folder / "index.json").write_text(json.dumps(self.index))


def _opened(folder: Path, repairs: Repairs) -> list[Series]:
    index = json.loads((folder / "index.json").read_text())
    repairs.load(index["repairs"])
    rows, ahead = (sum(one[i] for one in index["series"]) for i in (1, 2))
    targets, known, observed = (
        _mapped(folder / name, np.float64, (count, columns))
        for name, count, columns in zip(
            _Writer.arrays[2:], (rows, ahead, rows), index["columns"], strict=True
        )
    )
    kind = np.dtype(index["kind"])
    stamps = _mapped(folder / "stamps", kind, (rows,))
    later = _mapped(folder / "later", kind, (ahead - rows,))
    found, start, start_known = [], 0, 0
    for name, rows, rows_known, static in index["series"]:
        at, at_known = slice(start, start + rows), slice(start_known, start_known + rows_known)
        part = Series(
            name,
            tuple(index["channels"]),
            stamps[at],
            targets[at],
            index["frequency"],
            known[at_known],
            observed[at],
            tuple(static),
            later[start_known - start : at_known.stop - at.stop],
        )
        found.append(part)
        start, start_known = at.stop, at_known.stop
    return found


def _mapped(file: Path, kind: Any, shape: tuple[int, ...]) -> NDArray:
    if 0 in shape:  # an empty file cannot be mapped
        return np.zeros(shape, kind)
    return np.memmap(file, kind, "r", shape=shape)
