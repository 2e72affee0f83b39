"""Predictions on disk: a folder of Parquet shards that a killed job can take up again."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from core.jobs.data import duplicate_id
from core.jobs.errors import UsageError, UserError

# Ids are compared by their 64-bit hashes, at most so many at once (8 bytes each).
_IDS_AT_ONCE = 1 << 24
_KINDS = 5  # of reasons that are named in a summary


@dataclass(frozen=True)
class Manifest:
    """Whose predictions these are, and how they are cut: shard k holds the rows of records
    k * rows_per_shard up to (k + 1) * rows_per_shard."""

    input_digest: str
    model_version: str
    config_hash: str
    records: int
    rows_per_shard: int

    @property
    def shards(self) -> int:
        return -(-self.records // self.rows_per_shard)

    def numbers(self, shard: int) -> range:
        """The numbers of the records in ``shard``."""
        start = shard * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, self.records))


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"part-{shard:05d}.parquet"


def check_folder(folder: Path, manifest: Manifest) -> None:
    """Raises UsageError if ``folder`` is another job's or not a job's at all. Touches nothing."""
    if (folder / "manifest.json").exists():
        _check_same_job(folder, manifest)
    elif folder.exists() and (
        not folder.is_dir() or any(not _temporary(f) for f in folder.iterdir())
    ):
        raise UsageError(f"{folder}: exists and holds no predictions; choose an empty folder")


def open_folder(folder: Path, manifest: Manifest) -> list[int]:
    """Make ``folder`` this job's, and say which shards are still to be predicted. Raises as
    `check_folder` does, before anything is touched."""
    check_folder(folder, manifest)
    shards = range(manifest.shards)
    if (folder / "_SUCCESS").exists() and all(shard_path(folder, k).exists() for k in shards):
        return []
    folder.mkdir(parents=True, exist_ok=True)
    for file in filter(_stale, folder.iterdir()):
        file.unlink(missing_ok=True)
    (folder / "_SUCCESS").unlink(missing_ok=True)
    text = json.dumps({"format": 1, **asdict(manifest)}, indent=2) + "\n"
    write_whole(folder / "manifest.json", lambda file: file.write_text(text))
    return [k for k in shards if _problem(shard_path(folder, k), manifest.numbers(k))]


def write_shard(folder: Path, shard: int, rows: pa.Table) -> None:
    write_whole(
        shard_path(folder, shard),
        lambda file: pq.write_table(rows, file, compression="zstd", write_page_checksum=True),
    )


def merge(folder: Path, manifest: Manifest) -> None:
    """Check that every record is there exactly once, give all shards one schema, and mark the
    folder as finished. Raises DataError if two records share an id."""
    if (folder / "_SUCCESS").exists():
        return
    for shard in range(manifest.shards):
        problem = _problem(shard_path(folder, shard), manifest.numbers(shard))
        if problem:
            raise UserError(f"{shard_path(folder, shard)}: {problem}; run the same command again")
    _check_unique_ids(folder, manifest)
    rows = _unify(folder, manifest)
    for file in filter(_temporary, folder.iterdir()):
        file.unlink(missing_ok=True)
    text = json.dumps({"records": manifest.records, "rows": rows}) + "\n"
    write_whole(folder / "_SUCCESS", lambda file: file.write_text(text))


def load_predictions(folder: str | Path) -> pl.LazyFrame:
    """The rows of a finished job in record order. Raises UsageError if it is not finished."""
    folder = Path(folder)
    if not (folder / "_SUCCESS").exists():
        raise UsageError(f"{folder}: no finished predictions here; run the job to its end first")
    manifest = read_manifest(folder)
    files = [shard_path(folder, shard) for shard in range(manifest.shards)]
    return pl.scan_parquet(files, hive_partitioning=False, glob=False)


def unpredicted(folder: str | Path) -> str | None:
    """How many records of a finished job have no prediction, and why, as one line; None if all
    have one. Reasons that differ only in numbers and quoted names count as one, and the first of
    them is shown."""
    kind = pl.col("reason").str.replace_all(r"'[^']*'|\d+", "")
    rows = load_predictions(folder).select("record", "reason").drop_nulls("reason")
    kinds = (
        rows.group_by(kind.alias("kind"))
        .agg(pl.col("reason").get(pl.col("record").arg_min()), pl.len(), pl.col("record").min())
        .sort("len", "record", descending=[True, False])
        .collect()
    )
    if kinds.is_empty():
        return None
    said = [f"{reason} ({count})" for reason, count in kinds.select("reason", "len").rows()]
    if len(said) > _KINDS:
        said[_KINDS:] = [f"{len(said) - _KINDS} other reasons ({kinds['len'][_KINDS:].sum()})"]
    records = read_manifest(Path(folder)).records
    return (
        f"{kinds['len'].sum()} of {records} records have no prediction, and their rows a reason: "
        + "; ".join(said)
    )


def read_manifest(folder: Path) -> Manifest:
    """Raises UsageError if ``manifest.json`` is not one of ours."""
    try:
        content = json.loads((folder / "manifest.json").read_text())
        del content["format"]
        return Manifest(**content)
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{folder / 'manifest.json'}: not a prediction manifest") from error


def write_whole(target: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``target``, then put it in place: ``target`` holds
    all or nothing of it, even after a power cut."""
    # The name ends like the target's, since writers often go by the ending.
    file = target.with_name(f".tmp-{socket.gethostname()}-{os.getpid()}-{target.name}")
    try:
        write(file)
        _sync(file)
        file.replace(target)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(file: Path) -> bool:
    return file.name.startswith(".tmp-")


def _stale(file: Path) -> bool:
    """A temporary file whose writer, on this host, is no more."""
    writer = f".tmp-{socket.gethostname()}-"
    if not file.name.startswith(writer):
        return False
    process = file.name.removeprefix(writer).split("-")[0]
    return not Path("/proc", process).exists()


def _check_same_job(folder: Path, manifest: Manifest) -> None:
    there, here = asdict(read_manifest(folder)), asdict(manifest)
    differing = [
        f"{key} {there[key]} there, {here[key]} here" for key in here if there[key] != here[key]
    ]
    if differing:
        raise UsageError(
            f"{folder}: holds another job's predictions ({'; '.join(differing)}); "
            "choose another folder"
        )


def _problem(file: Path, numbers: range) -> str | None:
    """What is wrong with a shard, or None. Reads the two columns that it needs."""
    try:
        record = _column(file, "record").to_numpy()
        _column(file, "id")
    except (OSError, pa.ArrowException, KeyError) as error:
        return f"not a readable shard ({type(error).__name__})"
    first = record[np.diff(record, prepend=-1) != 0]
    if not np.array_equal(first, np.asarray(numbers)):
        return f"does not hold each of records {numbers.start} to {numbers.stop - 1} once"
    return None


def _column(file: Path, name: str) -> pa.ChunkedArray:
    with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
        return parquet.read(columns=[name])[name]


def _ids(folder: Path, shard: int) -> pa.ChunkedArray:
    """The id of each record of a shard."""
    file = shard_path(folder, shard)
    first = np.diff(_column(file, "record").to_numpy(), prepend=-1) != 0
    return _column(file, "id").filter(pa.array(first))


def _check_unique_ids(folder: Path, manifest: Manifest) -> None:
    parts = -(-manifest.records // _IDS_AT_ONCE)
    for part in range(parts):
        hashes = []
        for shard in range(manifest.shards):
            some = pl.Series(_ids(folder, shard)).hash().to_numpy()
            hashes.append(some[some % parts == part])
        ordered = np.sort(np.concatenate(hashes))
        suspects = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(suspects):
            _check_suspects(folder, manifest, suspects)


def _check_suspects(folder: Path, manifest: Manifest, hashes: np.ndarray) -> None:
    seen: dict[str, int] = {}
    for shard in range(manifest.shards):
        names = pl.Series(_ids(folder, shard))
        for place in np.flatnonzero(np.isin(names.hash().to_numpy(), hashes)):
            name, number = names[int(place)], manifest.numbers(shard)[place]
            if name in seen:
                raise duplicate_id(name, seen[name], number)
            seen[name] = number


def _unify(folder: Path, manifest: Manifest) -> int:
    """Rewrite the shards whose schema is not that of all (one where every record was skipped lacks
    the task's columns); the number of rows."""
    files = [shard_path(folder, shard) for shard in range(manifest.shards)]
    schemas = [pq.read_schema(file) for file in files]
    common = pa.unify_schemas(schemas, promote_options="permissive")
    names = [name for name in common.names if name != "reason"]
    common = pa.schema([common.field(name) for name in [*names, "reason"]])
    for shard, schema in enumerate(schemas):
        if schema != common:
            with pq.ParquetFile(files[shard]) as parquet:
                rows = parquet.read()
            columns = {
                field.name: rows[field.name].cast(field.type)
                if field.name in schema.names
                else pa.nulls(len(rows), field.type)
                for field in common
            }
            write_shard(folder, shard, pa.table(columns, schema=common))
    return sum(pq.read_metadata(file).num_rows for file in files)
