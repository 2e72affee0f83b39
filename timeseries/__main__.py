"""python -m timeseries fit | validate | test | predict | compare | backtest | aggregate |
reconcile | generate"""

import sys

from core.jobs import front
from core.jobs.front import Extra

MORE = {
    "compare": Extra("several models on the same data, one table", "timeseries.studies:compare"),
    "backtest": Extra("rolling origin: one model, one row a fold", "timeseries.studies:backtest"),
    "aggregate": Extra("sums of series by a hierarchy", "timeseries.hierarchical:aggregate"),
    "reconcile": Extra("forecasts of a hierarchy that add up", "timeseries.hierarchical:reconcile"),
    "generate": Extra("new events from a trained model", "timeseries.generation:generate"),
}


def main() -> int:
    return front.main(
        "timeseries",
        "Long time series: forecasts, missing values, anomalies, classes, events.",
        more=MORE,
    )


if __name__ == "__main__":
    sys.exit(main())
