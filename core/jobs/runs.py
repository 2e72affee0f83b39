"""Run folders: what a run leaves on disk, and how a command finds it again.

runs/<experiment>/<run name>-<first 8 of run id>/
    run.json       MLflow run, tracking address, state, hash of the configuration
    config.yaml    the whole configuration; every command accepts it
    checkpoints/   last.ckpt, best.ckpt
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from core.jobs import provenance
from core.jobs.errors import UsageError

State = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


@dataclass
class Run:
    """Content of ``run.json``."""

    run_id: str
    tracking_uri: str
    experiment: str
    name: str
    command: str
    config_sha256: str
    data_digest: str | None
    process: dict[str, str]
    state: State = "RUNNING"
    model_version: str | None = None


@dataclass
class RunFolder:
    path: Path
    run: Run

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def config(self) -> dict[str, Any]:
        return read_config(self.config_file)

    def save(self) -> None:
        write_whole(self.path / "run.json", json.dumps(asdict(self.run), indent=2) + "\n")

    def save_config(self, config: Mapping[str, Any]) -> None:
        write_whole(self.config_file, yaml.safe_dump(dict(config), sort_keys=False))


def read_config(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def write_whole(path: Path, text: str) -> None:
    """Write so that the file is there whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text)
    os.replace(temporary, path)


def new_folder(root: Path, run: Run, config: Mapping[str, Any]) -> RunFolder:
    """The folder of a new run; it appears whole, so that it can be resumed from then on."""
    name = re.sub(r"[^\w.=+-]+", "_", run.name)
    path = root / run.experiment / f"{name}-{run.run_id[:8]}"
    folder = RunFolder(root / f".{path.name}.part", run)
    folder.checkpoints.mkdir(parents=True)
    folder.save()
    folder.save_config(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    return RunFolder(folder.path.rename(path), run)


def open_folder(path: Path) -> RunFolder:
    """A folder that a run left. Raises UsageError if it is none."""
    try:
        return RunFolder(path, Run(**json.loads((path / "run.json").read_text())))
    except FileNotFoundError:
        raise UsageError(
            f"{path}: no run.json here; give a run folder, as `fit` names it"
        ) from None
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path / 'run.json'}: cannot be read ({error})") from error


def check_resumable(folder: RunFolder, config: Mapping[str, Any]) -> None:
    """Raise UsageError if the run still goes on, was no training, or would become another one."""
    if folder.run.command != "fit":
        raise UsageError(f"{folder.path}: a {folder.run.command} run; only fit can go on")
    if folder.run.state == "RUNNING" and provenance.process_alive(folder.run.process):
        raise UsageError(
            f"{folder.path}: still running as process {folder.run.process['process.pid']}"
        )
    old = provenance.hyper_parameters(folder.config())
    new = provenance.hyper_parameters(config)
    changed = [
        f"{key} ({old.get(key)} -> {new.get(key)})"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]
    if changed:
        raise UsageError(
            f"--resume goes on with the same run, but these differ: {', '.join(changed)}; "
            "take them back, or start a new run without --resume"
        )


def find_checkpoint(path: Path) -> tuple[Path, RunFolder | None]:
    """The checkpoint file that ``path`` means, and the run it belongs to.

    ``path`` is a run folder (its best checkpoint, or the last if there is no best yet) or a file.
    """
    if path.is_dir():
        folder = open_folder(path)
        for name in ("best.ckpt", "last.ckpt"):
            if (folder.checkpoints / name).is_file():
                return folder.checkpoints / name, folder
        raise UsageError(f"{path}: the run has no checkpoint yet; give one that has")
    if not path.is_file():
        raise UsageError(f"checkpoint '{path}' does not exist; give a run folder or a .ckpt file")
    above = path.resolve().parent.parent
    return path, open_folder(above) if (above / "run.json").is_file() else None
