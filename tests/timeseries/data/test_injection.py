"""Anomalies that are put in are those that were asked for, and nothing else changes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from core.jobs.errors import DataError, UsageError
from timeseries.data.injection import INJECTED, Injection, inject
from timeseries.data.series import Series

SPAN = (1000, 3000)
STD = np.array([1.0, 20.0])


def noise(rows: int = 3200, seed: int = 0) -> Series:
    random = np.random.default_rng(seed)
    values = random.standard_normal((rows, 2)) * STD
    values[random.random((rows, 2)) < 0.01] = np.nan
    return Series("a", ("x", "y"), np.arange(rows), values, None)


def pieces(kind: np.ndarray) -> list[tuple[int, int, int]]:
    """(kind, first, end) of each run."""
    edges = np.flatnonzero(np.diff(kind, prepend=0, append=0))
    return [(int(kind[a]), int(a), int(b)) for a, b in itertools.pairwise(edges) if kind[a]]


def test_every_kind_is_as_stated() -> None:
    one, wanted = noise(), Injection(each=5, size=4.0, length=10, seed=3)
    altered, kind = inject(one, SPAN, STD, wanted)
    found = pieces(kind)
    assert [k for k, _, _ in found].count(1) == 5
    assert sorted(k for k, _, _ in found) == [1] * 5 + [2] * 5 + [3] * 5
    change = altered.values - one.values
    for k, first, end in found:
        assert SPAN[0] + 10 <= first < end <= SPAN[1] - 10
        rows = slice(first, end)
        [channel] = np.flatnonzero(np.nan_to_num(change[rows]).any(0))
        before = one.values[first - 1, channel]
        if INJECTED[k - 1] == "flats":
            assert end - first == 10
            assert (altered.values[rows, channel] == before).all()
            assert one.values[rows, channel].std() >= STD[channel] / 2
        else:
            assert end - first == (1 if INJECTED[k - 1] == "spikes" else 10)
            assert np.allclose(np.abs(change[rows, channel]), 4 * STD[channel])
            assert np.ptp(np.sign(change[rows, channel])) == 0
    untouched = kind == 0
    assert np.array_equal(altered.values[untouched], one.values[untouched], equal_nan=True)
    firsts = sorted((first, end) for _, first, end in found)
    assert all(b[0] - a[1] >= 10 for a, b in itertools.pairwise(firsts))


def test_the_seed_and_the_series_decide() -> None:
    wanted = Injection(each=3, length=8)
    first, again = (inject(noise(), SPAN, STD, wanted)[1] for _ in range(2))
    assert (first == again).all()
    assert (inject(noise(), SPAN, STD, wanted, number=1)[1] != first).any()
    assert (inject(noise(), SPAN, STD, Injection(3, 3.0, 8, seed=1))[1] != first).any()


def test_flat_lines_need_values_that_vary() -> None:
    still = noise()
    still.values[:] = 1.0
    with pytest.raises(DataError, match="series 'a': the test span of 2000 rows has no room for 2"):
        inject(still, SPAN, STD, Injection(each=2))


def test_a_short_span_and_bad_sizes_are_refused() -> None:
    with pytest.raises(DataError, match="has no room for 10 anomalies of each kind"):
        inject(noise(), (1000, 1300), STD, Injection())
    for bad in (Injection(each=0), Injection(length=1), Injection(size=0)):
        with pytest.raises(UsageError, match=r"data\.inject"):
            inject(noise(), SPAN, STD, bad)
