"""The data module: what training reads, and what becomes of a record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from numpy.testing import assert_array_equal

from core.jobs.data import Record, SkipRecord, encode_records
from core.jobs.errors import DataError, UsageError
from core.jobs.predictor import Predictor
from core.jobs.shards import Manifest, merge, open_folder, write_shard
from timeseries.data import repairs, streaming
from timeseries.data.forecasts import ForecastWindows
from timeseries.data.protocol import Protocol
from timeseries.data.series import Policies
from timeseries.tasks import Forecasting

LOOKBACK, HORIZON = 8, 3
PROTOCOL = Protocol(LOOKBACK, HORIZON)
ROWS = {"north": 60, "a@b": 80, "{x}, y": 70}


def long(rows: dict[str, int], frequency: str = "1h", start: str = "2024-02-27") -> pl.DataFrame:
    """Values of three digits: the text of a CSV holds them whole."""
    parts = []
    for seed, (name, count) in enumerate(rows.items()):
        stamps = pd.date_range(start, periods=count, freq=frequency.replace("mo", "MS"))
        y = np.random.default_rng(seed).normal(10 * seed, 1 + seed, count).round(3)
        parts.append(pl.DataFrame({"unique_id": [name] * count, "ds": stamps.to_numpy(), "y": y}))
    return pl.concat(parts)


@pytest.fixture
def data(tmp_path: Path) -> ForecastWindows:
    long(ROWS).write_csv(tmp_path / "x.csv")
    return fitted(tmp_path / "x.csv")


def fitted(path: Path, **options: Any) -> ForecastWindows:
    data = ForecastWindows(path=str(path), **{"protocol": PROTOCOL, **options})
    data.setup("fit")
    return data


def predicting(path: Path, state: dict[str, Any], **options: Any) -> ForecastWindows:
    """As a prediction is run: the state of a checkpoint, and a file that training has not seen."""
    options = {"protocol": PROTOCOL, "path": "gone.csv", **options}
    data = ForecastWindows(predict_path=str(path), **options)
    data.load_state_dict(json.loads(json.dumps(state)))
    data.setup("predict")
    return data


def batches(loader: Any) -> list[dict[str, torch.Tensor]]:
    return list(loader)


# Training


def test_loaders_give_every_window_once(data: ForecastWindows) -> None:
    for loader, split, shuffled in (
        (data.train_dataloader(), "train", True),
        (data.val_dataloader(), "val", False),
        (data.test_dataloader(), "test", False),
    ):
        windows = data.windows(split)
        got = batches(loader)
        whole = {key: torch.cat([batch[key] for batch in got]) for key in got[0]}
        assert len(whole["origin"]) == len(windows)
        assert len(got) == -(-len(windows) // 32)
        place = torch.argsort(whole["series"] * 1_000 + whole["origin"])
        assert shuffled == (place.tolist() != list(range(len(windows))))
        expected = windows.__getitems__(list(range(len(windows))))
        for key, values in expected.items():
            assert torch.equal(whole[key][place], values), key


def test_facts(tmp_path: Path, data: ForecastWindows) -> None:
    sizes = {"lookback": LOOKBACK, "horizon": HORIZON}
    assert data.model_facts() == {**sizes, "channels": 1, "time_features": 4, "season": 24}
    table = pl.DataFrame({"a": np.arange(40.0), "b": np.arange(40.0)})
    table.write_parquet(tmp_path / "wide.parquet")
    wide: dict[str, Any] = {"time": None, "series": None, "protocol": PROTOCOL}
    expected = {**sizes, "channels": 2, "time_features": 0, "season": 1}
    assert ForecastWindows(str(tmp_path / "wide.parquet"), **wide).model_facts() == expected
    table.head(LOOKBACK).write_parquet(tmp_path / "next.parquet")
    file = str(tmp_path / "next.parquet")
    assert ForecastWindows(predict_path=file, **wide).model_facts() == expected
    with pytest.raises(UsageError, match=r"data\.path is not given"):
        ForecastWindows().model_facts()


def test_what_is_missing_is_said(tmp_path: Path, data: ForecastWindows) -> None:
    with pytest.raises(UsageError, match=r"fit needs data\.path"):
        ForecastWindows().setup("fit")
    alone = ForecastWindows(predict_path=str(tmp_path / "x.csv"), protocol=PROTOCOL)
    alone.setup("predict")
    with pytest.raises(UsageError, match=r"predict needs --ckpt_path, or data\.path"):
        alone.predict_records()
    tight = fitted(tmp_path / "x.csv", protocol=Protocol(LOOKBACK, HORIZON, 0.9, 0.91))
    with pytest.raises(DataError, match="the val span has no room for a horizon of 3; move the"):
        tight.val_dataloader()


def test_test_of_another_file_is_on_the_scale_of_training(
    tmp_path: Path, data: ForecastWindows
) -> None:
    changed = long(ROWS).with_columns(pl.col("y") * 100)
    changed.write_csv(tmp_path / "other.csv")
    other = ForecastWindows(path=str(tmp_path / "other.csv"), protocol=PROTOCOL)
    other.load_state_dict(data.state_dict())
    other.setup("test")
    window = other.windows("test")[0]
    assert torch.equal(window["mean"], data.windows("test")[0]["mean"])
    long({**ROWS, "unseen": 60}).write_csv(tmp_path / "more.csv")
    more = ForecastWindows(path=str(tmp_path / "more.csv"), protocol=PROTOCOL)
    more.load_state_dict(data.state_dict())
    more.setup("test")
    with pytest.raises(DataError, match="series 'unseen' was not in training"):
        more.windows("test")


def test_short_series_are_left_out_if_asked(tmp_path: Path) -> None:
    long({**ROWS, "short": LOOKBACK + HORIZON - 1}).write_csv(tmp_path / "x.csv")
    with pytest.raises(DataError, match=r"1 of 4 series .* first 'short' with 10"):
        fitted(tmp_path / "x.csv")
    with pytest.warns(UserWarning, match=r"1 of 4 series .* first 'short' with 10; they are skip"):
        data = fitted(tmp_path / "x.csv", policies=Policies(short="skip"))
    assert set(data.state_dict()["scales"]) == set(ROWS)


# State


def test_state_is_plain_and_gives_the_same_examples(tmp_path: Path, data: ForecastWindows) -> None:
    state = data.state_dict()
    assert json.loads(json.dumps(state)) == state
    again = predicting(tmp_path / "x.csv", state)
    records = list(data.predict_records())
    for one, other in zip(records, again.predict_records(), strict=True):
        first, second = data.encode(one), again.encode(other)
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert_array_equal(value, second[key], err_msg=key)
    assert ForecastWindows().state_dict() == {}


def test_prediction_reads_what_its_scale_comes_from_if_nothing_was_trained(
    tmp_path: Path, data: ForecastWindows
) -> None:
    long(ROWS, start="2024-06-01").write_csv(tmp_path / "next.csv")
    both = ForecastWindows(str(tmp_path / "x.csv"), str(tmp_path / "next.csv"), protocol=PROTOCOL)
    both.setup("predict")
    assert both.state_dict() == data.state_dict()
    assert both.predict_records()[0]["origin"].startswith("2024-06-03")


# Records


@pytest.mark.parametrize("frequency", ["1h", "15min", "1D", "7D", "1mo", "ME", "QE", "YE"])
def test_a_record_is_the_window_that_the_test_has(tmp_path: Path, frequency: str) -> None:
    path = tmp_path / "x.parquet"
    long(ROWS, frequency, "1971-01-31").write_parquet(path)
    data = fitted(path, origins="test")
    windows, records = data.windows("test"), data.predict_records()
    assert len(windows) == len(records)
    batch = data.collate([data.encode(record) for record in records])
    expected = windows.__getitems__(list(range(len(windows))))
    for key in ("past", "past_time", "future_time"):
        assert batch[key].dtype == expected[key].dtype
        assert torch.equal(batch[key], expected[key]), key
    for key in ("mean", "std"):
        assert torch.equal(batch[key].float(), expected[key]), key
    assert_array_equal(
        np.stack(batch["stamps"]).astype(np.int64), expected["stamps"][:, LOOKBACK:].numpy()
    )
    scale = expected["std"].double()[:, None], expected["mean"].double()[:, None]
    actual = expected["future"].double() * scale[0] + scale[1]
    assert np.allclose(np.stack(batch["actual"]), actual, atol=1e-4)
    assert batch["channels"] == ("y",)


@pytest.mark.filterwarnings("ignore:.*data.policies.gaps:timeseries.data.repairs.RepairWarning")
@pytest.mark.parametrize("dated", [True, False])
def test_stamps_of_closed_gaps_are_those_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dated: bool
) -> None:
    """Business days: the grid of days has others. Also those behind the last target."""
    days = pd.bdate_range("2024-01-01", periods=60)
    numbers = (days - days[0]).days + 7
    t = np.arange(60)
    y = [None if row >= 55 else float(row) for row in t]
    table = pl.DataFrame({"ds": days.to_numpy() if dated else numbers, "y": y, "price": t % 4.0})
    path = tmp_path / "x.parquet"
    table.write_parquet(path)
    stamps = table["ds"].to_numpy().astype("datetime64[us]" if dated else np.int64)
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    options: dict[str, Any] = {"policies": Policies(gaps="close"), "known": ["price"]}
    for rows in (1000, 1):  # the second time by pieces
        monkeypatch.setattr(streaming, "STREAM_ROWS", rows)
        data = fitted(path, origins="test", targets=["y"], **options)
        windows, records = data.windows("test"), data.predict_records()
        batch = data.collate([data.encode(record) for record in records])
        expected = windows.__getitems__(list(range(len(windows))))
        for key in ("past", "past_time", "future_time"):
            assert torch.equal(batch[key], expected[key]), key
        found = np.stack(batch["stamps"])
        assert_array_equal(found.astype(np.int64), expected["stamps"][:, LOOKBACK:].numpy())
        ending = fitted(path, targets=["y"], **options)
        (record,) = ending.predict_records()
        assert_array_equal(ending.encode(record)["stamps"], stamps[55 : 55 + HORIZON])
    assert data.input_columns["stamps"] == "string[]"
    del record["stamps"][LOOKBACK:]  # with no later ones they go on by the step
    step = np.timedelta64(1, "D") if dated else 1
    onwards = stamps[54] + step * np.arange(1, HORIZON + 1)
    assert_array_equal(ending.encode(record)["stamps"], onwards)
    for wrong in ([], record["stamps"][1:], ["now"] * LOOKBACK, None):
        with pytest.raises(SkipRecord, match="stamps"):
            ending.encode({**record, "stamps": wrong})


def test_numbered_rows_as_records(tmp_path: Path) -> None:
    table = pl.DataFrame({"a": np.arange(40.0), "b": np.arange(40.0) ** 2})
    table.write_csv(tmp_path / "wide.csv")
    data = fitted(tmp_path / "wide.csv", time=None, series=None)
    (record,) = data.predict_records()
    assert (record["id"], record["origin"]) == ("table@40", "40")
    example = data.encode(record)
    assert example["stamps"].tolist() == [41, 42, 43]
    assert example["past_time"].shape == (LOOKBACK, 0)
    found = example["past"] * example["std"] + example["mean"]
    assert np.allclose(found, table[-LOOKBACK:], rtol=1e-6)


def test_the_end_of_a_file_is_forecast_from_its_last_values(
    tmp_path: Path, data: ForecastWindows
) -> None:
    records = data.predict_records()
    table = long(ROWS)
    assert [record["id"] for record in records] == [
        "north@2024-02-29T11:00:00.000000",
        "a@b@2024-03-01T07:00:00.000000",
        "{x}, y@2024-02-29T21:00:00.000000",
    ]
    for record in records:
        y = table.filter(pl.col("unique_id") == record["series"])["y"].cast(pl.Float64)
        assert_array_equal(record["values"][:, 0], y[-LOOKBACK:])
        assert "actual" not in record
    first = data.encode(records[0])["stamps"]
    assert first.tolist() == [datetime(2024, 2, 29, hour) for hour in (12, 13, 14)]


def test_a_file_as_long_as_the_lookback_is_enough(tmp_path: Path, data: ForecastWindows) -> None:
    for count in (LOOKBACK, LOOKBACK + HORIZON - 1):
        long({"a@b": count}, start="2025-01-01").write_csv(tmp_path / f"{count}.csv")
        later = predicting(tmp_path / f"{count}.csv", data.state_dict())
        (record,) = later.predict_records()
        assert len(later.encode(record)["past"]) == LOOKBACK
    long({"a@b": 20, "north": LOOKBACK - 1}).write_csv(tmp_path / "7.csv")
    later = predicting(tmp_path / "7.csv", data.state_dict())
    with pytest.raises(
        DataError, match="1 of 2 series are shorter than look-back = 8, first 'north' with 7"
    ):
        later.predict_records()
    skip = predicting(tmp_path / "7.csv", data.state_dict(), policies=Policies(short="skip"))
    assert reasons(skip) == {
        "north@2024-02-27T06:00:00.000000": "7 values, fewer than the look-back of 8"
    }
    every = predicting(tmp_path / "7.csv", data.state_dict(), origins="test")
    with pytest.raises(DataError, match=r"shorter than look-back \+ horizon = 11"):
        every.predict_records()


def reasons(data: ForecastWindows) -> dict[str, str]:
    encoded = encode_records(data, enumerate(data.predict_records()))
    return {name: reason for _, name, reason in encoded.skipped}


def test_a_series_that_training_had_not_is_skipped(tmp_path: Path, data: ForecastWindows) -> None:
    long({"new@1": 30, "north": 30}).write_csv(tmp_path / "next.csv")
    next_week = predicting(tmp_path / "next.csv", data.state_dict())
    assert reasons(next_week) == {
        "new@1@2024-02-28T05:00:00.000000": "series 'new@1' was not in training, so its scale is "
        "not known"
    }
    assert len(next_week.predict_records()) == 2


def test_a_wide_file_of_another_name_and_order(tmp_path: Path) -> None:
    """The one series of a wide table is the same series in next week's file."""
    wide: dict[str, Any] = {"time": "ds", "series": None}
    table = long({"": 60}).select("ds", a="y", b=(pl.col("y") * 2).round(3))
    table.write_csv(tmp_path / "this.csv")
    data = fitted(tmp_path / "this.csv", **wide)
    later = table.select("b", extra="a", ds="ds", a="a")
    later.write_parquet(tmp_path / "next.parquet")
    next_week = predicting(tmp_path / "next.parquet", data.state_dict(), **wide)
    assert reasons(next_week) == {}
    (record,), (same,) = next_week.predict_records(), data.predict_records()
    assert_array_equal(next_week.encode(record)["past"], data.encode(same)["past"])
    later.drop("b").write_parquet(tmp_path / "less.parquet")
    less = predicting(tmp_path / "less.parquet", data.state_dict(), **wide)
    with pytest.raises(DataError, match=r"less\.parquet: no column 'b'; it has extra, ds, a"):
        less.predict_records()


def test_a_file_unlike_training(tmp_path: Path, data: ForecastWindows) -> None:
    long({"north": 30}, "30min").write_csv(tmp_path / "half.csv")
    half = predicting(tmp_path / "half.csv", data.state_dict())
    with pytest.raises(
        DataError, match=r"'north' has steps of 30m; the model was trained on .* 1h"
    ):
        half.predict_records()
    long({"north": LOOKBACK // 2}, "2h").write_csv(tmp_path / "double.csv")
    with pytest.raises(DataError, match="'north' has steps of 2h"):  # and is short because of it
        predicting(tmp_path / "double.csv", data.state_dict()).predict_records()
    long({"north": 1}).write_csv(tmp_path / "one.csv")
    with pytest.raises(DataError, match="first 'north' with 1"):  # which has no step
        predicting(tmp_path / "one.csv", data.state_dict()).predict_records()
    long({"north": 30}).rename({"y": "z"}).write_csv(tmp_path / "z.csv")
    for targets, message in ((None, "no column 'y'"), (["z"], "the values are z; .* trained on y")):
        other = predicting(tmp_path / "z.csv", data.state_dict(), targets=targets)
        with pytest.raises(DataError, match=message):
            other.predict_records()


@pytest.mark.filterwarnings("ignore:.*stamps with an offset:timeseries.data.repairs.RepairWarning")
def test_stamps_that_may_be_hours_from_those_of_training_are_said(tmp_path: Path) -> None:
    table = long({"north": 60})
    text = pl.col("ds").dt.to_string("%Y-%m-%dT%H:%M:%S")
    table.with_columns(text).write_csv(tmp_path / "plain.csv")
    table.with_columns(text + "+02:00").write_csv(tmp_path / "offset.csv")
    table.with_columns(pl.col("ds").dt.replace_time_zone("UTC")).write_parquet(
        tmp_path / "u.parquet"
    )
    for trained, later, said in (
        ("plain.csv", "offset.csv", "an offset from UTC, and those of training had none"),
        ("offset.csv", "plain.csv", "no offset from UTC, and those of training had one"),
        ("plain.csv", "u.parquet", "an offset from UTC, and those of training had none"),
    ):
        data = predicting(tmp_path / later, fitted(tmp_path / trained).state_dict())
        repairs._said.clear()
        with pytest.warns(UserWarning, match=f"{later}: stamps have {said}"):
            data.predict_records()
    local: dict[str, Any] = {"policies": Policies(offsets="local")}
    state = fitted(tmp_path / "offset.csv", **local).state_dict()
    predicting(tmp_path / "plain.csv", state, **local).predict_records()
    predicting(
        tmp_path / "u.parquet", fitted(tmp_path / "offset.csv").state_dict()
    ).predict_records()


GOOD: Record = {
    "id": "1",
    "series": "north",
    "origin": "2024-03-01T05:00:00",
    "values": [[float(i)] for i in range(LOOKBACK)],
}


def test_a_record_over_the_wire(data: ForecastWindows) -> None:
    """Lists, or arrays in an array as mlflow hands them on; an offset; more values than needed."""
    expected = data.encode(GOOD)
    rows = np.empty(LOOKBACK, object)
    rows[:] = [np.array(row) for row in GOOD["values"]]
    for change in (
        {"values": rows},
        {"values": [[99.0], *GOOD["values"]]},
        {"origin": "2024-03-01T07:00:00+02:00"},
    ):
        example = data.encode({**GOOD, **change})
        for key in ("past", "past_time", "future_time", "stamps"):
            assert_array_equal(example[key], expected[key])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"values": [[1.0]] * 7}, "7 values, fewer than the look-back of 8"),
        ({"values": []}, "0 values"),
        ({"values": [[1.0, 2.0]] * 8}, "values must be rows of one finite number for each of y"),
        ({"values": [1.0] * 8}, "values must be rows of one finite number"),
        ({"values": [[1.0]] * 7 + [[1.0, 2.0]]}, "values must be rows of one finite number"),
        ({"values": [[1.0]] * 7 + [[None]]}, "values must be rows of one finite number"),
        ({"values": [[1.0]] * 7 + [["x"]]}, "values must be rows of one finite number"),
        ({"values": [[1.0]] * 7 + [[float("inf")]]}, "values must be rows of one finite number"),
        ({"values": None}, "values must be rows of one finite number"),
        ({"origin": "yesterday"}, "origin 'yesterday' is not a stamp such as 2024-01-31T13:00:00"),
        ({"origin": None}, "origin None is not a stamp"),
        ({"series": "south"}, "series 'south' was not in training"),
    ],
)
def test_a_record_that_cannot_be_forecast_is_skipped(
    data: ForecastWindows, change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(SkipRecord, match=reason):
        data.encode({**GOOD, **change})


def test_an_origin_that_is_no_number(tmp_path: Path) -> None:
    pl.DataFrame({"y": np.arange(40.0)}).write_csv(tmp_path / "x.csv")
    data = fitted(tmp_path / "x.csv", time=None, series=None)
    with pytest.raises(SkipRecord, match="origin '2024-01-31' is not a whole number"):
        data.encode({**GOOD, "series": "table", "origin": "2024-01-31"})


def test_a_large_mean_keeps_its_digits(tmp_path: Path) -> None:
    """In float32 a mean of 1e9 would be off by up to 32."""
    y = 1e9 + np.random.default_rng(0).normal(0, 1, 60)
    pl.DataFrame({"y": y}).write_parquet(tmp_path / "x.parquet")
    data = fitted(tmp_path / "x.parquet", time=None, series=None)
    batch = data.collate([data.encode(record) for record in data.predict_records()])
    found = batch["past"].double() * batch["std"][:, None] + batch["mean"][:, None]
    assert np.allclose(found[0, :, 0], y[-LOOKBACK:], rtol=0, atol=1e-5)


# Export


class Last(torch.nn.Module):
    def forward(
        self, past: torch.Tensor, past_time: torch.Tensor, future_time: torch.Tensor
    ) -> torch.Tensor:
        return past[:, -1:].expand(-1, HORIZON, -1)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_exports_hold_every_row(tmp_path: Path, data: ForecastWindows, kind: str) -> None:
    long({"a@b": 30, "new, one": 30}).write_csv(tmp_path / "next.csv")
    next_week = predicting(tmp_path / "next.csv", data.state_dict())
    task = Forecasting(Last(), HORIZON, 1, 24)
    records: Sequence[Record] = next_week.predict_records()
    folder, target = tmp_path / "rows", tmp_path / f"rows.{kind}"
    manifest = Manifest("x", "y", "z", len(records), 10)
    open_folder(folder, manifest)
    write_shard(folder, 0, Predictor(task, next_week)(records))
    merge(folder, manifest)
    next_week.check_export(target)
    next_week.export(folder, target)
    rows = pl.read_csv(target, try_parse_dates=True) if kind == "csv" else pl.read_parquet(target)
    assert rows["series"].to_list() == ["a@b"] * HORIZON + [None]
    assert rows["id"][-1] == "new, one@2024-02-28T05:00:00.000000"
    assert rows["reason"][-1] == "series 'new, one' was not in training, so its scale is not known"
    assert rows["step"].to_list() == [1, 2, 3, None]
    assert rows["stamp"].to_list()[:3] == [datetime(2024, 2, 28, hour) for hour in (6, 7, 8)]
    last = long({"a@b": 30})["y"][-1]
    assert np.allclose(rows["forecast"].to_numpy()[:3], last, atol=1e-5)
    with pytest.raises(UsageError, match=r"supported: \.csv, \.parquet"):
        next_week.check_export(tmp_path / "rows.json")


def test_files_behind_the_digest(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("y\n1\n")
    data = ForecastWindows(str(tmp_path / "x.csv"), str(tmp_path / "gone.csv"))
    assert data.digest_files() == [tmp_path / "x.csv"]
