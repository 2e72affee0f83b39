"""What a model of events must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from core.objectives import IGNORE
from timeseries.data.events import Events
from timeseries.models.events import Gaps


@dataclass(frozen=True)
class Baselines:
    """Frequencies of types (types,), and of each type after each, or after nothing, (types + 1,
    types), one added to every count, as logs; gaps of all events, and of those of each type: the
    share of zeros and one log-normal."""

    unigram: Tensor
    markov: Tensor
    gap: Gaps
    gap_of_type: Gaps

    @classmethod
    def fit(
        cls, sequences: Sequence[Events], types: Sequence[str], grid: float | None
    ) -> Baselines:
        number = {kind: i for i, kind in enumerate(types)}
        counts = np.zeros((len(types) + 1, len(types)))
        gaps: list[list[float]] = [[] for _ in types]
        for one in sequences:
            kinds = np.array([number[kind] for kind in one.types])
            np.add.at(counts, (np.concatenate([[len(types)], kinds[:-1]]), kinds), 1)
            for kind, gap in zip(kinds[1:].tolist(), one.gaps[1:].tolist(), strict=True):
                gaps[kind].append(gap)
        everything = _log_normal([gap for of in gaps for gap in of], (0.0, 1.0))
        each = [_log_normal(of, everything[1:]) for of in gaps]
        return cls(
            _logs(counts.sum(0)), _logs(counts), _gaps([everything], grid), _gaps(each, grid)
        )

    def sums(self, before: Tensor, target: Tensor, gap: Tensor, timed: Tensor) -> dict[str, float]:
        """Over (pieces, length): nll of types and gaps in nats, and types named right."""
        real = target != IGNORE
        before, kind = before[real], target[real]
        chain = self.markov[before]
        late, its = gap[timed].double(), target[timed]
        of_type = self.gap_of_type.apply(lambda x: x[its])
        overall = self.gap.apply(lambda x: x.expand(len(its), *x.shape[1:]))
        return {
            "type_unigram": -float(self.unigram[kind].sum()),
            "type_markov": -float(chain.gather(1, kind[:, None]).sum()),
            "time_unigram": float(overall.nll(late).sum()),
            "time_markov": float(of_type.nll(late).sum()),
            "right_unigram": float((self.unigram.argmax() == kind).sum()),
            "right_markov": float((chain.argmax(1) == kind).sum()),
            "right_repeat": float((before == kind).sum()),
        }


def _logs(counts: np.ndarray) -> Tensor:
    return F.log_softmax(torch.from_numpy(np.log(counts + 1)), -1)


def _log_normal(
    gaps: Sequence[float], otherwise: tuple[float, float]
) -> tuple[float, float, float]:
    """Logit of a zero gap, one gap of either kind added; mean and width of the others' logs,
    ``otherwise`` where there are none."""
    found = np.asarray(gaps, np.float64)
    logs = np.log(found[found > 0])
    zero = float(np.log((len(found) - len(logs) + 1) / (len(logs) + 1)))
    if not len(logs):
        return (zero, *otherwise)
    return zero, float(logs.mean()), max(float(logs.std()), 0.05)


def _gaps(parameters: Sequence[tuple[float, float, float]], grid: float | None) -> Gaps:
    zero, mean, width = torch.tensor(parameters, dtype=torch.float64).unbind(1)
    column = mean[:, None]
    return Gaps(zero, torch.zeros_like(column), column, width[:, None], grid or 0.0)
