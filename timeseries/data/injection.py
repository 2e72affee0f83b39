"""Anomalies put into series, so that a detector can be tested where nobody has labelled any."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from core.jobs.errors import DataError, UsageError
from timeseries.data.series import Series

INJECTED = ("spikes", "shifts", "flats")
FLAT = 3  # its number among them, from 1


@dataclass
class Injection:
    """Anomalies to put into the test span.

    Each is in one channel, at a place where no value is missing; the channel, the place and the
    sign are drawn. A spike adds ``size`` standard deviations of the channel's training span (where
    ``tiling.scale`` is ``none``, ``size`` itself) to one value, with either sign; a shift the same
    to ``length`` values; a flat line repeats the value before it for ``length`` steps, where values
    would have had at least half of that deviation. At least ``length`` untouched steps lie between
    two anomalies.

    Args:
        each: number of anomalies of each kind in a series.
        size: of spikes and shifts, in standard deviations.
        length: steps of shifts and flat lines.
        seed: of the draw.
    """

    each: int = 10
    size: float = 3.0
    length: int = 24
    seed: int = 0

    def check(self) -> None:
        """Raises UsageError for sizes that inject nothing."""
        if self.each < 1 or self.length < 2 or not self.size > 0:
            raise UsageError(
                "data.inject: give at least 1 of each, a length of 2 or more and a positive size"
            )


def inject(
    one: Series, span: tuple[int, int], std: NDArray[np.float64], wanted: Injection, number: int = 0
) -> tuple[Series, NDArray[np.int64]]:
    """The series with anomalies in ``span``, and the kind of each row (time,): 0 for none, else 1
    and more in the order of ``INJECTED``. ``number`` of the series is part of the seed.

    Raises DataError where there is no room.
    """
    wanted.check()
    random = np.random.default_rng([wanted.seed, number])
    values = np.array(one.values)
    kind: NDArray[np.int64] = np.zeros(len(one), np.int64)
    apart = wanted.length
    taken = np.full(len(one), True)
    taken[span[0] + apart : span[1] - apart] = False
    for which in range(1, len(INJECTED) + 1):
        steps = 1 if which == 1 else wanted.length
        for _ in range(wanted.each):
            channel = int(random.integers(values.shape[1]))
            column = one.values[:, channel]
            least = std[channel] / 2 if which == FLAT else 0.0
            at = _place(column, taken, steps, least, random)
            if at is None:
                raise DataError(
                    f"series {one.name!r}: the test span of {span[1] - span[0]} rows has no room "
                    f"for {wanted.each} anomalies of each kind; lower data.inject.each or length"
                )
            rows = slice(at, at + steps)
            if which == FLAT:
                values[rows, channel] = values[at - 1, channel]
            else:
                values[rows, channel] += random.choice([-1, 1]) * wanted.size * std[channel]
            kind[rows] = which
            taken[max(0, at - apart) : at + steps + apart] = True
    return replace(one, values=values), kind


def _place(
    column: NDArray[np.float64],
    taken: NDArray[np.bool_],
    steps: int,
    least: float,
    random: np.random.Generator,
) -> int | None:
    """The first of ``steps`` rows that are free and, like the one before, not missing, drawn among
    all such whose values have a deviation of ``least`` or more."""
    if len(column) <= steps:
        return None
    pieces = np.lib.stride_tricks.sliding_window_view(column, steps + 1)
    possible: NDArray[np.bool_] = np.asarray(~np.isnan(pieces).any(1))
    possible &= ~np.lib.stride_tricks.sliding_window_view(taken, steps + 1).any(1)
    possible[possible] = pieces[possible, 1:].std(1) >= least
    places = np.flatnonzero(possible) + 1
    return int(random.choice(places)) if len(places) else None
