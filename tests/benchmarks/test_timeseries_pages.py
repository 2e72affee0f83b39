"""The long-horizon tables hold what the committed rows hold."""

from __future__ import annotations

import csv
from statistics import fmean, stdev

from benchmarks.timeseries import pages


def test_tables_are_those_of_the_committed_rows() -> None:
    assert pages.PAGE.read_text() == pages.page(), "run python benchmarks/timeseries/pages.py"


def test_a_cell_says_what_its_seeds_gave() -> None:
    path = pages.HERE / "results/long_horizon_published.csv"
    with path.open(newline="") as file:
        mse = [
            float(row["mse"])
            for row in csv.DictReader(file)
            if (row["series"], row["model"], row["horizon"]) == ("etth1", "informer", "96")
        ]
    cell = pages.values("published", "informer", series="etth1")[0]
    assert cell == mse
    assert pages.shown(cell, 3) == f"{fmean(mse):.3f} +- {stdev(mse):.3f}"
    assert pages.shown(cell[:2], 3).endswith("(2)")
    assert pages.shown(cell[:1], 1) == f"{mse[0]:.3f}"
    assert pages.shown([], 3) == "not run"
