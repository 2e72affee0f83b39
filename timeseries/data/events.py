"""Event sequences: tables of them, and the data module of their tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from lightning.pytorch import LightningModule, Trainer
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from core.jobs.data import Record, RecordDataModule, SkipRecord
from core.jobs.errors import DataError, UsageError
from core.jobs.loader import ResumableLoader
from core.jobs.shards import load_predictions
from core.jobs.tables import read_table
from core.objectives import IGNORE
from core.sequences import Sequences
from timeseries.data.columns import numbers_of, refuse, stamps_of
from timeseries.data.precision import check_precision

SPLITS = ("train", "val", "test")
_HOUR = 3_600_000_000  # microseconds


@dataclass(frozen=True)
class Events:
    """One sequence: ``times`` (events,), float64, never going back; ``types`` (events,), text.

    ``rows`` are their numbers in the table, from 1; ``split`` is given by the table or "".
    """

    name: str
    times: NDArray[np.float64]
    types: NDArray[np.object_]
    rows: NDArray[np.int64]
    split: str = ""

    @property
    def gaps(self) -> NDArray[np.float64]:
        """Time since the event before; 0 for the first."""
        return np.diff(self.times, prepend=self.times[:1])


def read_events(
    path: Path,
    sequence: str = "sequence",
    time: str = "time",
    event: str = "type",
    split: str | None = None,
    grid: float | None = None,
) -> list[Events]:
    """The sequences of a CSV, TSV or Parquet table with one row an event, in the file's order.

    Times are numbers, or dates with the year first, which become hours since 1970 (UTC). Events at
    the same time keep the file's order. Raises DataError with the row's number, counted from 1
    without the header, for an empty cell, a time that is no finite number, goes back or is not a
    multiple of ``grid`` after the one before, and a split that is unknown or changes.
    """
    named = [sequence, time, event, *([split] if split else [])]
    table = read_table(path, named)
    number = np.arange(1, len(table) + 1)
    text = {c: table[c].cast(pl.String).str.strip_chars().to_numpy() for c in named if c != time}
    for column, values in text.items():
        empty = np.array([not value for value in values])
        refuse(path, number, empty, lambda _, column=column: f"has no {column}")  # type: ignore[misc]
    times = _times(table[time], path)
    names, which = np.unique(text[sequence], return_inverse=True)
    order = np.argsort(which, kind="stable")
    starts = np.flatnonzero(np.diff(which[order], prepend=-1))
    in_file = sorted(np.split(order, starts[1:]), key=lambda rows: int(rows[0]))
    _check_times(path, in_file, times, names[which], time, grid)
    splits = _splits(path, in_file, text[split], names[which]) if split else [""] * len(in_file)
    return [
        Events(str(names[which[at[0]]]), times[at], text[event][at], number[at], part)
        for at, part in zip(in_file, splits, strict=True)
    ]


def _times(column: pl.Series, path: Path) -> NDArray[np.float64]:
    dated = column.dtype.is_temporal()
    if column.dtype == pl.String:
        first = column.drop_nulls().str.strip_chars()
        dated = bool(len(first)) and bool(first.head(1).str.contains(r"^\d{4}[-/]")[0])
    if dated:
        stamps = stamps_of(column, path)
        return stamps.to_numpy().astype("datetime64[us]").astype(np.int64) / _HOUR
    times = numbers_of(column, path)
    refuse(path, np.arange(1, len(times) + 1), np.isnan(times), lambda _: f"has no {column.name}")
    return times


def _check_times(
    path: Path,
    in_file: Sequence[NDArray[np.intp]],
    times: NDArray[np.float64],
    names: NDArray[Any],
    time: str,
    grid: float | None,
) -> None:
    gap = np.zeros(len(times))
    for at in in_file:
        gap[at[1:]] = np.diff(times[at])
    number = np.arange(1, len(times) + 1)
    back = "goes back; sort each sequence by time"
    refuse(path, number, gap < 0, lambda i: f"{names[i]!r}: {time} {times[i]:g} {back}")
    if grid is not None:
        off = "after the event before, no multiple of data.grid"
        refuse(
            path,
            number,
            off_grid(gap, grid),
            lambda i: f"{names[i]!r}: {time} {times[i]:g} is {gap[i]:g} {off} = {grid:g}",
        )


def off_grid(gaps: NDArray[np.float64], grid: float) -> NDArray[np.bool_]:
    """Which gaps are no multiples, as near as rounding lets one tell."""
    return np.abs(gaps / grid - np.round(gaps / grid)) > 1e-4


def _splits(
    path: Path, in_file: Sequence[NDArray[np.intp]], split: NDArray[Any], names: NDArray[Any]
) -> list[str]:
    number = np.arange(1, len(split) + 1)
    known = np.isin(split.astype(str), SPLITS)
    refuse(path, number, ~known, lambda i: f"split {split[i]!r}; give train, val or test")
    changed = np.zeros(len(split), bool)
    for at in in_file:
        changed[at] = split[at] != split[at[0]]
    what = "unlike its sequence's rows before; a sequence belongs to one split"
    refuse(path, number, changed, lambda i: f"{names[i]!r}: split {split[i]!r}, {what}")
    return [str(split[at[0]]) for at in in_file]


class EventSequences(RecordDataModule):
    """Sequences of events in a table: one row an event, with its sequence, time and type.

    Splits take whole sequences: those of a column, or drawn by ``split_seed``. The types are those
    of the whole table, so that a rare one may be met in the test only; a table to predict with
    another is refused.

    Args:
        path: CSV, TSV or Parquet to train and test on.
        predict_path: what ``predict`` reads; without it, the test sequences of ``path``.
        sequence: column that names an event's sequence.
        time: column of numbers or dates; dates become hours.
        event: column of types.
        split: column that holds train, val or test; null draws.
        val_share: share of the sequences to validate on.
        test_share: share of the sequences to test on.
        split_seed: of the draw.
        grid: step that all gaps between events are multiples of; null for continuous time.
        length: events seen at once; longer sequences are cut into pieces, every event predicted
            once, from what came before it in its piece.
        batch_size: pieces in a batch; sequences when predicting.
        num_workers: processes that make them.
    """

    input_columns = {  # noqa: RUF012  # read only
        "id": "string",
        "times": "double[]",
        "types": "string[]",
    }
    exports = (".csv", ".parquet")

    def __init__(
        self,
        path: str | None = None,
        predict_path: str | None = None,
        sequence: str = "sequence",
        time: str = "time",
        event: str = "type",
        split: str | None = None,
        val_share: float = 0.1,
        test_share: float = 0.1,
        split_seed: int = 0,
        grid: float | None = None,
        length: int = 1024,
        batch_size: int = 16,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        if grid is not None and not 0 < grid < np.inf:
            raise UsageError(f"data.grid is {grid}; it must be a positive number, or null")
        if length < 1:
            raise UsageError(f"data.length is {length}; it must be at least 1")
        if min(val_share, test_share) <= 0 or val_share + test_share >= 1:
            raise UsageError(
                "data.val_share and data.test_share must be positive, their sum below 1"
            )
        self.path = None if path is None else Path(path)
        self.predict_path = None if predict_path is None else Path(predict_path)
        self.columns = {"sequence": sequence, "time": time, "event": event}
        self.split = split
        self.shares = (val_share, test_share)
        self.split_seed, self.grid, self.length = split_seed, grid, length
        self.types: list[str] | None = None
        self._kept: dict[str, list[Events]] = {}

    # Splits

    def table(self) -> Path:
        """The table to train on."""
        if self.path is None:
            raise UsageError("data.path is not given; name a table of events")
        return self.path

    def sequences(self, split: str) -> list[Events]:
        """Those of a split. Raises DataError if it has none."""
        if not self._kept:
            path = self.table()
            found = read_events(path, **self.columns, split=self.split, grid=self.grid)
            parts = [e.split for e in found] if self.split else self._drawn(found)
            for name in SPLITS:
                self._kept[name] = [e for e, part in zip(found, parts, strict=True) if part == name]
                if not self._kept[name]:
                    raise DataError(
                        f"{path}: none of {len(found)} sequences is left for {name}; give more, "
                        "or a split column"
                    )
        return self._kept[split]

    def _drawn(self, found: Sequence[Events]) -> list[str]:
        """By the order of the names, so that the order of the file does not count."""
        by_name = np.argsort([e.name for e in found], kind="stable")
        order = by_name[np.random.default_rng(self.split_seed).permutation(len(found))]
        val, test = (max(1, round(share * len(found))) for share in self.shares)
        parts = np.full(len(found), "train", object)
        parts[order[:val]], parts[order[val : val + test]] = "val", "test"
        return parts.tolist()

    def _all_types(self) -> list[str]:
        found = (t for split in SPLITS for e in self.sequences(split) for t in e.types)
        return sorted(set(found))

    def model_facts(self) -> dict[str, int]:
        """The number of types."""
        return {"types": len(self._all_types())}

    def check_trainer(self, trainer: Trainer) -> None:
        check_precision(trainer)

    def check_input(self, stage: str, task: LightningModule) -> None:
        if stage != "predict":
            self.setup(stage)

    def setup(self, stage: str) -> None:
        check_precision(self.trainer)
        if self.types is None:
            self.types = self._all_types()
        elif stage != "predict" or self.predict_path is None:
            for split in SPLITS:
                self._check_types(self.sequences(split), self.table())

    def _check_types(self, found: Sequence[Events], path: Path) -> None:
        """Raises DataError for the first event of a type that training had not."""
        known = set(self.types or ())
        for one in found:
            for row, kind in zip(one.rows, one.types, strict=True):
                if kind not in known:
                    raise DataError(
                        f"{path} row {row}: {one.name!r}: type {kind!r} was not in training; leave "
                        "the event out, or train on a table that has it"
                    )

    def state_dict(self) -> dict[str, Any]:
        return {} if self.types is None else {"types": self.types}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.types = list(state["types"])

    # Examples

    def train_dataloader(self) -> DataLoader:
        pieces: Any = self._pieces("train")
        return ResumableLoader(
            pieces, self.batch_size, num_workers=self.num_workers, collate_fn=self.collate
        )

    def val_dataloader(self) -> DataLoader:
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader:
        return self._in_order("test")

    def _in_order(self, split: str) -> DataLoader:
        pieces: Any = self._pieces(split)
        return DataLoader(
            pieces, self.batch_size, num_workers=self.num_workers, collate_fn=self.collate
        )

    def _pieces(self, split: str) -> list[dict[str, Any]]:
        """One example a piece, without the unknown event that follows the last."""
        found = []
        for one in self.sequences(split):
            example = self._example(one.name, one.times, one.types)
            keep = len(one.times)
            found += [
                {"id": one.name, "pieces": [_cut(piece, keep - start)]}
                for start in range(0, keep, self.length)
                for piece in [example["pieces"][start // self.length]]
            ]
        return found

    def _example(self, name: str, times: Any, types: Any) -> dict[str, Any]:
        """Place p of ``events`` + 1 reads event p - 1 and predicts event p."""
        assert self.types is not None
        number = {kind: i for i, kind in enumerate(self.types)}
        kinds = np.array([number[kind] for kind in types], np.int64)
        gaps = np.diff(times, prepend=times[:1])
        whole = {
            "type_in": np.concatenate([[len(self.types)], kinds]),
            "gap_in": np.concatenate([[0.0], gaps]).astype(np.float32),
            "time_in": np.concatenate([[0.0], times]),
            "target": np.concatenate([kinds, [IGNORE]]),
            "gap": np.concatenate([gaps, [0.0]]).astype(np.float32),
            "timed": (np.arange(len(kinds) + 1) > 0) & (np.arange(len(kinds) + 1) < len(kinds)),
            "time": np.concatenate([times, [np.nan]]),
            "event": np.arange(1, len(kinds) + 2),
        }
        starts = range(0, len(kinds) + 1, self.length)
        pieces = [{k: v[s : s + self.length] for k, v in whole.items()} for s in starts]
        return {"id": name, "pieces": pieces}

    # Prediction

    def predict_records(self) -> Sequence[Record]:
        if self.predict_path is None:
            found = self.sequences("test")
        else:
            found = read_events(self.predict_path, **self.columns, grid=self.grid)
            self._check_types(found, self.predict_path)
        return [
            {"id": one.name, "times": one.times.tolist(), "types": one.types.tolist()}
            for one in found
        ]

    def encode(self, record: Record) -> dict[str, Any]:
        if self.types is None:
            raise UsageError("predict needs --ckpt_path, whose types of events are known")
        try:
            times = np.asarray(record["times"], np.float64)
            types = [str(kind) for kind in record["types"]]
        except (KeyError, TypeError, ValueError):
            raise SkipRecord(
                "times must be numbers and types texts, one of each an event"
            ) from None
        if times.shape != (len(types),) or not np.isfinite(times).all():
            raise SkipRecord("times must be finite numbers, one for each of types")
        gaps = np.diff(times)
        if (gaps < 0).any() or (self.grid is not None and off_grid(gaps, self.grid).any()):
            raise SkipRecord("times must not go back, and be multiples of data.grid apart")
        unknown = [kind for kind in types if kind not in self.types]
        if unknown:
            raise SkipRecord(f"type {unknown[0]!r} was not in training")
        return self._example(str(record["id"]), times, types)

    def collate(self, examples: list[Any]) -> dict[str, Any]:
        """Pieces padded on the right to (pieces, length): ``type_in``, ``gap_in``, ``time_in``,
        ``target``, ``gap``, ``timed``, ``time``, ``event``, and their ``sequences``."""
        pieces = [piece for e in examples for piece in e["pieces"]]
        lengths = [len(piece["event"]) for piece in pieces]
        batch: dict[str, Any] = {"sequences": Sequences.padded(lengths, max(lengths))}
        for key in pieces[0]:
            rows = np.zeros((len(pieces), max(lengths)), pieces[0][key].dtype)
            if key == "target":
                rows[:] = IGNORE
            for row, piece, length in zip(rows, pieces, lengths, strict=True):
                row[:length] = piece[key]
            batch[key] = torch.from_numpy(rows)
        batch["id"] = [e["id"] for e in examples for _ in e["pieces"]]
        batch["types"] = self.types
        return batch

    def digest_files(self) -> list[Path]:
        return [p for p in (self.path, self.predict_path) if p is not None and p.is_file()]

    def export(self, dataset: Path, target: Path) -> None:
        rows = load_predictions(dataset)
        if target.name.endswith(".csv"):
            rows.sink_csv(target)
        else:
            rows.sink_parquet(target)


def _cut(piece: dict[str, NDArray], length: int) -> dict[str, NDArray]:
    return {key: values[:length] for key, values in piece.items()}
