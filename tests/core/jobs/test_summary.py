"""What a command prints at its end: every metric once, in lines that fit a screen."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from core.jobs.summary import WIDTH, summary_lines

WORDS = st.sampled_from(["mae", "mse", "original", "seasonal_naive", "coverage", "20", "80", "100"])
NAMES = st.lists(WORDS, min_size=1, max_size=4).map(lambda words: "test/" + "_".join(words))


def test_few_metrics_are_one_line() -> None:
    metrics = {"val/loss": torch.tensor(0.25), "train/loss": 2.0}
    assert summary_lines("fit", metrics) == ["fit done: train/loss 2  val/loss 0.25"]
    assert summary_lines("predict", {}) == ["predict done"]


def test_many_metrics_are_a_line_a_kind() -> None:
    names = ["mae", "mae_linear", "mae_original", "mae_original_linear", "crps", "mse"]
    names += ["coverage_100", "coverage_20", "mse_linear"]
    metrics = {f"test/{name}": number for number, name in enumerate(names)}
    assert summary_lines("test", metrics) == [
        "test done:",
        "  test/coverage_20 7  test/coverage_100 6",
        "  test/crps 4",
        "  test/mae 0  test/mae_linear 1",
        "  test/mae_original 2  test/mae_original_linear 3",
        "  test/mse 5  test/mse_linear 8",
    ]


def test_a_long_kind_goes_on_in_the_next_line() -> None:
    endings = [letter * 40 for letter in "abc"]
    metrics = {"test/mae": 1.0, **{f"test/mae_{ending}": 1.0 for ending in endings}}
    assert summary_lines("test", metrics)[1:] == [
        f"  test/mae 1  test/mae_{endings[0]} 1",
        f"    test/mae_{endings[1]} 1",
        f"    test/mae_{endings[2]} 1",
    ]


@given(st.dictionaries(NAMES, st.floats(0, 1e6), min_size=1))
def test_every_metric_is_there_once(metrics: dict[str, float]) -> None:
    lines = summary_lines("test", metrics)
    assert max(map(len, lines)) <= WIDTH
    words = " ".join(lines).removeprefix("test done:").split()
    assert len(words) == 2 * len(metrics)
    assert dict(zip(words[::2], words[1::2], strict=True)) == {
        name: f"{value:.4g}" for name, value in metrics.items()
    }
