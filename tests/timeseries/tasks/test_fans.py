"""The fans of a folder of predictions, against the file that was predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from core.jobs.predictor import Predictor
from core.jobs.shards import Manifest, merge, open_folder, write_shard
from timeseries.data.forecasts import ForecastWindows
from timeseries.data.protocol import Protocol
from timeseries.tasks import Forecasting, fans
from timeseries.tasks.fans import predicted, spread
from timeseries.tasks.figures import forecasts_figure

LOOKBACK, HORIZON, ROWS, SHARD = 8, 3, 60, 7
DAY = np.datetime64("2024-01-01", "us")


class Zero(nn.Module):
    def forward(self, past: Tensor, past_time: Tensor, future_time: Tensor) -> Tensor:
        return past.new_zeros(len(past), HORIZON, past.shape[2])


def table(names: str) -> pl.DataFrame:
    parts = []
    for number, name in enumerate(names):
        row = np.arange(ROWS)
        stamps = DAY + row * np.timedelta64(1, "h")
        y = {"a": 100.0 * number + row, "b": -100.0 * number - row}
        parts.append(pl.DataFrame({"unique_id": [name] * ROWS, "ds": stamps, **y}))
    return pl.concat(parts)


def predictions(folder: Path, names: str, origins: str) -> tuple[Path, ForecastWindows]:
    """Of a task whose forecast is the mean of training; series that it was not trained on are
    skipped."""
    table("pq").write_parquet(folder / "x.parquet")
    protocol = Protocol(LOOKBACK, HORIZON)
    given = {"path": str(folder / "x.parquet"), "targets": ["a", "b"], "protocol": protocol}
    data = ForecastWindows(**given)
    data.setup("fit")
    table(names).write_parquet(folder / "next.parquet")
    later = ForecastWindows(**given, predict_path=str(folder / "next.parquet"), origins=origins)
    later.load_state_dict(data.state_dict())
    records = later.predict_records()
    task = Forecasting(Zero(), HORIZON, 2, 24)
    task.widths.copy_(torch.tensor([1.0, 2.0])[:, None, None].expand_as(task.widths))
    manifest = Manifest("x", "y", "z", len(records), SHARD)
    open_folder(folder / "rows", manifest)
    for shard in range(manifest.shards):
        rows = Predictor(task, later).table(records, manifest.numbers(shard))
        write_shard(folder / "rows", shard, rows)
    merge(folder / "rows", manifest)
    return folder / "rows", later


def test_what_happened_is_that_of_the_file(tmp_path: Path) -> None:
    folder, data = predictions(tmp_path, "pq", "test")
    shown = predicted(folder, data, [0.8, 0.95])
    assert [one.title for one in shown] == [
        "series p, channel a",
        "series p, channel b",
        "series q, channel a",
        "series q, channel b",
    ]
    for one in shown:
        _, name, _, channel = one.title.replace(",", "").split()
        file = table("pq").filter(pl.col("unique_id") == name)
        at = ((one.stamps - DAY) // np.timedelta64(1, "h")).astype(int)
        assert len(at) == LOOKBACK + HORIZON
        assert np.array_equal(file[channel].to_numpy()[at], [*one.past, *one.future])
        assert np.allclose(one.high + one.low, 2 * one.forecast)
        assert np.allclose((one.high[1] - one.low[1]) / (one.high[0] - one.low[0]), 2)
    first, last = shown[0].stamps, shown[-1].stamps
    assert first[0] < last[0]
    assert last[-1] == DAY + (ROWS - 1) * np.timedelta64(1, "h")


def test_nothing_has_happened_behind_the_end(tmp_path: Path) -> None:
    folder, data = predictions(tmp_path, "p", "end")
    shown = predicted(folder, data, [])
    assert [one.title for one in shown] == ["series p, channel a", "series p, channel b"]
    assert np.isnan([one.future for one in shown]).all()
    figure = forecasts_figure(shown, [])
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ["look-back", "forecast"]
    assert [axes.get_title("left") for axes in figure.axes] == [one.title for one in shown]


def test_skipped_records_are_passed_over(tmp_path: Path) -> None:
    names = "uvwxyzstqop"  # q is the ninth, p the last: in the second shard
    folder, data = predictions(tmp_path, names, "end")
    shown = predicted(folder, data, [0.8, 0.95])
    assert {one.title for one in shown} <= {f"series {s}, channel {c}" for s in "pq" for c in "ab"}
    assert shown[0].title == "series q, channel a"
    assert shown[-1].title == "series p, channel b"
    (tmp_path / "none").mkdir()
    assert predicted(*predictions(tmp_path / "none", "uv", "end"), []) == []


def test_spread_is_even_and_bounded() -> None:
    assert spread(1) == [0]
    assert spread(3) == [0, 1, 2]
    assert spread(1001) == [0, 333, 666, 1000]
    assert spread(10**12)[-1] == 10**12 - 1


def test_a_test_window_before_1970_has_dates(tmp_path: Path) -> None:
    earlier = pl.col("ds").dt.offset_by("-120y")
    table("p").with_columns(earlier).write_parquet(tmp_path / "x.parquet")
    data = ForecastWindows(
        path=str(tmp_path / "x.parquet"), targets=["a", "b"], protocol=Protocol(LOOKBACK, HORIZON)
    )
    data.setup("fit")
    windows = data.windows("test")
    batch = windows.__getitems__([0])
    ends = torch.zeros(2, 1, HORIZON, 2)
    shown = fans.tested(batch, batch["future"], (ends, ends), 1, windows)
    first = np.datetime64("1904-01-01", "us") + 48 * np.timedelta64(1, "h")
    around = first + np.arange(-LOOKBACK, HORIZON) * np.timedelta64(1, "h")
    np.testing.assert_array_equal(shown.stamps, around)
    assert shown.stamps.dtype == around.dtype
