"""What policies change in a file is said once, and kept for the run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from timeseries.data import repairs, streaming
from timeseries.data.forecasts import ForecastWindows
from timeseries.data.layout import Roles
from timeseries.data.protocol import Protocol
from timeseries.data.repairs import RepairWarning
from timeseries.data.series import Policies, Series, read_series
from timeseries.data.tiled import KEEP

Read = Callable[..., list[Series]]


@pytest.fixture(params=["read_series", "stream_series"])
def reader(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[list[list[Any]], Policies], list[str]]:
    """Reads rows and gives the warnings without the file's name."""
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(streaming, "_BATCH", 3)
    path = tmp_path / "x.parquet"

    def read(table: list[list[Any]], policies: Policies) -> list[str]:
        pl.DataFrame(table, ["unique_id", "ds", "y"], orient="row").write_parquet(path)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if request.param == "read_series":
                read_series(path, policies=policies)
            else:
                streaming.stream_series(path, Roles(), policies, None)
        assert all(w.category is RepairWarning for w in caught)
        return [str(w.message).removeprefix(f"{path}: ") for w in caught]

    return read


def days(name: str, *cells: tuple[int, float | None]) -> list[list[Any]]:
    return [[name, f"2024-01-{day:02d}", value] for day, value in cells]


WHOLE = days("b", *((day, 1.0) for day in range(1, 9)))
SAID = {
    "sort": (
        days("a", (1, 1.0), (3, 3.0), (2, 2.0), (4, 4.0)) + WHOLE,
        Policies(unsorted="sort"),
        ["stamps that go back: 1, first at row 3 of 'a'; data.policies.unsorted: sort"],
    ),
    **{
        policy: (
            WHOLE + days("a", (1, 1.0), (1, 3.0), (2, 2.0), (2, 4.0), (2, 4.0)),
            Policies(duplicates=policy),  # type: ignore[arg-type]
            [
                "stamps that stand there twice: 3, first at row 10, 12, 13 of 'a'; "
                f"data.policies.duplicates: {policy}"
            ],
        )
        for policy in ("first", "last", "mean")
    },
    **{
        f"gaps {policy}": (
            WHOLE + days("a", (1, 1.0), (2, 2.0), (6, 5.0), (7, 6.0), (9, 7.0)),
            Policies(gaps=policy),  # type: ignore[arg-type]
            [f"missing stamps: 4, first at row 11, 13 of 'a'; data.policies.gaps: {policy}"],
        )
        for policy in ("previous", "linear", "close")
    },
    **{
        f"missing {policy}": (
            [
                *days("a", (1, 1.0), (2, None), (3, 3.0)),
                *days("b", (1, 1.0), *((day, None) for day in range(2, 8)), (8, 1.0)),
            ],
            Policies(missing=policy),  # type: ignore[arg-type]
            [
                "empty values: 7 (y 7), first at row 2, 5, 6, 7, 8, ... of 'a', 'b'; "
                f"data.policies.missing: {policy}"
            ],
        )
        for policy in ("previous", "linear")
    },
    "kept gaps that missing fills": (
        days("a", (1, 1.0), (2, 2.0), (5, 5.0)) + WHOLE,
        Policies(gaps="keep", missing="linear"),
        ["empty values: 2 (y 2), first at row 3 of 'a'; data.policies.missing: linear"],
    ),
    "several": (
        days("a", (2, None), (1, 1.0), (1, 1.0), (3, 2.0), (5, 5.0)) + WHOLE,
        Policies("sort", "first", "previous", "previous"),
        [
            "stamps that go back: 1, first at row 2 of 'a'; data.policies.unsorted: sort",
            "stamps that stand there twice: 1, first at row 3 of 'a'; "
            "data.policies.duplicates: first",
            "missing stamps: 1, first at row 5 of 'a'; data.policies.gaps: previous",
            "empty values: 1 (y 1), first at row 1 of 'a'; data.policies.missing: previous",
        ],
    ),
    "series": (
        [row for name in "abcde" for row in days(name, (1, 1.0), (2, None), (3, 1.0))],
        Policies(missing="previous"),
        [
            "empty values: 5 (y 5), first at row 2, 5, 8, 11, 14, ... of 'a', 'b', 'c' and "
            "2 more series; data.policies.missing: previous"
        ],
    ),
    "offsets": (
        [["a", f"2024-01-01 0{h}:00{z}", 1.0] for h, z in ((3, "+02:00"), (2, "+00:00"))],
        Policies(),
        ["stamps with an offset: 1, first at row 1; turned into UTC"],
    ),
    "nothing": (WHOLE, Policies("sort", "mean", "linear", "linear"), []),
    "kept": (days("a", (1, 1.0), (2, None), (4, 1.0)) + WHOLE, KEEP, []),
}


@pytest.mark.parametrize(("table", "policies", "said"), SAID.values(), ids=SAID)
def test_every_repair_is_said_once(
    reader: Callable[..., list[str]], table: list[list[Any]], policies: Policies, said: list[str]
) -> None:
    assert reader(table, policies) == said
    assert reader(table, policies) == []


def test_zones_of_parquet_are_said(tmp_path: Path) -> None:
    table = pl.DataFrame(WHOLE, ["unique_id", "ds", "y"], orient="row")
    for zone, count in (("Europe/Berlin", 8), ("UTC", 0)):
        ds = pl.col("ds").str.to_datetime("%Y-%m-%d").dt.replace_time_zone(zone)
        path = tmp_path / f"{count}.parquet"
        table.with_columns(ds).write_parquet(path)
        found = repairs.Repairs()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read_series(path, repairs=found)
        assert [repair.count for repair in found.found.values()] == ([count] if count else [])


def test_a_wide_table_counts_by_column(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    path.write_text("ds,a,b,c,d\n2024-01-01,1,1,1,1\n2024-01-02,,,,\n2024-01-03,1,,1,1\n")
    data = ForecastWindows(
        str(path), series=None, protocol=Protocol(1, 1), policies=Policies(missing="previous")
    )
    said = (
        r"empty values: 5 \(a 1, b 2, c 1 and 1 more columns\), first at row 2, 3 of 'table'; "
        "data.policies.missing: previous"
    )
    with pytest.warns(RepairWarning, match=said):
        data.all_series(path)
    assert data.repairs() == {
        path: [
            {
                **{"policy": "missing", "how": "previous", "count": 5, "rows": [2, 3]},
                **{"series": 1, "columns": {"a": 1, "b": 2, "c": 1, "d": 1}},
            }
        ]
    }
