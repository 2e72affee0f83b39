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
import csv
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

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
    def order(self) -> tuple[float, ...]:
        return (self.seed, -COST.get(self.model, 1) * (500 + self.horizon))


@dataclass
class Worker:
    """A process that runs one trial after another. ``gpu`` is None for one on a CPU."""

    process: Any
    pipe: Connection
    gpu: str | None
    trial: Trial | None = None
    started: float = 0.0


# In a worker


def work(pipe: Connection, args: argparse.Namespace, log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    import torch

    torch.set_num_threads(args.threads)
    if args.tf32:
        torch.set_float32_matmul_precision("high")
    while (trial := pipe.recv()) is not None:
        try:
            pipe.send(run(trial, args))
        except BaseException as error:
            traceback.print_exc()
            pipe.send(f"{type(error).__name__}: {error}".splitlines()[0])


def run(trial: Trial, args: argparse.Namespace) -> dict[str, Any]:
    """One fit, if the config trains, and its tests."""
    import torch

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
            fit: Any = job("timeseries", ["fit", *words, _kept(folder)]).trainer
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
    cuda = torch.cuda.is_available()
    return row | {
        "seconds": round(time.perf_counter() - started, 1),
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "precision": "tf32" if cuda and args.tf32 else "float32",
        "torch": torch.__version__,
    }


def _kept(folder: str) -> str:
    settings = f"{{dirpath: {folder}, monitor: val/mse, mode: min, save_weights_only: true}}"
    kind = "lightning.pytorch.callbacks.ModelCheckpoint"
    return f"--trainer.callbacks+={{class_path: {kind}, init_args: {settings}}}"


def metrics(found: Any) -> dict[str, float]:
    return {k.removeprefix("test/"): float(v) for k, v in found.items() if k.startswith("test/")}


# In the parent


def main(arguments: Sequence[str] | None = None) -> None:
    args = parsed(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    table = Table(Path(args.out))
    trials = [
        Trial(series, config, horizon, seed)
        for series in args.series
        for config in args.configs
        for horizon in args.horizons
        for seed in (args.seeds if "trainer:" in Path(config).read_text() else args.seeds[:1])
    ]
    left = sorted((t for t in trials if t.labels not in table.done), key=lambda t: t.order)
    say(f"{len(trials)} runs, {len(table.done)} rows in {args.out}, {len(left)} to do")
    workers: list[Worker] = []
    try:
        share(left, workers, table, args)
    finally:
        for worker in workers:
            say(f"ended: {worker.trial}")
            worker.process.kill()
    missing = [t for t in trials if t.labels not in table.done]
    say(f"{len(missing)} of {len(trials)} runs are missing")


def share(left: list[Trial], workers: list[Worker], table: Table, args: Any) -> None:
    """Have ``workers`` run what is left; those that remain in it run into the deadline."""
    begun = time.monotonic()
    longest: dict[tuple[str, str], float] = {}
    on_gpu = [t for t in left if t.model not in args.cpu and args.gpu_workers and args.gpus]
    queues = {True: on_gpu, False: [t for t in left if t not in on_gpu]}
    places: list[str | None] = [gpu for _ in range(args.gpu_workers) for gpu in args.gpus]
    places = places[: len(on_gpu)] + [None] * min(args.cpu_workers, len(queues[False]))
    workers += [start(gpu, args) for gpu in places]

    def fits(trial: Trial) -> bool:
        now = time.monotonic() - begun
        return now + longest.get((trial.series, trial.model), 0.0) < args.deadline

    while workers:
        for worker in workers:
            if worker.trial is None:
                queue = queues[worker.gpu is not None]
                worker.trial = next((trial for trial in queue if fits(trial)), None)
                worker.pipe.send(worker.trial)
                worker.started = time.monotonic()
                if worker.trial is not None:
                    queue.remove(worker.trial)
        workers[:] = [w for w in workers if w.trial is not None]
        rest = args.deadline - (time.monotonic() - begun)
        ready = wait([w.pipe for w in workers], timeout=min(max(0.0, rest), 60.0))
        if workers and not ready and rest <= 0:
            return
        for worker in [w for w in workers if w.pipe in ready]:
            trial, seconds = worker.trial, time.monotonic() - worker.started
            assert trial is not None
            if finish(worker, table, seconds, time.monotonic() - begun):
                key = (trial.series, trial.model)
                longest[key] = max(seconds, longest.get(key, 0.0))
            if worker.trial is not None:  # the process is gone
                workers.remove(worker)
                workers.append(start(worker.gpu, args))


def finish(worker: Worker, table: Table, seconds: float, now: float) -> bool:
    """Take a worker's answer; True for a row."""
    assert worker.trial is not None
    said = f"{now:5.0f} s: {' '.join(worker.trial.labels)}"
    try:
        answer = worker.pipe.recv()
    except EOFError:
        say(f"{said}: the process died")
        return False
    worker.trial = None
    if isinstance(answer, str):
        say(f"{said}: {answer}")
        return False
    table.add(answer)
    shown = answer.get("mse") or answer["mse_sampled"]
    say(f"{said}: mse {shown:.4f} in {seconds:.0f} s, {answer.get('epochs', 0)} epochs")
    return True


def start(gpu: str | None, args: argparse.Namespace) -> Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu or ""
    log = str(Path(args.out).with_suffix(".log"))
    process = context.Process(target=work, args=(theirs, args, log))
    process.start()
    theirs.close()
    return Worker(process, ours, gpu)


class Table:
    """Rows in a CSV file; a new column has the file written anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            with path.open(newline="") as file:
                self.rows = list(csv.DictReader(file))
        path.parent.mkdir(parents=True, exist_ok=True)
        self.done = {tuple(row[label] for label in LABELS) for row in self.rows}

    def add(self, row: dict[str, Any]) -> None:
        row = {k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in row.items()}
        self.rows.append(row)
        self.done.add(tuple(row[label] for label in LABELS))
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        part = self.path.with_suffix(".part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        part.replace(self.path)


def say(line: str) -> None:
    print(line, flush=True)


def gpus() -> list[str]:
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(number) for number in range(len(listed.stdout.strip().splitlines()))]


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
    parser.add_argument("--out", required=True)
    parser.add_argument("--deadline", type=float, default=1e9, help="seconds from now")
    parser.add_argument("--gpu-workers", type=int, default=4, help="processes on each GPU")
    parser.add_argument("--cpu-workers", type=int, default=2)
    parser.add_argument("--cpu", nargs="*", default=[], help="models that run on a CPU")
    parser.add_argument("--threads", type=int, default=1, help="of a worker")
    parser.add_argument("--sample", type=int, default=25, help="steps; 0 for no such test")
    parser.add_argument("--sampled-only", nargs="*", default=["auto_ets", "auto_arima"])
    parser.add_argument("--tf32", action="store_true", help="TF32 in matrix products on GPUs")
    parser.add_argument("--gpus", nargs="*", default=gpus(), help="numbers; default: all")
    parser.add_argument("--processes", type=int, default=1, help="of a model that is not trained")
    args, keys = parser.parse_known_args(arguments)
    args.keys = keys  # go to every run
    return args


if __name__ == "__main__":
    main()
