"""Parquet read by pieces into memory maps: the series, batches and errors of reading it whole."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.testing import assert_array_equal
from series_cases import ROLES

from core.jobs.errors import UserError
from timeseries.data import calendar, streaming
from timeseries.data.covariates import Covariates
from timeseries.data.forecasts import ForecastWindows
from timeseries.data.layout import Roles
from timeseries.data.protocol import Protocol
from timeseries.data.repairs import Repairs
from timeseries.data.series import Policies, Series, read_series

pytestmark = pytest.mark.filterwarnings("ignore::timeseries.data.repairs.RepairWarning")
COVARIATES = Covariates(("price",), ("rain",), ("kind", "size"))
FILL = Policies("sort", "mean", "linear", "previous", "linear")


@pytest.fixture(autouse=True)
def pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(streaming, "_BATCH", 7)
    monkeypatch.setattr(streaming, "STREAM_ROWS", 1)
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))


def table(rows: int = 40) -> pl.DataFrame:
    parts = []
    for seed, (name, kind) in enumerate([("b", "shop"), ("a", "home"), ("c", "shop")]):
        rng, length = np.random.default_rng(seed), rows + 5 * seed
        t = np.arange(length)
        part = {
            "unique_id": [name] * length,
            "ds": np.datetime64("2024-01-01", "us") + t * np.timedelta64(1, "h"),
            "y": rng.normal(10 * seed, 1 + seed, length),
            "price": rng.normal(100, 20, length),
            "rain": rng.gamma(2, 3, length),
            "kind": [kind] * length,
            "size": [seed] * length,
        }
        parts.append(pl.DataFrame(part))
    return pl.concat(parts)


def interleaved() -> pl.DataFrame:
    return table().sort("ds", maintain_order=True)


def cell(row: int, column: str, value: Any) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """Another value in a row, counted from 1."""

    def change(frame: pl.DataFrame) -> pl.DataFrame:
        there = pl.int_range(pl.len()) == row - 1
        other = pl.lit(value, frame.schema[column])
        return frame.with_columns(
            pl.when(there).then(other).otherwise(pl.col(column)).alias(column)
        )

    return change


def text_stamps(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.col("ds").dt.to_string("%Y-%m-%d %H:%M"))


def both(path: Path, **options: Any) -> tuple[Any, Any]:
    """What either route gives, or the error it raises."""
    given = {"policies": Policies(), "frequency": None, **options}
    given["roles"] = Roles(**{key: given.pop(key) for key in ROLES if key in given})
    found: list[Any] = []
    repairs: list[Any] = []
    # the second time out of the cache
    for read in (read_series, streaming.stream_series, streaming.stream_series):
        heard = Repairs()
        try:
            found.append(read(path, **given, repairs=heard))
            repairs.append(heard.plain())
        except UserError as error:
            found.append((type(error).__bases__[0], error.code, str(error)))
    assert all(heard == repairs[0] for heard in repairs)
    return found[0], found[1]


def same(whole: list[Series], streamed: list[Series]) -> None:
    assert [one.name for one in whole] == [one.name for one in streamed]
    for one, other in zip(whole, streamed, strict=True):
        assert (one.channels, one.frequency, one.static) == (
            other.channels,
            other.frequency,
            other.static,
        )
        for key in ("stamps", "values", "known", "observed", "later"):
            expected, found = getattr(one, key), getattr(other, key)
            assert expected.dtype == found.dtype
            if expected.size or key in ("stamps", "values"):
                assert_array_equal(found, expected, err_msg=key)
        assert isinstance(other.values, np.memmap)


GOOD: dict[str, tuple[pl.DataFrame, dict[str, Any]]] = {
    "long": (table(), {}),
    "interleaved": (interleaved(), {}),
    "covariates": (interleaved(), {"covariates": COVARIATES}),
    "future": (
        pl.concat(
            part.with_columns(
                *(
                    pl.when(pl.int_range(pl.len()) < len(part) - 3).then(pl.col(c)).alias(c)
                    for c in ("y", "rain")
                )
            )
            for part in table().partition_by("unique_id", maintain_order=True)
        ),
        {"covariates": COVARIATES},
    ),
    "text stamps": (text_stamps(interleaved()), {}),
    "offsets": (text_stamps(table()).with_columns(pl.col("ds") + "+02:00"), {}),
    "days": (
        table(7).with_columns(pl.col("ds").dt.offset_by("0d").cast(pl.Date)),
        {"policies": FILL},
    ),
    "numbers": (table().with_columns(ds=pl.int_range(pl.len()).over("unique_id")), {}),
    "text numbers": (
        table().with_columns(ds=pl.int_range(pl.len()).over("unique_id").cast(pl.String)),
        {},
    ),
    "no stamps": (interleaved(), {"time": None}),
    "wide": (table().head(40), {"series": None, "targets": ["y", "rain"]}),
    "shuffled": (table().sample(fraction=1, shuffle=True, seed=0), {"policies": FILL}),
    "gaps and duplicates": (
        pl.concat([table().sample(fraction=0.8, seed=1), table().sample(fraction=0.3, seed=2)]),
        {"policies": FILL, "covariates": COVARIATES, "frequency": "1h"},
    ),
    "closed gaps": (
        table().sample(fraction=0.8, seed=1),
        {"policies": Policies("sort", gaps="close"), "frequency": "1h", "covariates": COVARIATES},
    ),
    "local clock": (
        text_stamps(table()).with_columns(pl.col("ds") + "+02:00"),
        {"policies": Policies(offsets="local")},
    ),
    "zone": (
        table().with_columns(pl.col("ds").dt.replace_time_zone("Europe/Paris")),
        {"policies": Policies(offsets="local")},
    ),
    "irregular": (
        table().with_columns(pl.col("ds").dt.offset_by("7s")),
        {"policies": Policies(irregular="nearest"), "frequency": "1h"},
    ),
    "empty cells": (cell(9, "y", None)(table()), {"policies": FILL}),
}


@pytest.mark.parametrize(("frame", "options"), GOOD.values(), ids=GOOD)
def test_series_are_those_of_the_whole(
    tmp_path: Path, frame: pl.DataFrame, options: dict[str, Any]
) -> None:
    frame.write_parquet(tmp_path / "x.parquet", row_group_size=11)
    whole, streamed = both(tmp_path / "x.parquet", **options)
    assert isinstance(whole, list), whole
    assert isinstance(streamed, list), streamed
    same(whole, streamed)


BAD: dict[str, tuple[pl.DataFrame, dict[str, Any]]] = {
    "no column": (table().drop("y"), {}),
    "no time": (table().drop("ds"), {}),
    "no covariate": (table().drop("rain"), {"covariates": COVARIATES}),
    "no target": (table(), {"targets": []}),
    "no stamp": (cell(30, "ds", None)(table()), {}),
    "two without stamp": (cell(90, "ds", None)(cell(30, "ds", None)(table())), {}),
    "text": (cell(30, "ds", "soon")(text_stamps(table())), {}),
    "no name": (cell(31, "unique_id", None)(table()), {}),
    "infinite": (cell(50, "y", np.inf)(cell(12, "y", -np.inf)(table())), {}),
    "infinite before no stamp": (cell(50, "ds", None)(cell(12, "y", np.inf)(table())), {}),
    "empty": (cell(100, "y", None)(cell(77, "y", None)(table())), {}),
    "empty among interleaved": (cell(100, "y", None)(cell(77, "y", None)(interleaved())), {}),
    "duplicate": (pl.concat([table(), table().tail(3)]), {}),
    "unsorted": (table().sample(fraction=1, shuffle=True, seed=0), {}),
    "duplicate before unsorted": (pl.concat([table(), table()[3:4], table()[2:3]]), {}),
    "gap": (table().filter(pl.int_range(pl.len()) != 60), {}),
    "off the grid": (cell(50, "ds", datetime(2024, 1, 1, 9, 10))(table()), {}),
    "frequencies": (
        table().filter((pl.col("unique_id") != "c") | (pl.col("ds").dt.hour() == 0)),
        {},
    ),
    "frequency of numbers": (
        table().with_columns(ds=pl.int_range(pl.len()).over("unique_id")),
        {"frequency": "1h"},
    ),
    "static": (cell(70, "kind", "x")(table()), {"covariates": COVARIATES}),
    "static among interleaved": (cell(70, "size", 9)(interleaved()), {"covariates": COVARIATES}),
    "no static": (cell(70, "kind", None)(table()), {"covariates": COVARIATES}),
    "nothing to fill with": (cell(1, "y", None)(table()), {"policies": FILL}),
    "price": (cell(20, "price", None)(table()), {"covariates": COVARIATES}),
    "prices of two": (
        cell(50, "price", None)(cell(20, "price", None)(interleaved())),
        {"covariates": COVARIATES, "policies": Policies(missing="previous")},
    ),
    "price in a gap": (
        table().filter(pl.int_range(pl.len()) != 60),
        {"covariates": COVARIATES, "policies": Policies(gaps="previous")},
    ),
    "future": (
        cell(40, "price", None)(cell(40, "y", None)(table())),
        {"covariates": COVARIATES},
    ),
    "a date among numbers": (
        cell(60, "ds", "2024-01-01")(
            table().with_columns(ds=pl.int_range(pl.len()).cast(pl.String))
        ),
        {},
    ),
}


@pytest.mark.parametrize(("frame", "options"), BAD.values(), ids=BAD)
def test_errors_are_those_of_the_whole(
    tmp_path: Path, frame: pl.DataFrame, options: dict[str, Any]
) -> None:
    frame.write_parquet(tmp_path / "x.parquet", row_group_size=11)
    whole, streamed = both(tmp_path / "x.parquet", **options)
    assert isinstance(whole, tuple), whole
    assert streamed == whole
    assert not list((tmp_path / "cache").glob("*"))


def test_offsets_that_begin_midway(tmp_path: Path) -> None:
    """The first row is the same; how many follow is counted by pieces."""
    ds = pl.when(pl.int_range(pl.len()) < 28).then("ds").otherwise(pl.col("ds") + "Z")
    text_stamps(table()).with_columns(ds).write_parquet(tmp_path / "x.parquet")
    whole, streamed = both(tmp_path / "x.parquet")
    assert "row 29: ds '2024-01-02 04:00Z' has an offset from UTC" in whole[2]
    assert streamed == whole


def module(path: Path, **options: Any) -> ForecastWindows:
    data = ForecastWindows(
        str(path), protocol=Protocol(8, 3), origins="test", batch_size=16, **options
    )
    data.setup("fit")
    return data


@pytest.mark.parametrize("kinds", [(), ("known",), ("observed",), ("known", "observed", "static")])
def test_batches_and_records_are_those_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: tuple[str, ...]
) -> None:
    path = tmp_path / "x.parquet"
    interleaved().write_parquet(path, row_group_size=11)
    columns = {kind: list(getattr(COVARIATES, kind)) for kind in kinds}
    monkeypatch.setattr(streaming, "STREAM_ROWS", 1000)
    whole = module(path, **columns)
    monkeypatch.setattr(streaming, "STREAM_ROWS", 1)
    streamed = module(path, **columns)
    assert isinstance(streamed.series(path)[0].values, np.memmap)
    assert not isinstance(whole.series(path)[0].values, np.memmap)
    assert streamed.state_dict() == whole.state_dict()
    assert streamed.model_facts() == whole.model_facts()
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        batches = zip(getattr(whole, loader)(), getattr(streamed, loader)(), strict=True)
        for expected, found in batches:
            assert expected.keys() == found.keys()
            for key, values in expected.items():
                assert torch.equal(values, found[key]), (loader, key)
    records = zip(whole.predict_records(), streamed.predict_records(), strict=True)
    for expected, found in records:
        one, other = whole.encode(expected), streamed.encode(found)
        for key, values in one.items():
            assert_array_equal(values, other[key], err_msg=key)


def test_a_file_is_read_again_only_if_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table().write_parquet(path)
    first = module(path)
    (folder,) = (tmp_path / "cache").glob("*")
    made = folder.stat().st_ino
    assert module(path).state_dict() == first.state_dict()
    assert next((tmp_path / "cache").glob("*")).stat().st_ino == made
    assert {file.name for file in folder.iterdir()} == {
        *("index.json", "stamps", "later", "targets", "known", "observed")
    }
    table().with_columns(pl.col("y") + 1).write_parquet(path)
    os.utime(path, ns=(0, 1))
    assert module(path).state_dict() != first.state_dict()
    assert len(list((tmp_path / "cache").glob("*"))) == 2


def test_small_files_and_other_kinds_are_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.parquet"
    table().write_parquet(path)
    table().write_csv(tmp_path / "x.csv")
    assert streaming.streams(path)
    assert not streaming.streams(tmp_path / "x.csv")
    assert not streaming.streams(tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"no table")
    assert not streaming.streams(tmp_path / "bad.parquet")
    monkeypatch.setattr(streaming, "STREAM_ROWS", len(table()) + 1)
    assert not streaming.streams(path)


def test_building_holds_little_of_a_long_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a row only its number and its place on the grid, 8 bytes each, and some booleans."""
    peaks = []
    monkeypatch.setattr(streaming, "_BATCH", 1 << 12)
    monkeypatch.setattr(calendar, "_PIECE", 1 << 12)
    for rows in (100_000, 300_000):
        table(rows).head(rows).write_parquet(tmp_path / f"{rows}.parquet")
        tracemalloc.start()
        found = streaming.stream_series(tmp_path / f"{rows}.parquet", Roles(), Policies(), None)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert [len(one) for one in found] == [rows]
    assert (peaks[1] - peaks[0]) / 200_000 < 20
