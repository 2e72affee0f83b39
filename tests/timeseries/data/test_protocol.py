"""Borders and scale: counts as published, and nothing learnt from what comes after training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from sklearn.preprocessing import StandardScaler

from core.jobs.errors import DataError, UsageError
from timeseries.data.protocol import (
    Protocol,
    Tiling,
    check_length,
    check_training,
    warn_of_borders_apart,
)
from timeseries.data.series import Series
from timeseries.data.windows import Fitted, Windows, fit


def series(length: int, channels: int = 1, name: str = "a", seed: int = 0) -> Series:
    """Hourly from 2016-07-01, as ETTh is."""
    values = np.random.default_rng(seed).normal(3, 7, (length, channels))
    hours = np.arange(length) * np.timedelta64(1, "h")
    stamps = np.datetime64("2016-07-01", "us") + hours
    return Series(name, tuple(f"c{i}" for i in range(channels)), stamps, values, "1h")


def counts(one: Series, protocol: Protocol) -> dict[str, int]:
    fitted = fit([one], protocol)
    return {s: len(Windows([one], fitted, protocol, s)) for s in ("train", "val", "test")}


@pytest.mark.parametrize(
    ("horizon", "train", "rest"),
    [(96, 8449, 2785), (192, 8353, 2689), (336, 8209, 2545), (720, 7825, 2161)],
)
def test_counts_of_etth(horizon: int, train: int, rest: int) -> None:
    """12, 4 and 4 months of 30 days; Zhou et al. 2021 print these counts when they train."""
    protocol = Protocol(96, horizon, train_end=8640, val_end=11_520, test_end=14_400)
    assert counts(series(17_420), protocol) == {"train": train, "val": rest, "test": rest}


def test_counts_of_exchange() -> None:
    """7,588 days, 70 % and 20 % of them rounded down for training and test."""
    protocol = Protocol(96, 96, train_end=5311, val_end=6071, test_end=7588)
    expected = {"train": 5311 - 96 - 96 + 1, "val": 760 - 96 + 1, "test": 1517 - 96 + 1}
    assert counts(series(7588), protocol) == expected
    assert protocol.spans(series(7588))["test"] == (int(7588 * 0.7) + 760, 7588)


def test_a_border_is_said_in_three_ways() -> None:
    one = series(1_000)
    rows = {"train": (0, 700), "val": (700, 800), "test": (800, 1_000)}
    day, hours = np.datetime64("2016-07-30T04", "us"), np.timedelta64(1, "h")
    assert one.stamps[700] == day
    stamps = [str(day), str(day + 100 * hours)]
    three: list[tuple[Any, Any, Any]] = [
        (0.7, 0.8, None),
        (700, 800, None),
        (700, 800, 1_000),
        (0.7, 0.8, 1.0),
        (stamps[0], stamps[1], None),
        ("2016-07-30T06:00+02:00", "2016-08-03 08:00", 1_000),
        ("2016-07-30T03:30", 0.8, None),
        (700, 800, "2030-01-01"),
    ]
    for borders in three:
        train, val, test = borders
        protocol = Protocol(8, 4, train_end=train, val_end=val, test_end=test)
        assert protocol.spans(one) == rows, borders
    # a share is of each series, a stamp is the same for all
    assert Protocol(8, 4).spans(series(100))["train"] == (0, 70)
    late = replace(one, stamps=one.stamps[600:], values=one.values[600:])
    by_stamp = Protocol(8, 4, train_end=stamps[0], val_end=stamps[1])
    assert by_stamp.spans(late)["train"] == (0, 100)


@pytest.mark.parametrize(
    ("borders", "message"),
    [
        ((0.8, 0.7, None), "the borders of data.protocol are rows 80, 70, 100"),
        ((0, 50, None), "the borders of data.protocol are rows 0, 50, 100"),
        (
            (50, 60, 101),
            "series 'a' has 100 rows; the borders of data.protocol are rows 50, 60, 101",
        ),
        ((-5, 50, None), "must rise and lie within it"),
        ((1.5, 50, None), "border 1.5 is no share"),
        ((0.0, 50, None), "border 0.0 is no share"),
        ((float("nan"), 50, None), "border nan is no share"),
        (("2016", 50, None), "border '2016' is no stamp such as 2024-01-31"),
        (("31/01/2016", 50, None), "is no stamp"),
        (("2010-01-01", 50, None), "are rows 0, 50, 100"),
    ],
)
def test_borders_that_cannot_be(borders: tuple[Any, Any, Any], message: str) -> None:
    train, val, test = borders
    with pytest.raises(UsageError) as error:
        Protocol(8, 4, train_end=train, val_end=val, test_end=test).spans(series(100))
    assert message in str(error.value)


def test_stamps_are_no_borders_of_numbered_rows() -> None:
    numbered = replace(series(100), stamps=np.arange(100), frequency=None)
    with pytest.raises(UsageError, match="is a stamp, but the rows have none"):
        Protocol(8, 4, train_end="2016-07-02").spans(numbered)


@pytest.mark.parametrize("name", ["lookback", "horizon", "stride", "test_stride"])
def test_sizes_are_positive(name: str) -> None:
    size: dict[str, Any] = {name: 0}
    with pytest.raises(UsageError, match=rf"data\.protocol\.{name} is 0"):
        Protocol(**size).spans(series(300))


def test_short_series_are_named_and_counted() -> None:
    some = [series(length, name=f"s{length}") for length in (30, 11, 12, 5)]
    protocol = Protocol(8, 4)
    said = r"2 of 4 series are shorter than look-back \+ horizon = 12, first 's11' with 11"
    with pytest.raises(DataError, match=f"{said}; shorten data.protocol, or set data.policies"):
        check_length(some, protocol, "x.csv", skip=False)
    with pytest.warns(UserWarning, match=f"{said}; they are skipped"):
        kept = check_length(some, protocol, "x.csv", skip=True)
    assert [one.name for one in kept] == ["s30", "s12"]
    with pytest.raises(DataError, match="1 of 1 series are shorter"):
        check_length([series(5)], protocol, "x.csv", skip=True)
    with pytest.raises(
        DataError, match=r"1 of 4 series are shorter than look-back = 8, first 's5'"
    ):
        check_length(some, protocol, "x.csv", skip=False, ahead=False)
    assert check_length(some[:3], protocol, "x.csv", skip=False, ahead=False) == some[:3]


def test_series_that_begin_after_training_are_named_and_counted() -> None:
    whole = series(100, name="whole")
    late = [
        replace(series(100 - row, name=f"from {row}"), stamps=whole.stamps[row:])
        for row in (39, 38, 60)
    ]
    protocol = Protocol(8, 4, train_end=str(whole.stamps[50]), val_end=str(whole.stamps[70]))
    assert [protocol.trains(one) for one in (whole, *late)] == [True, False, True, False]
    said = r"2 of 4 series have less than look-back \+ horizon = 12 rows before training ends"
    with pytest.raises(DataError, match=f"^x.csv: {said} .*, first 'from 39', which begins at"):
        check_training([whole, *late], protocol, "x.csv", skip=False)
    with pytest.warns(UserWarning, match=f"{said}.*; they are skipped"):
        kept = check_training([whole, *late], protocol, "x.csv", skip=True)
    assert [one.name for one in kept] == ["whole", "from 38"]
    with pytest.raises(DataError, match="1 of 1 series"):
        check_training(late[:1], protocol, "x.csv", skip=True)
    by_share = Protocol(8, 4)
    assert check_training([whole, *late], by_share, "x.csv", skip=False) == [whole, *late]


@pytest.mark.parametrize("border", [0.5, 40])
@pytest.mark.parametrize("kind", [Protocol, Tiling])
def test_borders_that_are_apart_in_time_are_said(border: Any, kind: Any) -> None:
    early, late = series(100, name="early"), series(100, name="late")
    late = replace(late, stamps=late.stamps + np.timedelta64(5, "h"))
    protocol = kind(train_end=border, val_end=0.8)
    end = int(border * 100) if isinstance(border, float) else border
    section = kind.__name__.lower()
    said = (
        f"x.csv: data.{section}.train_end {border} is {early.stamps[end - 1].item()} in series "
        f"'early' and {late.stamps[end - 1].item()} in 'late': some are trained on the time that "
        "others are tested on; give stamps"
    )
    with pytest.warns(UserWarning, match=said):
        warn_of_borders_apart([late, early], protocol, "x.csv")
    warn_of_borders_apart([early, replace(early, name="other")], protocol, "x.csv")
    by_stamp = kind(train_end=str(early.stamps[50]), val_end=0.8)
    warn_of_borders_apart([late, early], by_stamp, "y.csv")
    numbered = [
        replace(o, stamps=np.arange(100) + k, frequency=None) for k, o in enumerate([early, late])
    ]
    warn_of_borders_apart(numbered, protocol, "z.csv")


def test_numbered_stamps_are_borders_by_name() -> None:
    numbered = replace(series(100), stamps=np.arange(1000, 1100), frequency=None)
    protocol = Protocol(8, 4, train_end="stamp 1050", val_end="stamp 1080", test_end="stamp 1200")
    assert protocol.spans(numbered) == {"train": (0, 50), "val": (50, 80), "test": (80, 100)}


# Scale


def test_scale_is_that_of_sklearn_on_the_training_span() -> None:
    one = series(400, channels=5)
    one.values[:, 1] *= 1e6
    one.values[:, 2] = 0.1  # its mean is not 0.1 in floating point
    one.values[:, 3] += 1e9
    one.values[:, 4] = 0
    protocol = Protocol(24, 12)
    fitted = fit([one], protocol)
    scaler = StandardScaler().fit(one.values[:280])
    assert np.allclose(fitted.scales["a"].mean, scaler.mean_, rtol=1e-14)
    assert np.allclose(fitted.scales["a"].std, scaler.scale_, rtol=1e-12)
    expected = scaler.transform(one.values).astype(np.float32)
    for split, first in (("train", 24), ("val", 280), ("test", 320)):
        window = Windows([one], fitted, protocol, split)[0]
        assert np.allclose(window["past"], expected[first - 24 : first], atol=1e-6)
        assert np.allclose(window["future"], expected[first : first + 12], atol=1e-6)


def test_seasonal_error_is_the_denominator_of_mase() -> None:
    """Hyndman and Koehler 2006: mean absolute error of y[t - m] as forecast of y[t], in sample."""
    one = series(400)
    scale = fit([one], Protocol(24, 12)).scales["a"]
    y = one.values[:280, 0]
    assert scale.seasonal_error[0] == pytest.approx(
        np.mean([abs(y[t] - y[t - 24]) for t in range(24, 280)])
    )
    # too short for a season: the last value; constant: nothing to divide by
    short = series(30)
    y = short.values[:20, 0]
    found = fit([short], Protocol(8, 4, train_end=20, val_end=24)).scales["a"]
    assert found.seasonal_error[0] == pytest.approx(np.mean(np.abs(y[1:] - y[:-1])))
    still = replace(one, values=np.full((400, 1), 5.0))
    assert fit([still], Protocol(24, 12)).scales["a"].seasonal_error.tolist() == [1]
    first = fit([short], Protocol(8, 4, train_end=1, val_end=24)).scales["a"]
    assert (first.std.tolist(), first.seasonal_error.tolist()) == ([1], [1])


@pytest.mark.parametrize("kind", [Protocol, Tiling])
def test_a_season_that_is_given(kind: type[Protocol | Tiling]) -> None:
    one = series(400)
    fitted = fit([one], kind(season=5))
    y = one.values[:280, 0]
    assert fitted.scales["a"].seasonal_error[0] == pytest.approx(np.abs(y[5:] - y[:-5]).mean())
    again = Fitted.from_plain(fitted.plain())
    again.check_protocol(kind(season=5), "data.protocol")
    with pytest.raises(UsageError, match=r"season is 7, and the model was trained with 5"):
        again.check_protocol(kind(season=7), "data.protocol")
    with pytest.raises(UsageError, match=r"season is 0; give a number of steps, or null"):
        kind(season=0).check()


def test_scale_none_leaves_the_values() -> None:
    one = series(100)
    protocol = Protocol(8, 4, scale="none")
    window = Windows([one], fit([one], protocol), protocol, "train")[0]
    assert_array_equal(window["past"], one.values[:8].astype(np.float32))
    assert (window["mean"].tolist(), window["std"].tolist()) == ([0], [1])


@given(st.floats(0.1, 0.8), st.floats(-1e6, 1e6), st.integers(0, 99))
def test_scale_sees_the_training_span_alone(share: float, value: float, row: int) -> None:
    one = series(100)
    protocol = Protocol(4, 2, train_end=share, val_end=0.9)
    changed = replace(one, values=one.values.copy())
    changed.values[row] = value
    before, after = (fit([s], protocol).plain() for s in (one, changed))
    assert (before == after) == (row >= int(100 * share))


def test_fitted_survives_plain_values() -> None:
    some = [series(100, 2, name, seed) for seed, name in enumerate(("a", "b@{,}"))]
    fitted = fit(some, Protocol(8, 4))
    again = Fitted.from_plain(fitted.plain())
    assert (again.channels, again.frequency) == (("c0", "c1"), "1h")
    for name, scale in fitted.scales.items():
        for key, values in vars(scale).items():
            assert_array_equal(getattr(again.scales[name], key), values)


def test_other_data_than_training_had() -> None:
    one = series(100, 2)
    fitted = fit([one], Protocol(8, 4))
    fitted.check([one], "x.csv")
    with pytest.raises(DataError, match=r"x.csv: the values are c0; .* trained on c0, c1"):
        fitted.check([series(100)], "x.csv")
    with pytest.raises(DataError, match=r"series 'a' has steps of 2h; .* on steps of 1h"):
        fitted.check([replace(one, frequency="2h")], "x.csv")
    with pytest.raises(DataError, match="series 'b' was not in training"):
        fitted.scale(replace(one, name="b"))
