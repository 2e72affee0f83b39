"""The data module of classification: whole series, each with one class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from core.jobs.data import Record, RecordDataModule, SkipRecord
from core.jobs.errors import DataError, UsageError
from core.jobs.loader import ResumableLoader
from core.jobs.shards import load_predictions
from core.sequences import Sequences
from timeseries.data.labelled_tables import SPLITS, Columns, LabelledSeries, read_labelled


@dataclass(frozen=True)
class FittedClasses:
    """What training settles: names of channels and classes, and the scale (channels,)."""

    channels: tuple[str, ...]
    classes: tuple[str, ...]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]


class LabelledSeriesData(RecordDataModule):
    """Series with classes, from a long table (CSV, TSV, Parquet), ``.ts`` files, or Parquet with a
    row a series, whose channels are lists.

    A whole series is in one split, never a part of it. A file without a split of its own is all
    training; one without ``val`` gives ``val_share`` of each class's training series, spread evenly
    over the file, to validation. The scale is that of the training series and travels with the
    checkpoint.

    Args:
        path: the series to train and test on.
        test_path: the test split where it is a file of its own, as in the UCR and UEA archives.
        predict_path: what ``predict`` reads; without it, the test split.
        series: column that names the series of a row.
        time: column of whole numbers or dates that orders the rows of a series; null keeps the
            file's order.
        label: column of classes, one for all rows of a series.
        split: column with train, val or test, one for all rows of a series; it may be missing.
        channels: columns of values; null takes all others.
        val_share: share of the training series to validate on.
        batch_size: series in a batch, padded to its longest.
        num_workers: processes that make batches.
    """

    input_columns = {"id": "string", "values": "double[][]"}  # noqa: RUF012  # read only
    exports = (".csv", ".parquet")

    def __init__(
        self,
        path: str | None = None,
        test_path: str | None = None,
        predict_path: str | None = None,
        series: str = "unique_id",
        time: str | None = None,
        label: str = "label",
        split: str = "split",
        channels: list[str] | None = None,
        val_share: float = 0.2,
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        if not 0 < val_share < 1:
            raise UsageError(f"data.val_share is {val_share}; give a share between 0 and 1")
        self.path = None if path is None else Path(path)
        self.test_path = None if test_path is None else Path(test_path)
        self.predict_path = None if predict_path is None else Path(predict_path)
        self.columns = Columns(series, time, label, split, channels)
        self.val_share = val_share
        self.fitted: FittedClasses | None = None
        self.splits: dict[str, list[LabelledSeries]] = {}

    def check_input(self, stage: str, task: LightningModule) -> None:
        if stage != "predict":
            self.setup(stage)

    def setup(self, stage: str) -> None:
        if stage == "predict" and self.predict_path is not None and self.fitted is not None:
            return
        if self.path is None:
            raise UsageError(f"{stage} needs data.path, a long table or .ts file of series")
        if not self.splits:
            names, self.splits = self._read_splits(self.path)
            if self.fitted is None:
                self.fitted = fit_classes(self.path, names, self.split("train"))
            self._check(names)

    def _read_splits(self, path: Path) -> tuple[tuple[str, ...], dict[str, list[LabelledSeries]]]:
        names, found = read_labelled(path, self.columns)
        if self.test_path is not None:
            others, more = read_labelled(self.test_path, self.columns)
            same_channels(self.test_path, others, names)
            taken = {one.name for one in found}
            for one in more:
                if one.name in taken:
                    raise DataError(
                        f"{self.test_path}: series {one.name!r} is also in {path}; a series "
                        "belongs to one split, rename it if it is another"
                    )
            found = [replace(one, split=one.split or "train") for one in found]
            found += [replace(one, split="test") for one in more]
        for one in found:
            if one.label is None:
                raise DataError(f"{path}: series {one.name!r} has no class; training needs one")
        if any(one.split is None for one in found):
            found = [replace(one, split="train") for one in found]
        if not any(one.split == "val" for one in found):
            found = with_validation(found, self.val_share)
        return names, {name: [s for s in found if s.split == name] for name in SPLITS}

    def _check(self, names: tuple[str, ...]) -> None:
        assert self.fitted is not None
        same_channels(self.path, names, self.fitted.channels)
        for one in (one for part in self.splits.values() for one in part):
            if one.label not in self.fitted.classes:
                raise DataError(
                    f"{self.path}: series {one.name!r} has class {one.label!r}, which was not in "
                    f"training; leave the series out, or train on some of its class"
                )

    def split(self, name: str) -> list[LabelledSeries]:
        """The series of a split; DataError if there are none."""
        if not self.splits.get(name):
            raise DataError(
                f"{self.path}: no series of split {name!r}; name it in column "
                f"{self.columns.split!r}, or give a file of its own with data.test_path"
            )
        return self.splits[name]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""
        assert self.fitted is not None
        return self.fitted.classes

    def numbers(self, series: Sequence[LabelledSeries]) -> list[int]:
        """The number of each series' class."""
        return [self.classes.index(str(one.label)) for one in series]

    def standardised(self, values: NDArray[np.float64]) -> NDArray[np.float32]:
        """(time, channels) on the training series' scale."""
        assert self.fitted is not None
        return ((values - self.fitted.mean) / self.fitted.std).astype(np.float32)

    def model_facts(self) -> dict[str, int]:
        """Channels and classes; for a prediction without the training file, whose checkpoint knows
        them, none."""
        if self.predict_path is not None and not (self.path and self.path.exists()):
            return {}
        self.setup("fit")
        assert self.fitted is not None
        return {"channels": len(self.fitted.channels), "classes": len(self.fitted.classes)}

    def train_dataloader(self) -> DataLoader:
        return ResumableLoader(
            _Encoded(self, "train"),
            self.batch_size,
            num_workers=self.num_workers,
            collate_fn=self.collate,
        )

    def val_dataloader(self) -> DataLoader:
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader:
        return self._in_order("test")

    def _in_order(self, split: str) -> DataLoader:
        return DataLoader(
            _Encoded(self, split),
            self.batch_size,
            num_workers=self.num_workers,
            collate_fn=self.collate,
        )

    def state_dict(self) -> dict[str, Any]:
        if self.fitted is None:
            return {}
        f = self.fitted
        return {
            "channels": list(f.channels),
            "classes": list(f.classes),
            "mean": f.mean.tolist(),
            "std": f.std.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.fitted = FittedClasses(
            tuple(state["channels"]),
            tuple(state["classes"]),
            np.array(state["mean"]),
            np.array(state["std"]),
        )

    # Prediction

    def predict_records(self) -> Sequence[Record]:
        if self.predict_path is None:
            chosen = self.split("test")
        else:
            assert self.fitted is not None
            columns = replace(self.columns, channels=list(self.fitted.channels))
            names, chosen = read_labelled(self.predict_path, columns, labels=False)
            same_channels(self.predict_path, names, self.fitted.channels)
        return [_record(one) for one in chosen]

    def encode(self, record: Record) -> dict[str, Any]:
        if self.fitted is None:
            raise UsageError("predict needs --ckpt_path, or data.path to take the scale from")
        values = record["values"]
        if not isinstance(values, np.ndarray) or values.dtype != np.float64:
            try:
                values = np.array([np.asarray(row, np.float64) for row in values])
            except (TypeError, ValueError):  # rows of text, or of several lengths
                values = np.empty((0, 0))
        channels = self.fitted.channels
        if values.ndim != 2 or not len(values) or values.shape[1] != len(channels):
            raise SkipRecord(f"values must be rows of one number for each of {', '.join(channels)}")
        if not np.isfinite(values).all():
            raise SkipRecord("an empty or infinite value; fill it first")
        label = record.get("label")
        known = label in self.fitted.classes
        return {
            "id": record["id"],
            "values": self.standardised(values),
            "actual": label,
            "label": self.fitted.classes.index(str(label)) if known else None,
        }

    def collate(self, examples: list[Any]) -> dict[str, Any]:
        """``values`` (batch, longest, channels), ``sequences`` or None where all are as long, names
        of ``classes``, and ``label`` (batch,) where all have one."""
        assert self.fitted is not None
        values, sequences = pad_values([e["values"] for e in examples])
        batch: dict[str, Any] = {
            "id": [e["id"] for e in examples],
            "values": values,
            "sequences": sequences,
            "actual": [e["actual"] for e in examples],
            "classes": self.fitted.classes,
        }
        labels = [e["label"] for e in examples if e["label"] is not None]
        if len(labels) == len(examples):
            batch["label"] = torch.tensor(labels)
        return batch

    def digest_files(self) -> list[Path]:
        files = (self.path, self.test_path, self.predict_path)
        return [p for p in files if p is not None and p.is_file()]

    def export(self, dataset: Path, target: Path) -> None:
        rows = load_predictions(dataset)
        if target.name.endswith(".csv"):
            rows.sink_csv(target)
        else:
            rows.sink_parquet(target)


def same_channels(path: Path | None, found: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    """Raise DataError unless both have the same names in the same order."""
    if found != wanted:
        raise DataError(
            f"{path}: channels are {', '.join(found)}; training had {', '.join(wanted)}"
        )


def with_validation(series: list[LabelledSeries], share: float) -> list[LabelledSeries]:
    """Some training series of each class turned into ``val``, at even distances in the file; at
    least one of each class that has two."""
    chosen: set[str] = set()
    for label in {s.label for s in series}:
        own = [s.name for s in series if s.split == "train" and s.label == label]
        count = min(max(1, round(share * len(own))), len(own) - 1)
        if count > 0:
            chosen |= {own[int((i + 0.5) * len(own) / count)] for i in range(count)}
    return [replace(s, split="val") if s.name in chosen else s for s in series]


def fit_classes(path: Path, names: tuple[str, ...], train: list[LabelledSeries]) -> FittedClasses:
    """The scale of all steps of the training series; a constant channel keeps its unit. Classes are
    in the order of their numbers, or of the alphabet if they are no numbers.

    Raises DataError if there is only one.
    """
    classes = {str(one.label) for one in train}
    if len(classes) < 2:
        raise DataError(
            f"{path}: all training series have the class {classes.pop()!r}; give at least two"
        )
    steps = np.concatenate([one.values for one in train])
    constant = steps.max(0) == steps.min(0)  # rounding gives a constant channel a deviation too
    try:
        ordered = sorted(classes, key=float)
    except ValueError:
        ordered = sorted(classes)
    std = np.where(constant, 1.0, steps.std(0))
    return FittedClasses(names, tuple(ordered), steps.mean(0), std)


def pad_values(rows: Sequence[NDArray[np.float32]]) -> tuple[Tensor, Sequences | None]:
    """(batch, longest, channels), zeros at the end, and what is real; None if everything is."""
    lengths = [len(row) for row in rows]
    longest = max(lengths)
    values = np.zeros((len(rows), longest, rows[0].shape[1]), np.float32)
    for i, row in enumerate(rows):
        values[i, : len(row)] = row
    sequences = None if min(lengths) == longest else Sequences.padded(lengths, longest)
    return torch.from_numpy(values), sequences


def _record(one: LabelledSeries) -> Record:
    return {"id": one.name, "values": one.values, "label": one.label}


class _Encoded(Dataset):
    def __init__(self, data: LabelledSeriesData, split: str) -> None:
        self.data, self.series = data, data.split(split)

    def __len__(self) -> int:
        return len(self.series)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.data.encode(_record(self.series[number]))
