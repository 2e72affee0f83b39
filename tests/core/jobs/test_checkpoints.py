"""Going on from ``last.ckpt`` equals never having stopped, wherever the process was lost."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from toy_fit import Toy, ToyData

from core.jobs.checkpoints import CheckpointConfig, RunCheckpoints
from core.jobs.tracking import RunLogger

pytestmark = [
    # Lightning's own call of torch
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
]


HOOKS = [
    "model.on_train_batch_end",  # between the step's checkpoint and its metrics
    "on_train_batch_end",
    "on_train_batch_start",
    "on_validation_start",
    "on_validation_end",
    "on_train_epoch_end",
    "on_train_epoch_start",
    "on_before_optimizer_step",
]


class Lost(Exception):
    """The process ends here."""


class Store:
    """The part of MlflowClient that a logger writes to, in memory."""

    history: dict[str, list[Any]]

    def __init__(self, uri: str) -> None: ...

    def log_batch(self, run_id: str, metrics: list[Any]) -> None:
        for metric in metrics:
            self.history[metric.key].append(metric)

    def get_run(self, run_id: str) -> Any:
        return SimpleNamespace(data=SimpleNamespace(metrics=dict(self.history)))

    def get_metric_history(self, run_id: str, key: str) -> list[Any]:
        return self.history[key]


class LoseAt(Callback):
    """Raises in the n-th call of a hook, of this callback or of ``model``."""

    def __init__(self, hook: str, call: int, model: Toy) -> None:
        self.calls = 0
        owner, _, name = hook.rpartition(".")

        def lose(*_: Any) -> None:
            self.calls += 1
            if self.calls == call:
                raise Lost

        setattr(model if owner else self, name, lose)


def fit(
    folder: Path, options: dict[str, Any], lose: tuple[str, int] | None = None, again: bool = False
) -> dict[str, Any]:
    """Weights and metric series after a fit, or after going on from its last checkpoint."""
    seed_everything(0, workers=True, verbose=False)
    last = folder / "last.ckpt"
    logger = RunLogger("sqlite:///unused", "run", folder, resumed=again)
    # A lost process sends nothing more, whereas Lightning ends loggers after an exception.
    logger.finalize = lambda status: None  # type: ignore[method-assign]
    model, data = Toy(), ToyData(rows=34)
    checkpoints = RunCheckpoints(
        CheckpointConfig(every_n_train_steps=3, mode="max"), folder, logger
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        log_every_n_steps=1,
        logger=logger,
        callbacks=[checkpoints, *([LoseAt(*lose, model)] if lose else [])],
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    resume = {"ckpt_path": last, "weights_only": True} if last.exists() else {}
    trainer.fit(model, datamodule=data, **resume)
    logger.flush()
    series = {k: [(m.step, m.value) for m in v] for k, v in Store.history.items()}
    return {"weights": model.state_dict(), "series": series, "step": trainer.global_step}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"limit_val_batches": 0},
        {"check_val_every_n_epoch": 2},
        {"val_check_interval": 3},
        {"accumulate_grad_batches": 2},
        {"limit_train_batches": 5},
        {"max_steps": 17},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
def test_lost_anywhere_goes_on_as_if_nothing_had_happened(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow.tracking.MlflowClient", Store)
    # Metrics are sent at once, so that some are behind the last checkpoint.
    monkeypatch.setattr("core.jobs.tracking.PATIENCE", 0.0)
    Store.history = defaultdict(list)
    (tmp_path / "whole").mkdir()
    whole = fit(tmp_path / "whole", options)
    best = torch.load(tmp_path / "whole" / "best.ckpt", weights_only=True)
    for first, hook in enumerate(HOOKS, start=1):
        for call in range(first % 3 + 1, 60, 5):
            folder = tmp_path / f"{hook}{call}"
            folder.mkdir()
            Store.history = defaultdict(list)
            try:
                fit(folder, options, (hook, call))
                break
            except Lost:
                pass
            got = fit(folder, options, again=True)
            where = f"{hook}, call {call}"
            assert got["step"] == whole["step"], where
            for key, value in whole["weights"].items():
                assert torch.equal(got["weights"][key], value), where
            assert got["series"] == whole["series"], where
            again = torch.load(folder / "best.ckpt", weights_only=True)
            assert again["global_step"] == best["global_step"], where
