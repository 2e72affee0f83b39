"""The data module of forecasting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from core.jobs.data import Record, RecordDataModule, SkipRecord
from core.jobs.errors import DataError, UsageError
from core.jobs.loader import ResumableLoader
from core.jobs.shards import load_predictions
from timeseries.data import calendar
from timeseries.data.covariates import Covariates, static_columns
from timeseries.data.layout import AUTO, Roles, has_offset, layout
from timeseries.data.precision import check_precision
from timeseries.data.protocol import (
    Protocol,
    check_length,
    check_training,
    season_of,
    warn_of_borders_apart,
)
from timeseries.data.repairs import Repairs, say_once
from timeseries.data.series import Policies, Series, read_series
from timeseries.data.streaming import stream_series, streams
from timeseries.data.windows import Fitted, ForecastRecords, Windows, check_horizon, fit


class ForecastWindows(RecordDataModule):
    """Windows of the series in a CSV, TSV or Parquet table.

    A Parquet file of 5 million rows or more is read by pieces into memory maps in the cache folder
    (``timeseries.data.streaming``); memory then grows with the longest series alone. Covariates
    become features beside those of the calendar, standardised by the training spans; a model
    without ``reads_time`` is refused them with UsageError.

    Args:
        path: the table to train and test on.
        predict_path: what ``predict`` reads; without it, ``path``.
        time: column of stamps; null numbers the rows of each series. ``auto`` takes ``ds`` or
            ``date``.
        series: column that names the series of a row (long table); null for one series whose
            channels are columns (wide table). ``auto`` takes ``unique_id`` where there is one.
        targets: columns to forecast; null takes ``y`` of a long table, all of a wide one.
        known: columns of covariates that are known for the horizon as well, such as holidays. For
            ``predict`` from the end of a file, rows after the last target hold them, with empty
            targets.
        observed: columns of covariates that are known up to the present, such as weather.
        static: columns that do not change within a series: numbers, or text, which becomes one
            feature a category. They are settled in training, like the scale.
        frequency: step of the stamps such as ``1h``; null infers it.
        protocol: look-back, horizon, borders and scale.
        policies: what becomes of gaps, duplicates and other flaws.
        origins: what ``predict`` forecasts from: the ``end`` of each series, the origins of the
            ``test`` span as ``test`` takes them, or every origin of the ``val`` span.
        batch_size: windows in a batch.
        num_workers: processes that make them.
        folder: where ``path`` is, if that is not a whole path.
    """

    input_columns = {  # noqa: RUF012  # read only
        "id": "string",
        "series": "string",
        "origin": "string",
        "values": "double[][]",
    }
    exports = (".csv", ".parquet")

    def __init__(
        self,
        path: str | None = None,
        predict_path: str | None = None,
        time: str | None = AUTO,
        series: str | None = AUTO,
        targets: list[str] | None = None,
        known: list[str] = [],  # noqa: B006  # read only
        observed: list[str] = [],  # noqa: B006  # read only
        static: list[str] = [],  # noqa: B006  # read only
        frequency: str | None = None,
        protocol: Protocol = Protocol(),  # noqa: B008  # read only
        policies: Policies = Policies(),  # noqa: B008  # read only
        origins: Literal["end", "test", "val"] = "end",
        batch_size: int = 32,
        num_workers: int = 0,
        folder: str | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        self.path = None if path is None else Path(folder or "", path)
        self.predict_path = None if predict_path is None else Path(predict_path)
        self.covariates = Covariates(tuple(known), tuple(observed), tuple(static))
        self.roles = Roles(time, series, targets, self.covariates)
        given = {
            name: "double[][]" for name in ("known", "observed") if getattr(self.covariates, name)
        }
        if policies.gaps == "close":
            given["stamps"] = "string[]"
        self.input_columns = {**self.input_columns, **given}
        self.frequency = frequency
        self.protocol = protocol
        self.policies = policies
        self.origins = origins
        self.fitted: Fitted | None = None
        self.kept: dict[Path, list[Series]] = {}
        self.repaired: dict[Path, Repairs] = {}
        self.offsets: dict[Path, bool] = {}

    def series(self, path: Path) -> list[Series]:
        """The series of a table that have room for a window."""
        skip = self.policies.short == "skip"
        found = check_length(self.all_series(path), self.protocol, path, skip)
        return check_training(found, self.protocol, path, skip)

    def all_series(self, path: Path) -> list[Series]:
        """All series of a table; read once."""
        self.protocol.check()
        if "keep" in (self.policies.gaps, self.policies.missing):
            raise UsageError(
                "data.policies: a forecast needs every value; give previous or linear, not keep"
            )
        if path not in self.kept:
            roles = self.roles
            if roles.targets is None and self.fitted is not None:
                roles = replace(roles, targets=self.fitted.channels)
            roles = layout(path, roles)
            read = stream_series if streams(path) else read_series
            self.offsets[path] = has_offset(path, roles.time)
            repairs = self.repaired[path] = Repairs()
            self.kept[path] = read(path, roles, self.policies, self.frequency, repairs)
        return self.kept[path]

    def model_facts(self) -> dict[str, int]:
        """Look-back, horizon, channels, features beside them (calendar, covariates) and season."""
        if self.path is not None:
            series = self.series(self.path)
            for one in series:
                self.protocol.spans(one)  # impossible borders end a command before its run begins
        elif self.predict_path is not None:
            series = self.all_series(self.predict_path)
        else:
            raise UsageError("data.path is not given; name a CSV or Parquet table")
        one = series[0]
        statics = static_columns([one.static for one in series])
        columns = len(self.covariates.known) + len(self.covariates.observed)
        covariates = columns + sum(column.width for column in statics)
        return {
            "lookback": self.protocol.lookback,
            "horizon": self.protocol.horizon,
            "channels": len(one.channels),
            "time_features": len(calendar.names(one.frequency)) + covariates,
            "season": season_of(self.protocol, one.frequency),
        }

    def check_trainer(self, trainer: Trainer) -> None:
        check_precision(trainer)

    def check_input(self, stage: str, task: LightningModule) -> None:
        self.protocol.check()
        if self.fitted is not None:
            self.fitted.check_protocol(self.protocol, "data.protocol")
        check_horizon(getattr(task, "horizon", None), self.protocol.horizon)
        self._check_reads_time(task)
        if stage == "predict":
            return
        path = self._required_path(stage)
        series = self.series(path)
        if self.fitted is not None:
            self._check(series, path)
        warn_of_borders_apart(series, self.protocol, path)
        for split in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}[stage]:
            self._check_room(series, split, path)

    def setup(self, stage: str) -> None:
        check_precision(self.trainer)
        if self.trainer is not None:
            self._check_reads_time(self.trainer.lightning_module)
        elsewhere = stage == "predict" and self.predict_path is not None
        if elsewhere and (self.fitted is not None or self.path is None):
            return
        path = self._required_path(stage)
        series = self.series(path)
        if self.fitted is None:
            self.fitted = fit(series, self.protocol, self.covariates)
            self.fitted.offsets = self.offsets[path]
        self._check(series, path)

    def _required_path(self, stage: str) -> Path:
        if self.path is None:
            raise UsageError(f"{stage} needs data.path, a CSV or Parquet table of series")
        return self.path

    def _check_reads_time(self, task: LightningModule) -> None:
        """Raises UsageError for a model that would drop covariates without a word."""
        model = getattr(task, "model", task)
        if self.covariates and not getattr(model, "reads_time", False):
            raise UsageError(
                f"{type(model).__name__} does not read covariates; leave out data.known, "
                "data.observed and data.static, or take a model that does, such as Informer"
            )

    def _check(self, series: Sequence[Series], path: Path) -> None:
        """Raises DataError if the series of ``path`` are not as in training; a warning if they may
        be hours apart."""
        assert self.fitted is not None
        self.fitted.check(series, path)
        here, trained = self.offsets[path], self.fitted.offsets
        if self.policies.offsets == "utc" and trained is not None and here != trained:
            these, those = ("an", "none") if here else ("no", "one")
            say_once(
                f"{path}: stamps have {these} offset from UTC, and those of training had {those}: "
                "what has none is read as UTC"
            )
        static = {one.name: one.static for one in series if one.static}
        self.fitted.covariates.check(path, self.covariates, static)

    def windows(self, split: str) -> Windows:
        """All windows of a split. Raises DataError if it has room for none."""
        assert self.path is not None
        assert self.fitted is not None
        series = self.series(self.path)
        self._check_room(series, split, self.path)
        return Windows(series, self.fitted, self.protocol, split)

    def _check_room(self, series: Sequence[Series], split: str, path: Path) -> None:
        if not any(self.protocol.origins(one, split) for one in series):
            raise DataError(
                f"{path}: the {split} span has no room for a horizon of "
                f"{self.protocol.horizon}; move the borders in data.protocol"
            )

    def train_dataloader(self) -> DataLoader:
        return ResumableLoader(
            self.windows("train"),
            self.batch_size,
            num_workers=self.num_workers,
            collate_fn=_unchanged,
        )

    def val_dataloader(self) -> DataLoader:
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader:
        return self._in_order("test")

    def _in_order(self, split: str) -> DataLoader:
        return DataLoader(
            self.windows(split),
            self.batch_size,
            num_workers=self.num_workers,
            collate_fn=_unchanged,
        )

    def state_dict(self) -> dict[str, Any]:
        return {} if self.fitted is None else self.fitted.plain()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.fitted = Fitted.from_plain(state)

    # Prediction

    def predict_records(self) -> Sequence[Record]:
        path = self.predict_path or self.path
        assert path is not None
        if self.fitted is None:
            raise UsageError("predict needs --ckpt_path, or data.path to take the scale from")
        if self.origins == "end":
            series = self.all_series(path)
            self._check(series, path)  # a step unlike training's tells more than too few rows
            if self.policies.short == "fail":
                check_length(series, self.protocol, path, skip=False, ahead=False)
            self._check_ahead(series, path)
            origins = [range(len(one), len(one) + 1) for one in series]
        else:
            series = self.series(path)
            self._check_room(series, self.origins, path)
            self._check(series, path)
            origins = [self.protocol.origins(one, self.origins) for one in series]
        return ForecastRecords(series, origins, self.protocol, self.policies.gaps == "close")

    def _check_ahead(self, series: Sequence[Series], path: Path) -> None:
        """Raises DataError for a series whose known covariates end before the horizon."""
        horizon = self.protocol.horizon
        for one in series if self.covariates.known else ():
            rows = len(one.known) - len(one)
            if rows < horizon:
                raise DataError(
                    f"{path}: series {one.name!r} has {rows} rows after its last target, and the "
                    f"horizon needs {horizon}; add rows with {', '.join(self.covariates.known)} "
                    "and empty targets"
                )

    def encode(self, record: Record) -> dict[str, Any]:
        assert self.fitted is not None
        lookback = self.protocol.lookback
        name = str(record["series"])
        scale = self.fitted.scales.get(name)
        if scale is None:
            raise SkipRecord(f"series {name!r} was not in training, so its scale is not known")
        try:
            values = np.array([np.asarray(row, np.float64) for row in record["values"]])
        except (TypeError, ValueError):  # rows of text, or of several lengths
            values = np.empty((lookback, 0))
        if len(values) < lookback:
            raise SkipRecord(f"{len(values)} values, fewer than the look-back of {lookback}")
        given = len(values)
        values = values[-lookback:]
        if values.shape[1:] != (len(self.fitted.channels),) or not np.isfinite(values).all():
            channels = ", ".join(self.fitted.channels)
            raise SkipRecord(f"values must be rows of one finite number for each of {channels}")
        known, ahead = self.stamps(record)
        past_time = [calendar.features(known, self.fitted.frequency)]
        future_time = [calendar.features(ahead, self.fitted.frequency)]
        if self.covariates:
            past, future = self._encoded_covariates(record, name, given)
            past_time, future_time = [*past_time, past], [*future_time, future]
        return {
            **{key: record[key] for key in ("id", "series", "origin", "actual") if key in record},
            "stamps": ahead,
            "past": ((values - scale.mean) / scale.std).astype(np.float32),
            "past_time": np.hstack(past_time),
            "future_time": np.hstack(future_time),
            # not float32, whose rounding of a large mean would be an error of the forecast
            "mean": scale.mean,
            "std": scale.std,
        }

    def stamps(self, record: Record) -> tuple[Any, Any]:
        """Stamps of the look-back and of the horizon. Behind the last that is given they go on by
        the step. Raises SkipRecord for what is none."""
        assert self.fitted is not None
        lookback, horizon = self.protocol.lookback, self.protocol.horizon
        frequency, given = self.fitted.frequency, len(record["values"])
        kind = "a whole number" if frequency is None else "a stamp such as 2024-01-31T13:00:00"
        try:
            around = stamps_around(str(record["origin"]), frequency, lookback, horizon)
        except ValueError as error:
            raise SkipRecord(f"origin {record['origin']!r} is not {kind}") from error
        if self.policies.gaps != "close":
            return around
        try:
            texts = [str(text) for text in record["stamps"]][: given + horizon]
            stamp = int if frequency is None else calendar.stamp
            found = np.array([stamp(text) for text in texts])
            more = stamps_around(texts[-1], frequency, 0, given + horizon - len(texts))[1]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise SkipRecord(f"stamps must each be {kind}") from error
        if len(found) < given:
            raise SkipRecord(f"{len(found)} stamps of {given} values")
        return found[given - lookback : given], np.concatenate([found[given:], more])

    def _encoded_covariates(self, record: Record, name: str, given: int) -> tuple[Any, Any]:
        """Features (lookback, features) and (horizon, features) of a record with ``given`` values.
        Raises SkipRecord for what is not there."""
        assert self.fitted is not None
        fitted = self.fitted.covariates
        lookback, horizon = self.protocol.lookback, self.protocol.horizon
        known = _table(record, "known", fitted.columns.known, given + horizon)
        observed = _table(record, "observed", fitted.columns.observed, given)
        ahead = fitted.scaled(known[given:])
        features = np.hstack([known[given - lookback : given], observed[given - lookback :]])
        constant = fitted.constant(name)
        unknown = np.zeros((horizon, observed.shape[1]), np.float32)  # the mean of training
        return (
            np.hstack([fitted.scaled(features), np.tile(constant, (lookback, 1))]),
            np.hstack([ahead, unknown, np.tile(constant, (horizon, 1))]),
        )

    def collate(self, examples: list[Any]) -> dict[str, Any]:
        tensors = ("past", "past_time", "future_time", "mean", "std")
        batch: dict[str, Any] = {
            key: torch.from_numpy(np.stack([e[key] for e in examples])) for key in tensors
        }
        for key in ("id", "series", "origin", "stamps"):
            batch[key] = [e[key] for e in examples]
        batch["channels"] = self.fitted.channels if self.fitted else ()
        batch["actual"] = [e.get("actual") for e in examples]
        return batch

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


def stamps_around(
    origin: str, frequency: str | None, lookback: int, horizon: int
) -> tuple[Any, Any]:
    """Stamps of the look-back, whose last is ``origin``, and of the horizon. Raises ValueError for
    an ``origin`` that is no stamp."""
    if frequency is None:
        row = int(origin)
        return np.arange(row - lookback + 1, row + 1), np.arange(row + 1, row + 1 + horizon)
    last = calendar.stamp(origin)
    known = calendar.grid(last, frequency, 1 - lookback, 1)
    return known, calendar.grid(last, frequency, 1, horizon + 1)


def _table(record: Record, key: str, columns: Sequence[str], rows: int) -> NDArray[np.float64]:
    """(rows, columns) of a record. Raises SkipRecord if it is not that."""
    if not columns:
        return np.zeros((rows, 0))
    try:
        found = np.array([np.asarray(row, np.float64) for row in record[key]])
    except (KeyError, TypeError, ValueError):
        found = np.empty((0, 0))
    if found.shape != (rows, len(columns)) or not np.isfinite(found).all():
        names = ", ".join(columns)
        raise SkipRecord(f"{key} must be {rows} rows of one finite number for each of {names}")
    return found


def _unchanged(batch: Any) -> Any:
    return batch
