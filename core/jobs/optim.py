"""The optimiser every task uses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

Schedule = Literal["cosine", "halving"]


@dataclass
class Optimisation:
    """AdamW's settings; ``warmup`` is a share of all steps, ``schedule`` what follows: see
    ``adamw``."""

    lr: float = 1e-3
    weight_decay: float = 0.1
    warmup: float = 0.05
    schedule: Schedule = "cosine"


def adamw(
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    warmup: float,
    steps: int,
    betas: tuple[float, float] = (0.9, 0.999),
    schedule: Schedule = "cosine",
) -> dict[str, Any]:
    """AdamW with linear warm-up over a share ``warmup`` of ``steps``, then cosine decay to a tenth.

    ``halving`` instead keeps ``lr`` for two epochs and halves it after each epoch from the second
    on, without warm-up: ``type1`` of the long-horizon forecasters since Informer's code.
    Weight decay only on the matrices of linear and convolution layers: not on biases, norms,
    embeddings, state matrices or positional features. Returns what ``configure_optimizers`` does.
    """
    decayed = {
        id(m.weight)
        for m in module.modules()
        if isinstance(m, nn.Linear | nn.Conv1d) and m.weight.requires_grad
    }
    for m in module.modules():
        if isinstance(m, nn.Embedding):
            decayed.discard(id(m.weight))
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) not in decayed], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas)
    if schedule == "halving":
        halving = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda epoch: 0.5 ** max(0, epoch - 1)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": halving, "interval": "epoch"}}
    warm = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        progress = min(1.0, (step - warm) / max(1, steps - warm))
        return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))

    cosine = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}
