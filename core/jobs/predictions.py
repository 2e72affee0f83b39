"""Batch prediction: every record of a data module through a task, into a folder of shards."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset

from core.jobs.data import Encoded, Record, RecordDataModule, digest, encode_records
from core.jobs.errors import DataError, UsageError, UserError
from core.jobs.predictor import assemble, batches, predicted_rows, skipped_rows
from core.jobs.shards import Manifest, check_folder, merge, open_folder, write_shard


@dataclass
class PredictionConfig:
    """Where predictions go.

    Args:
        path: folder of Parquet shards; a killed job given the same folder goes on where it was.
        rows_per_shard: records in a shard. One shard is held in memory at a time.
        export: file to write as well, in a format of the domain.
    """

    path: str
    rows_per_shard: int = 4096
    export: str | None = None


def predict(
    task: LightningModule,
    datamodule: RecordDataModule,
    trainer: Trainer,
    config: PredictionConfig,
    *,
    model_version: str,
    config_hash: str,
    records: Sequence[Record] | None = None,
) -> Path:
    """Predict every record with the trainer's devices and precision; the finished folder.

    Each rank takes shards of its own. Shards that an earlier, killed run of the same job finished
    are kept. ``records`` are the data module's if `check_job` has read them already. Raises
    UsageError for a folder that is not this job's, DataError for bad records.
    """
    check_config(datamodule, config)
    check_limit(trainer.limit_predict_batches)
    job = _Job(datamodule, config, model_version, config_hash, records)
    writer = _ShardWriter()
    trainer.callbacks.append(writer)  # type: ignore[attr-defined]
    try:
        trainer.predict(task, datamodule=job, return_predictions=False)
    finally:
        trainer.callbacks.remove(writer)  # type: ignore[attr-defined]
    return Path(config.path)


def check_config(datamodule: RecordDataModule, config: PredictionConfig) -> None:
    """Raises UsageError for what can be known to fail before any data is read."""
    if config.rows_per_shard < 1:
        raise UsageError(f"rows_per_shard is {config.rows_per_shard}; it must be at least 1")
    if config.export is not None:
        datamodule.check_export(Path(config.export))
        if not Path(config.export).absolute().parent.is_dir():
            raise UsageError(f"{config.export}: give a file in a folder that exists")


def check_limit(batches: int | float | None) -> None:
    """Raises UsageError for a ``limit_predict_batches`` that would leave records out."""
    if batches is not None and (isinstance(batches, int) or batches != 1.0):
        raise UsageError("limit_predict_batches and fast_dev_run leave records out; remove them")


def check_job(
    datamodule: RecordDataModule, config: PredictionConfig, *, model_version: str, config_hash: str
) -> Sequence[Record]:
    """The records of a job that can begin. Sets the data up and writes nothing.

    Raises UsageError for settings that cannot work and a folder that is not this job's, DataError
    for no records, and what the data module raises.
    """
    check_config(datamodule, config)
    datamodule.prepare_data()
    datamodule.setup("predict")
    records = datamodule.predict_records()
    manifest = _manifest(datamodule, config, len(records), model_version, config_hash)
    check_folder(Path(config.path), manifest)
    return records


def open_job(
    datamodule: RecordDataModule,
    config: PredictionConfig,
    *,
    records: int,
    model_version: str,
    config_hash: str,
) -> tuple[Manifest, list[int]]:
    """The manifest of a job whose data is set up, and the shards that are still to be predicted.

    Raises DataError for no records, UsageError for a folder that is not this job's.
    """
    manifest = _manifest(datamodule, config, records, model_version, config_hash)
    return manifest, open_folder(Path(config.path), manifest)


def _manifest(
    datamodule: RecordDataModule,
    config: PredictionConfig,
    records: int,
    model_version: str,
    config_hash: str,
) -> Manifest:
    if records == 0:
        raise DataError("no records to predict: the input is empty; give one with records")
    files = datamodule.digest_files()
    if config.export is not None:
        export = Path(config.export).resolve()
        if export in [file.resolve() for file in files]:
            raise UsageError(f"{config.export}: is the input itself; export to another file")
    return Manifest(digest(files), model_version, config_hash, records, config.rows_per_shard)


def finish_job(datamodule: RecordDataModule, config: PredictionConfig, manifest: Manifest) -> None:
    """Check and mark the folder, then export it."""
    merge(Path(config.path), manifest)
    if config.export is not None:
        _export(datamodule, Path(config.path), Path(config.export))


def _export(datamodule: RecordDataModule, dataset: Path, target: Path) -> None:
    """The export and what comes with it, such as an index, in place only once all is written."""
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        datamodule.export(dataset, Path(folder) / target.name)
        # the file itself last: whoever sees it finds its companions there
        for file in sorted(Path(folder).iterdir(), key=lambda f: f.name == target.name):
            file.replace(target.with_name(file.name))


class _Job(LightningDataModule):
    """The user's data module, read shard by shard.

    A data module of its own, because only within the trainer's run is the data set up, and known
    how many ranks there are.
    """

    manifest: Manifest
    loader: _ShardLoader

    def __init__(
        self,
        datamodule: RecordDataModule,
        config: PredictionConfig,
        model_version: str,
        config_hash: str,
        records: Sequence[Record] | None,
    ) -> None:
        super().__init__()
        self.datamodule = datamodule
        self.config = config
        self.model_version = model_version
        self.config_hash = config_hash
        self.records = records
        self.prepare_data_per_node = datamodule.prepare_data_per_node

    def prepare_data(self) -> None:
        self.datamodule.prepare_data()

    def setup(self, stage: str) -> None:
        assert self.trainer is not None
        self.datamodule.trainer = self.trainer  # as in the other commands
        self.datamodule.setup(stage)
        records = self.datamodule.predict_records() if self.records is None else self.records
        # Rank zero alone looks at the folder; what it finds, an error too, goes to all.
        found: tuple[Manifest, list[int]] | UserError | None = None
        if self.trainer.is_global_zero:
            try:
                found = open_job(
                    self.datamodule,
                    self.config,
                    records=len(records),
                    model_version=self.model_version,
                    config_hash=self.config_hash,
                )
            except UserError as error:
                found = error
        found = self.trainer.strategy.broadcast(found)
        if isinstance(found, UserError):
            raise found
        assert found is not None
        self.manifest, shards = found
        mine = shards[self.trainer.global_rank :: self.trainer.world_size]
        self.shards = mine
        self.loader = _ShardLoader(
            self.datamodule,
            records,
            [self.manifest.numbers(shard) for shard in mine],
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
        )

    def predict_dataloader(self) -> _ShardLoader:
        return self.loader

    def teardown(self, stage: str) -> None:
        self.datamodule.teardown(stage)


class _ShardLoader:
    """Batches in record order, none across two shards.

    Not a DataLoader itself, since Lightning would put its own sampler into one and remember every
    index it has seen. ``taken`` holds what is known of the batches that are on their way.
    """

    def __init__(
        self,
        datamodule: RecordDataModule,
        records: Sequence[Record],
        shards: list[range],
        pin_memory: bool,
    ) -> None:
        self.datamodule = datamodule
        self.records = records
        self.shards = shards
        self.pin_memory = pin_memory
        self.taken: deque[Encoded] = deque()

    def __len__(self) -> int:
        size = self.datamodule.batch_size
        # At least 1: Lightning refuses an empty loader on one rank of several, and leaves out the
        # hooks, with their barrier, on a rank with nothing to do.
        return max(1, sum(-(-len(numbers) // size) for numbers in self.shards))

    def __iter__(self) -> Iterator[Any]:
        loader = DataLoader(
            _EncodedBatches(self.datamodule, self.records),
            sampler=_Batches(self.shards, self.datamodule.batch_size),
            batch_size=None,
            num_workers=self.datamodule.num_workers,
            collate_fn=_unchanged,
            pin_memory=self.pin_memory,
        )
        for encoded in loader:
            self.taken.append(encoded._replace(batch=None))
            if encoded.batch is not None:
                yield encoded.batch


@dataclass
class _Batches:
    shards: list[range]
    size: int

    def __iter__(self) -> Iterator[range]:
        for numbers in self.shards:
            yield from batches(numbers, self.size)


def _unchanged(encoded: Any) -> Any:
    return encoded


class _EncodedBatches(Dataset):
    def __init__(self, datamodule: RecordDataModule, records: Sequence[Record]) -> None:
        self.datamodule = datamodule
        self.records = records

    def __getitem__(self, numbers: range) -> Encoded:
        return encode_records(self.datamodule, ((n, self.records[n]) for n in numbers))


class _ShardWriter(Callback):
    """Gathers the rows of one shard at a time and writes it when its last record is there."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        job: _Job = trainer.datamodule  # type: ignore[attr-defined]
        self.job = job
        self.folder = Path(job.config.path)
        self.open = deque(job.shards)
        self.parts: list[pa.Table] = []
        self.records = 0

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Mapping[str, Any],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._add_skipped()
        encoded = self.job.loader.taken.popleft()
        self._add(encoded, predicted_rows(outputs, encoded))

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._add_skipped()
        trainer.strategy.barrier("all shards written")
        if trainer.is_global_zero:
            finish_job(self.job.datamodule, self.job.config, self.job.manifest)
            written = getattr(pl_module, "predictions_written", None)  # of tasks that draw them
            if callable(written):
                written(self.folder, self.job.datamodule)

    def _add_skipped(self) -> None:
        """Batches of which no record was left never reached the model."""
        taken = self.job.loader.taken
        while taken and not taken[0].numbers:
            self._add(taken.popleft())

    def _add(self, encoded: Encoded, *rows: pa.Table) -> None:
        self.parts += [skipped_rows(encoded), *rows]
        self.records += len(encoded.numbers) + len(encoded.skipped)
        numbers = self.job.manifest.numbers(self.open[0])
        if self.records == len(numbers):
            write_shard(self.folder, self.open.popleft(), assemble(self.parts, numbers))
            self.parts, self.records = [], 0
