"""Tables that users hand in: CSV, TSV and Parquet, checked before they are believed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from core.jobs.errors import DataError, UsageError


def existing_file(path: str | os.PathLike[str]) -> Path:
    """``path`` as a Path. Raises DataError if it is missing, a folder, unreadable or empty."""
    found = Path(path)
    if not found.exists():
        raise DataError(f"{found}: no such file")
    if not found.is_file():
        raise DataError(f"{found}: not a regular file")
    if not os.access(found, os.R_OK):
        raise DataError(f"{found}: permission denied")
    if found.stat().st_size == 0:
        raise DataError(f"{found}: the file is empty")
    return found


def read_table(path: Path, columns: Iterable[str], rows: int | None = None) -> pl.DataFrame:
    """A CSV, TSV (either may be gzipped) or Parquet table, or its first ``rows``; columns of CSV
    and TSV are text.

    Raises UsageError for another kind of file; DataError if it is missing, empty, unreadable,
    without rows or without one of ``columns``.
    """
    existing_file(path)
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1].lower()
    try:
        if kind == "parquet":
            table = pl.read_parquet(path, n_rows=rows, glob=False)
        elif kind in ("csv", "tsv", "txt"):
            separator = "," if kind == "csv" else "\t"
            table = pl.read_csv(
                path, separator=separator, infer_schema=False, n_rows=rows, glob=False
            )
        else:
            raise UsageError(f"{path}: give a .csv, .tsv or .parquet table")
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: cannot be read as a {kind} table: {reason}") from error
    missing = sorted(set(columns) - set(table.columns))
    if missing:
        has = ", ".join(table.columns[:8])
        raise DataError(
            f"{path}: no column {missing[0]!r}; it has {has}; add it, or correct a name"
        )
    if table.is_empty():
        raise DataError(f"{path}: the table has no rows")
    return table
