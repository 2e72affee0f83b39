"""Trials in processes: rows, what fails, going on, the deadline."""

from __future__ import annotations

import argparse
import csv
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.timeseries.workers import Table, add_arguments, run_trials

LABELS = ("model", "seed")


@dataclass(frozen=True)
class Toy:
    model: str
    seed: int

    @property
    def labels(self) -> tuple[str, ...]:
        return (self.model, str(self.seed))

    @property
    def kind(self) -> tuple[str, ...]:
        return (self.model,)

    @property
    def order(self) -> tuple[float, ...]:
        return (self.seed,)


def run(trial: Toy, args: argparse.Namespace) -> dict[str, Any]:
    if trial.model == "wrong":
        raise ValueError("no such model\nand more")
    if trial.model == "dies":
        os._exit(1)
    if trial.model == "slow":
        time.sleep(60)
    row = {"model": trial.model, "seed": str(trial.seed), "score": trial.seed / 3}
    return row | ({"extra": 1} if trial.seed else {})


def said(row: Any) -> str:
    return f"score {row['score']:.2f}"


def given(out: Path, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["--out", str(out), "--gpus", "--cpu-workers", "1", *words])


def test_rows_failures_and_going_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.csv"
    trials = [Toy("wrong", 0), Toy("dies", 0), Toy("a", 0), Toy("a", 1)]
    began = time.monotonic()
    run_trials(trials, run, Table(out, LABELS), given(out), said)
    assert time.monotonic() - began < 50
    said_first = capfd.readouterr().out
    assert "wrong 0: ValueError: no such model in" not in said_first
    assert "wrong 0: ValueError: no such model\n" in said_first
    assert "dies 0: the process died" in said_first
    assert "a 1: score 0.33 in" in said_first
    assert said_first.endswith("2 of 4 runs are missing\n")
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"model": "a", "seed": "0", "score": "0", "extra": ""},
        {"model": "a", "seed": "1", "score": "0.333333", "extra": "1"},
    ]
    run_trials(trials[2:], run, Table(out, LABELS), given(out), said)
    assert "2 runs, 2 rows in" in capfd.readouterr().out


def test_the_deadline_ends_what_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.csv"
    began = time.monotonic()
    run_trials([Toy("slow", 0)], run, Table(out, LABELS), given(out, "--deadline", "1"), said)
    assert time.monotonic() - began < 30
    assert "ended: Toy(model='slow', seed=0)" in capfd.readouterr().out
    assert not out.exists()
