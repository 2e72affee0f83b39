"""Windows a second: ours beside pytorch-forecasting's TimeSeriesDataSet, at equal output.

    python benchmarks/timeseries/windowing.py ETTh1.csv --out windowing.json

The seven channels of ETTh1 as seven series of one channel, look-back and horizon 96, four calendar
features, batches of 32 in order, one process. Values and features of every window are compared
first, to 1e-5: their normaliser, set to the identity, rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from timeseries.data import calendar
from timeseries.data.layout import Roles
from timeseries.data.protocol import Protocol
from timeseries.data.series import Series, read_series
from timeseries.data.windows import Fitted, Scale, Windows

LOOKBACK = HORIZON = 96
BATCH = 32


def long(path: Path) -> list[Series]:
    [wide] = read_series(path, Roles("date", None))
    return [
        Series(name, ("y",), wide.stamps, wide.values[:, i : i + 1], wide.frequency)
        for name, i in sorted((name, i) for i, name in enumerate(wide.channels))
    ]


def ours(series: list[Series]) -> DataLoader:
    protocol = Protocol(LOOKBACK, HORIZON, train_end=1.0, val_end=1.0, scale="none")
    scale = Scale(np.zeros(1), np.ones(1), np.ones(1))
    fitted = Fitted(("y",), series[0].frequency, {one.name: scale for one in series})
    windows = Windows(series, fitted, protocol, "train")
    return DataLoader(windows, BATCH, collate_fn=lambda batch: batch)


def theirs(series: list[Series]) -> DataLoader:
    from pytorch_forecasting import TimeSeriesDataSet
    from pytorch_forecasting.data.encoders import TorchNormalizer

    names = calendar.names(series[0].frequency)
    parts = []
    for one in series:
        times = calendar.features(one.stamps, one.frequency)
        columns: dict[str, Any] = {"series": one.name, "row": np.arange(len(one))}
        columns |= {"y": one.values[:, 0].astype(np.float32)}
        columns |= {name: times[:, i] for i, name in enumerate(names)}
        parts.append(pd.DataFrame(columns))
    dataset = TimeSeriesDataSet(
        pd.concat(parts, ignore_index=True),
        time_idx="row",
        target="y",
        group_ids=["series"],
        min_encoder_length=LOOKBACK,
        max_encoder_length=LOOKBACK,
        min_prediction_length=HORIZON,
        max_prediction_length=HORIZON,
        time_varying_known_reals=names,
        time_varying_unknown_reals=["y"],
        target_normalizer=TorchNormalizer(method="identity"),
        scalers=dict.fromkeys(names),
    )
    return dataset.to_dataloader(train=False, batch_size=BATCH)


def check(mine: Iterable[Any], other: Iterable[Any]) -> int:
    """Number of windows, all equal."""
    count = 0
    for a, (b, (target, _)) in zip(mine, other, strict=True):
        assert torch.allclose(a["past"][..., 0], b["encoder_cont"][..., -1], rtol=0, atol=1e-5)
        assert torch.allclose(a["past_time"], b["encoder_cont"][..., :-1], rtol=0, atol=1e-5)
        assert torch.allclose(a["future_time"], b["decoder_cont"][..., :-1], rtol=0, atol=1e-5)
        assert torch.allclose(a["future"][..., 0], target, rtol=0, atol=1e-5)
        count += len(target)
    return count


def rate(loader: DataLoader, batches: int) -> float:
    """Windows a second over some batches, without the first."""
    iterator = iter(loader)
    next(iterator)
    start = time.perf_counter()
    for _ in range(batches):
        next(iterator)
    return batches * BATCH / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    series = long(args.path)
    mine, other = ours(series), theirs(series)
    windows = check(mine, other)
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(args.rounds):
        rates["ours"].append(rate(mine, 1_000))
        rates["theirs"].append(rate(other, 100))
    result: dict[str, Any] = {k: round(statistics.median(v)) for k, v in rates.items()}
    result |= {"ratio": result["ours"] / result["theirs"], "equal_windows": windows}
    print(result)
    args.out.write_text(json.dumps({**result, "torch": torch.__version__}, indent=1) + "\n")


if __name__ == "__main__":
    main()
