"""Trials of a benchmark, shared out to processes on all GPUs and CPUs; one row each in a CSV file.

A trial has ``labels``, which name its row; a ``kind``, whose longest trial so far says whether
another one still fits before the deadline; its ``model``, for those that run on a CPU; and an
``order`` to begin in. ``run(trial, args)`` gives the row, in a process that lives for many trials.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

Row = dict[str, Any]


class Trial(Protocol):
    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def kind(self) -> tuple[str, ...]: ...

    @property
    def model(self) -> str: ...

    @property
    def order(self) -> tuple[float, ...]: ...


Run = Callable[[Any, argparse.Namespace], Row]


@dataclass
class Worker:
    """A process that runs one trial after another. ``gpu`` is None for one on a CPU."""

    process: Any
    pipe: Connection
    gpu: str | None
    trial: Trial | None = None
    started: float = 0.0


# In a worker


def work(pipe: Connection, run: Run, args: argparse.Namespace, log: str) -> None:
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


def kept(folder: str, monitor: str) -> str:
    """The word that has a fit keep the weights of the least ``monitor``."""
    settings = f"{{dirpath: {folder}, monitor: {monitor}, mode: min, save_weights_only: true}}"
    kind = "lightning.pytorch.callbacks.ModelCheckpoint"
    return f"--trainer.callbacks+={{class_path: {kind}, init_args: {settings}}}"


def metrics(found: Any) -> dict[str, float]:
    return {k.removeprefix("test/"): float(v) for k, v in found.items() if k.startswith("test/")}


def machine(tf32: bool) -> Row:
    """Columns that say where a row was made."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "precision": "tf32" if cuda and tf32 else "float32",
        "torch": torch.__version__,
    }


# In the parent


def run_trials(
    trials: Sequence[Trial],
    run: Run,
    table: Table,
    args: argparse.Namespace,
    said: Callable[[Mapping[str, Any]], str],
) -> None:
    """Run what ``table`` does not hold yet; ``said`` puts a row into words.

    ``args`` as ``add_arguments`` gives them; all of it goes to ``run``, so it must pickle.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    left = sorted((t for t in trials if t.labels not in table.done), key=lambda t: t.order)
    say(f"{len(trials)} runs, {len(table.done)} rows in {args.out}, {len(left)} to do")
    workers: list[Worker] = []
    try:
        share(left, workers, run, table, args, said)
    finally:
        for worker in workers:
            say(f"ended: {worker.trial}")
            worker.process.kill()
    missing = [t for t in trials if t.labels not in table.done]
    say(f"{len(missing)} of {len(trials)} runs are missing")


def share(
    left: list[Trial],
    workers: list[Worker],
    run: Run,
    table: Table,
    args: argparse.Namespace,
    said: Callable[[Mapping[str, Any]], str],
) -> None:
    """Have ``workers`` run what is left; those that remain in it run into the deadline."""
    begun = time.monotonic()
    longest: dict[tuple[str, ...], float] = {}
    on_gpu = [t for t in left if t.model not in args.cpu and args.gpu_workers and args.gpus]
    queues = {True: on_gpu, False: [t for t in left if t not in on_gpu]}
    places: list[str | None] = [gpu for _ in range(args.gpu_workers) for gpu in args.gpus]
    places = places[: len(on_gpu)] + [None] * min(args.cpu_workers, len(queues[False]))
    workers += [start(gpu, run, args) for gpu in places]

    def fits(trial: Trial) -> bool:
        now = time.monotonic() - begun
        return now + longest.get(trial.kind, 0.0) < args.deadline

    while True:
        for worker in workers:
            if worker.trial is None:
                queue = queues[worker.gpu is not None]
                worker.trial = next((trial for trial in queue if fits(trial)), None)
                worker.pipe.send(worker.trial)
                worker.started = time.monotonic()
                if worker.trial is not None:
                    queue.remove(worker.trial)
        workers[:] = [w for w in workers if w.trial is not None]
        if not workers:  # waiting for nobody would take the whole timeout
            return
        rest = args.deadline - (time.monotonic() - begun)
        ready = wait([w.pipe for w in workers], timeout=min(max(0.0, rest), 60.0))
        if not ready and rest <= 0:
            return
        for worker in [w for w in workers if w.pipe in ready]:
            trial, seconds = worker.trial, time.monotonic() - worker.started
            assert trial is not None
            if finish(worker, table, seconds, time.monotonic() - begun, said):
                longest[trial.kind] = max(seconds, longest.get(trial.kind, 0.0))
            if worker.trial is not None:  # the process is gone
                workers.remove(worker)
                workers.append(start(worker.gpu, run, args))


def finish(
    worker: Worker,
    table: Table,
    seconds: float,
    now: float,
    said: Callable[[Mapping[str, Any]], str],
) -> bool:
    """Take a worker's answer; True for a row."""
    assert worker.trial is not None
    which = f"{now:5.0f} s: {' '.join(worker.trial.labels)}"
    try:
        answer = worker.pipe.recv()
    except EOFError:
        say(f"{which}: the process died")
        return False
    worker.trial = None
    if isinstance(answer, str):
        say(f"{which}: {answer}")
        return False
    table.add(answer)
    say(f"{which}: {said(answer)} in {seconds:.0f} s")
    return True


def start(gpu: str | None, run: Run, args: argparse.Namespace) -> Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu or ""
    log = str(Path(args.out).with_suffix(".log"))
    process = context.Process(target=work, args=(theirs, run, args, log))
    process.start()
    theirs.close()
    return Worker(process, ours, gpu)


class Table:
    """Rows in a CSV file, each named by its ``labels``; a new column has the file written anew."""

    def __init__(self, path: Path, labels: tuple[str, ...]) -> None:
        self.path, self.labels = path, labels
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            with path.open(newline="") as file:
                self.rows = list(csv.DictReader(file))
        path.parent.mkdir(parents=True, exist_ok=True)
        self.done = {tuple(row[label] for label in self.labels) for row in self.rows}

    def add(self, row: dict[str, Any]) -> None:
        row = {k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in row.items()}
        self.rows.append(row)
        self.done.add(tuple(row[label] for label in self.labels))
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        part = self.path.with_suffix(".part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``run_trials`` and ``work`` read."""
    parser.add_argument("--out", required=True)
    parser.add_argument("--deadline", type=float, default=1e9, help="seconds from now")
    parser.add_argument("--gpu-workers", type=int, default=4, help="processes on each GPU")
    parser.add_argument("--cpu-workers", type=int, default=2)
    parser.add_argument("--cpu", nargs="*", default=[], help="models that run on a CPU")
    parser.add_argument("--threads", type=int, default=1, help="of a worker")
    parser.add_argument("--tf32", action="store_true", help="TF32 in matrix products on GPUs")
    parser.add_argument("--gpus", nargs="*", default=gpus(), help="numbers; default: all")
