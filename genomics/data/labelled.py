"""Sequences with labels, from a table, and sequences to predict, from a table or FASTA."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader, Dataset

from core.jobs.data import Record, RecordDataModule, SkipRecord
from core.jobs.errors import DataError, UsageError
from core.jobs.loader import ResumableLoader
from core.jobs.tables import read_table
from genomics.data.batches import Example, collate_examples
from genomics.data.fasta import FastaRecords
from genomics.data.splits import check_splits
from genomics.data.tokenizers import NucleotideTokenizer

_FASTA = (".fa", ".fasta", ".fna", ".fa.gz", ".fasta.gz", ".fna.gz", ".fa.bgz", ".fasta.bgz")


class LabelledExamples(RecordDataModule):
    """Examples with classes in three splits, and how the loaders hand them out.

    ``reverse_complement`` adds the opposite strand of every training example; ``soft_masked`` says
    what lower case means: ``keep`` (as upper case) or ``mask`` (as N).
    """

    def __init__(
        self,
        batch_size: int,
        num_workers: int,
        reverse_complement: bool,
        soft_masked: Literal["keep", "mask"],
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        self.reverse_complement = reverse_complement
        self.tokenizer = NucleotideTokenizer(soft_masked=soft_masked)
        self.splits: dict[str, list[Example]] = {}

    def read_splits(self, stage: str) -> dict[str, list[Example]]:
        """The examples of train, val and test; UsageError if no file was named for ``stage``."""
        raise NotImplementedError

    def check_input(self, stage: str, task: LightningModule) -> None:
        if stage != "predict":
            self.setup(stage)
            self.split({"fit": "train", "validate": "val"}.get(stage, stage))

    def setup(self, stage: str) -> None:
        if stage != "predict" and not self.splits:
            self.splits = self.read_splits(stage)

    def split(self, name: str) -> list[Example]:
        """The examples of a split; DataError if there are none."""
        if not self.splits.get(name):
            files = ", ".join(map(str, self.digest_files()))
            raise DataError(f"{files}: no records of split {name!r}")
        return self.splits[name]

    def train_dataloader(self) -> DataLoader:
        examples: list[Example] = self.split("train")
        if self.reverse_complement:
            turn = self.tokenizer.reverse_complement
            examples = examples + [Example(e.id, turn(e.tokens), e.label) for e in examples]
        return ResumableLoader(
            _List(examples),
            self.batch_size,
            num_workers=self.num_workers,
            collate_fn=collate_examples,
        )

    def val_dataloader(self) -> DataLoader:
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader:
        return self._in_order("test")

    def _in_order(self, split: str) -> DataLoader:
        return DataLoader(
            _List(self.split(split)),
            self.batch_size,
            num_workers=self.num_workers,
            collate_fn=collate_examples,
        )

    def collate(self, examples: list[Any]) -> dict[str, Any]:
        return collate_examples(examples)


class LabelledSequences(LabelledExamples):
    """Classification data: a table (CSV, TSV, Parquet; may be gzipped) of sequences.

    Columns ``id``, ``sequence``, ``label`` (classes numbered from 0) and ``split`` (train, val,
    test). Sequences that stand in two splits, on either strand, are refused. ``predict_path`` names
    what ``predict`` reads: FASTA, or a table with ``id`` and ``sequence``; without it, the test
    split. ``max_length`` skips longer records, with the reason, when predicting and refuses them in
    training. The other keys are those of ``LabelledExamples``.
    """

    input_columns = {"id": "string", "sequence": "string"}  # noqa: RUF012  # read only
    exports = ()

    def __init__(
        self,
        path: str | None = None,
        predict_path: str | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        reverse_complement: bool = False,
        soft_masked: Literal["keep", "mask"] = "keep",
        max_length: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, reverse_complement, soft_masked)
        self.path = None if path is None else Path(path)
        self.predict_path = None if predict_path is None else Path(predict_path)
        self.max_length = max_length

    def read_splits(self, stage: str) -> dict[str, list[Example]]:
        if self.path is None:
            raise UsageError(f"{stage} needs data.path, a table with id, sequence, label and split")
        table = read_sequence_table(self.path, {"id", "sequence", "label", "split"})
        splits = {name[0]: part for name, part in table.group_by("split", maintain_order=True)}
        unknown = sorted(set(splits) - {"train", "val", "test"})
        if unknown:
            raise DataError(f"{self.path}: split {unknown[0]!r} is none of train, val, test")
        check_splits({str(k): v["sequence"].to_list() for k, v in splits.items()})
        return {str(k): list(self._examples(v)) for k, v in splits.items()}

    def _examples(self, table: pl.DataFrame) -> Iterator[Example]:
        for name, sequence, label in table.select("id", "sequence", "label").iter_rows():
            where = f"{self.path}: record {name}"
            if self.max_length is not None and len(sequence) > self.max_length:
                raise DataError(
                    f"{where}: {len(sequence)} bases, more than max_length={self.max_length}"
                )
            yield Example(name, self.tokenizer.encode(sequence, where), int(label))

    def predict_records(self) -> Sequence[Record]:
        if self.predict_path is not None and self.predict_path.name.endswith(_FASTA):
            return FastaRecords(self.predict_path)
        if self.predict_path is not None:
            table = read_sequence_table(self.predict_path, {"id", "sequence"})
        elif self.path is not None:
            table = read_sequence_table(self.path, {"id", "sequence", "split"})
            table = table.filter(pl.col("split") == "test")
        else:
            raise UsageError("predict needs data.predict_path, a FASTA file or a table")
        return _Rows(table.select("id", "sequence"))

    def encode(self, record: Record) -> Example:
        sequence = record["sequence"]
        if not sequence:
            raise SkipRecord("empty sequence")
        if self.max_length is not None and len(sequence) > self.max_length:
            raise SkipRecord(f"{len(sequence)} bases, more than max_length={self.max_length}")
        return Example(str(record["id"]), self.tokenizer.encode(sequence, f"record {record['id']}"))

    def digest_files(self) -> list[Path]:
        return [p for p in (self.path, self.predict_path) if p is not None and p.is_file()]


def read_sequence_table(path: Path, columns: Iterable[str]) -> pl.DataFrame:
    """A table with at least ``columns``; DataError names a null, a repeated id or a bad label."""
    table = read_table(path, columns)
    for column in columns:
        if table[column].null_count():
            row = int(table[column].is_null().arg_max() or 0)
            raise DataError(f"{path}: row {row + 1} has no {column}")
    twice = table["id"].is_duplicated()
    if twice.any():
        name = table["id"][int(twice.arg_max() or 0)]
        raise DataError(f"{path}: id {name!r} stands in more than one row; make the ids unique")
    if "label" in table.columns:
        table = _with_integer_labels(table, path)
    return table.with_columns(pl.col("id").cast(pl.String))


def _with_integer_labels(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    numbers = table["label"].cast(pl.Int64, strict=False)
    bad = numbers.is_null() | (numbers < 0)
    if bad.any():
        row = int(bad.arg_max() or 0)
        raise DataError(
            f"{path}: row {row + 1} has label {table['label'][row]!r}; classes are 0, 1, 2, ..."
        )
    return table.with_columns(numbers.alias("label"))


class _List(Dataset):
    def __init__(self, examples: list[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


class _Rows(Sequence[Record]):
    """Rows of a table as dicts, made when asked for."""

    def __init__(self, table: pl.DataFrame) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Any:
        return self.table.row(index, named=True)
