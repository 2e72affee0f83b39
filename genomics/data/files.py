"""Opening files that may be gzip or BGZF: a truncated one is found."""

from __future__ import annotations

import gzip
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import pysam
import rich.progress
from rich.console import Console

from core.jobs.errors import DataError
from core.jobs.files import cached_name, replacing
from core.jobs.tables import existing_file

_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


@contextmanager
def writing(path: Path, packed: bool) -> Iterator[IO[bytes]]:
    """Write bytes to ``path``, as BGZF if ``packed``."""
    if packed:
        with pysam.BGZFile(str(path), "wb", None) as file:
            yield cast(IO[bytes], file)
    else:
        with path.open("wb") as plain:
            yield plain


def is_gzip(path: Path) -> bool:
    """By content, not by name: a ``.gz`` suffix on a plain file is common."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _check_bgzf_end(path: Path) -> None:
    """A BGZF file cut between two blocks inflates without error; only its end marker tells."""
    with path.open("rb") as file:
        head = file.read(18)
        if len(head) < 18 or not head[3] & 4 or head[12:14] != b"BC":
            return
        file.seek(max(0, path.stat().st_size - len(_BGZF_END)))
        if file.read() != _BGZF_END:
            raise DataError(f"{path}: truncated (BGZF end marker is missing); fetch it again")


@contextmanager
def open_binary(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Read a plain, gzip or BGZF file as bytes.

    Raises DataError if the file is missing, empty, or truncated or corrupt as gzip.
    """
    found = existing_file(path)
    if not is_gzip(found):
        with found.open("rb") as file:
            yield file
        return
    _check_bgzf_end(found)
    try:
        with gzip.open(found, "rb") as inflated:
            yield cast(IO[bytes], inflated)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{found}: truncated or corrupt gzip ({error}); fetch it again") from error


def read_lines(path: str | os.PathLike[str], errors: str = "strict") -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) of a plain, gzip or BGZF text file.

    ``errors`` is that of ``bytes.decode``. Raises DataError as ``open_binary`` does, and with the
    line number if a line is not UTF-8.
    """
    with open_binary(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                yield number, line.decode(errors=errors).rstrip("\r\n")
            except UnicodeDecodeError:
                raise DataError(f"{path} line {number}: not text (UTF-8)") from None


def uncompressed(path: str | os.PathLike[str]) -> Path:
    """``path`` itself if plain, else its inflated copy in the cache, made on first use.

    Raises DataError as ``open_binary`` does.
    """
    source = existing_file(path)
    if not is_gzip(source):
        return source
    _check_bgzf_end(source)
    target = cached_name(source, ".plain")
    if target.exists():
        return target
    quiet = Console(stderr=True)
    try:
        with (
            replacing(target) as part,
            rich.progress.open(
                source,
                "rb",
                description=f"Inflating {source.name}",
                console=quiet,
                transient=True,
                disable=not quiet.is_terminal,
            ) as packed,
            gzip.open(packed) as inflated,
            part.open("wb") as plain,
        ):
            shutil.copyfileobj(inflated, plain, 1 << 20)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{source}: truncated or corrupt gzip ({error}); fetch it again") from error
    return target
