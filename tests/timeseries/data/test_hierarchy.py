"""Hierarchies out of tables, against hierarchicalforecast's own aggregation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hierarchicalforecast.utils import aggregate

from core.jobs.errors import DataError, UsageError
from timeseries.data.hierarchy import read_hierarchy
from timeseries.data.series import read_series

PLACES = {
    "a": ("n", "tea"),
    "b": ("n", "milk"),
    "c": ("s", "tea"),
    "d": ("s", "milk"),
    "e": ("s", "tea"),
}
ROWS = 30


def table() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    stamps = np.datetime64("2024-01-01", "us") + np.arange(ROWS) * np.timedelta64(1, "D")
    parts = [
        pl.DataFrame({"unique_id": name, "ds": stamps, "y": rng.normal(size=ROWS)}).with_columns(
            region=pl.lit(region), product=pl.lit(product)
        )
        for name, (region, product) in PLACES.items()
    ]
    return pl.concat(parts)


def test_grouped_levels_are_the_librarys(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table().write_parquet(path)
    levels = ["total", "region", "product", "region/product"]
    found = read_hierarchy(path, levels)
    spec = [["total"], ["region"], ["product"], ["region", "product"]]
    spec.append(["total", "region", "product", "unique_id"])
    with_total = table().with_columns(total=pl.lit("total"))
    rows, summing, tags = aggregate(
        with_total.drop("unique_id").with_columns(table()["unique_id"]), spec, id_col="id"
    )

    def ours(name: str) -> str:
        return name.rsplit("/", 1)[1] if name.startswith("total/") else name

    for (level, members), theirs in zip(found.levels.items(), tags.values(), strict=True):
        assert sorted(members) == sorted(map(ours, theirs)), level
    theirs = {ours(row[0]): np.array(row[1:]) for row in summing.iter_rows()}
    order = [ours(name) for name in summing.columns[1:]]
    columns = [order.index(name) for name in found.levels["bottom"]]
    for name, row in zip(found.names, found.summing, strict=True):
        assert np.array_equal(row, theirs[name][columns]), name
    values = found.aggregated(read_series(path))
    for name, series in zip(found.names, values[..., 0], strict=True):
        wanted = rows.filter(pl.col("id").map_elements(ours, pl.String) == name).sort("ds")["y"]
        assert np.allclose(series, wanted, rtol=0, atol=1e-14), name


def test_rows_of_the_summing_matrix_follow_the_levels(tmp_path: Path) -> None:
    """A slash in a name, on which the library fails, and bottom series in no order."""
    path = tmp_path / "x.csv"
    path.write_text("unique_id,region\nz,n/x\na,s\nb,n/x\nz,n/x\n")
    found = read_hierarchy(path, ["total", "region"])
    assert found.levels == {"total": ["total"], "region": ["n/x", "s"], "bottom": ["z", "a", "b"]}
    assert found.summing.tolist()[:3] == [[1, 1, 1], [1, 0, 1], [0, 1, 0]]
    assert [part.tolist() for part in found.places.values()] == [[0], [1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("rows", "levels", "error", "message"),
    [
        (["a,n"], ["land"], DataError, "x.csv: no column 'land'; it has unique_id, region"),
        (["a,n", "b,"], ["region"], DataError, "x.csv row 2: has no region"),
        (["a,n", "a,s"], ["region"], DataError, "row 2: 'a': region is 's', before it was 'n'"),
        (["a,a"], ["region"], DataError, "'a' is a series of level 'region' and of 'bottom'"),
        (["a,n"], ["region", "region"], UsageError, "level 'region' is named twice"),
        (["a,n"], ["bottom"], UsageError, "level 'bottom': that name has a meaning here"),
    ],
)
def test_bad_hierarchies(
    tmp_path: Path, rows: list[str], levels: list[str], error: type[Exception], message: str
) -> None:
    path = tmp_path / "x.csv"
    path.write_text("\n".join(["unique_id,region", *rows]) + "\n")
    with pytest.raises(error) as raised:
        read_hierarchy(path, levels)
    assert message in str(raised.value)
