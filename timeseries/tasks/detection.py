"""How well scores tell anomalous stamps from others, and what simple scores do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

Array = NDArray[np.float64]
BASELINES = ("seasonal_difference", "z_score", "neighbours")


def detection_metrics(
    score: Array, label: NDArray[np.bool_], event: NDArray[np.int64], alarm: NDArray[np.bool_]
) -> dict[str, float]:
    """Of stamps (stamps,); ``event`` numbers the runs of consecutive anomalous stamps, -1 outside.

    ``auroc``, ``auprc`` (average precision); ``best_f1``, of the best threshold in hindsight;
    ``precision``, ``recall``, ``f1`` and ``false_alarm_rate`` of the alarms; ``event_recall``, the
    share of the events in which there is an alarm. Stamps count one by one. Nothing is
    point-adjusted: to count a whole event as found once one of its stamps is rewards scores drawn
    at random (Kim et al. 2022, arXiv 2109.05257).

    Not a number where there is no anomalous stamp, or no other.
    """
    some = bool(label.any()) and not bool(label.all())
    precision, recall, _ = precision_recall_curve(label, score) if some else (np.nan,) * 3
    total = np.maximum(precision + recall, 1e-12)
    hit = float((alarm & label).sum())
    found = np.unique(event[alarm & (event >= 0)])
    return {
        "auroc": float(roc_auc_score(label, score)) if some else np.nan,
        "auprc": float(average_precision_score(label, score)) if some else np.nan,
        "best_f1": float(np.max(2 * precision * recall / total)),
        "precision": hit / max(1.0, float(alarm.sum())),
        "recall": _share(hit, float(label.sum())),
        "f1": _share(2 * hit, float(alarm.sum() + label.sum())),
        "false_alarm_rate": _share(float((alarm & ~label).sum()), float((~label).sum())),
        "event_recall": _share(len(found), len(np.unique(event[event >= 0]))),
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else np.nan


def events(series: NDArray[np.int64], row: NDArray[np.int64], kind: NDArray[np.int64]) -> NDArray:
    """(stamps,) numbers of runs of rows of one series with the same positive ``kind``; -1 outside.
    Stamps stand in the order of series and row."""
    follows = (np.diff(series, prepend=-1) == 0) & (np.diff(row, prepend=-2) == 1)
    follows &= np.diff(kind, prepend=-2) == 0
    number = np.cumsum(~follows)
    return np.where(kind > 0, number, -1)


def baseline_errors(values: Array, season: int) -> dict[str, Array]:
    """(time, channels) by baseline, not a number where it has none, from a series on the
    standardised scale.

    ``seasonal_difference``: from the value a season before; ``z_score``: from the mean of the
    training span; ``neighbours``: from the mean of the values one step before and after, at the
    ends from the one that there is.
    """
    difference = np.full_like(values, np.nan)
    difference[season:] = values[season:] - values[:-season]
    wide = np.pad(values, ((1, 1), (0, 0)), "reflect")
    around = values - (wide[:-2] + wide[2:]) / 2
    found = (difference, values, around)
    return {name: np.abs(errors) for name, errors in zip(BASELINES, found, strict=True)}
