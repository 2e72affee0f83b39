"""Tables written by hand, good and bad: what is read of them, and which row is named."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from series_cases import LONG, days, read, refused, rows

from core.jobs.errors import DataError, UsageError
from timeseries.data.layout import Roles
from timeseries.data.series import Policies, Series, read_series

pytestmark = pytest.mark.filterwarnings("ignore::timeseries.data.repairs.RepairWarning")
TWO = LONG + "".join(
    f"{name},2024-01-0{day},{value}\n"
    for name, day, value in (("b", 1, 1), ("b", 2, 2), ("a", 1, 10), ("b", 3, 3), ("a", 2, 20))
)

# Shapes and kinds of tables


def check_two(found: Sequence[Series]) -> None:
    b, a = found
    assert (b.name, a.name) == ("b", "a")
    assert b.channels == a.channels == ("y",)
    assert b.frequency == a.frequency == "1d"
    assert b.stamps.tolist() == days(1, 2, 3)
    assert a.stamps.tolist() == days(1, 2)
    assert b.values.tolist() == [[1], [2], [3]]
    assert a.values.tolist() == [[10], [20]]
    assert b.values.dtype == np.float64


def test_long_table_of_interleaved_series(tmp_path: Path) -> None:
    check_two(read(tmp_path, TWO))


def test_every_kind_of_file_is_read_alike(tmp_path: Path) -> None:
    check_two(read(tmp_path, TWO.replace(",", "\t"), "x.tsv"))
    check_two(read(tmp_path, TWO.replace("\n", "\r\n"), "crlf.csv"))
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(TWO.encode()))
    check_two(read_series(tmp_path / "x.csv.gz"))
    (tmp_path / "x.tsv.gz").write_bytes(gzip.compress(TWO.replace(",", "\t").encode()))
    check_two(read_series(tmp_path / "x.tsv.gz"))


@pytest.mark.parametrize("unit", ["date", "ms", "us", "ns"])
def test_parquet_has_types(tmp_path: Path, unit: Any) -> None:
    table = pl.read_csv(TWO.encode(), try_parse_dates=True)
    if unit != "date":
        table = table.with_columns(pl.col("ds").cast(pl.Datetime(unit)))
    table = table.with_columns(pl.col("y").cast(pl.Int8), pl.col("unique_id").cast(pl.Categorical))
    table.write_parquet(tmp_path / "x.parquet")
    check_two(read_series(tmp_path / "x.parquet"))


def test_wide_table_is_one_series_of_all_columns(tmp_path: Path) -> None:
    text = "date,row,b\n2024-01-01,1,4\n2024-01-02,2,5\n"
    (one,) = read(tmp_path, text, time="date", series=None)
    assert one.channels == ("row", "b")
    assert one.values.tolist() == [[1, 4], [2, 5]]
    (one,) = read(tmp_path, text, "other.csv", time="date", series=None, targets=["b"])
    assert (one.name, one.channels) == ("table", ("b",))
    assert one.values.tolist() == [[4], [5]]


def test_rows_without_stamps_are_numbered_in_each_series(tmp_path: Path) -> None:
    (one,) = read(tmp_path, "a,b\n1,4\n2,5\n3,6\n", time=None, series=None)
    assert one.channels == ("a", "b")
    assert one.stamps.tolist() == [1, 2, 3]
    assert one.frequency is None
    text = "name,v\na,1\nb,7\na,2\na,3\nb,8\n"
    a, b = read(tmp_path, text, time=None, series="name", targets=["v"])
    assert (a.stamps.tolist(), a.values[:, 0].tolist()) == ([1, 2, 3], [1, 2, 3])
    assert (b.stamps.tolist(), b.values[:, 0].tolist()) == ([1, 2], [7, 8])


def test_any_text_names_a_series(tmp_path: Path) -> None:
    names = ["a@2024-01-01", "{0}", "{series!r}", "a,b", 'say "x"', "ü", "row", "1"]
    quoted = [name.replace('"', '""') for name in names]
    text = LONG + "".join(f'"{name}",2024-01-0{d},{d}\n' for name in quoted for d in (1, 2))
    assert [one.name for one in read(tmp_path, text)] == names
    bad = text + f'"{quoted[0]}",2024-01-02,3\n"{{0}}",2024-01-02,3\n'
    assert refused(tmp_path, bad) == (
        "row 17: 'a@2024-01-01': stamp 2024-01-02 00:00:00 stands there twice; "
        "set data.policies.duplicates (2 such rows)"
    )
    bad = text + '"{0}",2024-01-01,3\n'
    assert refused(tmp_path, bad).startswith("row 17: '{0}': stamp 2024-01-01 00:00:00 goes back")


def test_series_named_by_numbers(tmp_path: Path) -> None:
    table = pl.DataFrame({"unique_id": [7, 7, 3], "ds": [1, 2, 1], "y": [1.0, 2.0, 3.0]})
    table.write_parquet(tmp_path / "x.parquet")
    assert [one.name for one in read_series(tmp_path / "x.parquet")] == ["7", "3"]


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    assert refused(tmp_path, "unique_id,ds,z\na,1,1\n") == (
        "no column 'y'; it has unique_id, ds, z; name data.targets"
    )
    assert refused(tmp_path, LONG + "a,1,1\n", time="t").startswith("no column 't'")
    assert refused(tmp_path, LONG + "a,1,1\n", series="s").startswith("no column 's'")
    assert refused(tmp_path, LONG + "a,1,1\n", targets=["y", "q"]).startswith("no column 'q'")
    with pytest.raises(UsageError, match=r"name data\.targets"):
        read(tmp_path, "ds\n1\n2\n", series=None)


def test_empty_tables(tmp_path: Path) -> None:
    assert refused(tmp_path, "") == "the file is empty"
    assert refused(tmp_path, LONG) == "the table has no rows"


# Cells


@pytest.mark.parametrize(
    "texts",
    [
        ("2024-01-01", "2024-01-02"),
        ("2024/1/1", "2024/1/2"),
        ("2024-01-01 00:00", "2024-01-02 00:00"),
        ("1/1/2024", None),
        ("01.01.2024", None),
        ("24-01-01", None),
        ("2024-01-01T00:00:00", "2024-01-02T00:00:00.000000"),
        (" 2024-01-01 0:00", "2024-01-02 0:00 "),
        ("2024-01-01", "2024-01-02 00:00:00"),
        ("2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z"),
        ("2024-01-01T05:30+05:30", "2024-01-01 14:00:00-10:00"),
        ("2024-01-01 01:00+01", "2024-01-02 02:00:00+0200"),
        ("2024-01-01T00:00:00Z", "2024-01-02 00:00"),
        ("2024-01-01 25:00", None),
        ("2023-02-29", None),
    ],
)
def test_texts_of_stamps(tmp_path: Path, texts: tuple[str, str | None]) -> None:
    """None, or what does not go with the first: refused."""
    one, other = texts
    if other is None:
        message = refused(tmp_path, rows(f"{one},1"))
        assert message == f"row 1: ds {one!r} is not a stamp such as 2024-01-31 13:00:00"
    elif one.endswith("Z") != other.endswith("Z"):
        message = refused(tmp_path, rows(f"{one},1", f"{other},2"))
        assert message == f"row 2: ds {other!r} has no offset from UTC, unlike the rows before"
        message = refused(tmp_path, rows(f"{other},1", f"{one},2"))
        assert message == f"row 2: ds {one!r} has an offset from UTC, unlike the rows before"
    else:
        (series,) = read(tmp_path, rows(f"{one},1", f"{other},2"))
        assert series.stamps.tolist() == days(1, 2)


@given(
    st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)).map(
        lambda t: t.replace(microsecond=0)
    ),
    st.sampled_from(["", "Z", "+00:00", "-03:30", "+14:00"]),
    st.sampled_from(["T", " "]),
)
def test_stamps_are_those_of_datetime(
    tmp_path_factory: pytest.TempPathFactory, moment: datetime, offset: str, between: str
) -> None:
    text = moment.isoformat(between) + offset
    expected = datetime.fromisoformat(text)
    if offset:
        expected = expected.astimezone(UTC).replace(tzinfo=None)
    folder = tmp_path_factory.getbasetemp()
    (one,) = read(folder, rows(f"{text},1"), name="moment.csv")
    assert one.stamps.tolist() == [expected]


def test_missing_stamps_and_names(tmp_path: Path) -> None:
    assert refused(tmp_path, rows("2024-01-01,1", ",2", ",3")) == "row 2: has no ds (2 such rows)"
    assert refused(tmp_path, rows(",2")) == "row 1: has no ds"
    assert refused(tmp_path, rows("1,1", "x,3")).startswith("row 1: ds '1' is not a stamp")
    text = LONG + "a,2024-01-01,1\n,2024-01-02,1\n"
    assert refused(tmp_path, text) == "row 2: has no unique_id"
    table = pl.DataFrame({"unique_id": ["a"] * 3, "ds": [1, None, 3], "y": [1.0] * 3})
    table.write_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="row 2: has no ds"):
        read_series(tmp_path / "x.parquet")


def test_columns_of_another_kind(tmp_path: Path) -> None:
    table = pl.DataFrame({"unique_id": ["a"], "ds": [1.5], "y": [date(2024, 1, 1)], "z": [[1]]})
    table.write_parquet(tmp_path / "x.parquet")
    for columns, message in (
        ({}, "column 'ds' holds Float64, not stamps"),
        ({"time": None}, "column 'y' holds Date, not numbers"),
        ({"time": None, "targets": ["z"]}, r"column 'z' holds List\(Int64\), not numbers"),
    ):
        with pytest.raises(DataError, match=message):
            read_series(tmp_path / "x.parquet", Roles(**columns))


def test_numbers_and_what_is_none(tmp_path: Path) -> None:
    (one,) = read(tmp_path, rows("1,-1.5e3", "2, 7 ", "3,0"))
    assert one.values[:, 0].tolist() == [-1500, 7, 0]
    assert refused(tmp_path, rows("1,1", '2,"1,5"', "3,x")) == (
        "row 2: y '1,5' is not a number; correct it, or leave the cell empty (2 such rows)"
    )
    for text in ("inf", "-inf", "1e999", "Infinity"):
        assert (
            refused(tmp_path, rows("1,1", f"2,{text}"))
            == "row 2: y is infinite; correct it, or leave the cell empty"
        )
    for text in ("", "nan", "NaN", "NA", "?", '""'):
        message = refused(tmp_path, rows("1,1", f"2,{text}", f"3,{text}"))
        assert message == "row 2: 'a': no y at 2; set data.policies.missing (2 such rows)"
    table = pl.DataFrame({"a": [1.0, float("nan"), 3.0], "b": [None, None, None]})
    table.write_parquet(tmp_path / "x.parquet")
    for target, row in (("a", 2), ("b", 1)):
        with pytest.raises(DataError, match=f"row {row}: 'table': no {target} at {row}"):
            read_series(tmp_path / "x.parquet", Roles(None, None, [target]))
    table.select(a=pl.lit(float("-inf"))).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="row 1: a is infinite"):
        read_series(tmp_path / "x.parquet", Roles(None, None))


# Time zones


@pytest.mark.parametrize(
    ("start", "flaw"),
    [
        ("2024-03-30T22:00Z", "row 3: 'a': 1 stamps are missing, first 2024-03-31 02:00:00"),
        ("2024-10-26T22:00Z", "row 3: 'a': stamp 2024-10-27 02:00:00 stands there twice"),
    ],
)
def test_change_of_the_clock(tmp_path: Path, start: str, flaw: str) -> None:
    """Local hours over both changes of a year: regular with offsets, not without."""
    utc = [datetime.fromisoformat(start) + timedelta(hours=k + 1) for k in range(7)]
    local = [t.astimezone(ZoneInfo("Europe/Berlin")) for t in utc]
    assert len({t.utcoffset() for t in local}) == 2
    expected = [t.replace(tzinfo=None) for t in utc]
    (one,) = read(tmp_path, rows(*(f"{t.isoformat()},1" for t in local)))
    assert one.frequency == "1h"
    assert one.stamps.tolist() == expected
    table = pl.DataFrame({"ds": local, "y": [1] * 7})
    table = table.with_columns(pl.col("ds").dt.convert_time_zone("Europe/Berlin"))
    table.write_parquet(tmp_path / "x.parquet")
    (one,) = read_series(tmp_path / "x.parquet", Roles(series=None))
    assert one.stamps.tolist() == expected
    naive = [f"{t.replace(tzinfo=None).isoformat()},1" for t in local]
    assert refused(tmp_path, rows(*naive)).startswith(flaw)


def test_days_of_a_zone_are_not_days_of_utc(tmp_path: Path) -> None:
    midnights = ("2024-03-30T00:00+01:00", "2024-03-31T00:00+01:00", "2024-04-01T00:00+02:00")
    message = refused(tmp_path, rows(*(f"{t},1" for t in midnights)), frequency="1d")
    assert message.startswith("row 3: 'a': stamp 2024-03-31 22:00:00 is off the grid of 1d")


# Frequencies


@pytest.mark.parametrize(
    ("frequency", "alias"),
    [
        *(("1mo", "MS"), ("3mo", "QS"), ("12mo", "YS"), ("1me", "ME"), ("3me", "QE")),
        *(("12me", "YE"), ("7d", "W"), ("10m", "10min"), ("1d", "D")),
    ],
)
def test_frequencies_and_their_gaps(tmp_path: Path, frequency: str, alias: str) -> None:
    """Over leap years; one stamp is missing and comes back."""
    whole = pd.date_range("1995-12-25", periods=30, freq=alias).strftime("%Y-%m-%d %H:%M")
    (one,) = read(tmp_path, rows(*(f"{t},{i}" for i, t in enumerate(whole))))
    assert one.frequency == frequency
    kept = [f"{t},{i}" for i, t in enumerate(whole) if i != 14]
    message = refused(tmp_path, rows(*kept))
    assert message == (
        f"row 15: 'a': 1 stamps are missing, first {whole[14]}:00; set data.policies.gaps"
    )
    (one,) = read(tmp_path, rows(*kept), policies=Policies(gaps="linear"))
    assert one.stamps.tolist() == pd.to_datetime(whole).to_pydatetime().tolist()
    assert np.allclose(one.values[:, 0], np.arange(30))


def test_series_of_several_frequencies(tmp_path: Path) -> None:
    hourly = "".join(f"h,2024-01-01 0{k}:00,1\n" for k in range(3))
    text = TWO + hourly
    assert refused(tmp_path, text) == (
        "row 6: series 'h' has steps of 1h, 'b' of 1d; put them into files of their own, or give "
        "data.frequency"
    )
    # one stamp alone has no step of its own
    both = read(tmp_path, LONG + "c,2024-01-05,1\n" + hourly)
    assert [one.frequency for one in both] == ["1h", "1h"]


def test_given_frequency(tmp_path: Path) -> None:
    some = rows("2024-01-01 00:00,1", "2024-01-01 02:00,2", "2024-01-01 04:00,3")
    assert read(tmp_path, some)[0].frequency == "2h"
    assert read(tmp_path, some, frequency="120m")[0].frequency == "2h"
    assert refused(tmp_path, some, frequency="1h").startswith("row 2: 'a': 2 stamps are missing")
    assert refused(tmp_path, some, frequency="1d") == (
        "row 2: 'a': stamp 2024-01-01 02:00:00 is off the grid of 1d; correct it, or give "
        "data.frequency or data.policies.irregular (2 such rows)"
    )
    with pytest.raises(UsageError, match="frequency 'often'"):
        read(tmp_path, some, frequency="often")
    with pytest.raises(UsageError, match=r"leave out data\.frequency"):
        read(tmp_path, rows("1,1", "2,2"), frequency="1h")


def test_stamps_off_the_grid(tmp_path: Path) -> None:
    regular = (f"2024-01-0{day},{day}" for day in (4, 5, 6))
    irregular = rows("2024-01-01,1", "2024-01-02,2", "2024-01-03 01:00,3", *regular)
    message = refused(tmp_path, irregular)
    assert message.startswith("row 3: 'a': stamp 2024-01-03 01:00:00 is off the grid of 1d")
    monthly = rows("2024-01-01,1", "2024-02-01,2", "2024-03-02,3", "2024-04-01,4")
    message = refused(tmp_path, monthly, frequency="1mo")
    assert message.startswith("row 3: 'a': stamp 2024-03-02 00:00:00 is off the grid of 1mo")


def test_numbers_as_stamps(tmp_path: Path) -> None:
    for name in ("x.csv", "x.parquet"):
        frame = pl.DataFrame({"unique_id": ["a", "a", "b"], "ds": [17, 18, -3], "y": [1, 2, 3]})
        (frame.write_csv if name == "x.csv" else frame.write_parquet)(tmp_path / name)
        a, b = read_series(tmp_path / name)
        assert a.stamps.tolist() == [17, 18]
        assert b.stamps.tolist() == [-3]
        assert a.frequency is None
    assert refused(tmp_path, rows("1,1", "2,2", "4,4", "5,5")) == (
        "row 3: 'a': 1 stamps are missing, first 3; set data.policies.gaps"
    )
    (one,) = read(tmp_path, rows("1,1", "2,2", "4,4"), policies=Policies(gaps="previous"))
    assert one.stamps.tolist() == [1, 2, 3, 4]
    assert one.values[:, 0].tolist() == [1, 2, 2, 4]
    seconds = rows("1700000000,1", "1700003600,2", "1700007200,3")
    message = refused(tmp_path, seconds, policies=Policies(gaps="linear"))
    assert message.startswith("row 2: 'a': stamps step by 3600; numbers must step by 1")


def test_reading_takes_few_copies(tmp_path: Path) -> None:
    """The values of a table without gaps are kept once, whatever the number of series."""
    table = pl.DataFrame({"unique_id": ["a", "a", "b"], "ds": [1, 2, 1], "y": [1.0, 2.0, 3.0]})
    table.write_parquet(tmp_path / "x.parquet")
    a, b = read_series(tmp_path / "x.parquet")
    assert a.values.base is not None
    assert a.values.base is b.values.base
