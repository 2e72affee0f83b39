"""Answers while a series is still coming in, and how good they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torchmetrics import Metric

from core.sequences import Sequences

SHARES = 20


def at_end(logits: Tensor, sequences: Sequences | None) -> Tensor:
    """Logits (batch, classes), or (batch, time, classes) at the last real step."""
    if logits.ndim == 2:
        return logits
    if sequences is None:
        return logits[:, -1]
    last = (sequences.real.sum(1) - 1).clamp(min=0)
    return logits[torch.arange(len(logits), device=logits.device), last]


def prefix_steps(values: Tensor, sequences: Sequences | None) -> Tensor:
    """How many steps each twentieth of a series' own length is, rounded up: (batch, 20)."""
    lengths = torch.full(values.shape[:1], values.shape[1], device=values.device)
    if sequences is not None:
        lengths = sequences.real.sum(1)
    shares = torch.arange(1, SHARES + 1, device=values.device)
    return -(-shares * lengths[:, None] // SHARES)


@torch.no_grad()
def stream(model: Any, values: Tensor) -> Tensor:
    """Logits (batch, time, classes) of ``values`` (batch, time, channels), given to ``model.step``
    one step at a time."""
    state = model.init_state(len(values))
    logits = []
    for now in values.unbind(1):
        answer, state = model.step(now, state)
        logits.append(answer)
    return torch.stack(logits, 1)


@torch.no_grad()
def prefix_logits(model: Any, values: Tensor, sequences: Sequences | None) -> Tensor:
    """Logits (batch, 20, classes) after each of ``prefix_steps``.

    A model with ``step`` gets one step at a time; any other is asked anew for each prefix.
    """
    after = prefix_steps(values, sequences)
    if hasattr(model, "step"):
        rows = torch.arange(len(values), device=values.device)[:, None]
        return stream(model, values)[rows, after - 1]
    answers = []
    for steps in after.unbind(1):
        prefix = Sequences.padded(steps, int(steps.max()))
        answers.append(at_end(model(values[:, : int(steps.max())], prefix), prefix))
    return torch.stack(answers, 1)


class PrefixCurve(Metric):
    """Accuracy after each twentieth of a series.

    Update with answers (batch, 20), classes' numbers; labels (batch,); and the steps (batch, 20)
    that the answers are after.
    """

    full_state_update = False
    correct: Tensor
    series: Tensor
    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("correct", torch.zeros(SHARES, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("steps", torch.zeros(SHARES, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("series", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, answers: Tensor, label: Tensor, steps: Tensor) -> None:
        self.correct += (answers == label[:, None]).sum(0)
        self.steps += steps.sum(0)
        self.series += len(label)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Accuracy and mean number of steps, (20,) each."""
        return self.correct / self.series, self.steps / self.series

    def table(self) -> pl.DataFrame:
        """Columns share, mean_steps, accuracy."""
        accuracy, steps = self.compute()
        return pl.DataFrame(
            {
                "share": np.arange(1, SHARES + 1) / SHARES,
                "mean_steps": steps.double().cpu().numpy(),
                "accuracy": accuracy.double().cpu().numpy(),
            }
        )
