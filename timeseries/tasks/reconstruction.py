"""What imputation and anomaly scores share: a model that fills in what it does not see."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from core.jobs.optim import Optimisation, adamw


class Reconstruction(L.LightningModule):
    """``model`` maps (values, seen, time) to values (batch, time, channels), all standardised. The
    loss is the mean squared error of the values that are hidden."""

    def __init__(self, model: nn.Module, optimisation: Optimisation) -> None:
        super().__init__()
        self.model = model
        self.optimisation = optimisation

    def filled(self, batch: dict[str, Any], hidden: Tensor) -> Tensor:
        """What the model gives without the ``hidden`` values."""
        seen = batch["known"] & ~hidden
        return self.model(torch.where(seen, batch["values"], 0), seen, batch["time"]).float()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        hidden = batch["hidden"]
        error = self.filled(batch, hidden) - batch["values"]
        loss = (error.square() * hidden).sum() / hidden.sum().clamp(min=1)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(hidden))
        return loss

    def configure_optimizers(self) -> Any:
        steps = int(self.trainer.estimated_stepping_batches)
        return adamw(self, steps=steps, **vars(self.optimisation))
