"""Checkpoints of a run: ``last.ckpt`` to go on from, ``best.ckpt`` to use.

What must hold, wherever a process is killed:

- ``last.ckpt`` is always whole. It is written under another name and renamed.
- Every metric up to its step is in the tracker. Lightning logs a step's metrics after the hook in
  which the step can be saved, so the file is renamed in the next hook, after the logger is flushed.
- Going on from it gives what an uninterrupted run would have given: it holds the random states and
  the position in the data.
"""

from __future__ import annotations

import math
import os
import random
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from core.jobs import signals
from core.jobs.errors import UsageError
from core.jobs.tracking import RunLogger
from core.jobs.usage import did_you_mean


@dataclass
class CheckpointConfig:
    """When checkpoints are written.

    Args:
        every_n_train_steps: optimizer steps between two writes of ``last.ckpt``; it is also
            written at the end of each epoch and when the run is stopped.
        monitor: metric that decides ``best.ckpt``. Null: ``val/loss`` if it is logged, else the
            last weights are the best. A name in ``val/`` must be logged by the sanity check, any
            other by the first validation.
        mode: whether a small or a large value is good.
    """

    every_n_train_steps: int = 1000
    monitor: str | None = None
    mode: Literal["min", "max"] = "min"


@runtime_checkable
class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class RunCheckpoints(Checkpoint):
    """Writes the checkpoints of one run folder and stops the run when a signal asks for it."""

    def __init__(
        self, config: CheckpointConfig, folder: Path | None, logger: RunLogger | None
    ) -> None:
        """``folder`` and ``logger`` are rank zero's; None on the others."""
        self.config = config
        self._given = folder
        self.logger = logger
        self.best_score: float | None = None
        self._step = -1
        self._saved = False  # the pending file waits for its step's metrics
        self._due = False  # a validation came first
        self._stopping = False
        self._restored: dict[str, Any] = {}
        self._graceful = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = trainer.strategy.broadcast(self._given)
        assert folder is not None
        self.folder = folder
        if trainer.is_global_zero:
            self._pending.unlink(missing_ok=True)  # of a process that was killed

    @property
    def last(self) -> Path:
        return self.folder / "last.ckpt"

    @property
    def best(self) -> Path:
        return self.folder / "best.ckpt"

    @property
    def _pending(self) -> Path:
        return self.folder / "last.pending"

    # What a checkpoint holds beyond the weights, the optimizer and the loops

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        loader = trainer.train_dataloader
        checkpoint["run"] = {
            "best_score": self.best_score,
            "random": random_states(),
            "loader": loader.state_dict() if isinstance(loader, Stateful) else None,
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._restored = checkpoint["run"]
        self.best_score = self._restored["best_score"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        if self._restored:
            # Lightning restores a loader only if it was not built before the checkpoint was read,
            # and `trainer.estimated_stepping_batches` builds it. Ours may be set at any time
            # before its first batch.
            loader = trainer.train_dataloader
            if isinstance(loader, Stateful) and self._restored["loader"] is not None:
                loader.load_state_dict(self._restored["loader"])
            if trainer.world_size == 1:  # other ranks' states are not in the file
                restore_random_states(self._restored["random"])
            self._restored = {}
            begin_next_epoch(trainer)
        signals.install()  # Lightning has put its handlers there, which end with exit code 0
        self._graceful.enter_context(signals.graceful())

    # last.ckpt

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._commit(trainer)
        if self._stopping:
            raise signals.Interrupted(signals.requested() or signal.SIGTERM)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        self._commit(trainer)
        if self._stopping:
            raise signals.Interrupted(signals.requested() or signal.SIGTERM)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        # Not between accumulated batches, whose gradients are in no checkpoint. The end of the
        # epoch saves by itself, after its validation.
        if not stepped or trainer.is_last_batch:
            return
        if self._asked(trainer) or self._step % self.config.every_n_train_steps == 0:
            self._save(trainer)

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        # Going on from a step before its validation would leave out the validation, and the best
        # score that it may have found.
        if self._saved:
            self._saved, self._due = False, True
            if trainer.is_global_zero:
                self._pending.unlink()

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.state.fn != "fit":
            return
        if trainer.sanity_checking:
            # A mistyped name should not cost an epoch; metrics of training are not there yet.
            if (self.config.monitor or "").startswith("val/"):
                self._monitored(trainer.callback_metrics)
            return
        self._save_best(trainer)
        if not trainer.is_last_batch and (self._asked(trainer) or self._due):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        self._asked(trainer)
        self._save(trainer)

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        self._commit(trainer)
        if self.best_score is None:
            self._write(trainer, self.best, weights_only=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._graceful.close()

    def on_exception(self, *_: Any) -> None:
        self._graceful.close()

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self._pending)
        self._saved, self._due = True, False

    def _commit(self, trainer: Trainer) -> None:
        """Make the pending file the last one; the metrics of its step have been logged by now."""
        if self._saved and trainer.is_global_zero:
            if self.logger is not None:
                self.logger.flush()
            replace(self._pending, self.last)
        self._saved = False

    def _asked(self, trainer: Trainer) -> bool:
        """Whether to stop: after the save that follows, so that nothing done is lost, and on all
        ranks at the same step, whichever of them the signal reached."""
        asked = signals.requested() is not None
        self._stopping = bool(trainer.strategy.reduce_boolean_decision(asked, all=False))
        return self._stopping

    # best.ckpt

    def _monitored(self, metrics: Mapping[str, Any]) -> str | None:
        """The metric that decides, if any. Raises UsageError for one that is asked for in vain."""
        monitor = self.config.monitor or "val/loss"
        if monitor in metrics:
            return monitor
        if self.config.monitor is None:
            return None
        raise UsageError(
            f"checkpoints.monitor '{monitor}' is not among the logged metrics "
            f"{', '.join(sorted(metrics))}{did_you_mean(monitor, metrics)}"
        )

    def _save_best(self, trainer: Trainer) -> None:
        metrics = trainer.callback_metrics
        monitor = self._monitored(metrics)
        if monitor is None:
            return
        # Ranks may have metrics of their own; all must take part in a save, or none.
        score = trainer.strategy.broadcast(float(metrics[monitor]))
        sign = 1 if self.config.mode == "min" else -1
        if math.isnan(score):
            return
        if self.best_score is None or sign * score < sign * self.best_score:
            self.best_score = score
            self._write(trainer, self.best, weights_only=True)

    def _write(self, trainer: Trainer, path: Path, weights_only: bool) -> None:
        temporary = path.with_suffix(".part")
        trainer.save_checkpoint(temporary, weights_only=weights_only)
        if trainer.is_global_zero:
            replace(temporary, path)


def begin_next_epoch(trainer: Trainer) -> None:
    """If the checkpoint was made at the end of an epoch, begin the next one.

    With ``max_steps`` Lightning takes every checkpoint for one from the middle of an epoch, and
    goes through the finished epoch once more; that loses a batch.
    """
    loop = trainer.fit_loop
    epochs: Any = loop.epoch_progress
    finished = epochs.current.processed == epochs.current.ready
    if finished and loop.epoch_loop.batch_progress.is_last_batch:
        epochs.current.completed = epochs.current.processed
        epochs.total.completed = epochs.total.processed
        loop.epoch_loop.restarting = False
        loop.reset_restart_stage()


def replace(source: Path, target: Path) -> None:
    """Rename, with the content on the disk before the name."""
    with source.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(source, target)


def random_states() -> dict[str, Any]:
    """The states of Python's, NumPy's and PyTorch's global generators, as plain values."""
    state: Any = np.random.get_state()
    name, keys, *rest = state
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
