"""Makes the files of ``timeseries/samples``: ``python -m timeseries.data.make_samples FOLDER``.

Hourly means of one household's electric power: an hour of which no minute was recorded has no
values; nothing is filled. And two vowels as spoken by nine men, for classification.
"""

from __future__ import annotations

import lzma
import sys
from pathlib import Path

import polars as pl

from core.jobs.errors import UserError
from core.jobs.files import replacing
from timeseries.data.fetch import fetch
from timeseries.data.ts_format import read_ts


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


def japanese_vowels() -> pl.DataFrame:
    """``unique_id``, ``split`` (train, test), ``label`` (the speaker) and 12 channels, float32.

    A row is one step, in the order of time.
    """
    files = fetch("japanese-vowels")
    parts = []
    for split, file in (("train", "JapaneseVowels_TRAIN.ts"), ("test", "JapaneseVowels_TEST.ts")):
        for number, (values, label) in enumerate(read_ts(files[file]), 1):
            names = [f"cepstrum_{k + 1:02d}" for k in range(values.shape[1])]
            about = {"unique_id": f"{split}-{number:03d}", "split": split, "label": label}
            steps = pl.DataFrame(values.astype("float32"), schema=names, orient="row")
            parts.append(steps.select(*(pl.lit(v).alias(k) for k, v in about.items()), *names))
    return pl.concat(parts)


FILES = {"household_power.parquet": household_power, "japanese_vowels.parquet": japanese_vowels}


def main(arguments: list[str]) -> int:
    """Write the samples into the folder named; the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m timeseries.data.make_samples FOLDER\n")
        return 2
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, make in FILES.items():
            with replacing(folder / name) as part:
                make().write_parquet(part, compression="zstd", compression_level=19)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
