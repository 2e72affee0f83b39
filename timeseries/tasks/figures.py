"""What the tasks draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

_INK = "#2b6cb0"
_PALE = "#a0aec0"
_DARK = "#2d3748"
_WARM = "#dd6b20"
_ROWS = 1 << 40  # stamps above are dates: 12 days after 1970, in microseconds


@dataclass(frozen=True)
class Shown:
    """One channel of a window: ``past`` (lookback,), ``future``, not a number where unknown, and
    ``forecast`` (horizon,), and the ends of intervals (levels, horizon), all in the data's units;
    ``stamps`` (lookback + horizon,): dates, microseconds since 1970, or row numbers."""

    stamps: NDArray
    past: NDArray
    future: NDArray
    forecast: NDArray
    low: NDArray
    high: NDArray
    title: str


@dataclass(frozen=True)
class Gap:
    """One channel of a window, all (time,) in the data's units: ``values`` with what was
    ``hidden``, not a number where missing, and what a model and linear interpolation filled in."""

    stamps: NDArray
    channel: str
    values: NDArray
    hidden: NDArray
    filled: NDArray
    linear: NDArray


def imputation_figure(gaps: Mapping[str, Gap]) -> Figure:
    """What was hidden and what was put there, a panel a kind of mask."""
    figure = Figure(figsize=(12, 2.8 * max(1, len(gaps))), layout="constrained")
    panels = figure.subplots(max(1, len(gaps)), 1, squeeze=False)[:, 0]
    for panel, (kind, gap) in zip(panels, gaps.items(), strict=False):
        stamps = _dates(gap.stamps)
        lines = {"linear interpolation": (gap.linear, _WARM), "model": (gap.filled, _INK)}
        for number, (begin, end) in enumerate(_runs(gap.hidden)):
            first = number == 0  # the others have the same names
            at, around = slice(begin, end), slice(max(0, begin - 1), end + 1)
            label = "hidden truth" if first else None
            panel.plot(stamps[around], gap.values[around], color=_DARK, ls=":", label=label)
            for name, (filled, color) in lines.items():
                label = name if first else None
                style: Any = {"color": color, "marker": "o", "markersize": 3, "label": label}
                panel.plot(stamps[at], filled[at], **style)
        seen = np.where(gap.hidden, np.nan, gap.values)
        panel.plot(stamps, seen, color=_PALE, marker=".", markersize=3, label="seen")
        panel.set_title(f"{kind}: {gap.channel}", fontsize=9, loc="left")
        panel.tick_params("x", labelsize=8)
        panel.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, fontsize=8, frameon=False)
    return figure


@dataclass(frozen=True)
class Watched:
    """Some stamps of a series, all (stamps,): one channel's ``values`` and what was ``expected``,
    in the data's units; the ``score`` of the stamp, above 1 for an alarm; whether it is
    ``anomalous`` as far as anybody knows."""

    stamps: NDArray
    title: str
    values: NDArray
    expected: NDArray
    score: NDArray
    anomalous: NDArray


def anomalies_figure(panels: Sequence[Watched]) -> Figure:
    """Values, what was expected and alarms, above the scores, for each panel."""
    count = max(1, len(panels))
    figure = Figure(figsize=(12, 3.4 * count), layout="constrained")
    rows = figure.subplots(2 * count, 1, height_ratios=[3, 1] * count)
    for number, panel in enumerate(panels):
        above, below = rows[2 * number], rows[2 * number + 1]
        stamps, alarm = _dates(panel.stamps), panel.score > 1
        above.plot(stamps, panel.values, color=_DARK, label="values")
        above.plot(stamps, panel.expected, color=_INK, label="expected")
        above.plot(
            stamps[alarm], panel.values[alarm], "o", color=_WARM, label="alarm, of any channel"
        )
        for axes in (above, below):
            for run, (begin, end) in enumerate(_runs(panel.anomalous)):
                label = "anomaly" if run == 0 else None
                span = stamps[[begin, end - 1]]
                axes.axvspan(*span, color=_PALE, alpha=0.35, linewidth=2, label=label)
        below.plot(stamps, panel.score, color=_INK)
        below.axhline(1, color=_WARM, ls="--")
        below.set(yscale="log", ylabel="score")
        above.set_title(panel.title, fontsize=9, loc="left")
        above.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, fontsize=8, frameon=False)
        above.sharex(below)
        above.tick_params("x", labelbottom=False)
    return figure


def _runs(mask: NDArray) -> list[tuple[int, int]]:
    """Rows [begin, end) of each run of true values."""
    edges = np.flatnonzero(np.diff(mask.astype(int), prepend=0, append=0))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _dates(stamps: NDArray) -> NDArray:
    """Microseconds since 1970 as dates; row numbers as they are."""
    dated = stamps.dtype.kind != "M" and stamps[0] > _ROWS
    return stamps.astype("datetime64[us]") if dated else stamps


def forecasts_figure(windows: Sequence[Shown], levels: Sequence[float]) -> Figure:
    """Forecast fans against what happened, as far as it is known, a panel a window."""
    figure = Figure(figsize=(12, 0.5 + 2.6 * max(1, len(windows))), layout="constrained")
    panels = figure.subplots(max(1, len(windows)), 1, squeeze=False)[:, 0]
    labelled: dict[str, Any] = {}
    for panel, window in zip(panels, windows, strict=False):
        stamps = _dates(window.stamps)
        before, after = np.split(stamps, [len(window.past)])
        panel.plot(before, window.past, color=_PALE, label="look-back")
        if np.isfinite(window.future).any():
            panel.plot(after, window.future, color=_DARK, label="what happened")
        panel.plot(after, window.forecast, color=_INK, label="forecast")
        for place, number in enumerate(np.argsort(levels)[::-1]):  # the widest lies lowest
            low, high = window.low[number], window.high[number]
            if np.isfinite(low).all():
                style: Any = {"color": _shade(place), "linewidth": 0, "zorder": 1}
                panel.fill_between(after, low, high, label=f"{levels[number]:.0%}", **style)
        panel.set_title(window.title, fontsize=9, loc="left")
        panel.tick_params("x", labelsize=8)
        handles, labels = panel.get_legend_handles_labels()
        labelled = dict(zip(labels, handles, strict=True)) | labelled
    if labelled:
        figure.legend(labelled.values(), labelled.keys(), loc="outside upper right", ncols=8)
    return figure


def _shade(place: int) -> tuple[float, ...]:
    """Of the interval that lies on so many wider ones; not transparent, so that a legend has it."""
    white = 0.85 ** (place + 1)
    return tuple(white + (1 - white) * part for part in to_rgb(_INK))


def reconstruction_figure(values: NDArray, patches: NDArray, mask: NDArray) -> Figure:
    """One channel of a window, (patches, length) each: the truth, and what was put in place of the
    patches that ``mask`` (patches,) hid."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(patches.ravel(), color=_DARK, label="truth")
    length = patches.shape[1]
    for number in np.flatnonzero(mask):
        at = np.arange(number * length, (number + 1) * length)
        first = number == np.flatnonzero(mask)[0]
        axes.axvspan(at[0], at[-1], color=_PALE, alpha=0.3, linewidth=0)
        axes.plot(at, values[number], color=_INK, label="reconstruction" if first else None)
    axes.set(xlabel="step of the look-back", ylabel="normalised value")
    axes.legend()
    return figure


def horizon_figure(table: pl.DataFrame) -> Figure:
    """Mean squared error, standardised, by step of the horizon; columns step, mse and
    mse_seasonal_naive."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(table["step"], table["mse"], color=_INK, label="model")
    axes.plot(table["step"], table["mse_seasonal_naive"], color=_PALE, label="seasonal naive")
    axes.set(xlabel="step of the horizon", ylabel="mean squared error, standardised")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def level_figure(table: pl.DataFrame) -> Figure:
    """Mean squared error by level of a hierarchy and kind of forecast; columns level, method, mse
    and series."""
    levels = table["level"].unique(maintain_order=True).to_list()
    methods = table["method"].unique(maintain_order=True).to_list()
    figure = Figure(figsize=(max(7, 3 + 1.4 * len(levels)), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(methods)
    for number, method in enumerate(methods):
        mse = table.filter(pl.col("method") == method)["mse"]
        at = np.arange(len(levels)) + (number + 0.5) * width - 0.4
        color = {"none": _DARK, "seasonal_naive": _PALE}.get(method)
        axes.bar(at, mse, width * 0.9, label=method, color=color)
    counts = table.unique("level", keep="first", maintain_order=True)["series"]
    ticks = [f"{level}\n{count} series" for level, count in zip(levels, counts, strict=True)]
    axes.set_xticks(range(len(levels)), ticks)
    axes.set_ylabel("mean squared error, standardised")
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def history_figure(event: NDArray, kind: NDArray, time: NDArray) -> Figure:
    """Nats an event of its type and of the time to it, by how many events came before; in bins
    that double."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    which = np.floor(np.log2(event)).astype(int)
    counts = np.bincount(which)
    used = np.flatnonzero(counts)
    for name, nats in (("type", kind), ("time, given the type", time)):
        mean = np.bincount(which, nats)[used] / counts[used]
        axes.plot(2.0**used, mean, marker="o", markersize=3, label=name)
    axes.set(xscale="log", xlabel="number of the event in its sequence", ylabel="nats an event")
    axes.legend()
    return figure


def confusion_figure(predicted: NDArray, labels: NDArray, classes: Sequence[str]) -> Figure:
    """How many series of each class were taken for which, shaded by their share of the class;
    ``predicted`` and ``labels`` (series,) are class numbers."""
    table = np.zeros((len(classes), len(classes)), int)
    np.add.at(table, (labels, predicted), 1)
    side = 2.5 + 0.45 * len(classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = table / table.sum(1, keepdims=True).clip(1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= 30:  # more would not be read
        for row, column in np.argwhere(table):
            color = "white" if shares[row, column] > 0.5 else _DARK
            axes.text(column, row, table[row, column], ha="center", va="center", color=color)
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes, rotation=90 if max(map(len, classes)) > 3 else 0)
    axes.set_yticks(ticks, classes)
    axes.set(xlabel="predicted", ylabel="true", title=f"{len(labels):,} series")
    return figure


def prefix_figure(table: pl.DataFrame) -> Figure:
    """Accuracy by the share of a series that has come in; columns share and accuracy."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(table["share"], table["accuracy"], marker="o", markersize=3, color=_INK)
    axes.set(xlabel="share of the series seen", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    return figure
