"""Windows against slices of the raw table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from timeseries.data import calendar
from timeseries.data.protocol import Protocol
from timeseries.data.series import Series, read_series
from timeseries.data.windows import ForecastRecords, Windows, fit

SPLITS = ("train", "val", "test")


def series(*lengths: int, channels: int = 2) -> list[Series]:
    rng = np.random.default_rng(sum(lengths))
    start = np.datetime64("2024-02-27", "us")
    return [
        Series(
            f"s{i}",
            tuple(f"c{k}" for k in range(channels)),
            start + np.arange(length) * np.timedelta64(1, "h"),
            rng.normal(i, 1 + i, (length, channels)),
            "1h",
        )
        for i, length in enumerate(lengths)
    ]


def by_hand(some: list[Series], protocol: Protocol, split: str) -> list[tuple[int, int]]:
    """(series, row of the first forecast step) of every window whose targets all lie in the split
    and whose look-back exists."""
    found = []
    for number, one in enumerate(some):
        start, end = protocol.spans(one)[split]
        fitting = [
            row
            for row in range(len(one))
            if row >= protocol.lookback
            and all(start <= target < end for target in range(row, row + protocol.horizon))
        ]
        stride = {"train": protocol.stride, "val": 1, "test": protocol.test_stride}[split]
        found += [(number, row) for row in fitting[::stride]]
    return found


def check_split(some: list[Series], protocol: Protocol, split: str) -> None:
    windows = Windows(some, fit(some, protocol), protocol, split)
    expected = by_hand(some, protocol, split)
    assert len(windows) == len(expected)
    if not expected:
        return
    order = list(np.random.default_rng(0).permutation(len(expected)))
    batch = windows.__getitems__(order)
    whole = zip(batch["series"].tolist(), batch["origin"].tolist(), strict=True)
    assert list(whole) == [expected[i] for i in order]
    for place, i in enumerate(order):
        number, row = expected[i]
        one = some[number]
        train_end = protocol.spans(one)["train"][1]
        scaled = StandardScaler().fit(one.values[:train_end]).transform(one.values)
        times = calendar.features(one.stamps, "1h")
        past, future = slice(row - protocol.lookback, row), slice(row, row + protocol.horizon)
        for key, raw in (("past", scaled[past]), ("future", scaled[future])):
            assert_array_equal(batch[key][place].shape, raw.shape)
            assert np.allclose(batch[key][place], raw, atol=1e-5)
        assert_array_equal(batch["past_time"][place], times[past])
        assert_array_equal(batch["future_time"][place], times[future])
        if split != "train":
            stamps = one.stamps[row - protocol.lookback : row + protocol.horizon]
            assert_array_equal(batch["stamps"][place], stamps.astype(np.int64))
        single = windows[i]
        assert all(torch.equal(single[key], batch[key][place]) for key in batch)


@given(
    lengths=st.lists(st.integers(6, 40), min_size=1, max_size=3),
    lookback=st.integers(1, 5),
    horizon=st.integers(1, 5),
    strides=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    borders=st.tuples(st.floats(0.2, 1), st.floats(0.2, 1), st.floats(0.2, 1)),
)
def test_every_window_is_a_slice_of_its_series(
    lengths: list[int],
    lookback: int,
    horizon: int,
    strides: tuple[int, int],
    borders: tuple[float, ...],
) -> None:
    train, val, test = sorted(borders)
    protocol = Protocol(lookback, horizon, train, val, test, *strides)
    for split in SPLITS:
        check_split(series(*lengths), protocol, split)


def raw_window(table: pd.DataFrame, name: str, origin: int, steps: range) -> NDArray:
    values = table[table.unique_id == name].reset_index().y
    return np.array([values[origin + step] for step in steps])[:, None]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_windows_of_a_file(tmp_path: Path, kind: str) -> None:
    """First and last window of every split, in the data's units, of interleaved series."""
    rng = np.random.default_rng(1)
    parts = []
    for name, length in (("x", 60), ("y", 83)):
        stamps = pd.date_range("2023-12-30 21:00", periods=length, freq="30min")
        parts.append(pd.DataFrame({"unique_id": name, "ds": stamps, "y": rng.normal(9, 4, length)}))
    table = pd.concat(parts).sort_values("ds", kind="stable").reset_index(drop=True)
    path = tmp_path / f"x.{kind}"
    (table.to_csv if kind == "csv" else table.to_parquet)(path, index=False)
    some = read_series(path)
    protocol = Protocol(10, 4, 0.6, 0.8, stride=3)
    fitted = fit(some, protocol)
    borders = {"x": (36, 48, 60), "y": (49, 66, 83)}  # 60 % and 80 % of 60 and 83, rounded down
    for split in SPLITS:
        windows = Windows(some, fitted, protocol, split)
        for name in ("x", "y"):
            train, val, test = borders[name]
            first, end = {"train": (10, train), "val": (train, val), "test": (val, test)}[split]
            last = end - 4
            if split == "train":
                last -= (last - first) % 3
            mine = [i for i in range(len(windows)) if windows[i]["series"] == "xy".index(name)]
            for i, origin in ((mine[0], first), (mine[-1], last)):
                window = windows[i]
                assert window["origin"] == origin
                scale = fitted.scales[name]
                for key, steps in (("past", range(-10, 0)), ("future", range(4))):
                    found = window[key].numpy() * scale.std + scale.mean
                    assert np.allclose(found, raw_window(table, name, origin, steps), atol=1e-5)


def test_no_target_of_the_test_is_in_training() -> None:
    some = series(90, 64)
    protocol = Protocol(12, 5)
    changed = [replace(one, values=one.values.copy()) for one in some]
    for one in changed:
        one.values[protocol.spans(one)["train"][1] :] = 1e9
    before, after = (
        Windows(s, fit(s, protocol), protocol, "train").__getitems__(list(range(len(w))))
        for s in (some, changed)
        for w in [Windows(s, fit(s, protocol), protocol, "train")]
    )
    assert before.keys() == after.keys()
    assert "stamps" not in before
    for key, values in before.items():
        assert torch.equal(values, after[key]), key
    # and the splits share no target among themselves
    seen: set[tuple[int, int]] = set()
    for split in SPLITS:
        windows = Windows(some, fit(some, protocol), protocol, split)
        batch = windows.__getitems__(list(range(len(windows))))
        targets = {
            (number, row + step)
            for number, row in zip(batch["series"].tolist(), batch["origin"].tolist(), strict=True)
            for step in range(5)
        }
        assert not targets & seen
        seen |= targets


def test_numbers_as_stamps_give_no_features() -> None:
    (one,) = (replace(s, stamps=np.arange(5, 45), frequency=None) for s in series(40))
    protocol = Protocol(6, 3)
    window = Windows([one], fit([one], protocol), protocol, "test")[0]
    assert window["past_time"].shape == (6, 0)
    assert window["future_time"].shape == (3, 0)
    first = protocol.spans(one)["test"][0]
    assert window["stamps"].tolist() == list(range(5 + first - 6, 5 + first + 3))


def test_indices_are_those_of_a_sequence() -> None:
    some = series(60, 50)
    protocol = Protocol(6, 3)
    windows = Windows(some, fit(some, protocol), protocol, "val")
    assert windows[-1]["origin"] == windows[len(windows) - 1]["origin"]
    with pytest.raises(IndexError):
        windows[len(windows)]


# Records


def test_records_from_the_end() -> None:
    some = series(60, 50)
    protocol = Protocol(6, 3)
    records = ForecastRecords(some, [range(len(s), len(s) + 1) for s in some], protocol)
    assert [record["id"] for record in records] == [
        f"s{i}@{one.stamps[-1]}" for i, one in enumerate(some)
    ]
    for record, one in zip(records, some, strict=True):
        assert record.keys() == {"id", "series", "origin", "values"}
        assert_array_equal(record["values"], one.values[-6:])
        assert record["origin"] == str(one.stamps[-1])


def test_records_of_the_test_span() -> None:
    some = series(60, 50)
    protocol = Protocol(6, 3)
    origins = [protocol.origins(one, "test") for one in some]
    records = ForecastRecords(some, origins, protocol)
    expected = by_hand(some, protocol, "test")
    assert len(records) == len(expected)
    assert len({record["id"] for record in records}) == len(expected)
    for record, (number, row) in zip(records, expected, strict=True):
        assert record["series"] == f"s{number}"
        assert_array_equal(record["values"], some[number].values[row - 6 : row])
        assert_array_equal(record["actual"], some[number].values[row : row + 3])
    assert records[-1]["id"] == records[len(records) - 1]["id"]
    with pytest.raises(IndexError):
        records[len(records)]


def test_a_series_shorter_than_the_lookback_gives_what_it_has() -> None:
    (one,) = series(4)
    (record,) = ForecastRecords([one], [range(4, 5)], Protocol(6, 3))
    assert_array_equal(record["values"], one.values)


def test_windows_of_a_split_keep_only_what_they_read() -> None:
    (one,) = series(1_000)
    protocol = Protocol(20, 10)
    rows = {s: len(Windows([one], fit([one], protocol), protocol, s).values) for s in SPLITS}
    assert rows == {"train": 700, "val": 120, "test": 220}


def test_a_long_file_in_any_order_gives_the_same_windows(tmp_path: Path) -> None:
    """Whether series follow one another or are interleaved."""
    frames = [
        pl.DataFrame({"unique_id": one.name, "ds": one.stamps, "y": one.values[:, 0]})
        for one in series(40, 30, channels=1)
    ]
    pl.concat(frames).write_parquet(tmp_path / "block.parquet")
    pl.concat(frames).sort("ds", maintain_order=True).write_parquet(tmp_path / "mixed.parquet")
    protocol = Protocol(6, 3)
    both = []
    for name in ("block", "mixed"):
        some = read_series(tmp_path / f"{name}.parquet")
        windows = Windows(some, fit(some, protocol), protocol, "test")
        both.append(windows.__getitems__(list(range(len(windows)))))
    assert all(torch.equal(both[0][key], both[1][key]) for key in both[0])
