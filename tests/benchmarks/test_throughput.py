"""Tokens a second of HyenaDNA: the table of ratios, and the command on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.genomics.throughput import lines_of, speedups

ROOT = Path(__file__).parents[2]


def row(length: int, ops: str, forward: float | None, training: float | None) -> dict[str, Any]:
    def rate(x: float | None) -> dict[str, float] | None:
        return None if x is None else {"tokens_per_second": x}

    return {
        "length": length,
        "batch": 1,
        "ops": ops,
        "forward": rate(forward),
        "training": rate(training),
    }


def test_speedups_where_both_fit() -> None:
    rows = [
        row(1024, "auto", 300.0, 100.0),
        row(1024, "reference", 100.0, 80.0),
        row(4096, "auto", 300.0, 100.0),
        row(4096, "reference", 200.0, None),
        row(8192, "auto", 300.0, 100.0),
    ]
    assert speedups(rows) == [
        {"length": 1024, "batch": 1, "forward": 3.0, "training": 1.25},
        {"length": 4096, "batch": 1, "forward": 1.5, "training": None},
        {"length": 8192, "batch": 1, "forward": None, "training": None},
    ]


def test_command_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "throughput.json"
    command = [sys.executable, "benchmarks/genomics/throughput.py", "--out", str(out)]
    command += ["--device", "cpu", "--lengths", "32", "48", "64", "--width", "16", "--layers", "1"]
    command += ["--tokens", "64"]
    environment = {**os.environ, "PYTHONPATH": "."}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    report = json.loads(out.read_text())
    cases = [(row["length"], row["batch"], row["ops"]) for row in report["rows"]]
    expected = [(32, 1), (48, 1), (64, 1), (32, 2)]  # 48 does not divide 64
    assert cases == [(*case, choice) for case in expected for choice in ("auto", "reference")]
    for ours, reference in zip(report["rows"][::2], report["rows"][1::2], strict=True):
        assert ours["training"]["first_loss"] == reference["training"]["first_loss"]
        assert all(ours[what]["tokens_per_second"] > 0 for what in ("forward", "training"))
    lines = [(name, [row["length"] for row in rows]) for name, rows in lines_of(report)]
    assert lines == [
        ("with the kernels", [32, 48, 64]),
        ("on the reference ops", [32, 48, 64]),
        ("with the kernels, batches of 64 tokens", [32, 64]),
        ("on the reference ops, batches of 64 tokens", [32, 64]),
    ]
    assert report["auto_over_reference"][0]["training"] > 0
    assert report["command"].startswith("python benchmarks/genomics/throughput.py --out")
    assert report["torch"] == torch.__version__
    assert "triton" in report
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
