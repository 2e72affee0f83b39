"""What is hidden from a model that fills in: at random, and in blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from core.jobs.errors import UsageError

Kind = Literal["points", "blocks", "outages"]


@dataclass
class Masks:
    """Values that are hidden in training and tests.

    Args:
        kinds: ``points``, each value by itself; ``blocks``, consecutive steps of one channel;
            ``outages``, consecutive steps of all channels. A training window gets one of them; the
            test has a part for each.
        rate: share of the values that is hidden, on average, whatever the kind.
        block: steps of a block or an outage; two that touch are one longer.
        seed: of what validation and test hide, the same in every run.
    """

    kinds: list[Kind] = field(default_factory=lambda: ["points", "blocks", "outages"])
    rate: float = 0.2
    block: int = 12
    seed: int = 0

    def check(self) -> None:
        """Raises UsageError for what hides nothing or all."""
        if not 0 < self.rate < 1:
            raise UsageError(f"data.masks.rate is {self.rate}; give a share between 0 and 1")
        if self.block < 1:
            raise UsageError(f"data.masks.block is {self.block}; it must be at least 1")
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise UsageError("data.masks.kinds: name one kind or more, each once")

    def draw(
        self, kind: Kind, shape: tuple[int, int], random: np.random.Generator
    ) -> NDArray[np.bool_]:
        """Which of (time, channels) values are hidden: each with the probability ``rate``.

        Blocks begin anywhere, also before the first step, with the probability p that solves
        1 - (1 - p)**block = rate.
        """
        time, channels = shape
        block = 1 if kind == "points" else self.block
        columns = 1 if kind == "outages" else channels
        begin = 1 - (1 - self.rate) ** (1 / block)
        begun = np.zeros((time + block, columns), np.int64)
        begun[1:] = np.cumsum(random.random((time + block - 1, columns)) < begin, axis=0)
        hidden = begun[block:] > begun[:-block]
        return np.broadcast_to(hidden, shape).copy()
