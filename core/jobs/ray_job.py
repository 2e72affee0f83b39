"""Batch prediction on many machines by Ray Data, into the folder that ``predict`` would write."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import ray
import torch
from lightning.pytorch import LightningModule

from core.jobs.data import RecordDataModule
from core.jobs.errors import UserError
from core.jobs.predictions import PredictionConfig, check_config, finish_job, open_job
from core.jobs.predictor import Predictor
from core.jobs.shards import Manifest, write_shard

# Ray hands out blocks of shards; with more blocks a slow worker holds up less, at more overhead.
_BLOCKS_PER_WORKER = 16


def predict_with_ray(
    task: LightningModule,
    datamodule: RecordDataModule,
    config: PredictionConfig,
    *,
    model_version: str,
    config_hash: str,
    workers: int,
    gpus_per_worker: float = 0.0,
) -> Path:
    """Predict every record in ``workers`` Ray actors, each with a copy of the task; the folder.

    The folder and the input must be on storage that every machine sees under the same path. A
    killed job goes on where it was, by Ray or by ``predict``, whichever runs next: both write the
    same folder. Joins the running Ray cluster, or starts one on this machine. Raises as
    ``predict`` does.
    """
    check_config(datamodule, config)
    fresh = copy.copy(datamodule)  # Open files, which setup may leave, do not travel.
    datamodule.prepare_data()
    datamodule.setup("predict")
    manifest, shards = open_job(
        datamodule,
        config,
        records=len(datamodule.predict_records()),
        model_version=model_version,
        config_hash=config_hash,
    )
    if shards:
        done = ray.data.from_items(
            [{"shard": shard} for shard in shards],
            override_num_blocks=min(len(shards), _BLOCKS_PER_WORKER * workers),
        ).map(
            _ShardWorker,  # type: ignore[arg-type]  # Ray takes classes too
            fn_constructor_args=(task.cpu(), fresh, Path(config.path).resolve(), manifest),
            concurrency=min(workers, len(shards)),
            num_gpus=gpus_per_worker,
        )
        for row in done.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"])
    finish_job(datamodule, config, manifest)
    return Path(config.path)


class _ShardWorker:
    def __init__(
        self, task: LightningModule, datamodule: RecordDataModule, folder: Path, manifest: Manifest
    ) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        datamodule.setup("predict")
        self.predictor = Predictor(task.to(device), datamodule)
        self.records = datamodule.predict_records()
        self.folder = folder
        self.manifest = manifest

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        numbers = self.manifest.numbers(row["shard"])
        try:
            write_shard(self.folder, row["shard"], self.predictor.table(self.records, numbers))
        except UserError as error:  # raised, it would reach the user inside two errors of Ray's
            return {**row, "error": pickle.dumps(error)}
        return {**row, "error": b""}
