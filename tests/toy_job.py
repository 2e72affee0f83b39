"""A job of predictions that can be run again and again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toy_predict import ToyData, ToyTask, toy_trainer, write_input

from core.jobs import shards
from core.jobs.predictions import PredictionConfig, predict


class Job:
    """One input and one output folder; each call is one run of the job."""

    def __init__(self, folder: Path, records: int, rows_per_shard: int = 10, **data: Any) -> None:
        self.file = write_input(folder / "in.txt", records)
        self.out = folder / "out"
        self.rows_per_shard = rows_per_shard
        self.data = data

    def __call__(
        self,
        task: ToyTask | None = None,
        export: Path | None = None,
        model_version: str = "1",
        config_hash: str = "c",
        **options: Any,
    ) -> ToyTask:
        task = task or ToyTask()
        out = predict(
            task,
            ToyData(str(self.file), **self.data),
            toy_trainer(**options),
            PredictionConfig(
                str(self.out), self.rows_per_shard, None if export is None else str(export)
            ),
            model_version=model_version,
            config_hash=config_hash,
        )
        assert out == self.out
        return task

    def shard(self, number: int) -> Path:
        return shards.shard_path(self.out, number)

    def forget(self, number: int) -> None:
        """As if the job had been killed before it wrote this shard."""
        self.shard(number).unlink()
        (self.out / "_SUCCESS").unlink()

    def files(self) -> dict[str, tuple[int, bytes]]:
        return {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in self.out.iterdir()}
