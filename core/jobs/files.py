"""The cache folder, and files that are replaced whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """``$LONGSPAN_CACHE``, or ``~/.cache/longspan``; created if missing."""
    named = os.environ.get("LONGSPAN_CACHE")
    folder = Path(named) if named else Path.home() / ".cache" / "longspan"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cached_name(source: Path, suffix: str) -> Path:
    """A path in the cache that changes whenever ``source`` is moved, resized or rewritten."""
    state = source.stat()
    key = f"{source.resolve()}\0{state.st_size}\0{state.st_mtime_ns}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return cache_folder() / f"{source.name}.{digest}{suffix}"


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; rename it to ``target`` if the body succeeds."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    umask = os.umask(0)
    os.umask(umask)
    os.fchmod(handle, 0o666 & ~umask)  # mkstemp makes private files; outputs are for the group too
    os.close(handle)
    try:
        yield Path(name)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
