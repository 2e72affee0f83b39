"""The run that records a command: a new one, or an earlier one that goes on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule

from core.jobs import provenance, runs, tracking
from core.jobs.data import RecordDataModule
from core.jobs.errors import UsageError
from core.jobs.runs import RunFolder
from core.jobs.tracking import RunLogger, TrackingConfig


@dataclass(frozen=True)
class Command:
    """What a run records: ``name`` is fit, validate, test or predict; ``settings`` is its whole
    configuration."""

    domain: str
    name: str
    task: LightningModule
    datamodule: LightningDataModule
    settings: Mapping[str, Any]


def new_run(command: Command, config: TrackingConfig) -> tuple[RunFolder, RunLogger]:
    """Raises UsageError for an address that takes no runs, DataError for data that cannot be
    read."""
    uri = tracking.tracking_uri(config)
    with tracking.readable_errors(uri), tracking.one_at_a_time(uri):
        tracking.sweep(uri, command.domain)
        manifest = _data_manifest(command.datamodule)
        folder = _new_folder(command, config, uri, manifest)
        logger = RunLogger(uri, folder.run.run_id, folder.path)
        logger.log_config(command.settings, folder.config_file)
        if manifest:
            logger.log_data(manifest, snake(type(command.datamodule).__name__), command.name)
    return folder, logger


def take_up(command: Command, folder: RunFolder) -> RunLogger:
    """Go on in the run of ``folder``. Raises UsageError if its data have changed."""
    uri = folder.run.tracking_uri
    with tracking.readable_errors(uri), tracking.one_at_a_time(uri):
        tracking.sweep(uri, command.domain)
        manifest = _data_manifest(command.datamodule)
        if manifest and provenance.data_digest(manifest) != folder.run.data_digest:
            raise UsageError(
                f"{folder.path}: the data files have changed since this run began; "
                "start a new run without --resume"
            )
        logger = RunLogger(uri, folder.run.run_id, folder.path, resumed=True)
        folder.run.process = provenance.process_tags()
        folder.run.state = "RUNNING"
        folder.save()
        folder.save_config(command.settings)
        logger.reopen(folder.run.process)
    return logger


def _new_folder(
    command: Command, config: TrackingConfig, uri: str, manifest: list[dict[str, Any]]
) -> RunFolder:
    experiment = config.experiment or f"{command.domain}/{snake(type(command.task).__name__)}"
    name = config.run_name or _name(command)
    if command.name != "fit":
        name = f"{command.name}-{name}"
    config_sha256 = provenance.config_hash(command.settings)
    process = provenance.process_tags()
    tags = {
        "domain": command.domain,
        "command": command.name,
        "config.sha256": config_sha256,
        "seed": str(command.settings["seed_everything"]),
        "device": provenance.device(),
        **provenance.git_state(),
        **provenance.versions(),
        **process,
        **(config.tags or {}),
    }
    root = Path(config.root)
    run_id = tracking.create_run(uri, experiment, name, tags, root / "artifacts")
    digest = provenance.data_digest(manifest) if manifest else None
    record = runs.Run(run_id, uri, experiment, name, command.name, config_sha256, digest, process)
    return runs.new_folder(root, record, command.settings)


def _name(command: Command) -> str:
    """``<model>-<data>-s<seed>``; the model is the network inside the task's settings if it is a
    class of its own, else the task."""
    task = command.settings["model"]
    inner = (task.get("init_args") or {}).get("model")
    chosen = inner if isinstance(inner, Mapping) and "class_path" in inner else task
    model = snake(str(chosen["class_path"]).rpartition(".")[2])
    data = snake(type(command.datamodule).__name__)
    return f"{model}-{data}-s{command.settings['seed_everything']}"


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _data_manifest(datamodule: LightningDataModule) -> list[dict[str, Any]]:
    files = getattr(datamodule, "digest_files", None)
    paths = files() if callable(files) else []
    manifest = provenance.data_manifest(paths)
    if isinstance(datamodule, RecordDataModule):
        repairs = datamodule.repairs()
        for path, entry in zip(paths, manifest, strict=True):
            if repairs.get(path):
                entry["repairs"] = repairs[path]
    return manifest
