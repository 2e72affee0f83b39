"""Learning rates over a run of Lightning's trainer."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from core.jobs.optim import Optimisation, adamw

STEPS, EPOCHS = 4, 5

pytestmark = [  # of Lightning and PyTorch
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
]


class Recorder(L.LightningModule):
    def __init__(self, optimisation: Optimisation) -> None:
        super().__init__()
        self.optimisation = optimisation
        self.net = nn.Linear(1, 1)
        self.rates: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        return adamw(self, steps=STEPS * EPOCHS, **vars(self.optimisation))


def rates(optimisation: Optimisation) -> Tensor:
    """(epochs, steps)"""
    module = Recorder(optimisation)
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(torch.ones(STEPS, 1))))
    return torch.tensor(module.rates).unflatten(0, (EPOCHS, STEPS))


def test_halving_is_type1() -> None:
    """The authors set lr * 0.5 ** (k - 1) after epoch k, counted from 1."""
    by_hand = torch.tensor([0.1, 0.1, 0.05, 0.025, 0.0125])
    found = rates(Optimisation(lr=0.1, warmup=0.5, schedule="halving"))
    torch.testing.assert_close(found, by_hand[:, None].expand(-1, STEPS))


def test_cosine_warms_up_and_ends_at_a_tenth() -> None:
    found = rates(Optimisation(lr=0.1, warmup=0.2)).flatten()
    torch.testing.assert_close(found[:4], torch.tensor([0.025, 0.05, 0.075, 0.1]))
    by_torch = torch.optim.lr_scheduler.CosineAnnealingLR(
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), 16, eta_min=0.01
    )
    for rate in found[4:]:
        assert abs(float(rate) - by_torch.get_last_lr()[0]) < 1e-7
        by_torch.optimizer.step()
        by_torch.step()
