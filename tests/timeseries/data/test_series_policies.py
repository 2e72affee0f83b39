"""What the policies make of tables that are unsorted, doubled or incomplete."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from series_cases import LONG, days, read, refused, rows

from core.jobs.errors import DataError, UsageError
from timeseries.data.layout import Roles
from timeseries.data.repairs import Repairs
from timeseries.data.series import Policies, read_series

pytestmark = pytest.mark.filterwarnings("ignore::timeseries.data.repairs.RepairWarning")
Fill = Literal["previous", "linear"]


def test_unsorted(tmp_path: Path) -> None:
    text = LONG + "b,2,1\na,3,3\nb,1,9\na,1,1\na,2,2\nb,3,5\n"
    assert refused(tmp_path, text) == (
        "row 3: 'b': stamp 1 goes back; sort the file, or set data.policies.unsorted (2 such rows)"
    )
    b, a = read(tmp_path, text, policies=Policies(unsorted="sort"))
    assert (b.stamps.tolist(), b.values[:, 0].tolist()) == ([1, 2, 3], [9, 1, 5])
    assert (a.stamps.tolist(), a.values[:, 0].tolist()) == ([1, 2, 3], [1, 2, 3])


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("first", [1, 5, 4]), ("last", [3, 6.5, 4]), ("mean", [2, 5.5, 4])],
)
def test_duplicates(tmp_path: Path, policy: Any, expected: list[float]) -> None:
    text = rows("1,1", "1,3", "2,5", "2,5", "2,6.5", "3,4")
    message = refused(tmp_path, text)
    assert message == (
        "row 2: 'a': stamp 1 stands there twice; set data.policies.duplicates (3 such rows)"
    )
    (one,) = read(tmp_path, text, policies=Policies(duplicates=policy))
    assert one.stamps.tolist() == [1, 2, 3]
    assert one.values[:, 0].tolist() == expected


def test_duplicates_that_are_not_neighbours(tmp_path: Path) -> None:
    text = rows("1,1", "2,2", "1,5")
    (one,) = read(tmp_path, text, policies=Policies(unsorted="sort", duplicates="last"))
    assert one.values[:, 0].tolist() == [5, 2]
    message = refused(tmp_path, text, policies=Policies(unsorted="sort"))
    assert message.startswith("row 3: 'a': stamp 1 stands there twice")
    # the same stamp in two series is none
    assert len(read(tmp_path, LONG + "a,1,1\nb,1,1\n")) == 2


def test_mean_of_duplicates_is_that_of_the_values_there_are(tmp_path: Path) -> None:
    text = rows("1,1", "1,", "2,", "2,", "3,4")
    policies = Policies(duplicates="mean", missing="previous")
    (one,) = read(tmp_path, text, policies=policies)
    assert one.values[:, 0].tolist() == [1, 1, 4]
    message = refused(tmp_path, text, policies=Policies(duplicates="mean"))
    assert message == "row 3: 'a': no y at 2; set data.policies.missing"


def test_gaps(tmp_path: Path) -> None:
    text = rows("2024-01-01,1", "2024-01-02,2", "2024-01-05,5", "2024-01-06,6", "2024-01-08,10")
    assert refused(tmp_path, text) == (
        "row 3: 'a': 3 stamps are missing, first 2024-01-03 00:00:00; set data.policies.gaps"
    )
    expected: dict[Fill, list[int]] = {
        "previous": [1, 2, 2, 2, 5, 6, 6, 10],
        "linear": [1, 2, 3, 4, 5, 6, 8, 10],
    }
    for policy, values in expected.items():
        (one,) = read(tmp_path, text, policies=Policies(gaps=policy))
        assert one.stamps.tolist() == days(*range(1, 9))
        assert one.values[:, 0].tolist() == values


def test_closed_gaps_leave_rows_as_they_stand(tmp_path: Path) -> None:
    text = rows("2024-01-01,1", "2024-01-02,2", "2024-01-05,5", "2024-01-06,6")
    (one,) = read(tmp_path, text, policies=Policies(gaps="close"))
    assert one.frequency == "1d"
    assert one.stamps.tolist() == days(1, 2, 5, 6)
    assert one.values[:, 0].tolist() == [1, 2, 5, 6]
    off = rows("2024-01-01,1", "2024-01-02,2", "2024-01-05 01:00,5", "2024-01-06 01:00,6")
    assert "off the grid" in refused(tmp_path, off, policies=Policies(gaps="close"))


PARIS = pd.date_range("2024-10-20", "2024-11-05", freq="D", tz="Europe/Paris")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_days_of_a_place_keep_its_clock_if_asked(tmp_path: Path, kind: str) -> None:
    """In UTC they begin at 22:00 in summer and at 23:00 in winter."""
    utc = PARIS.tz_convert(None).to_numpy()
    table = pl.DataFrame({"ds": utc, "y": np.arange(17.0)})
    zoned = table.with_columns(pl.col("ds").dt.replace_time_zone("UTC"))
    zoned = zoned.with_columns(pl.col("ds").dt.convert_time_zone("Europe/Paris"))
    path = tmp_path / f"x.{kind}"
    if kind == "csv":
        text = pl.Series("ds", [stamp.isoformat() for stamp in PARIS])
        zoned.with_columns(text).write_csv(path)
    else:
        zoned.write_parquet(path)
    with pytest.raises(DataError, match=r"of 1d; .* data\.policies\.offsets"):
        read_series(path, Roles(series=None))
    heard = Repairs()
    (one,) = read_series(
        path, Roles(series=None), policies=Policies(offsets="local"), repairs=heard
    )
    assert one.frequency == "1d"
    assert one.stamps.tolist() == PARIS.tz_localize(None).to_pydatetime().tolist()
    assert heard.found["offsets"].count == 17


def test_an_hour_that_comes_twice_is_a_duplicate_by_the_local_clock(tmp_path: Path) -> None:
    hours = pd.date_range("2024-10-27", periods=6, freq="h", tz="Europe/Paris")
    text = rows(*(f"{hour.isoformat()},{n}" for n, hour in enumerate(hours)))
    local = Policies(offsets="local")
    assert "stamp 2024-10-27 02:00:00 stands there twice" in refused(tmp_path, text, policies=local)
    mixed = text + "a,2024-10-27T06:00:00,1\n"
    assert "no offset from UTC, unlike" in refused(tmp_path, mixed, policies=local)


def test_irregular_stamps_move_to_the_nearest_of_the_grid(tmp_path: Path) -> None:
    exact = pd.date_range("1969-12-31 20:00", periods=40, freq="15min")
    jitter = np.random.default_rng(0).integers(-449, 450, 40)
    stamps = exact + pd.to_timedelta(jitter, unit="s")
    text = rows(*(f"{stamp},{n}" for n, stamp in enumerate(stamps)))
    assert "is off the grid of 15m" in refused(tmp_path, text, frequency="15m")
    nearest = Policies(irregular="nearest")
    heard = Repairs()
    (one,) = read(tmp_path, text, frequency="15m", policies=nearest, repairs=heard)
    assert one.stamps.tolist() == stamps.round("15min").to_pydatetime().tolist()
    assert one.stamps.tolist() == exact.to_pydatetime().tolist()
    assert one.values[:, 0].tolist() == list(range(40))
    assert heard.found["irregular"].count == np.count_nonzero(jitter)
    twice = text + f"a,{exact[-1] + pd.Timedelta(seconds=449)},1\n"
    message = refused(tmp_path, twice, frequency="15m", policies=nearest)
    assert "row 41: 'a': stamp 1970-01-01 05:45:00 stands there twice" in message
    for frequency in (None, "1mo", "7d", "7h"):
        with pytest.raises(UsageError, match=r"data\.frequency, a step that divides a day"):
            read(tmp_path, text, frequency=frequency, policies=nearest)


def test_missing_values(tmp_path: Path) -> None:
    text = "date,a,b\n1,1,1\n2,,2\n3,,\n4,7,4\n"
    wide: dict[str, Any] = {"time": "date", "series": None}
    assert refused(tmp_path, text, **wide) == (
        "row 2: 'table': no a at 2; set data.policies.missing (2 such rows)"
    )
    (one,) = read(tmp_path, text, policies=Policies(missing="previous"), **wide)
    assert one.values.T.tolist() == [[1, 1, 1, 7], [1, 2, 2, 4]]
    (one,) = read(tmp_path, text, policies=Policies(missing="linear"), **wide)
    assert one.values.T.tolist() == [[1, 3, 5, 7], [1, 2, 3, 4]]


def test_gaps_and_missing_values_have_policies_of_their_own(tmp_path: Path) -> None:
    text = rows("1,1", "2,", "4,7", "5,8")
    message = refused(tmp_path, text, policies=Policies(gaps="linear"))
    assert message == "row 2: 'a': no y at 2; set data.policies.missing"
    message = refused(tmp_path, text, policies=Policies(missing="linear"))
    assert message.startswith("row 3: 'a': 1 stamps are missing, first 3")
    both = Policies(gaps="previous", missing="linear")
    assert read(tmp_path, text, policies=both)[0].values[:, 0].tolist() == [1, 1, 1, 7, 8]


def test_nothing_to_fill_with(tmp_path: Path) -> None:
    cases: tuple[tuple[Fill, str, str], ...] = (
        ("previous", rows("1,", "2,", "3,1"), "row 1: 'a': nothing to fill y with at 1 (2 such"),
        ("linear", rows("1,1", "2,2", "3,"), "row 3: 'a': nothing to fill y with at 3"),
        ("linear", rows("1,", "2,"), "row 1: 'a': nothing to fill y with at 1 (2 such rows)"),
    )
    for policy, text, message in cases:
        policies = Policies(missing=policy)
        assert refused(tmp_path, text, policies=policies).startswith(message)
    policies = Policies(gaps="previous", missing="previous")
    message = refused(tmp_path, rows("1,", "2,", "4,1", "5,1"), policies=policies)
    assert message == "row 1: 'a': nothing to fill y with at 1 (3 such rows)"


@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    policy=st.sampled_from(["previous", "linear"]),
    data=st.data(),
)
def test_sorted_and_filled_has_every_stamp_once(
    tmp_path_factory: pytest.TempPathFactory,
    counts: list[int],
    policy: Fill,
    data: st.DataObject,
) -> None:
    """Rows in any order, some doubled, some missing: pandas does the same by asfreq."""
    lines, truth = [], {}
    for s, count in enumerate(counts):
        hours = sorted({0, 1, *data.draw(st.sets(st.integers(2, 20), max_size=count))})
        values = data.draw(st.lists(st.integers(-9, 9), min_size=len(hours), max_size=len(hours)))
        stamps = [datetime(2024, 2, 28, 12) + timedelta(hours=h) for h in hours]
        whole = pd.Series(values, stamps, dtype=float).asfreq("h")
        truth[f"s{s}"] = whole.ffill() if policy == "previous" else whole.interpolate()
        again = data.draw(st.integers(0, len(hours) - 1))
        pairs = list(zip(stamps, values, strict=True))
        lines += [f"s{s},{stamp},{value}\n" for stamp, value in [*pairs, pairs[again]]]
    text = LONG + "".join(data.draw(st.permutations(lines)))
    policies = Policies(unsorted="sort", duplicates="mean", gaps=policy)
    found = read(
        tmp_path_factory.getbasetemp(), text, name="any.csv", policies=policies, frequency="1h"
    )
    assert {one.name for one in found} == set(truth)
    for one in found:
        assert_array_equal(one.stamps, truth[one.name].index.to_numpy("datetime64[us]"))
        assert np.allclose(one.values[:, 0], truth[one.name].to_numpy())
