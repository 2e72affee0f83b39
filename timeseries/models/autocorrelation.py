"""Auto-Correlation: a sum of delayed copies where attention has a sum over steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from core.mixers.base import at_least_float32


class AutoCorrelation(nn.Module):
    """Values shifted by the strongest delays of keys to queries (Wu et al. 2021, section 3.2).

    The delays are the ``factor * log(length)`` largest of the circular correlation, at least one
    and at most ``length``; the softmax of their correlations weighs the shifted values. A window
    has its own delays in eval mode. In training one set serves the batch, as in the authors' code,
    so that a window's output depends on the others. Raises ValueError for a factor that is not
    positive.
    """

    def __init__(self, dim: int, factor: float = 3.0) -> None:
        super().__init__()
        if not factor > 0:
            raise ValueError(f"factor is {factor}; it must be above 0")
        self.factor = factor
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(batch, length, dim) from x of that shape, which asks, and ``context`` (batch, any
        length, dim), whose keys and values are cut or filled with zeros to ``length``."""
        length = x.shape[1]
        values = _resized(self.value(context), length)
        scores = correlation(self.query(x), _resized(self.key(context), length))
        return self.out(delayed_sum(values, self.delay_weights(scores)).to(values.dtype))

    def delay_weights(self, scores: Tensor) -> Tensor:
        """Weights (batch, length) of all delays, 0 but for the chosen ones, from their scores."""
        length = scores.shape[1]
        count = min(length, max(1, int(self.factor * math.log(length))))
        chosen_by = scores.mean(0, keepdim=True) if self.training else scores
        delays = chosen_by.topk(count).indices.expand(len(scores), -1)
        weights = scores.gather(1, delays).softmax(1)
        return torch.zeros_like(scores).scatter(1, delays, weights)


def correlation(queries: Tensor, keys: Tensor) -> Tensor:
    """(batch, delay) from two of (batch, length, dim): the mean over channels of
    sum_t queries(t) keys(t - delay), t - delay taken modulo length."""
    q, k = (torch.fft.rfft(at_least_float32(x), dim=1) for x in (queries, keys))
    return torch.fft.irfft((q * k.conj()).mean(2), n=queries.shape[1], dim=1)


def delayed_sum(values: Tensor, weights: Tensor) -> Tensor:
    """sum_delay weights(delay) values(t + delay), t + delay taken modulo length, of values
    (batch, length, dim) and weights (batch, length). All delays at once by FFT."""
    v = torch.fft.rfft(at_least_float32(values), dim=1)
    w = torch.fft.rfft(weights, dim=1).conj().unsqueeze(2)
    return torch.fft.irfft(v * w, n=values.shape[1], dim=1)


def _resized(x: Tensor, length: int) -> Tensor:
    return nn.functional.pad(x[:, :length], (0, 0, 0, max(0, length - x.shape[1])))
