"""From errors to scores that mean something: their rank among the errors of a clean span."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.jobs.errors import UsageError

_LEAST = 1e-12  # of a threshold, so that no error is infinitely many of it
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """``channel`` (stamps, channels): errors as multiples of the channel's threshold, so that above
    1 is an alarm; ``stamp`` (stamps,): the greatest of them as a multiple of that one's own
    threshold. The p-values are conformal. Not a number where there is no error."""

    channel: Array
    channel_p: Array
    stamp: Array
    stamp_p: Array


class Calibration:
    """Errors (stamps, channels) on a span without anomalies, not a number where unknown.

    The p-value of an error e is (1 + how many of the n errors are at least e) / (n + 1) (Vovk et
    al. 2005): at most ``rate`` for a share ``rate`` of clean stamps, as far as they are like the
    calibration's. The threshold is the error above which it is. So much is also done for the
    greatest score of each stamp's channels, whose alarms then come at the same rate.

    Raises UsageError where there are too few errors for so low a rate.
    """

    def __init__(self, errors: Array, rate: float, channels: Sequence[str] = ()) -> None:
        names = channels or [str(k) for k in range(errors.shape[1])]
        self.errors = [
            _sorted(column, rate, name) for column, name in zip(errors.T, names, strict=True)
        ]
        self.thresholds = np.array([_threshold(column, rate) for column in self.errors])
        greatest = _greatest(errors / self.thresholds)
        self.greatest = _sorted(greatest, rate, "all")
        self.line = _threshold(self.greatest, rate)

    def scores(self, errors: Array) -> Scores:
        """Of errors (stamps, channels)."""
        channel = errors / self.thresholds
        greatest = _greatest(channel)
        p = [_p_values(*pair) for pair in zip(self.errors, errors.T, strict=True)]
        return Scores(
            channel,
            np.stack(p, axis=1),
            greatest / self.line,
            _p_values(self.greatest, greatest),
        )


def _sorted(errors: Array, rate: float, name: str) -> Array:
    known = np.sort(errors[~np.isnan(errors)])
    check_count(len(known), rate, name)
    return known


def check_count(known: int, rate: float, name: str) -> None:
    """Raises UsageError if so few errors cannot tell what a share ``rate`` of them exceeds."""
    if (known + 1) * rate < 1 - 1e-9:
        raise UsageError(
            f"model.false_alarms of {rate:g} needs {math.ceil(1 / rate - 1e-9) - 1} values on the "
            f"validation span, and {name} has {known}; raise it or lengthen the span"
        )


def _threshold(known: Array, rate: float) -> float:
    """An error has a p-value of at most ``rate`` exactly if it is above this one."""
    allowed = math.floor(rate * (len(known) + 1) + 1e-9)  # 1 + how many may be at least as large
    return max(_LEAST, float(known[len(known) - allowed]))


def _p_values(known: Array, errors: Array) -> Array:
    at_least = len(known) - np.searchsorted(known, errors, side="left")
    return np.where(np.isnan(errors), np.nan, (1 + at_least) / (len(known) + 1))


def _greatest(scores: Array) -> Array:
    """Over channels; not a number where all are."""
    filled = np.where(np.isnan(scores), -np.inf, scores).max(1)
    return np.where(np.isinf(filled), np.nan, filled)
