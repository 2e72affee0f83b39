"""Every model on every series, horizon and seed: one row a run, on all GPUs and CPUs at once.

    python benchmarks/timeseries/long_horizon.py FOLDER --configs MODEL.yaml ... \\
        --series etth1 etth2 exchange --horizons 96 192 336 720 --seeds 0 1 2 --out rows.csv

FOLDER holds ``ETTh1.csv``, ``ETTh2.csv``, ``exchange_rate.csv`` and what ``prepare_series.py``
makes. A run is what ``timeseries compare`` runs: fit and test by the same command line, without
tracking. Rows that the table holds are not run again, so that a call that was stopped goes on. Runs
begin in the order of seeds, the expensive ones first; none begins that would not end before the
deadline, by the time that the longest one of its kind has taken, and what still runs there is
ended.

Columns beyond the test metrics: ``mse_drop_last`` and ``mae_drop_last`` leave out the windows of
the last, short batch, as some published tables did; ``mse_sampled`` and ``mae_sampled`` take every
``--sample``-th origin only, for a table with models that fit each window anew; ``val_mse`` is what
chose the checkpoint.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.timeseries.workers import Table, add_arguments, kept, machine, metrics, run_trials

PROTOCOLS = Path("timeseries/configs/protocols")
SERIES: dict[str, tuple[str, str | None]] = {
    "etth1": ("etth.yaml", "ETTh1.csv"),
    "etth2": ("etth.yaml", "ETTh2.csv"),
    "exchange": ("exchange.yaml", "exchange_rate.csv"),
    "exchange_dated": ("exchange_dated.yaml", "exchange_dated.parquet"),
    "appliance": ("appliance_energy.yaml", "appliance_energy.parquet"),
    "household": ("household_power.yaml", None),  # a sample that ships
}
LABELS = ("series", "model", "horizon", "seed")
# Relative cost of a training step, to begin with the longest runs.
COST = {
    "auto_arima": 30,
    "deepar": 20,
    "tft": 12,
    "autoformer": 10,
    "informer": 8,
    "mamba2": 5,
    "s4": 5,
    "hyena": 5,
}


@dataclass(frozen=True)
class Trial:
    series: str
    config: str
    horizon: int
    seed: int

    @property
    def model(self) -> str:
        return Path(self.config).stem

    @property
    def labels(self) -> tuple[str, ...]:
        return (self.series, self.model, str(self.horizon), str(self.seed))

    @property
    def kind(self) -> tuple[str, ...]:
        return (self.series, self.model)

    @property
    def order(self) -> tuple[float, ...]:
        return (self.seed, -COST.get(self.model, 1) * (500 + self.horizon))


def run(trial: Trial, args: argparse.Namespace) -> dict[str, Any]:
    """One fit, if the config trains, and its tests."""
    from core.jobs.cli import job
    from timeseries.studies import trains

    overlay, file = SERIES[trial.series]
    train = trains(Path(trial.config))
    overlays = [*([args.training] if train and args.training else []), str(PROTOCOLS / overlay)]
    words = [word for path in (trial.config, *overlays) for word in ("--config", path)]
    if file is not None:
        words += [f"--data.init_args.path={Path(args.folder) / file}"]
    words += [f"--data.init_args.protocol.horizon={trial.horizon}"]
    words += [f"--seed_everything={trial.seed}", "--trainer.logger=false", *args.keys]
    row: dict[str, Any] = dict(zip(LABELS, trial.labels, strict=True))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        sampled = [*words, f"--data.init_args.protocol.test_stride={args.sample}"]
        if train:
            fit: Any = job("timeseries", ["fit", *words, kept(folder, "val/mse")]).trainer
            best: Any = fit.checkpoint_callback
            row |= {"val_mse": float(best.best_model_score), "epochs": fit.current_epoch}
            row["fit_seconds"] = round(time.perf_counter() - started, 1)
            words += ["--ckpt_path", best.best_model_path]
            sampled += ["--ckpt_path", best.best_model_path]
        else:
            processes = f"--model.init_args.model.init_args.processes={args.processes}"
            words, sampled = [*words, processes], [*sampled, processes]
        if trial.model not in args.sampled_only:
            dropped = "--trainer.callbacks+=benchmarks.timeseries.last_batch.LastBatchDropped"
            test: Any = job("timeseries", ["test", *words, dropped]).trainer
            row |= metrics(test.callback_metrics)
            row |= next(c.found for c in test.callbacks if type(c).__name__ == "LastBatchDropped")
        if args.sample:
            found = metrics(job("timeseries", ["test", *sampled]).trainer.callback_metrics)
            names = ("mse", "mae", "mase", "mse_seasonal_naive", "mae_seasonal_naive")
            row |= {f"{name}_sampled": found[name] for name in names}
    return row | {"seconds": round(time.perf_counter() - started, 1), **machine(args.tf32)}


def main(arguments: Sequence[str] | None = None) -> None:
    args = parsed(arguments)
    trials = [
        Trial(series, config, horizon, seed)
        for series in args.series
        for config in args.configs
        for horizon in args.horizons
        for seed in (args.seeds if "trainer:" in Path(config).read_text() else args.seeds[:1])
    ]
    run_trials(trials, run, Table(Path(args.out), LABELS), args, said)


def said(row: Mapping[str, Any]) -> str:
    shown = row.get("mse") or row["mse_sampled"]
    return f"mse {shown:.4f}, {row.get('epochs', 0)} epochs"


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder")
    parser.add_argument("--configs", nargs="+", required=True)
    parser.add_argument("--series", nargs="+", choices=SERIES, default=["etth1"])
    parser.add_argument("--training", help="YAML laid over every config that trains")
    parser.add_argument("--horizons", nargs="+", type=int, default=[96, 192, 336, 720])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sample", type=int, default=25, help="steps; 0 for no such test")
    parser.add_argument("--sampled-only", nargs="*", default=["auto_ets", "auto_arima"])
    parser.add_argument("--processes", type=int, default=1, help="of a model that is not trained")
    add_arguments(parser)
    args, keys = parser.parse_known_args(arguments)
    args.keys = keys  # go to every run
    return args


if __name__ == "__main__":
    main()
