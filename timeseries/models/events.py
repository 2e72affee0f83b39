"""The next event of a sequence: its type, and the time to it given the type."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.backbone import Backbone
from core.sequences import Sequences as Documents

_WIDTHS = (math.log(1e-3), math.log(1e2))  # of a component, in logs of time
_STEPS = 60  # of bisection


class Gaps(NamedTuple):
    """Distribution of the time to the next event: 0 with some probability, else a mixture of
    log-normals (Shchur et al. 2020, arXiv 1909.12127, without their atom at 0).

    ``zero`` (...) is the logit of a gap of 0; ``weight`` (..., components) are logits, ``mean`` and
    ``width`` (..., components) those of log time. With ``grid`` > 0 gaps are multiples k of it: a
    positive one has the mass of the mixture between k - 1/2 and k + 1/2 steps, the first one that
    from 0 on, so that the masses sum to 1.
    """

    zero: Tensor
    weight: Tensor
    mean: Tensor
    width: Tensor
    grid: float = 0.0

    def apply(self, change: Callable[[Tensor], Tensor]) -> Gaps:
        """The same change of every tensor, such as a selection."""
        zero, weight, mean, width = map(change, (self.zero, self.weight, self.mean, self.width))
        return Gaps(zero, weight, mean, width, self.grid)

    def nll(self, gap: Tensor) -> Tensor:
        """(...) -> (...) nats: of a density in the unit of time, or of a mass on the grid."""
        nothing = gap <= 0
        safe = torch.where(nothing, self.grid or 1.0, gap)[..., None]
        if self.grid:
            each = self._log_mass(safe)
        else:
            z = (safe.log() - self.mean) / self.width
            constant = 0.5 * math.log(2 * math.pi)
            each = -0.5 * z.square() - self.width.log() - constant - safe.log()
        positive = torch.logsumexp(self.weight.log_softmax(-1) + each, -1)
        return torch.where(nothing, F.softplus(-self.zero), F.softplus(self.zero) - positive)

    def _log_mass(self, gap: Tensor) -> Tensor:
        """Of each component, on the grid's step around ``gap`` (..., 1)."""
        half = self.grid / 2
        first = gap < 3 * half
        low = (torch.where(first, gap, gap - half).log() - self.mean) / self.width
        high = ((gap + half).log() - self.mean) / self.width
        # The difference of two values near 1 has no digits; on the left side of 0 it has.
        turned = low > 0
        a, b = torch.where(turned, -high, low), torch.where(turned, -low, high)
        upper = torch.special.log_ndtr(b)
        ratio = (torch.special.log_ndtr(a) - upper).clamp(max=-1e-7)
        inside = upper + torch.log(-torch.expm1(ratio))
        return torch.where(first, torch.special.log_ndtr(high), inside)

    def cdf(self, time: Tensor) -> Tensor:
        """Probability of a gap of at most ``time`` (...), which is positive, before any grid."""
        z = (time[..., None].log() - self.mean) / self.width
        below = (self.weight.softmax(-1) * torch.special.ndtr(z)).sum(-1)
        zero = self.zero.sigmoid()
        return zero + (1 - zero) * below

    def median(self) -> Tensor:
        """(...), a multiple of the grid if there is one."""
        low = (self.mean - 8 * self.width).amin(-1)
        high = (self.mean + 8 * self.width).amax(-1)
        for _ in range(_STEPS):
            middle = (low + high) / 2
            under = self.cdf(middle.exp()) < 0.5
            low, high = torch.where(under, middle, low), torch.where(under, high, middle)
        return torch.where(self.zero > 0, 0.0, self._on_grid(high.exp()))

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """(...) gaps, one from each distribution."""
        flat = self.weight.softmax(-1).flatten(0, -2)
        chosen = torch.multinomial(flat, 1, generator=generator).view(*self.zero.shape, 1)
        mean, width = (x.gather(-1, chosen)[..., 0] for x in (self.mean, self.width))
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        uniform = torch.rand(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        gap = self._on_grid((mean + width * noise).exp())
        return torch.where(uniform < self.zero.sigmoid(), 0.0, gap)

    def _on_grid(self, gap: Tensor) -> Tensor:
        return (gap / self.grid).round().clamp(min=1) * self.grid if self.grid else gap


class EventModel(nn.Module):
    """Reads the type, gap and time of each event; what its place gives is about the next one.

    The type's logits come from the history, the gap's distribution from the history and the type:
    types that come together (the voices of a chord) then have gaps of 0 and others have not, which
    independent heads cannot say.

    Args:
        backbone: causal blocks over (batch, length, dim).
        types: number of types; 0 is filled in from the data.
        components: log-normals in the mixture.
        periods: lengths of cycles in the unit of time (a bar; 24 for hours), given to the model as
            sine and cosine of the time of the last event.
    """

    clock: Tensor

    def __init__(
        self,
        backbone: Backbone,
        types: int = 0,
        components: int = 8,
        periods: Sequence[float] = (),
    ) -> None:
        super().__init__()
        dim = backbone.dim
        self.backbone, self.types, self.periods = backbone, types, tuple(periods)
        self.embedding = nn.Embedding(types + 1, dim)  # the last one: nothing yet
        self.read = nn.Sequential(
            nn.Linear(2 + 2 * len(self.periods), dim), nn.GELU(), nn.Linear(dim, dim)
        )
        self.head = nn.Linear(dim, types)
        self.gap_head = nn.Sequential(
            nn.Linear(2 * dim, dim), nn.GELU(), nn.Linear(dim, 1 + 3 * components)
        )
        # mean and standard deviation of the logs of positive gaps in training; the grid, or 0
        self.register_buffer("clock", torch.tensor([0.0, 1.0, 0.0]))

    def set_clock(self, mean: float, std: float, grid: float | None) -> None:
        """What training settles about time."""
        self.clock.copy_(torch.tensor([mean, std, grid or 0.0]))

    def inputs(self, kind: Tensor, gap: Tensor, time: Tensor) -> Tensor:
        """(...) of events, ``time`` float64 -> (..., dim)."""
        mean, std, _ = self.clock
        nothing = gap <= 0
        logs = (torch.where(nothing, 1.0, gap).log() - mean) / std
        features = [nothing.to(logs.dtype), torch.where(nothing, 0.0, logs)]
        for period in self.periods:
            phase = (2 * math.pi * (time / period % 1)).to(logs.dtype)
            features += [phase.sin(), phase.cos()]
        embedded = self.embedding(kind)
        return embedded + self.read(torch.stack(features, -1).to(embedded.dtype))

    def forward(
        self, kind: Tensor, gap: Tensor, time: Tensor, sequences: Documents | None = None
    ) -> Tensor:
        """(batch, length) of events -> features of the next ones (batch, length, dim)."""
        return self.backbone(self.inputs(kind, gap, time), sequences=sequences)

    def step(self, kind: Tensor, gap: Tensor, time: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One event (batch,) and the state before it -> (batch, dim), state after it."""
        return self.backbone.step(self.inputs(kind, gap, time), state)

    def logits(self, features: Tensor) -> Tensor:
        """(..., dim) -> (..., types)."""
        return self.head(features).float()

    def gaps(self, features: Tensor, kind: Tensor) -> Gaps:
        """Of the time to an event of type ``kind`` (...)."""
        mean, std, grid = self.clock
        found = self.gap_head(torch.cat([features, self.embedding(kind)], -1)).float()
        zero, weight, shift, width = found.split([1, *[(found.shape[-1] - 1) // 3] * 3], -1)
        # Components begin spread over the gaps of training.
        spread = torch.linspace(-1.5, 1.5, shift.shape[-1], device=shift.device)
        at = mean + std * (shift + spread)
        return Gaps(
            zero[..., 0], weight, at, (std.log() + width).clamp(*_WIDTHS).exp(), float(grid)
        )
