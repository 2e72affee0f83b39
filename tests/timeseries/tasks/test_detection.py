"""Metrics of detection against counting, rank statistics and another library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from torchmetrics.functional.classification import binary_average_precision

from timeseries.tasks.detection import baseline_errors, detection_metrics, events


def case(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    kind = np.zeros(400, int)
    kind[[20, 21, 22, 100, 250, 251, 399]] = [1, 1, 1, 2, 1, 1, 3]
    score = np.round(random.random(400) + 0.4 * (kind > 0), 2)  # with ties
    event = events(np.zeros(400, int), np.arange(400), kind)
    return score, kind > 0, event


@pytest.mark.parametrize("seed", range(5))
def test_metrics_by_counting(seed: int) -> None:
    score, label, event = case(seed)
    alarm = score > 0.9
    found = detection_metrics(score, label, event, alarm)
    u = mannwhitneyu(score[label], score[~label]).statistic
    assert found["auroc"] == pytest.approx(u / label.sum() / (~label).sum())
    auprc = binary_average_precision(torch.tensor(score), torch.tensor(label).int())
    assert found["auprc"] == pytest.approx(float(auprc), abs=1e-6)
    best = 0.0
    for threshold in np.unique(score):
        guess = score >= threshold
        best = max(best, 2 * (guess & label).sum() / (guess.sum() + label.sum()))
    assert found["best_f1"] == pytest.approx(best)
    hit = (alarm & label).sum()
    assert found["precision"] == pytest.approx(hit / alarm.sum())
    assert found["recall"] == pytest.approx(hit / 7)
    assert found["f1"] == pytest.approx(2 * hit / (alarm.sum() + 7))
    assert found["false_alarm_rate"] == pytest.approx((alarm & ~label).sum() / 393)
    spans = [(20, 23), (100, 101), (250, 252), (399, 400)]
    assert found["event_recall"] == sum(alarm[a:b].any() for a, b in spans) / 4


def test_events_end_with_series_gaps_and_kinds() -> None:
    series = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    row = np.array([3, 4, 5, 8, 9, 10, 0, 1])
    kind = np.array([1, 1, 0, 1, 1, 2, 2, 2])
    found = events(series, row, kind)
    assert found[2] == -1
    same = [[0, 1], [3, 4], [5], [6, 7]]
    assert len({found[group[0]] for group in same}) == 4
    assert all(len(set(found[group])) == 1 for group in same)


def test_without_anomalies_there_is_only_the_rate_of_false_alarms() -> None:
    score = np.linspace(0, 1, 100)
    found = detection_metrics(score, score < 0, np.full(100, -1), score > 0.9)
    assert found["false_alarm_rate"] == pytest.approx(0.1)
    assert np.isnan(
        [found[k] for k in ("auroc", "auprc", "best_f1", "recall", "event_recall")]
    ).all()


def test_nothing_is_point_adjusted() -> None:
    """One alarm in a long event leaves the rest of it unfound, but the event found."""
    label = np.zeros(100, bool)
    label[20:60] = True
    alarm = np.arange(100) == 30
    event = np.where(label, 0, -1)
    found = detection_metrics(alarm.astype(float), label, event, alarm)
    assert found["recall"] == pytest.approx(1 / 40)
    assert found["event_recall"] == 1


def test_baselines_by_hand() -> None:
    values = np.array([[1.0], [4.0], [2.0], [np.nan], [7.0], [7.0]])
    found = {name: errors[:, 0] for name, errors in baseline_errors(values, season=2).items()}
    nan = np.nan
    same = {"equal_nan": True}
    assert np.allclose(found["seasonal_difference"], [nan, nan, 1, nan, 5, nan], **same)
    assert np.allclose(found["z_score"], [1, 4, 2, nan, 7, 7], **same)
    assert np.allclose(found["neighbours"], [3, 2.5, nan, nan, nan, 0], **same)
