"""Next-token and masked modelling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = -100


def next_token_targets(tokens: Tensor, ignored: Tensor | None = None) -> Tensor:
    """Targets (batch, length) of a causal model: the token after each, ``IGNORE`` at the last.

    ``ignored`` (batch, length) marks tokens not to be predicted (padding, N).
    """
    targets = torch.full_like(tokens, IGNORE)
    targets[:, :-1] = tokens[:, 1:]
    if ignored is not None:
        targets[:, :-1] = targets[:, :-1].masked_fill(ignored[:, 1:], IGNORE)
    return targets


@dataclass(frozen=True)
class Masking:
    """BERT's corruption (Devlin et al. 2019): of ``rate`` of the tokens, 80 % mask, 10 % random."""

    mask_id: int
    first_id: int
    last_id: int
    rate: float = 0.15
    masked: float = 0.8
    random: float = 0.1

    def __call__(
        self, tokens: Tensor, candidate: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Corrupted tokens and targets, both (batch, length).

        Only positions where ``candidate`` is True are chosen; random replacements are drawn from
        ``first_id`` to ``last_id``. Targets are ``IGNORE`` everywhere else.
        """
        device = tokens.device
        chosen = (
            torch.rand(tokens.shape, device=device, generator=generator) < self.rate
        ) & candidate
        fate = torch.rand(tokens.shape, device=device, generator=generator)
        noise = torch.randint(
            self.first_id, self.last_id + 1, tokens.shape, device=device, generator=generator
        ).to(tokens.dtype)
        corrupted = torch.where(chosen & (fate < self.masked), self.mask_id, tokens)
        swapped = chosen & (fate >= self.masked) & (fate < self.masked + self.random)
        corrupted = torch.where(swapped, noise, corrupted)
        return corrupted, torch.where(chosen, tokens, IGNORE)


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats over the targets that are not ``IGNORE``; 0 if there are none."""
    total, count = token_loss_sum(logits, targets)
    return total / count.clamp(min=1)


def token_loss_sum(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy in nats and the number of targets, for exact averages over batches."""
    flat = targets.flatten().long()
    total = F.cross_entropy(
        logits.flatten(0, -2).float(), flat, ignore_index=IGNORE, reduction="sum"
    )
    return total, (flat != IGNORE).sum()


def bits_per_token(nats: float) -> float:
    """Nats to bits."""
    return nats / math.log(2)
