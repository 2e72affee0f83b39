"""Which forecasts are drawn, and what is drawn of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import Tensor

from core.jobs.data import Record
from core.jobs.shards import load_predictions
from timeseries.data.forecasts import ForecastWindows
from timeseries.data.windows import Windows
from timeseries.tasks.figures import Shown

SHOWN = 4


def spread(count: int, shown: int = SHOWN) -> list[int]:
    """At most ``shown`` of the numbers below ``count``, evenly from the first to the last."""
    return np.linspace(0, count - 1, min(shown, count)).astype(int).tolist()


def tested(
    batch: dict[str, Any],
    forecast: Tensor,
    ends: Sequence[Tensor],
    channel: int,
    of: Windows | None,
) -> Shown:
    """One channel of a batch's first window, in the data's units; ``forecast`` (batch, horizon,
    channels) and the lower and upper ``ends`` (levels, batch, horizon, channels) are not."""
    mean, std = batch["mean"][0, channel], batch["std"][0, channel]
    past, future, expected = (
        (x[0, :, channel].float() * std + mean).cpu().numpy()
        for x in (batch["past"], batch["future"], forecast)
    )
    low, high = ((x[:, 0, :, channel] * std + mean).cpu().numpy() for x in ends)
    title, stamps = f"channel {channel}", batch["stamps"][0].cpu().numpy()
    if of is not None:
        title = _title(of.series[int(batch["series"][0])].name, of.fitted.channels[channel])
        if of.fitted.frequency is not None:
            stamps = stamps.astype("datetime64[us]")
    return Shown(stamps, past, future, expected, low, high, title)


def predicted(folder: Path, data: ForecastWindows, levels: Sequence[float]) -> list[Shown]:
    """Of a finished folder of predictions: at most ``SHOWN`` pairs of a record and a channel,
    evenly from the first to the last; in place of a record that was skipped stands the next that
    was not.

    They are read from the folder, whichever process wrote them, and take less memory than a shard.
    """
    assert data.fitted is not None
    channels, horizon = data.fitted.channels, data.protocol.horizon
    records, rows = data.predict_records(), load_predictions(folder)
    ends = [f"{end}_{share * 100:g}" for share in levels for end in ("lower", "upper")]
    if "forecast" not in rows.collect_schema():  # all were skipped
        return []
    rows = rows.filter(pl.col("reason").is_null())
    rows = rows.select("record", "step", "channel", "forecast", *ends, "actual")
    found: dict[tuple[int, int], Shown] = {}
    for pair in spread(len(records) * len(channels)):
        record, channel = divmod(pair, len(channels))
        first = rows.filter(pl.col("record") >= record).head(horizon * len(channels))
        part = first.collect(engine="streaming")
        if part.is_empty():
            continue
        number = int(part["record"][0])
        own = part.filter(
            (pl.col("record") == number) & (pl.col("channel") == channels[channel])
        ).sort("step")
        found[number, channel] = _shown(records[number], own, channel, data, levels)
    return list(found.values())


def _shown(
    record: Record, rows: pl.DataFrame, channel: int, data: ForecastWindows, levels: Sequence[float]
) -> Shown:
    assert data.fitted is not None
    stamps = np.concatenate(data.stamps(record))
    low, high = (
        np.array([rows[f"{end}_{share * 100:g}"] for share in levels]).reshape(-1, len(rows))
        for end in ("lower", "upper")
    )
    forecast, future = (_numbers(rows[name]) for name in ("forecast", "actual"))
    past = np.asarray(record["values"], np.float64)[-data.protocol.lookback :, channel]
    title = _title(str(record["series"]), data.fitted.channels[channel])
    return Shown(stamps, past, future, forecast, low, high, title)


def _numbers(column: pl.Series) -> NDArray[np.float64]:
    return column.cast(pl.Float64).fill_null(np.nan).to_numpy()


def _title(series: str, channel: str) -> str:
    return f"series {series}, channel {channel}"
