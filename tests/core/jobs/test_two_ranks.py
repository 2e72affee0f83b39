"""Predictions of two processes, each of which takes shards of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_job import Job

pytestmark = [
    pytest.mark.slow,
    # Lightning 2.6 uses a name of torch.utils that torch 2.15 calls deprecated.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
]

_TWO_RANKS = """
import sys
from pathlib import Path
from core.jobs.predictions import PredictionConfig, predict
from toy_predict import ToyData, ToyTask, toy_trainer

file, out, version = sys.argv[1:]
task = ToyTask()
try:
    predict(task, ToyData(file, skip=(3,)), toy_trainer(devices=2, strategy="ddp"),
            PredictionConfig(out, 10), model_version=version, config_hash="c")
finally:
    sys.stdout.write(f"seen {task.seen}\\n")
"""


@pytest.fixture
def two_ranks(tmp_path: Path) -> Iterator[Any]:
    script = tmp_path / "two_ranks.py"
    script.write_text(_TWO_RANKS)
    tests = str(Path(__file__).parents[2])

    def run(file: Path, out: Path, version: str = "1") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(script), str(file), str(out), version],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([tests, str(Path(tests).parent)])},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.mark.parametrize("records", [35, 7])
def test_two_ranks_write_what_one_writes(tmp_path: Path, two_ranks: Any, records: int) -> None:
    job = Job(tmp_path, records, skip=(3,))
    job()
    result = two_ranks(job.file, tmp_path / "both")
    assert result.returncode == 0, result.stderr
    seen = [int(line.split()[1]) for line in result.stdout.splitlines() if line.startswith("seen")]
    assert sorted(seen) == ([15, 19] if records == 35 else [0, 6])
    both = {file.name: file.read_bytes() for file in (tmp_path / "both").iterdir()}
    assert both == {name: content for name, (_, content) in job.files().items()}


def test_two_ranks_refuse_another_jobs_folder(tmp_path: Path, two_ranks: Any) -> None:
    job = Job(tmp_path, 35, skip=(3,))
    job()
    before = job.files()
    result = two_ranks(job.file, job.out, "2")
    assert result.returncode != 0
    assert "UsageError" in result.stderr
    assert job.files() == before
