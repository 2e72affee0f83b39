"""Masked pretraining: what a pass over validation does, and what fine-tuning takes from a run."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from timeseries.models import PatchTSMixerPretraining
from timeseries.tasks import MaskedPretraining

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`"),
]


def test_validation_masks_alike_and_leaves_training_its_random_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch.manual_seed would also set back the generators of GPUs, from which training goes on to
    draw its masks and dropout."""

    def seeds_gpus(seed: int) -> None:
        raise AssertionError("torch.manual_seed")

    torch.manual_seed(0)
    past: Any = [{"past": x} for x in torch.randn(6, 32, 2)]
    task = MaskedPretraining(PatchTSMixerPretraining(32, 2, patch_length=8, stride=8))
    drawn: list[Tensor] = []
    task.model.register_forward_hook(lambda module, given, result: drawn.append(result.mask))
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    loader = DataLoader(past, 3, generator=torch.Generator())  # it draws as well
    before = torch.get_rng_state()
    monkeypatch.setattr(torch, "manual_seed", seeds_gpus)
    for _ in range(2):
        trainer.validate(task, loader, verbose=False)
    assert torch.equal(torch.get_rng_state(), before)
    first, second, *again = drawn
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    assert not torch.equal(first, second)
