"""One shipped config, fitted and tested with several seeds: a row a seed.

``PYTHONPATH=. python benchmarks/timeseries/seeds.py imputation --seeds 0 1 2 --out FILE.csv``, in
the repository's root; further keys go to every fit and test. Run again, it goes on behind the last
finished row. Beside FILE.csv, FILE_details.csv holds the rows of the test's own table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl
from matplotlib.figure import Figure

from core.jobs.studies import Trial, run_study

TABLES = {"imputation": "test_by_mask", "anomalies": "test_by_kind"}
SHOWN = {"imputation": "mse", "anomalies": "auprc"}


def details(table: pl.DataFrame, name: str) -> pl.DataFrame:
    """The tables that the tests stored, with their seeds."""
    parts = []
    for seed, run in table.select("seed", "run_id").rows():
        [file] = Path("runs/artifacts").rglob(f"{run}/artifacts/tables/{name}.csv")
        parts.append(pl.read_csv(file).select(pl.lit(seed).alias("seed"), pl.all()))
    return pl.concat(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", choices=list(TABLES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    given, more = parser.parse_known_args()
    config = ("--config", f"timeseries/configs/{given.config}.yaml")
    trials = [
        Trial(
            {"model": given.config, "seed": seed}, (*config, "--seed_everything", str(seed), *more)
        )
        for seed in given.seeds
    ]
    measure = SHOWN[given.config]

    def figure(table: pl.DataFrame) -> Figure:
        """One measure of every seed, beside those of the baselines."""
        columns = [c for c in table.columns if c == measure or c.startswith(f"{measure}_")]
        figure = Figure(figsize=(8, 0.4 * len(columns) + 1), layout="constrained")
        axes = figure.subplots()
        for column in columns:
            axes.scatter(table[column], [column] * len(table), color="#2b6cb0")
        axes.set(xlabel=f"test {measure}")
        return figure

    table = run_study("timeseries", given.config, trials, given.out, figure)
    by_kind = details(table, TABLES[given.config])
    by_kind.write_csv(given.out.with_name(f"{given.out.stem}_details.csv"))
    means = table.select(pl.selectors.float().mean()).unpivot()
    with pl.Config(tbl_rows=-1, tbl_hide_column_data_types=True):
        print(means)


if __name__ == "__main__":
    main()
