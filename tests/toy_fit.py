"""A task and data small enough to train in a second, with dropout so that random states count."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from core.jobs.data import RecordDataModule
from core.jobs.errors import DataError
from core.jobs.loader import ResumableLoader


class Toy(LightningModule):
    """Least squares through a small network; ``pause`` seconds a step give a killer time."""

    def __init__(
        self,
        dim: int = 4,
        lr: float = 0.01,
        dropout: float = 0.5,
        pause: float = 0.0,
        fail_at: int = -1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.pause, self.lr, self.fail_at = pause, lr, fail_at
        self.net = nn.Sequential(nn.Linear(2, dim), nn.Dropout(dropout), nn.Linear(dim, 1))

    def _loss(self, batch: list[Tensor]) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.net(x)[:, 0], y)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        time.sleep(self.pause)
        if self.global_step == self.fail_at:
            raise ArithmeticError("the step\nfailed")
        loss = self._loss(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        time.sleep(self.pause)
        self.log("val/loss", self._loss(batch))

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test/loss", self._loss(batch))

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        return {"id": batch["id"], "score": self.net(batch["x"])[:, 0]}

    def configure_optimizers(self) -> Any:
        # Asking for the number of steps builds the loader before a checkpoint is restored.
        steps = int(self.trainer.estimated_stepping_batches)
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Other(Toy):
    """Another architecture."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(1, 1)


class ToyData(RecordDataModule):
    """Random regression; ``file``, if given, is the digested input."""

    input_columns = {"id": "string", "a": "double", "b": "double"}  # noqa: RUF012

    def __init__(
        self, rows: int = 40, batch_size: int = 4, file: str | None = None, num_workers: int = 0
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        self.save_hyperparameters()
        self.rows, self.file = rows, file

    def setup(self, stage: str) -> None:
        if self.file is not None and Path(self.file).read_text() == "bad":
            raise DataError(f"{self.file}, line 1: not a number; correct it")
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(self.rows, 2, generator=generator)
        self.data = TensorDataset(x, x.sum(1))

    def digest_files(self) -> list[Path]:
        return [] if self.file is None else [Path(self.file)]

    def train_dataloader(self) -> ResumableLoader:
        return ResumableLoader(self.data, self.batch_size, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.data, batch_size=20)

    test_dataloader = val_dataloader

    def predict_records(self) -> list[dict[str, Any]]:
        return [
            {"id": f"r{n}", "a": float(x[0]), "b": float(x[1])}
            for n, (x, _) in enumerate(self.data)
        ]

    def encode(self, record: Mapping[str, Any]) -> Any:
        return record["id"], torch.tensor([record["a"], record["b"]])

    def collate(self, examples: list[Any]) -> Any:
        ids, values = zip(*examples, strict=True)
        return {"id": list(ids), "x": torch.stack(values)}


class OnlyBatches(LightningDataModule):
    """Data without records."""
