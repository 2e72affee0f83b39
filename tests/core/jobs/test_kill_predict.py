"""Batch jobs killed with SIGKILL, at random times and at every write, and then run again.

Real processes, but cheap ones: a server that has imported everything forks one for each run.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from toy_predict import write_input

from core.jobs.errors import UsageError
from core.jobs.shards import load_predictions

_SERVER = """
import json, os, pathlib, signal, sys, time, traceback, warnings
warnings.simplefilter("ignore")
import torch
from core.jobs import shards
from core.jobs.predictions import PredictionConfig, predict
from toy_predict import ToyData, ToyTask, toy_trainer

class Slow(ToyTask):
    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        time.sleep(0.002)
        return super().predict_step(batch, batch_idx)

def die_at(moment):
    # Dies at the given one of the moments before, amid and after each step of writing a file.
    count = [0]
    def moments(function):
        def run(*args, **options):
            tick()
            result = function(*args, **options)
            tick()
            return result
        return run
    def tick():
        count[0] += 1
        if count[0] == moment:
            os.kill(os.getpid(), signal.SIGKILL)
    os.fsync = moments(os.fsync)
    pathlib.Path.replace = moments(pathlib.Path.replace)
    text, table = pathlib.Path.write_text, shards.pq.write_table
    def write_text(file, content):
        text(file, content[: len(content) // 2])
        tick()
        return text(file, content)
    def write_table(rows, file, **options):
        file.write_bytes(b"PAR1 and half of the rows")
        tick()
        table(rows, file, **options)
    pathlib.Path.write_text = moments(write_text)
    shards.pq.write_table = moments(write_table)
    return count

def job(file, out, moment, workers):
    count = die_at(moment)
    task = Slow()
    start = time.monotonic()
    predict(task, ToyData(file, num_workers=workers, skip=(3,)), toy_trainer(),
            PredictionConfig(out, 10), model_version="1", config_hash="c")
    seconds = time.monotonic() - start
    os.write(9, json.dumps([task.seen, count[0], seconds]).encode())

os.dup2(1, 9)
os.dup2(2, 1)  # what libraries print is not part of an answer
torch.set_num_threads(1)
for line in sys.stdin:
    request = json.loads(line)
    delay = request.pop("delay")
    child = os.fork()
    if child == 0:
        try:
            job(**request)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)  # at worst it has ended and was not waited for yet
    os.write(9, f" {os.waitpid(child, 0)[1]}\\n".encode())
"""


class Server:
    def __init__(self) -> None:
        tests = Path(__file__).parents[2]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={
                **os.environ,
                "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}",
                "OMP_NUM_THREADS": "1",
            },
            text=True,
        )

    def run(
        self,
        file: Path,
        out: Path,
        *,
        delay: float | None = None,
        moment: int = 0,
        workers: int = 0,
    ) -> tuple[int, int, float] | None:
        """One run of the job, killed after ``delay`` seconds or by itself at a write. None if it
        was killed, else records predicted, moments at which it could die, seconds."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"file": str(file), "out": str(out), "delay": delay}
        self.process.stdin.write(
            json.dumps({**request, "moment": moment, "workers": workers}) + "\n"
        )
        self.process.stdin.flush()
        report, status = self.process.stdout.readline().rsplit(" ", 1)
        if os.WIFSIGNALED(int(status)):
            assert os.WTERMSIG(int(status)) == signal.SIGKILL
            return None
        assert int(status) == 0, "the job failed"
        seen, moments, seconds = json.loads(report)
        return seen, moments, seconds


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    assert server.process.stdin is not None
    server.process.stdin.close()
    server.process.wait()
    assert server.process.stdout is not None
    server.process.stdout.close()


def content(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in out.iterdir()}


def check_whole(out: Path) -> None:
    """What has its final name is all there."""
    for file in out.glob("part-*"):
        pq.read_table(file)
    for name in ("manifest.json", "_SUCCESS"):
        if (out / name).exists():
            json.loads((out / name).read_text())


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_job_killed_at_random_times_ends_as_if_it_never_was(
    tmp_path: Path, server: Server, workers: int
) -> None:
    file = write_input(tmp_path / "in.txt", 195)
    calm = server.run(file, tmp_path / "calm", workers=workers)
    assert calm is not None
    assert calm[0] == 194
    times = random.Random(workers)
    kills = midway = jobs = 0
    while kills < 12:
        jobs += 1
        out = tmp_path / f"killed-{jobs}"
        while server.run(file, out, delay=times.uniform(0, 1.2) * calm[2], workers=workers) is None:
            kills += 1
            check_whole(out)
            midway += 0 < len(list(out.glob("part-*"))) < 20
            if not (out / "_SUCCESS").exists():
                with pytest.raises(UsageError):
                    load_predictions(out)
        assert content(out) == content(tmp_path / "calm")
        records = load_predictions(out).collect()["record"].to_list()
        assert records == list(range(195))
    assert midway >= 4, "kills must fall among the shards, too"


def test_job_killed_at_every_write_ends_as_if_it_never_was(tmp_path: Path, server: Server) -> None:
    file = write_input(tmp_path / "in.txt", 25)
    calm = server.run(file, tmp_path / "calm")
    assert calm is not None
    assert calm[1] == 5 * 9, "manifest, 3 shards, _SUCCESS: write (3), sync, move, sync (2 each)"
    for moment in range(1, calm[1] + 1):
        out = tmp_path / f"killed-{moment}"
        assert server.run(file, out, moment=moment) is None
        check_whole(out)
        kept = [int(file.name[5:10]) for file in out.glob("part-*")]
        again = server.run(file, out)
        assert again is not None
        assert again[0] == sum(n for shard, n in enumerate((9, 10, 5)) if shard not in kept)
        assert content(out) == content(tmp_path / "calm")
