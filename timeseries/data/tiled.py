"""Series with empty values, cut into windows that together hold every stamp once."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from core.jobs.data import Record, RecordDataModule, SkipRecord
from core.jobs.errors import DataError, UsageError
from core.jobs.loader import ResumableLoader
from core.jobs.shards import load_predictions
from timeseries.data import calendar
from timeseries.data.covariates import Covariates
from timeseries.data.layout import Roles, layout
from timeseries.data.masks import Masks
from timeseries.data.precision import check_precision
from timeseries.data.protocol import Tile, Tiling, season_of, warn_of_borders_apart
from timeseries.data.repairs import Repairs
from timeseries.data.series import Policies, Series, read_series
from timeseries.data.streaming import stream_series, streams
from timeseries.data.windows import Fitted, fit

KEEP = Policies(gaps="keep", missing="keep")


@dataclass(frozen=True)
class Part:
    """Windows of a series, the number of which is ``number``, that see no row from ``stop`` on.
    ``hidden`` (time, channels) is of the whole series, and of a ``kind``."""

    series: Series
    number: int
    stop: int
    tiles: Sequence[Tile]
    kind: str | None = None
    hidden: NDArray[np.bool_] | None = None


class TileRecords(Sequence[dict[str, Any]]):
    """Windows as records: ``id``, ``series``, ``start`` (its first stamp), ``values`` (time,
    channels), not a number where empty, and ``first`` and ``end``, between which rows of the window
    are its own. With something hidden also ``hidden`` (time, channels), whose values are there, and
    its ``kind``. ``number`` of the series and ``row`` of the start say where it comes from.
    """

    def __init__(self, parts: Sequence[Part], length: int) -> None:
        self.parts, self.length = parts, length
        self.ends = np.cumsum([len(part.tiles) for part in parts]).tolist()

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: Any) -> Any:
        index = range(len(self))[index]
        which = bisect_right(self.ends, index)
        part = self.parts[which]
        start, first, end = part.tiles[index - self.ends[which]]
        one, rows = part.series, slice(start, min(start + self.length, part.stop))
        name = f"{one.name}@{one.stamps[first]}"
        record = {
            "id": name if part.kind is None else f"{name}/{part.kind}",
            "series": one.name,
            "start": str(one.stamps[start]),
            "values": np.asarray(one.values[rows]),
            "first": first - start,
            "end": end - start,
            "number": part.number,
            "row": start,
        }
        if part.hidden is None:
            return record
        return {**record, "hidden": part.hidden[rows], "kind": part.kind}


class TiledSeries(RecordDataModule):
    """What imputation and anomaly scores share: series of a CSV, TSV or Parquet table with empty
    values, their scale, windows as examples, and what is hidden in training.

    Children say which records a split holds (``records``).
    """

    input_columns = {  # noqa: RUF012  # read only
        "id": "string",
        "series": "string",
        "start": "string",
        "values": "double[][]",
    }
    exports = (".csv", ".parquet")

    def __init__(
        self,
        path: str | None,
        predict_path: str | None,
        roles: Roles,
        frequency: str | None,
        tiling: Tiling,
        masks: Masks,
        policies: Policies,
        batch_size: int,
        num_workers: int,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        self.path = None if path is None else Path(path)
        self.predict_path = None if predict_path is None else Path(predict_path)
        self.roles, self.frequency = roles, frequency
        self.tiling, self.masks, self.policies = tiling, masks, policies
        self.fitted: Fitted | None = None
        self.kept: dict[Path, list[Series]] = {}
        self.repaired: dict[Path, Repairs] = {}

    # Series

    def series(self, path: Path) -> list[Series]:
        """The series of a table; read once. Raises DataError for a channel without any value."""
        self.tiling.check()
        self.masks.check()
        if self.policies.short != "fail":
            raise UsageError(
                "data.policies.short: no series is too short for a window here; leave it out"
            )
        if path not in self.kept:
            self.kept[path] = self._read(path)
            for one in self.kept[path]:
                check_values(path, one, slice(None), "")
        return self.kept[path]

    def _read(self, path: Path) -> list[Series]:
        roles = self.roles
        if roles.targets is None and self.fitted is not None:
            roles = replace(roles, targets=self.fitted.channels)
        roles = replace(layout(path, roles), covariates=self.beside(path))
        read = stream_series if streams(path) else read_series
        repairs = self.repaired[path] = Repairs()
        return read(path, roles, self.policies, self.frequency, repairs)

    def model_facts(self) -> dict[str, int]:
        """Channels, calendar features and season."""
        path = self.path or self.predict_path
        if path is None:
            raise UsageError("data.path is not given; name a CSV or Parquet table")
        series = self.series(path)
        if path == self.path:
            self._check_training(series)  # ends a command before its run begins
        one = series[0]
        return {
            "channels": len(one.channels),
            "time_features": len(calendar.names(one.frequency)),
            "season": season_of(self.tiling, one.frequency),
        }

    def check_trainer(self, trainer: Trainer) -> None:
        check_precision(trainer)

    def check_input(self, stage: str, task: LightningModule) -> None:
        if self.fitted is not None:
            self.fitted.check_protocol(self.tiling, "data.tiling")
        check = getattr(task, "check_data", None)  # of tasks whose settings depend on the data
        if callable(check):
            check(stage, self)
        if stage != "predict":
            self.setup(stage)
            assert self.path is not None
            warn_of_borders_apart(self.series(self.path), self.tiling, self.path)
            self._some_records("test" if stage == "test" else "val")

    def setup(self, stage: str) -> None:
        check_precision(self.trainer)
        elsewhere = stage == "predict" and self.predict_path is not None
        if elsewhere and (self.fitted is not None or self.path is None):
            return
        if self.path is None:
            raise UsageError(f"{stage} needs data.path, a CSV or Parquet table of series")
        series = self.series(self.path)
        if self.fitted is None:
            self._check_training(series)
            self.fitted = fit(series, self.tiling)
        self.fitted.check(series, self.path)

    def _check_training(self, series: Sequence[Series]) -> None:
        assert self.path is not None
        for one in series:
            rows = slice(*self.tiling.spans(one)["train"])
            check_values(self.path, one, rows, " in the training span")

    def state_dict(self) -> dict[str, Any]:
        return {} if self.fitted is None else self.fitted.plain()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.fitted = Fitted.from_plain(state)

    # Examples

    def beside(self, path: Path) -> Covariates:
        """Further columns that are read from ``path``."""
        return Covariates()

    def records(self, split: str) -> TileRecords:
        """Windows of ``val`` or ``test``."""
        raise NotImplementedError

    def tiled(
        self,
        series: Sequence[Series],
        split: str | None,
        hidden: Sequence[NDArray[np.bool_]] | None = None,
        kind: str | None = None,
    ) -> list[Part]:
        """The windows of a split, by default of everything; ``hidden`` is of each series."""
        parts = []
        for number, one in enumerate(series):
            span = (0, len(one)) if split is None else self.tiling.spans(one)[split]
            tiles = self.tiling.tiles(span, self.tiling.stride if split == "train" else None)
            mask = None if hidden is None else hidden[number]
            parts.append(Part(one, number, span[1], tiles, kind, mask))
        return parts

    def train_dataloader(self) -> DataLoader:
        assert self.path is not None
        records = TileRecords(self.tiled(self.series(self.path), "train"), self.tiling.length)
        return ResumableLoader(
            Examples(self, records),
            self.batch_size,
            num_workers=self.num_workers,
            collate_fn=self.collate,
        )

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> Any:
        """Hide values of training windows; by seed and step, so that a resumed run goes on."""
        if self.trainer is not None and self.trainer.training:
            seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
            random = np.random.default_rng([seed, self.trainer.global_step, self._rank()])
            shape = tuple(batch["known"].shape[1:])
            kinds = random.choice(self.masks.kinds, len(batch["known"]))
            hidden = np.stack([self.masks.draw(kind, shape, random) for kind in kinds])
            batch["hidden"] = torch.from_numpy(hidden) & batch["known"]
        return batch

    def _rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    def val_dataloader(self) -> DataLoader:
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader:
        return self._in_order("test")

    def _some_records(self, split: str) -> TileRecords:
        records = self.records(split)
        if not len(records):
            raise DataError(f"{self.path}: the {split} span is empty; move data.tiling's borders")
        return records

    def _in_order(self, split: str) -> DataLoader:
        return DataLoader(
            Examples(self, self._some_records(split)),
            self.batch_size,
            num_workers=self.num_workers,
            collate_fn=self.collate,
        )

    def encode(self, record: Record) -> dict[str, Any]:
        """Standardised ``values``, 0 where empty; which are ``known`` and ``hidden``; which rows
        are the window's ``own``. A window of fewer rows than others is empty behind them."""
        if self.fitted is None:
            raise UsageError("predict needs --ckpt_path, or data.path to take the scale from")
        length, name = self.tiling.length, str(record["series"])
        scale = self.fitted.scales.get(name)
        if scale is None:
            raise SkipRecord(f"series {name!r} was not in training, so its scale is not known")
        given = _matrix(record["values"], len(self.fitted.channels))
        if given is None or not 0 < len(given) <= length or np.isinf(given).any():
            channels = ", ".join(self.fitted.channels)
            raise SkipRecord(
                f"values must be 1 to {length} rows of a finite number, or null where it is "
                f"missing, for each of {channels}"
            )
        values = np.full((length, given.shape[1]), np.nan)
        values[: len(given)] = given
        known = ~np.isnan(values)
        hidden = np.zeros_like(known)
        if "hidden" in record:
            hidden[: len(given)] = record["hidden"]
        own = np.zeros(length, bool)
        own[int(record.get("first", 0)) : int(record.get("end", len(given)))] = True
        scaled = np.where(known, (values - scale.mean) / scale.std, 0).astype(np.float32)
        return {
            **{key: record.get(key) for key in ("id", "series", "kind")},
            "stamps": _stamps(str(record["start"]), self.fitted.frequency, length),
            "original": values,
            "values": scaled,
            "known": known,
            "hidden": hidden & known,
            "own": own,
            # not float32, whose rounding of a large mean would be an error of what is filled in
            "mean": scale.mean,
            "std": scale.std,
            "number": int(record.get("number", 0)),
            "row": int(record.get("row", 0)),
        }

    def collate(self, examples: list[Any]) -> dict[str, Any]:
        """``values``, ``known``, ``hidden``, ``original`` (batch, time, channels), ``time`` (batch,
        time, features), ``own`` (batch, time), ``mean``, ``std`` (batch, channels), ``number`` of
        the series and ``row`` of the first step (batch,); ``id``, ``series``, ``kind``, ``stamps``
        and names of ``channels`` as lists."""
        assert self.fitted is not None
        tensors = ("values", "known", "hidden", "own", "original", "mean", "std")
        batch: dict[str, Any] = {
            key: torch.from_numpy(np.stack([e[key] for e in examples])) for key in tensors
        }
        for key in ("number", "row"):
            batch[key] = torch.tensor([e[key] for e in examples])
        for key in ("id", "series", "kind", "stamps"):
            batch[key] = [e[key] for e in examples]
        features = calendar.features(np.concatenate(batch["stamps"]), self.fitted.frequency)
        batch["time"] = torch.from_numpy(features).unflatten(0, (len(examples), -1))
        batch["channels"] = self.fitted.channels
        return batch

    # Prediction

    def predicted(self) -> tuple[Path, list[Series]]:
        """The table that ``predict`` reads, and its series as in training."""
        path = self.predict_path or self.path
        assert path is not None
        if self.fitted is None:
            raise UsageError("predict needs --ckpt_path, or data.path to take the scale from")
        series = self.series(path)
        self.fitted.check(series, path)
        return path, series

    def digest_files(self) -> list[Path]:
        return [p for p in (self.path, self.predict_path) if p is not None and p.is_file()]

    def repairs(self) -> dict[Path, list[dict[str, Any]]]:
        return {path: repairs.record() for path, repairs in self.repaired.items()}

    def export(self, dataset: Path, target: Path) -> None:
        rows = load_predictions(dataset)
        if target.name.endswith(".csv"):
            rows.sink_csv(target)
        else:
            rows.sink_parquet(target)


class Examples(Dataset):
    """Records of a split, encoded."""

    def __init__(self, data: TiledSeries, records: TileRecords) -> None:
        self.data, self.records = data, records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        return TiledSeries.encode(self.data, self.records[index])


def check_values(path: Path, one: Series, rows: slice, where: str) -> None:
    """Raises DataError for a channel that has no value in some ``rows``."""
    empty = np.isnan(one.values[rows]).all(0)
    if empty.any():
        channel = one.channels[int(empty.argmax())]
        raise DataError(
            f"{path}: series {one.name!r} has no value of {channel}{where}; leave the channel or "
            "the series out"
        )


def _matrix(values: Any, channels: int) -> NDArray[np.float64] | None:
    """(time, channels), with nulls as not a number; None for what is not that."""
    try:
        found = np.array([np.asarray(row, np.float64) for row in values])
    except (TypeError, ValueError):  # rows of text, or of several lengths
        return None
    return found if found.ndim == 2 and found.shape[1] == channels else None


def _stamps(start: str, frequency: str | None, length: int) -> NDArray:
    """Raises SkipRecord if ``start`` is no stamp."""
    try:
        if frequency is None:
            return np.arange(int(start), int(start) + length)
        return calendar.grid(calendar.stamp(start), frequency, 0, length)
    except ValueError as error:
        kind = "a whole number" if frequency is None else "a stamp such as 2024-01-31T13:00:00"
        raise SkipRecord(f"start {start!r} is not {kind}") from error
