"""Classifiers on the sample of spoken vowels: fit and test of each config with each seed.

``PYTHONPATH=. python benchmarks/timeseries/classification.py --seeds 0 1 2 --out FILE.csv``, in the
repository's root. Run again, it goes on behind the last finished row.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl
from matplotlib.figure import Figure

from core.jobs.studies import Trial, run_study

CONFIGS = ("lmuformer", "lmuformer_spiking", "mamba2_classifier")
BASELINES = ("nearest_neighbour", "logistic_regression")


def figure(table: pl.DataFrame) -> Figure:
    """Accuracy of every run, a row a model; the baselines as lines."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    axes.scatter(table["accuracy"], table["model"])
    for name, style in zip(BASELINES, ("--", ":"), strict=True):
        axes.axvline(table[f"accuracy_{name}"][0], ls=style, color="black", label=name)
    axes.set(xlabel="test accuracy")
    axes.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configs", nargs="+", default=CONFIGS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    trials = [
        Trial(
            {"model": name, "seed": seed},
            ("--config", f"timeseries/configs/{name}.yaml", "--seed_everything", str(seed)),
        )
        for name in given.configs
        for seed in given.seeds
    ]
    table = run_study("timeseries", "classification", trials, given.out, figure)
    scores = ("accuracy", "macro_f1", "accuracy_at_25", "accuracy_at_50", "accuracy_at_75")
    means = [pl.col(key).mean() for key in (*scores, "seconds")]
    spread = pl.col("accuracy").std().alias("accuracy_std")
    with pl.Config(tbl_cols=-1, tbl_hide_column_data_types=True):
        print(table.group_by("model", maintain_order=True).agg(*means, spread))


if __name__ == "__main__":
    main()
