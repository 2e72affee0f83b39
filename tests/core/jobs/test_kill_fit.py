"""Real processes, really stopped: SIGKILL at random points, Ctrl-C, SIGTERM."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from forked_cli import Process, Server
from mlflow.tracking import MlflowClient

# MLflow's own use of sqlalchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

STEPS = 120
KILLS = 12


def fit(server: Server, experiment: str, *arguments: str) -> Path:
    process = start(server, experiment, *arguments)
    assert process.wait() == 0, process.output
    return folder_of(server, experiment)


def start(server: Server, experiment: str, *arguments: str) -> Process:
    return server.start(
        "fit", "--config", "toy.yaml", "--tracking.experiment", f"toys/{experiment}", *arguments
    )


def resume(server: Server, folder: Path) -> Process:
    return server.start("fit", "--resume", str(folder))


def folder_of(server: Server, experiment: str) -> Path:
    [folder] = (server.folder / "runs" / "toys" / experiment).iterdir()
    return folder


def saved_steps(experiment: Path) -> int:
    """Steps in the last checkpoint of the only run of an experiment."""
    return max((load(file)["global_step"] for file in experiment.glob("*/*/last.ckpt")), default=0)


def wait(seconds: float, until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not until():
        time.sleep(0.02)


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def client(folder: Path) -> MlflowClient:
    return MlflowClient(record(folder)["tracking_uri"])


def series(folder: Path, key: str) -> list[tuple[int, float]]:
    history = client(folder).get_metric_history(record(folder)["run_id"], key)
    return [(metric.step, metric.value) for metric in history]


def tracked(folder: Path) -> mlflow.entities.Run:
    """The run of ``folder``, which must be the only one of its experiment."""
    run = client(folder).get_run(record(folder)["run_id"])
    found = client(folder).search_runs([run.info.experiment_id])
    assert [r.info.run_id for r in found] == [run.info.run_id]
    return run


def assert_same(folder: Path, whole: Path) -> None:
    """One finished run, with the weights and metrics of one that was never stopped."""
    run = tracked(folder)
    assert (run.info.status, record(folder)["state"]) == ("FINISHED", "FINISHED")
    assert [step for step, _ in series(folder, "train/loss")] == list(range(STEPS))
    for key in ("train/loss", "val/loss", "epoch"):
        assert series(folder, key) == series(whole, key)
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = (load(f / "checkpoints" / name) for f in (folder, whole))
        assert ours["global_step"] == theirs["global_step"]
        for key, value in theirs["state_dict"].items():
            assert torch.equal(ours["state_dict"][key], value)


@pytest.mark.timeout(180)
def test_killed_a_dozen_times_equals_never_stopped(server: Server, whole: Path) -> None:
    chance = random.Random(0)
    experiment = server.folder / "runs" / "toys" / "killed"
    process = start(server, "killed", "--model.init_args.pause", "0.03")
    wait(20, experiment.exists)
    for _ in range(KILLS):
        # At a random time, but soon enough for all kills to come before the end.
        enough = saved_steps(experiment) + STEPS // KILLS - 3
        wait(chance.uniform(0.1, 1.5), lambda: saved_steps(experiment) >= enough)  # noqa: B023
        process.send(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.output
        folder = folder_of(server, "killed")
        assert record(folder)["state"] == "RUNNING"
        process = resume(server, folder)
    assert process.wait() == 0, process.output
    assert int(tracked(folder).data.tags["resumed_from_step"]) > 0
    assert_same(folder, whole)


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_a_signal_ends_the_step_with_a_checkpoint_and_its_code(
    server: Server, whole: Path, signum: signal.Signals, code: int
) -> None:
    name = signum.name
    options = ["--model.init_args.pause", "0.02", "--checkpoints.every_n_train_steps", "1000"]
    process = start(server, name, *options)
    experiment = server.folder / "runs" / "toys" / name
    wait(20, lambda: saved_steps(experiment) >= 10)
    time.sleep(0.3)
    folder = folder_of(server, name)
    process.send(signum)
    assert process.wait() == code, process.output
    assert process.output.splitlines()[-1] == f"error: stopped by {name}"
    assert "Traceback" not in process.output
    assert (tracked(folder).info.status, record(folder)["state"]) == ("KILLED", "KILLED")
    step = load(folder / "checkpoints" / "last.ckpt")["global_step"]
    assert [s for s, _ in series(folder, "train/loss")] == list(range(step))
    again = resume(server, folder)
    assert again.wait() == 0, again.output
    assert tracked(folder).data.tags["resumed_from_step"] == str(step)
    assert_same(folder, whole)


def test_a_lost_run_is_marked_killed_by_the_next(server: Server, whole: Path) -> None:
    process = start(server, "lost", "--model.init_args.pause", "0.2")
    wait(20, lambda: saved_steps(server.folder / "runs/toys/lost") > 0)
    folder = folder_of(server, "lost")
    code, output = server.run("fit", "--resume", str(folder))
    assert code == 2
    assert "still running as process" in output
    fit(server, "beside", "--trainer.max_epochs", "1")
    assert tracked(folder).info.status == "RUNNING"
    process.send(signal.SIGKILL)
    process.wait()
    assert tracked(folder).info.status == "RUNNING"
    fit(server, "next", "--trainer.max_epochs", "1")
    assert tracked(folder).info.status == "KILLED"
