"""Grids and calendar features against Python's datetime, dateutil and pandas."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from dateutil.relativedelta import relativedelta
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from core.jobs.errors import UsageError
from timeseries.data import calendar

FEATURES = {
    "second": lambda t: t.second / 59,
    "minute": lambda t: t.minute / 59,
    "hour": lambda t: t.hour / 23,
    "day_of_week": lambda t: t.weekday() / 6,
    "day_of_month": lambda t: (t.day - 1) / 30,
    "day_of_year": lambda t: (t.timetuple().tm_yday - 1) / 365,
    "month": lambda t: (t.month - 1) / 11,
}
EACH_STEP = {
    **{"1s": timedelta(seconds=1), "90s": timedelta(seconds=90), "10m": timedelta(minutes=10)},
    **{"90m": timedelta(minutes=90), "1h": timedelta(hours=1), "36h": timedelta(hours=36)},
    **{"1d": timedelta(days=1), "7d": timedelta(weeks=1), "10d": timedelta(days=10)},
    **{"1mo": relativedelta(months=1), "3mo": relativedelta(months=3)},
    "12mo": relativedelta(years=1),
}
PANDAS = {
    **{"1s": "1s", "10m": "10min", "1h": "1h", "1d": "1D", "7d": "7D", "1mo": "MS", "3mo": "QS"},
    **{"12mo": "YS", "1me": "ME", "3me": "QE", "12me": "YE", "100ms": "100ms", "250us": "250us"},
}
moments = st.datetimes(datetime(1950, 1, 1), datetime(2150, 1, 1))


def stamps(moments: list[datetime]) -> NDArray:
    return np.array(moments, "datetime64[us]")


@given(st.lists(moments, min_size=1, max_size=20), st.sampled_from(sorted(EACH_STEP)))
def test_features_are_those_of_datetime(times: list[datetime], frequency: str) -> None:
    names = calendar.names(frequency)
    found = calendar.features(stamps(times), frequency)
    assert found.dtype == np.float32
    assert found.shape == (len(times), len(names))
    expected = [[FEATURES[name](t) - 0.5 for name in names] for t in times]
    assert np.allclose(found, np.array(expected).reshape(found.shape), atol=1e-7)
    assert (np.abs(found) <= 0.5).all()


def test_ends_of_the_scale() -> None:
    first, last = datetime(2023, 1, 1), datetime(2024, 12, 31, 23, 59)
    assert (calendar.features(stamps([first]), "1m")[0, [0, 1, 3, 4]] == -0.5).all()
    assert (calendar.features(stamps([last]), "1m")[0, [0, 1, 3, 4]] == 0.5).all()
    assert calendar.features(stamps([last]), "1mo")[0, 0] == 0.5


@pytest.mark.parametrize("frequency", EACH_STEP)
def test_names_are_what_varies_along_a_grid(frequency: str) -> None:
    start = datetime(2023, 3, 1)
    months = frequency.endswith("mo")
    asked = ("month",) if months else ("second", "minute", "hour", "day_of_week")
    step = EACH_STEP[frequency]
    counts = [*range(150)]
    if isinstance(step, timedelta) and step < timedelta(hours=1):
        counts += range(150, 1_000_000, 4999)  # beyond a week
    times = [start + step * k for k in counts]
    varying = [name for name in asked if len({FEATURES[name](t) for t in times}) > 1]
    always = [] if months else ["day_of_month", "day_of_year"]
    assert calendar.names(frequency) == [*varying, *always]


def test_numbered_rows_have_no_features() -> None:
    assert calendar.names(None) == []
    assert calendar.features(np.arange(5), None).shape == (5, 0)


@given(moments, st.sampled_from(sorted(EACH_STEP)), st.integers(-40, 0), st.integers(1, 40))
def test_grid_counts_steps_from_its_stamp(
    moment: datetime, frequency: str, start: int, stop: int
) -> None:
    found = calendar.grid(np.datetime64(moment, "us"), frequency, start, stop)
    step = EACH_STEP[frequency]
    assert found.dtype == np.dtype("datetime64[us]")
    assert found.tolist() == [moment + step * k for k in range(start, stop)]


@pytest.mark.parametrize("frequency", PANDAS)
def test_grid_and_places_are_those_of_pandas(frequency: str) -> None:
    dates = pd.date_range("1999-12-31 00:00", periods=60, freq=PANDAS[frequency])
    expected = dates.to_numpy().astype("datetime64[us]")
    assert (calendar.grid(expected[7], frequency, -7, 53) == expected).all()
    some = expected[[0, 3, 4, 59]]
    assert calendar.places(some, frequency).tolist() == [0, 3, 4, 59]
    some[2] += np.timedelta64(1, "us")
    assert calendar.places(some, frequency).tolist() == [0, 3, -1, 59]


@given(st.sampled_from(sorted(PANDAS)), st.data())
def test_frequency_is_inferred_with_stamps_missing(frequency: str, data: st.DataObject) -> None:
    """Every other pair of neighbours is whole, so that the step is the most common one."""
    start = data.draw(st.dates(datetime(1970, 1, 1).date(), datetime(2030, 1, 1).date()))
    whole = pd.date_range(start, periods=40, freq=PANDAS[frequency]).to_numpy()
    missing = data.draw(st.sets(st.sampled_from(range(5, 35, 5))))
    kept = np.delete(whole.astype("datetime64[us]"), sorted(missing))
    assert calendar.infer_frequency(kept) == frequency


@pytest.mark.parametrize(
    ("days", "frequency"),
    [
        (["2023-01-15", "2023-02-15", "2023-03-15"], "1mo"),
        (["2023-02-28", "2024-02-28", "2025-02-28"], "12mo"),
        (["2023-02-28", "2024-02-29", "2025-02-28"], "12me"),
        (["2024-01-31", "2024-02-29", "2024-03-31"], "1me"),
        (["2024-02-29", "2024-03-31"], "1me"),
        (["2024-01-30", "2024-03-30"], "2mo"),
        (["2024-01-01", "2024-01-03", "2024-01-04"], "1d"),  # the shorter of two as common
    ],
)
def test_frequency_of_a_few_days(days: list[str], frequency: str) -> None:
    found = np.array(days, "datetime64[us]")
    assert calendar.infer_frequency(found) == frequency
    assert (calendar.places(found, frequency) >= 0).all()


def test_one_step_is_written_one_way() -> None:
    same = {
        **{"24h": "1d", "60m": "1h", "1w": "7d", "1q": "3mo", "1y": "12mo", "90m": "90m"},
        **{"1000ms": "1s", "3600s": "1h", "2me": "2me", "48h": "2d", "1500us": "1500us"},
    }
    for given_step, written in same.items():
        assert calendar.normal(given_step) == written


@pytest.mark.parametrize("frequency", ["hourly", "h", "0h", "-1h", "1.5h", "1x", "", "1h30m"])
def test_what_is_no_step_is_refused(frequency: str) -> None:
    with pytest.raises(UsageError, match="give one such as 10m"):
        calendar.normal(frequency)


def test_a_stamp_with_an_offset_is_in_utc() -> None:
    expected = datetime(2024, 3, 31, 1, 30)
    for text in ("2024-03-31 01:30", "2024-03-31T03:30+02:00", "2024-03-31T01:30:00Z"):
        assert calendar.stamp(text) == np.datetime64(expected, "us")
    aware = datetime(2024, 6, 1, 12, tzinfo=UTC)
    assert calendar.stamp(aware.isoformat()).item() == aware.replace(tzinfo=None)
    with pytest.raises(ValueError, match="31/01"):
        calendar.stamp("31/01/2024")


def test_seasons() -> None:
    steps = {"1h": 24, "10m": 144, "1d": 7, "7d": 52, "1mo": 12, "3mo": 4, "1me": 12, "12mo": 1}
    for frequency, season in {**steps, "1s": 86_400, "24mo": 1}.items():
        assert calendar.season(frequency) == season
    assert calendar.season(None) == 1
