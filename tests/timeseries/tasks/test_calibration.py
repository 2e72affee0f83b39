"""Scores and p-values against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from core.jobs.errors import UsageError
from timeseries.tasks.calibration import Calibration

small = st.integers(0, 6).map(float)  # with many ties


@given(
    arrays(np.float64, st.tuples(st.integers(9, 60), st.just(2)), elements=small),
    arrays(np.float64, (12, 2), elements=small),
    st.sampled_from([0.1, 0.25, 0.5, 0.9]),
)
def test_p_values_by_counting_and_alarms_where_they_are_low(
    clean: np.ndarray, errors: np.ndarray, rate: float
) -> None:
    found = Calibration(clean, rate).scores(errors)
    n = len(clean)
    for i, c in np.ndindex(*errors.shape):
        p = (1 + sum(clean[:, c] >= errors[i, c])) / (n + 1)
        assert found.channel_p[i, c] == pytest.approx(p, abs=1e-12)
        # a threshold of 0 is held just above it, so an error of 0 never is an alarm
        assert (found.channel[i, c] > 1) == (p <= rate + 1e-9 and errors[i, c] > 0)
    assert ((found.stamp > 1) <= (found.stamp_p <= rate + 1e-9)).all()


def test_clean_stamps_give_alarms_at_the_stated_rate() -> None:
    """Also those of all channels together, which depend on each other and have other scales."""
    random = np.random.default_rng(0)

    def errors(stamps: int) -> np.ndarray:
        common = random.standard_normal((stamps, 1))
        own = random.standard_t(3, (stamps, 3))
        return np.abs(common + own) * [1, 10, 100]

    found = Calibration(errors(20_000), 0.02).scores(errors(50_000))
    assert (found.channel > 1).mean(0) == pytest.approx([0.02] * 3, abs=0.004)
    assert (found.stamp > 1).mean() == pytest.approx(0.02, abs=0.004)
    assert np.quantile(found.stamp_p, [0.1, 0.5]) == pytest.approx([0.1, 0.5], abs=0.02)


def test_missing_values_have_no_score_and_do_not_count() -> None:
    random = np.random.default_rng(0)
    clean, errors = random.random((500, 2)), random.random((6, 2))
    holes = clean.copy()
    holes[100:200, 0] = np.nan
    errors[0, 0], errors[1] = np.nan, np.nan
    found = Calibration(holes, 0.1).scores(errors)
    other = Calibration(np.delete(clean, slice(100, 200), 0)[:, :1], 0.1).scores(errors[:, :1])
    assert np.array_equal(found.channel[:, 0], other.channel[:, 0], equal_nan=True)
    assert np.isnan(found.channel_p[0, 0])
    assert not np.isnan(found.channel_p[0, 1])
    assert not np.isnan(found.stamp[0])
    assert np.isnan(found.stamp[1])
    assert np.isnan(found.stamp_p[1])


def test_too_few_errors_for_the_rate_are_refused() -> None:
    clean = np.random.default_rng(0).random((998, 2))
    with pytest.raises(UsageError, match=r"of 0\.001 needs 999 values .* x has 998"):
        Calibration(clean, 0.001, ("x", "y"))
    Calibration(np.concatenate([clean, clean[:1]]), 0.001)
