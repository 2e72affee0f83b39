"""Classifiers that anything learned must beat, fitted to the same training series."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from timeseries.data.labelled import LabelledSeriesData
from timeseries.data.labelled_tables import LabelledSeries


def baseline_predictions(
    data: LabelledSeriesData, test: list[LabelledSeries]
) -> dict[str, NDArray[np.int64]]:
    """Class numbers (series,) of ``test`` by baseline.

    ``nearest_neighbour``: the class of the training series at the smallest Euclidean distance, all
    standardised and stretched to the longest training series. ``logistic_regression``: on each
    channel's mean, deviation, least, greatest, first and last value.
    """
    train = data.split("train")
    labels = data.numbers(train)
    near, here = ([data.standardised(one.values) for one in part] for part in (train, test))
    longest = max(len(values) for values in near)
    neighbour = KNeighborsClassifier(1).fit([_stretched(v, longest) for v in near], labels)
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    regression.fit([_features(v) for v in near], labels)
    return {
        "nearest_neighbour": neighbour.predict([_stretched(v, longest) for v in here]),
        "logistic_regression": regression.predict([_features(v) for v in here]),
    }


def _stretched(values: NDArray, length: int) -> NDArray:
    """(time, channels) -> (length * channels,), by linear interpolation."""
    at = np.linspace(0, len(values) - 1, length)
    steps = np.arange(len(values))
    return np.concatenate([np.interp(at, steps, channel) for channel in values.T])


def _features(values: NDArray) -> NDArray:
    parts = (values.mean(0), values.std(0), values.min(0), values.max(0), values[0], values[-1])
    return np.concatenate(parts)
