"""The ``.ts`` layout of the UCR and UEA archives: a line a series, its label last."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.jobs.errors import DataError
from core.jobs.tables import existing_file


def read_ts(path: Path) -> list[tuple[NDArray[np.float64], str | None]]:
    """(time, channels) and the class of each series; the class is None where the file has none.

    ``?`` becomes not a number. Raises DataError with the line's number for an unreadable value, a
    channel too many or too few, channels of several lengths, a class that the header does not
    list, and for the variant with a stamp beside each value, which is not read.
    """
    existing_file(path)
    classes: set[str] | None = None
    width: int | None = None
    found: list[tuple[NDArray[np.float64], str | None]] = []
    data = False
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a .ts file: {error}") from error
    for number, line in enumerate(lines, 1):
        words = line.strip().split()
        where = f"{path}: line {number}"
        if not words or words[0].startswith(("#", "%")):
            continue
        if not data:
            key = words[0].lower()
            if key == "@data":
                data = True
            elif key == "@timestamps" and words[1:2] == ["true"]:
                raise DataError(f"{where}: series with stamps are not read; give a long table")
            elif key == "@classlabel" and words[1:2] == ["true"]:
                classes = set(words[2:])
            elif not key.startswith("@"):
                raise DataError(f"{where}: values before the line @data")
            continue
        *channels, last = line.strip().split(":")
        label = last.strip() if classes is not None else None
        if classes is None:
            channels.append(last)
        elif label not in classes:
            raise DataError(f"{where}: class {label!r} is none of the header's {sorted(classes)}")
        width = width or len(channels)
        found.append((_values(channels, width, where), label))
    if not found:
        raise DataError(f"{path}: no series after a line @data")
    return found


def _values(channels: list[str], width: int, where: str) -> NDArray[np.float64]:
    if len(channels) != width:
        raise DataError(f"{where}: {len(channels)} channels, the series before have {width}")
    try:
        rows = [
            [np.nan if c.strip() == "?" else float(c) for c in one.split(",")] for one in channels
        ]
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
    if len({len(row) for row in rows}) != 1:
        raise DataError(f"{where}: its channels have {sorted({len(r) for r in rows})} values")
    return np.array(rows).T
