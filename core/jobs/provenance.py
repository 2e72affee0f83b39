"""Where a result comes from: code, configuration, data, machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from core.jobs.errors import DataError

# What may change between two starts of one run without making it another experiment: how long it
# runs, and what is shown or written where. The number of devices is not among them: it decides
# which examples share a step.
OPERATIONAL = re.compile(
    r"trainer\.(accelerator|logger|max_\w+|min_\w+|limit_(val|test|predict)_batches|profiler|"
    r"check_val_every_n_epoch|val_check_interval|num_sanity_val_steps|log_every_n_steps|"
    r"enable_\w+|benchmark|detect_anomaly|default_root_dir|inference_mode)(\.|$)"
    r"|data\.(init_args\.)?(num_workers|pin_memory|prefetch_factor)$"
    r"|(tracking|checkpoints|predictions|resume|ckpt_path)(\.|$)"
)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def hyper_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a configuration that decide its result."""
    return {k: v for k, v in flatten(config).items() if not OPERATIONAL.match(k)}


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 over the hyper-parameters, in hexadecimal."""
    text = json.dumps(hyper_parameters(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def git_state() -> dict[str, str]:
    """Commit of the source tree and whether files differ from it; empty outside a git checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # not merely installed inside one
        dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
        return {"git.sha": git("rev-parse", "HEAD"), "git.dirty": str(dirty).lower()}
    except (OSError, subprocess.CalledProcessError):
        return {}


def versions() -> dict[str, str]:
    """Versions of this package and the libraries that compute."""
    found = {"version.python": platform.python_version()}
    for name in ("longspan", "torch", "lightning", "triton", "mlflow", "numpy"):
        try:
            found[f"version.{name}"] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def device() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"cpu, {os.cpu_count()} cores"


def process_tags() -> dict[str, str]:
    """Which process this is; with its start time, so that a reused number is not mistaken."""
    return {
        "process.host": socket.gethostname(),
        "process.pid": str(os.getpid()),
        "process.started": f"{psutil.Process().create_time():.2f}",
    }


def process_alive(tags: Mapping[str, str]) -> bool | None:
    """Whether the process of `process_tags` still runs; None if it is another machine's."""
    if tags.get("process.host") != socket.gethostname():
        return None
    try:
        process = psutil.Process(int(tags["process.pid"]))
        same = abs(process.create_time() - float(tags["process.started"])) < 1
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (KeyError, ValueError, psutil.NoSuchProcess):
        return False


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_manifest(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """One entry a file: SHA-256 of its path, size in bytes, SHA-256 of its content.

    Paths may name people or projects, so only their digest is recorded. Raises DataError for a
    file that cannot be read.
    """
    return list(_manifest(paths))


def _manifest(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        try:
            yield {
                "path_sha256": hashlib.sha256(str(path.resolve()).encode()).hexdigest(),
                "bytes": path.stat().st_size,
                "sha256": file_digest(path),
            }
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; check the data's file names") from error


def data_digest(manifest: Sequence[Mapping[str, Any]]) -> str:
    """One digest for the contents, whatever the files are called."""
    text = "\n".join(str(entry["sha256"]) for entry in manifest)
    return hashlib.sha256(text.encode()).hexdigest()
