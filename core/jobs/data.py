"""What batch prediction asks of a domain's data: records, examples, batches."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset

from core.jobs.errors import DataError, UsageError

Record = Mapping[str, Any]


class SkipRecord(Exception):
    """Raised by ``encode`` for a record that cannot be predicted.

    The record still comes back: one row with its id, the reason, and nulls for all the rest.
    """


class RecordDataModule(LightningDataModule):
    """Data that can be predicted record by record.

    A record is a dict of plain values with a unique string ``id``. ``encode`` turns one record into
    one example and ``collate`` a list of examples into the batch that the task's ``predict_step``
    takes. Both must work without ``prepare_data`` and ``setup``, because a served model calls them
    on records that come over the wire; open files they need (a genome, say) on first use.

    ``input_columns`` names the record's keys and their MLflow types (``string``, ``double``,
    ``long``, ``boolean``; ``double[][]`` is a list of lists), ``id`` among them; ``exports`` lists
    the file name endings that ``export`` can write.

    What training settles about the data (a scale, say) goes into ``state_dict``, as plain values:
    it travels in the checkpoint and in the logged model, and is loaded before ``setup``.
    """

    input_columns: Mapping[str, str]
    exports: tuple[str, ...] = ()

    def __init__(self, batch_size: int = 32, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = num_workers

    def predict_records(self) -> Sequence[Record]:
        """All records in a fixed order; called after ``setup("predict")``. Only ``len`` and
        indexing by one integer are used, so it may read lazily from a file."""
        raise NotImplementedError

    def encode(self, record: Record) -> Any:
        """One example. Raises SkipRecord for a record that cannot be predicted."""
        raise NotImplementedError

    def collate(self, examples: list[Any]) -> Any:
        """One batch of at least one example."""
        raise NotImplementedError

    def model_facts(self) -> dict[str, int]:
        """Sizes that the data decides, such as its number of channels. The command line puts each
        in place of a 0 that the model's settings have under its name."""
        return {}

    def check_trainer(self, trainer: Trainer) -> None:
        """Raise a UserError for settings of the trainer with which the data cannot work. The
        command line calls it before it opens a run."""

    def check_input(self, stage: str, task: LightningModule) -> None:
        """Raise a UserError for input with which the command (fit, validate, test, predict) cannot
        work. The command line calls it, with the state of a checkpoint loaded, before it opens a
        run, so that bad data leaves none; without it, the error comes out of the run. For predict
        it then also calls ``setup`` and ``predict_records``, without a trainer."""

    def digest_files(self) -> list[Path]:
        """The files whose content decides the predictions' input, in a fixed order."""
        raise NotImplementedError

    def repairs(self) -> Mapping[Path, Sequence[Mapping[str, Any]]]:
        """What was changed in the rows of files that have been read: of each kind at least its
        ``policy``, ``how`` and ``count``, without anything private. It goes into the run's
        manifest."""
        return {}

    def export(self, dataset: Path, target: Path) -> None:
        """Write the finished predictions in ``dataset`` to ``target``, an index beside it.

        The caller moves all that is written to its place in the end.
        """
        raise NotImplementedError

    def check_export(self, target: Path) -> None:
        """Raise UsageError, before any work is done, if ``target`` cannot be exported to."""
        if not target.name.endswith(self.exports):
            kinds = ", ".join(self.exports) or "nothing; the Parquet folder is the output"
            raise UsageError(f"{target}: cannot export to this kind of file; supported: {kinds}")

    def predict_dataloader(self) -> DataLoader:
        """Batches for a plain ``trainer.predict``; there SkipRecord is an error like any other."""
        return DataLoader(
            _Examples(self),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=self.collate,
        )


class _Examples(Dataset):
    def __init__(self, datamodule: RecordDataModule) -> None:
        self.records = datamodule.predict_records()
        self.encode = datamodule.encode

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> Any:
        return self.encode(self.records[number])


class Encoded(NamedTuple):
    """Some records, ready for the model.

    ``numbers`` maps the id of each record in ``batch`` to its record number; ``skipped`` holds
    (number, id, reason); ``batch`` is None if every record was skipped.
    """

    numbers: dict[str, int]
    skipped: list[tuple[int, str, str]]
    batch: Any


def encode_records(datamodule: RecordDataModule, records: Iterable[tuple[int, Record]]) -> Encoded:
    """Encode and collate numbered records. Raises DataError for an id that is missing, not a
    string, or there twice."""
    numbers: dict[str, int] = {}
    skipped, examples = [], []
    for number, record in records:
        name = record.get("id")
        if not isinstance(name, str):
            raise DataError(f"record {number}: its id is {name!r}; give every record a string id")
        try:
            examples.append(datamodule.encode(record))
        except SkipRecord as skip:
            skipped.append((number, name, str(skip)))
            continue
        if name in numbers:
            raise duplicate_id(name, numbers[name], number)
        numbers[name] = number
    return Encoded(numbers, skipped, datamodule.collate(examples) if examples else None)


def duplicate_id(name: str, first: int, second: int) -> DataError:
    return DataError(
        f"record id {name!r} appears twice (records {first} and {second}, counted from 0); "
        "make the ids unique"
    )


def digest(files: Iterable[Path]) -> str:
    """SHA-256 over the contents of ``files`` in the given order, in hexadecimal. Paths and times
    do not count, so a moved or copied input is the same input."""
    total = hashlib.sha256()
    for file in files:
        stat = file.stat()
        total.update(_file_digest(file, stat.st_size, stat.st_mtime_ns))
    return total.hexdigest()


@functools.lru_cache(maxsize=1024)
def _file_digest(file: Path, size: int, modified: int) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
