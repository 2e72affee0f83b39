"""The series that ``long_horizon.py`` reads and that no package holds as they are.

    python benchmarks/timeseries/prepare_series.py FOLDER [exchange_rate.csv]

``appliance_energy.parquet``: every 10 minutes, 26 channels; the two columns of random numbers that
the data set's authors put in (``rv1``, ``rv2``) are left out. ``exchange_dated.parquet``: the
exchange rates with the daily stamps from 1990-01-01 on that the file of Autoformer's authors has
and the original has not.
"""

from __future__ import annotations

import lzma
import sys
from datetime import date, timedelta
from pathlib import Path

import polars as pl

from timeseries.data.fetch import fetch


def appliance_energy() -> pl.DataFrame:
    packed = fetch("appliance-energy")["minute_energy_appliance.csv.xz"]
    table = pl.read_csv(lzma.decompress(packed.read_bytes()), infer_schema=False)
    channels = [name for name in table.columns if name not in ("date", "rv1", "rv2")]
    return table.select(
        pl.col("date").str.to_datetime("%Y-%m-%d %H:%M:%S"),
        *(pl.col(name).str.strip_chars().cast(pl.Float64) for name in channels),
    )


def exchange_dated(path: Path) -> pl.DataFrame:
    table = pl.read_csv(path)
    first = date(1990, 1, 1)
    stamps = pl.Series("date", [first + timedelta(days=k) for k in range(len(table))])
    return table.select(stamps, pl.all())


def main(folder: Path, exchange: Path | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    appliance_energy().write_parquet(folder / "appliance_energy.parquet", compression_level=19)
    if exchange is not None:
        exchange_dated(exchange).write_parquet(folder / "exchange_dated.parquet")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
