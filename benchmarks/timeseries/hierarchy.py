"""Forecasts of a household's meters and their total, reconciled: what each method gains, by level.

``PYTHONPATH=. python benchmarks/timeseries/hierarchy.py --out FILE.csv FOLDER``, in the root of the
repository. Tables, forecasts and reconciled rows go to FOLDER. Three meters and the rest of the
house, each the energy of an hour's mean minute in Wh, add up to the house. Run again, it goes on
behind the last finished row.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import polars as pl

from core.jobs.cli import job
from timeseries.hierarchical import METHODS, aggregate, reconcile

SAMPLE = "timeseries/samples/household_power.parquet"
METERS = ("sub_metering_1", "sub_metering_2", "sub_metering_3")
BATCH, STRIDE = "--data.init_args.batch_size", "--data.init_args.protocol.stride"
MODELS = {
    "dlinear": (BATCH, "256", "--trainer.max_epochs", "5"),
    "patchtsmixer": (BATCH, "64", STRIDE, "8", "--trainer.max_epochs", "2"),
}


def meters() -> pl.DataFrame:
    """The sample's meters as a long table, with ``rest``, what passes none of them."""
    sample = pl.read_parquet(SAMPLE).with_columns(pl.col("^[gs].*$").cast(pl.Float64))
    house = pl.col("global_active_power") * 1000 / 60  # kW as Wh a minute
    rest = (house - pl.sum_horizontal(*METERS, ignore_nulls=False)).alias("rest")
    wide = sample.select(pl.col("date").alias("ds"), *METERS, rest)
    return wide.unpivot(index="ds", variable_name="unique_id", value_name="y")


def trial(model: str, seed: int, folder: Path) -> pl.DataFrame:
    data = "--data.init_args"
    fit = job(
        "timeseries",
        [
            *("fit", "--config", f"timeseries/configs/{model}.yaml"),
            *("--seed_everything", str(seed), f"{data}.path", str(folder / "levels.parquet")),
            *(f"{data}.time", "ds", f"{data}.series", "unique_id"),
            *(f"{data}.protocol.horizon", "24", *MODELS[model]),
        ],
    )
    assert fit.folder is not None
    out = folder / f"{model}-{seed}"
    words = ["--ckpt_path", str(fit.folder.path), "--out", str(out), "--levels", "total"]
    words += ["--hierarchy", str(folder / "meters.parquet"), "--methods", *METHODS]
    reconcile(words)
    table = pl.read_csv(out / "errors_by_level.csv")
    return table.select(
        pl.lit(model).alias("model"), pl.lit(seed, pl.Int64).alias("seed"), pl.all()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    meters().write_parquet(given.folder / "meters.parquet")
    levels = ["--path", f"{given.folder}/meters.parquet", "--levels", "total"]
    levels += ["--out", f"{given.folder}/levels.parquet", "--policies.missing", "previous"]
    aggregate(levels)
    found = [pl.read_csv(given.out)] if given.out.exists() else []
    done = {row for table in found for row in table.select("model", "seed").iter_rows()}
    for model, seed in itertools.product(given.models, given.seeds):
        if (model, seed) not in done:
            found.append(trial(model, seed, given.folder))
            pl.concat(found).write_csv(given.out)
    table = pl.concat(found)
    means = table.group_by("model", "level", "method", maintain_order=True).agg(
        pl.col("mse", "mae", "mase", "incoherence").mean(), pl.col("mse").std().alias("mse_std")
    )
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_hide_column_data_types=True):
        print(means)


if __name__ == "__main__":
    main()
