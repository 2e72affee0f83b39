"""python -m timeseries fit | validate | test | predict | compare | backtest | generate"""

import sys

from core.jobs import front
from core.jobs.front import Extra

MORE = {
    "compare": Extra("several models on the same data, one table", "timeseries.studies:compare"),
    "backtest": Extra("rolling origin: one model, one row a fold", "timeseries.studies:backtest"),
    "generate": Extra("new events from a trained model", "timeseries.generation:generate"),
}


def main() -> int:
    return front.main("timeseries", "Forecasts of long time series.", more=MORE)


if __name__ == "__main__":
    sys.exit(main())
