"""What is hidden, against closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from core.jobs.errors import UsageError
from timeseries.data.masks import Masks

SHAPE = (200_000, 3)


def draw(kind: Any, seed: int = 0, **options: Any) -> np.ndarray:
    return Masks(**options).draw(kind, SHAPE, np.random.default_rng(seed))


def runs(mask: np.ndarray) -> np.ndarray:
    """Lengths of the runs of a column."""
    edges = np.flatnonzero(np.diff(mask.astype(int), prepend=0, append=0))
    return edges[1::2] - edges[::2]


@pytest.mark.parametrize("kind", ["points", "blocks", "outages"])
@pytest.mark.parametrize(("rate", "block"), [(0.1, 1), (0.3, 12), (0.5, 5)])
def test_the_stated_share_is_hidden(kind: Any, rate: float, block: int) -> None:
    mask = draw(kind, rate=rate, block=block)
    assert mask.mean() == pytest.approx(rate, abs=0.01)
    # the first steps are no rarer than the others
    short = Masks(rate=rate, block=block)
    random = np.random.default_rng(1)
    first = np.stack([short.draw(kind, (block, 1), random)[:, 0] for _ in range(4000)]).mean(0)
    assert first == pytest.approx(np.full(block, rate), abs=0.04)


def test_lengths_of_runs() -> None:
    """Blocks begin with probability p a step, so a run is over once none begins in ``block`` steps:
    its mean length is rate / (chance that one begins where nothing was hidden)."""
    rate, block = 0.2, 12
    p = 1 - (1 - rate) ** (1 / block)
    expected = rate / ((1 - rate) * p)
    for kind in ("blocks", "outages"):
        lengths = runs(draw(kind, rate=rate, block=block)[:, 0])[1:-1]
        assert lengths.min() == block
        assert lengths.mean() == pytest.approx(expected, rel=0.03)
    points = runs(draw("points", rate=rate, block=block)[:, 0])
    assert points.mean() == pytest.approx(1 / (1 - rate), rel=0.02)  # geometric


def test_only_outages_are_the_same_in_all_channels() -> None:
    for kind, same in (("points", False), ("blocks", False), ("outages", True)):
        mask = draw(kind)
        together = mask[:, 0] & mask[:, 1]
        share = 0.2 if same else 0.04  # independent channels
        assert together.mean() == pytest.approx(share, abs=0.01)


def test_a_seed_draws_the_same_again() -> None:
    assert (draw("blocks") == draw("blocks")).all()
    assert (draw("blocks") != draw("blocks", seed=1)).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.0}, "rate is 0.0"),
        ({"rate": 1.0}, "rate is 1.0"),
        ({"block": 0}, "block is 0"),
        ({"kinds": []}, "name one kind or more"),
        ({"kinds": ["points", "points"]}, "each once"),
    ],
)
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Masks(**options).check()
