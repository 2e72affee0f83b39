"""Errors of a test without its last, short batch."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Callback


class LastBatchDropped(Callback):
    """``found``: MSE and MAE of a test as a loader with ``drop_last`` has them, and the number of
    windows with and without."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        size = trainer.datamodule.batch_size
        windows = len(trainer.test_dataloaders.dataset)
        whole = windows // size * size
        if (batch_idx + 1) * size == whole:
            totals = pl_module.test_errors.totals()
            self.found = {f"{kind}_drop_last": float(totals[kind]) for kind in ("mse", "mae")}
            self.found |= {"windows": windows, "windows_drop_last": whole}
