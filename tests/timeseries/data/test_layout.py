"""Which columns are taken where nobody names them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.jobs.errors import DataError
from timeseries.data.anomalies import AnomalyWindows
from timeseries.data.covariates import Covariates
from timeseries.data.forecasts import ForecastWindows
from timeseries.data.imputation import ImputationWindows
from timeseries.data.layout import Roles, layout
from timeseries.data.protocol import Protocol, Tiling

AUTO = Roles("auto", "auto")
SHORT: dict[str, Any] = {"protocol": Protocol(4, 2), "tiling": Tiling(length=8, overlap=4)}


def written(folder: Path, header: str, row: str, name: str = "x.csv") -> Path:
    (folder / name).write_text(f"{header}\n{row}\n")
    return folder / name


def decided(path: Path, roles: Roles) -> tuple[str | None, str | None]:
    found = layout(path, roles)
    assert replace(found, time=roles.time, series=roles.series) == roles
    return found.time, found.series


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        ("unique_id,ds,y", "a,2024-01-01,1", ("ds", "unique_id")),
        ("y,date,unique_id", "1,2024-01-01,7", ("date", "unique_id")),
        ("ds,a,b", "2024-01-01,1,2", ("ds", None)),
        ("a,date,b", ",2024-01-01,nan", ("date", None)),
        ("ds,y", "2024-01-01,1", ("ds", None)),
        ("unique_id,ds,y,region", "a,2024-01-01,1,west", ("ds", "unique_id")),
    ],
)
def test_by_names(tmp_path: Path, header: str, row: str, expected: tuple[str, str | None]) -> None:
    assert decided(written(tmp_path, header, row), AUTO) == expected


def test_what_is_given_stays(tmp_path: Path) -> None:
    path = written(tmp_path, "unique_id,ds,date,y", "1,2024-01-01,2024-01-02,1")
    assert decided(path, Roles("date", "auto")) == ("date", "unique_id")
    assert decided(path, Roles(None, None)) == (None, None)
    dated = Roles("auto", None, covariates=Covariates(known=("date",)))
    assert decided(path, dated) == ("ds", None)
    text = written(tmp_path, "ds,a,note", "2024-01-01,1,dry")
    assert decided(text, replace(AUTO, targets=["a"])) == ("ds", None)
    assert decided(text, replace(AUTO, covariates=Covariates(static=("note",)))) == ("ds", None)


@pytest.mark.parametrize(
    ("header", "row", "options", "said"),
    [
        ("stamp,y", "2024-01-01,1", {}, "no column ds or date, .* has stamp, y; give --data.time"),
        ("ds,date,y", "2024-01-01,1,1", {}, "both a column ds and a column date, .*--data.time"),
        ("ds,store,y", "2024-01-01,a,1", {}, "'store' holds no numbers; .*--data.series store"),
        ("ds,a", "2024-01-01,1", {"targets": ["y"]}, "no column 'y'; .*correct --data.targets"),
        ("ds,a", "2024-01-01,1", {"time": "t"}, "no column 't'; .*correct --data.time"),
        ("ds,a", "2024-01-01,1", {"series": "s"}, "no column 's'; .*correct --data.series"),
        ("ds,a", "2024-01-01,1", {"covariates": Covariates(observed=("w",))}, "--data.observed"),
    ],
)
def test_refused_with_the_key_to_set(
    tmp_path: Path, header: str, row: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=rf"x\.csv: .*{said}"):
        layout(written(tmp_path, header, row), replace(AUTO, **options))


def test_dates_in_parquet_are_no_channel(tmp_path: Path) -> None:
    table = pl.DataFrame({"ds": ["2024-01-01"], "a": [1.0], "until": ["2024-01-02"]})
    table.with_columns(pl.col("until").str.to_date()).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="column 'until' holds no numbers"):
        layout(tmp_path / "x.parquet", AUTO)


@pytest.mark.parametrize("kind", [ForecastWindows, ImputationWindows, AnomalyWindows])
def test_data_modules_infer(kind: Any, tmp_path: Path) -> None:
    rows = [f"2024-01-{day:02d},{day},{-day}" for day in range(1, 31)]
    path = written(tmp_path, "date,a,b", "\n".join(rows))
    protocol = "protocol" if kind is ForecastWindows else "tiling"
    read = kind(path=str(path), **{protocol: SHORT[protocol]}).series(path)
    assert [(one.name, one.channels, len(one)) for one in read] == [("table", ("a", "b"), 30)]
    long = [
        "unique_id,ds,y",
        *(f"{name},2024-01-{d:02d},{d}" for name in "pq" for d in range(1, 31)),
    ]
    (tmp_path / "long.csv").write_text("\n".join(long))
    data = kind(path=str(tmp_path / "long.csv"), **{protocol: SHORT[protocol]})
    assert [one.name for one in data.series(tmp_path / "long.csv")] == ["p", "q"]


def test_stamps_that_go_back_in_a_wide_table_name_the_series_key(tmp_path: Path) -> None:
    rows = [f"2024-01-{day:02d},{store},1" for store in (1, 2) for day in range(1, 31)]
    path = written(tmp_path, "ds,store,y", "\n".join(rows))
    with pytest.raises(DataError, match=r"goes back; .*; or name .* in data\.series"):
        ForecastWindows(path=str(path), protocol=SHORT["protocol"]).series(path)
