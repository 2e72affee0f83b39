"""Masked pretraining, and starting a forecaster from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from core.jobs.errors import UsageError
from core.jobs.optim import Optimisation, adamw
from core.jobs.runs import find_checkpoint
from core.jobs.tracking import log_figure
from core.jobs.weights import read_checkpoint
from timeseries.models.patchtsmixer import PatchTSMixerPretraining, masked_loss
from timeseries.tasks.figures import reconstruction_figure

_SEED = 0


class MaskedPretraining(L.LightningModule):
    """Reconstruction of masked patches of the look-back; the loss is their mean squared error.

    Validation and test mask the same patches at every pass. ``Forecasting`` takes a run of this
    task as ``pretrained``.
    """

    def __init__(
        self,
        model: PatchTSMixerPretraining,
        optimisation: Optimisation = Optimisation(),  # noqa: B008  # read only
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["model"])
        self.model = model
        self.optimisation = optimisation

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = masked_loss(self.model(batch["past"]))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["past"]))
        return loss

    def _evaluate(self, split: str, batch: dict[str, Any], batch_idx: int) -> None:
        # a generator of its own: torch.manual_seed would set those of GPUs back as well
        generator = torch.Generator().manual_seed(_SEED + batch_idx)
        cut = self.model.encoder.cut(batch["past"])
        mask = self.model.draw_mask(cut.cpu(), generator).to(cut.device)
        result = self.model(batch["past"], mask)
        loss = masked_loss(result)
        self.log(f"{split}/loss", loss, prog_bar=True, batch_size=len(batch["past"]))
        if batch_idx == 0 and not self.trainer.sanity_checking:
            first = [x[0, -1].detach().cpu().numpy() for x in result]
            figure = reconstruction_figure(*first)
            log_figure(self.trainer, figure, f"plots/{split}_reconstruction.png")

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate("val", batch, batch_idx)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate("test", batch, batch_idx)

    def configure_optimizers(self) -> Any:
        steps = int(self.trainer.estimated_stepping_batches)
        return adamw(self, steps=steps, **vars(self.optimisation))


def load_encoder(model: nn.Module, path: Path) -> None:
    """The encoder of a ``MaskedPretraining`` run (folder or .ckpt) into ``model.encoder``.

    Raises UsageError if there is none on either side, or they are not alike.
    """
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise UsageError(f"{type(model).__name__} has no encoder to start from {path}")
    file, _ = find_checkpoint(path)
    state = read_checkpoint(file)["state_dict"]
    prefix = "model.encoder."
    weights = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise UsageError(
            f"checkpoint {file} does not fit the encoder of {type(model).__name__}: give both the "
            f"same sizes ({str(error).splitlines()[1].strip()})"
        ) from error
