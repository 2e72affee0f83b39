"""Classifiers of raw waveforms of 1,024, 4,096 and 16,384 samples: one row a run.

    python -m timeseries.data.speech_prompts speech.parquet
    PYTHONPATH=. python benchmarks/timeseries/long_classification.py speech.parquet --out rows.csv

Which of five languages a telephone prompt is in. Every length is about the same sound: the windows
of 16,384 samples are cut into the shorter ones, of which those with less than half speech are left
out. All recordings of a prompt are in one split. Every network has the same budget: as many samples
a batch at every length, the same epochs, AdamW at one rate, and of its epochs the weights of the
least validation loss are tested. What is not trained (``BASELINES``) runs on a CPU, once.

A run is fit and test by the command line, without tracking. Rows that the table holds are not run
again, so that a call that was stopped goes on. Runs begin in the order of seeds, the long ones
first; none begins that would not end before the deadline, by the time that the longest one of its
kind has taken. Further words go to every fit and test: ``--trainer.max_epochs=20``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from benchmarks.timeseries.workers import Table, add_arguments, kept, machine, metrics, run_trials
from timeseries.data.labelled import LabelledSeriesData
from timeseries.data.speech_prompts import LENGTH, cut

LABELS = ("model", "length", "seed")
LENGTHS = (1024, 4096, LENGTH)
DIM, LAYERS, DROPOUT = 64, 4, 0.1
SAMPLES = 8 * LENGTH  # in a batch
EPOCHS = 8
SQUASH, SMOOTH = 3e-3, 7

# Mixers, both ways, and their options at a length
MIXERS: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "s4": ("S4", lambda length: {}),
    "long_conv": ("LongConv", lambda length: {"max_length": length, "squash": 0.0}),
    "squash": ("LongConv", lambda length: {"max_length": length, "squash": SQUASH}),
    "smooth": ("LongConv", lambda length: {"max_length": length, "squash": 0.0, "smooth": SMOOTH}),
    "both": ("LongConv", lambda length: {"max_length": length, "squash": SQUASH, "smooth": SMOOTH}),
    "hyena": ("Hyena", lambda length: {"max_length": length}),
    "attention": ("Attention", lambda length: {"heads": 4}),
}
NETWORKS = (*MIXERS, "cnn")
DEFAULT = tuple(name for name in NETWORKS if name != "attention")  # its cost is the square
COST = {"attention": 4, "s4": 2, "hyena": 2, "cnn": 0.3}  # of a step, to begin with the longest


@dataclass(frozen=True)
class Trial:
    model: str
    length: int
    seed: int

    @property
    def labels(self) -> tuple[str, ...]:
        return (self.model, str(self.length), str(self.seed))

    @property
    def kind(self) -> tuple[str, ...]:
        return (self.model, str(self.length))

    @property
    def order(self) -> tuple[float, ...]:
        return (self.seed, -COST.get(self.model, 1), -self.length)


def network(model: str, length: int) -> dict[str, Any]:
    if model == "cnn":
        options = {"dim": 96, "dropout": DROPOUT}  # as many parameters as S4
        return {"class_path": "timeseries.models.ConvClassifier", "init_args": options}
    mixer, options_at = MIXERS[model]
    blocks = {
        "mixer": {
            "class_path": f"core.mixers.{mixer}",
            "init_args": {"causal": False, **options_at(length)},
        },
        "mlp": {"class_path": "core.backbone.GatedMLP"},
    }
    settings = {"dim": DIM, "norm": "rms", "dropout": DROPOUT, "blocks": blocks}
    settings["schedule"] = f"(mixer mlp)*{LAYERS}"
    backbone = {"class_path": "core.backbone.Backbone", "init_args": settings}
    options = {"dropout": DROPOUT, "backbone": backbone}
    return {"class_path": "timeseries.models.MixerClassifier", "init_args": options}


def config(trial: Trial, path: Path) -> dict[str, Any]:
    """What the command line reads."""
    task = {
        "model": network(trial.model, trial.length),
        "optimisation": {"lr": 4e-3, "weight_decay": 0.05},
        "baselines": False,
        "prefixes": False,
    }
    data = {"path": str(path), "batch_size": SAMPLES // trial.length}
    return {
        "seed_everything": trial.seed,
        "trainer": {"max_epochs": EPOCHS, "gradient_clip_val": 1.0, "logger": False},
        "model": {"class_path": "timeseries.tasks.SeriesClassification", "init_args": task},
        "data": {"class_path": "timeseries.data.labelled.LabelledSeriesData", "init_args": data},
    }


def run(trial: Trial, args: argparse.Namespace) -> dict[str, Any]:
    """Fit and test of a network, or the scores of a baseline."""
    path = Path(args.folder) / f"{trial.length}.parquet"
    row: dict[str, Any] = dict(zip(LABELS, trial.labels, strict=True))
    started = time.perf_counter()
    if trial.model in BASELINES:
        row |= baseline(trial.model, path)
    else:
        row |= fit_and_test(config(trial, path), args)
    return row | {"seconds": round(time.perf_counter() - started, 1), **machine(args.tf32)}


def fit_and_test(settings: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from core.jobs.cli import job

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(yaml.safe_dump(settings))
        words = ["--config", str(file), *args.keys]
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        fit: Any = job(
            "timeseries", ["fit", *words, kept(f"{folder}/checkpoints", "val/loss")]
        ).trainer
        best: Any = fit.checkpoint_callback
        row = {
            "parameters": sum(p.numel() for p in fit.lightning_module.parameters()),
            "epochs": fit.current_epoch,
            "steps": fit.global_step,
            "val_loss": float(best.best_model_score),
            "train_loss_last": float(fit.callback_metrics["train/loss"]),
            "fit_seconds": round(time.perf_counter() - started, 1),
            "trainer_precision": str(fit.precision),
        }
        if torch.cuda.is_available():
            row["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
        test: Any = job("timeseries", ["test", *words, "--ckpt_path", best.best_model_path]).trainer
        return row | metrics(test.callback_metrics)


# What is not trained step by step


def spectrum(values: NDArray) -> NDArray:
    """Mean and deviation over Hann windows of 256 samples, half overlapping, of the log power at
    each frequency, of (time, 1)."""
    frames = np.lib.stride_tricks.sliding_window_view(values[:, 0], 256)[::128]
    power = np.abs(np.fft.rfft(frames * np.hanning(256))) ** 2
    log = np.log(power + 1e-3)
    return np.concatenate([log.mean(0), log.std(0)])


def spectrum_regression(data: LabelledSeriesData) -> NDArray[np.int64]:
    """Logistic regression on ``spectrum``; its penalty by validation accuracy."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels = {}, {}
    for split in ("train", "val", "test"):
        series = data.split(split)
        features[split] = [spectrum(data.standardised(one.values)) for one in series]
        labels[split] = data.numbers(series)
    fitted = [
        make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000)).fit(
            features["train"], labels["train"]
        )
        for C in (1e-3, 1e-2, 1e-1)
    ]
    best = max(fitted, key=lambda one: one.score(features["val"], labels["val"]))
    return best.predict(features["test"])


def task_baseline(name: str) -> Callable[[LabelledSeriesData], NDArray[np.int64]]:
    def predict(data: LabelledSeriesData) -> NDArray[np.int64]:
        from timeseries.tasks.baselines import baseline_predictions

        return baseline_predictions(data, data.split("test"))[name]

    return predict


BASELINES: dict[str, Callable[[LabelledSeriesData], NDArray[np.int64]]] = {
    "nearest_neighbour": task_baseline("nearest_neighbour"),
    "logistic_regression": task_baseline("logistic_regression"),
    "spectrum": spectrum_regression,
}


def baseline(name: str, path: Path) -> dict[str, Any]:
    from sklearn.metrics import accuracy_score, f1_score

    data = LabelledSeriesData(str(path))
    data.setup("test")
    actual, found = data.numbers(data.split("test")), BASELINES[name](data)
    macro = f1_score(actual, found, average="macro")
    return {"accuracy": float(accuracy_score(actual, found)), "macro_f1": float(macro)}


# In the parent


def said(row: Mapping[str, Any]) -> str:
    return f"accuracy {row['accuracy']:.4f}, fit {row.get('fit_seconds', 0)} s"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("windows", help="what timeseries.data.speech_prompts makes")
    parser.add_argument("--models", nargs="+", choices=(*NETWORKS, *BASELINES), default=DEFAULT)
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add_arguments(parser)
    args, args.keys = parser.parse_known_args(arguments)
    args.cpu = [*args.cpu, *BASELINES]
    trials = [
        Trial(model, length, seed)
        for model in args.models
        for length in args.lengths
        for seed in (args.seeds if model in NETWORKS else args.seeds[:1])
    ]
    with tempfile.TemporaryDirectory() as args.folder:
        whole = pl.read_parquet(args.windows)
        for length in args.lengths:
            pieces = whole if length == LENGTH else cut(whole, length)
            pieces.write_parquet(Path(args.folder) / f"{length}.parquet", compression="lz4")
        run_trials(trials, run, Table(Path(args.out), LABELS), args, said)


if __name__ == "__main__":
    main()
