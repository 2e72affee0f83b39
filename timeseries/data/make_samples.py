"""Makes the file of ``timeseries/samples``: ``python -m timeseries.data.make_samples FOLDER``.

Hourly means of one household's electric power. An hour of which no minute was recorded has no
values; nothing is filled.
"""

from __future__ import annotations

import lzma
import sys
from pathlib import Path

import polars as pl

from core.jobs.errors import UserError
from core.jobs.files import replacing
from timeseries.data.fetch import fetch


def household_power() -> pl.DataFrame:
    """``date`` (the hour's beginning) and seven channels, float32, rounded to 4 digits."""
    packed = fetch("household-power")["minute_household_power.csv.xz"]
    minutes = pl.read_csv(lzma.decompress(packed.read_bytes()), null_values=["?", ""])
    stamp = pl.concat_str("Date", "Time", separator=" ").str.to_datetime("%d/%m/%Y %H:%M:%S")
    channels = [name for name in minutes.columns if name not in ("Date", "Time")]
    means = [pl.col(name).mean().round(4).cast(pl.Float32).alias(name.lower()) for name in channels]
    hours = minutes.with_columns(stamp.dt.cast_time_unit("ms").alias("date")).sort("date")
    # the first hour and the last are not whole
    return hours.group_by_dynamic("date", every="1h").agg(*means).slice(1).head(-1)


def main(arguments: list[str]) -> int:
    """Write the sample into the folder named; the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m timeseries.data.make_samples FOLDER\n")
        return 2
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(folder / "household_power.parquet") as part:
            household_power().write_parquet(part, compression="zstd", compression_level=19)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
