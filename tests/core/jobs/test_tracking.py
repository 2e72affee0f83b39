"""What a run leaves in MLflow."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from forked_cli import Server
from lightning.pytorch import Trainer
from matplotlib.figure import Figure
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from core.jobs import provenance, tracking
from core.jobs.errors import UsageError
from core.jobs.tracking import RunLogger, TrackingConfig, log_figure, tracking_uri

# MLflow's own use of sqlalchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

FIT = ("fit", "--config", "toy.yaml", "--trainer.max_epochs", "1")


def start(server: Server, *arguments: str) -> tuple[Path, MlflowClient, Run]:
    """Folder, client and MLflow run of a command that succeeds."""
    before = set(server.folder.glob("runs/*/*/*"))
    code, output = server.run(*arguments)
    assert code == 0, output
    [folder] = (
        set(server.folder.glob("runs/*/*/*"))
        - before
        - set(server.folder.glob("runs/artifacts/*/*"))
    )
    record = json.loads((folder / "run.json").read_text())
    client = MlflowClient(record["tracking_uri"])
    return folder, client, client.get_run(record["run_id"])


def files(client: MlflowClient, run: Run, path: str | None = None) -> set[str]:
    found = set()
    for item in client.list_artifacts(run.info.run_id, path):
        found |= files(client, run, item.path) if item.is_dir else {item.path}
    return found


def test_a_run_tells_where_it_comes_from(server: Server, whole: Path) -> None:
    folder, client, run = start(server, *FIT, "--tracking.tags", '{"ticket": "7"}')
    assert client.get_experiment(run.info.experiment_id).name == "toys/toy"
    assert run.info.run_name == "toy-toy_data-s0"
    assert folder == server.folder / f"runs/toys/toy/toy-toy_data-s0-{run.info.run_id[:8]}"
    tags = run.data.tags
    assert tags["domain"] == "toys"
    assert tags["seed"] == "0"
    assert tags["ticket"] == "7"
    assert re.fullmatch("[0-9a-f]{40}", tags["git.sha"])
    assert tags["git.dirty"] in ("true", "false")
    assert tags["device"] == provenance.device()
    for name in ("torch", "lightning", "mlflow", "python"):
        assert tags[f"version.{name}"]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert tags["config.sha256"] == provenance.config_hash(config)
    artifact = client.download_artifacts(run.info.run_id, "config.yaml")
    assert yaml.safe_load(Path(artifact).read_text()) == config
    assert run.data.params["model.init_args.lr"] == "0.01"
    assert run.data.params["trainer.max_epochs"] == "1"
    assert not [key for key in run.data.params if "_instantiator" in key or "_class_path" in key]
    assert "None" not in run.data.params.values()
    assert files(client, run) == {"config.yaml", "checkpoints/best.ckpt"}


def test_files_lie_in_the_working_folder(server: Server, whole: Path) -> None:
    record = json.loads((whole / "run.json").read_text())
    assert record["tracking_uri"] == f"sqlite:///{server.folder}/mlflow.db"
    assert (server.folder / "runs/artifacts/toys/whole" / record["run_id"]).is_dir()
    assert not (server.folder / "mlruns").exists()
    assert not (server.folder / "lightning_logs").exists()


def test_evaluation_points_to_its_training(server: Server, whole: Path) -> None:
    parent = json.loads((whole / "run.json").read_text())["run_id"]
    _, _, run = start(server, "test", "--ckpt_path", str(whole))
    best = hashlib.sha256((whole / "checkpoints/best.ckpt").read_bytes()).hexdigest()
    assert run.info.run_name == "test-toy-toy_data-s0"
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.tags["model.version"] == f"sha256-{best[:12]}"
    assert set(run.data.metrics) == {"test/loss", "epoch"}


def test_data_is_an_input_by_digest_and_not_by_name(server: Server, whole: Path) -> None:
    (server.folder / "jane_doe.txt").write_text("private words")
    _, client, run = start(server, *FIT, "--data.init_args.file", "jane_doe.txt")
    manifest = json.loads(
        Path(client.download_artifacts(run.info.run_id, "data/manifest.json")).read_text()
    )
    content = hashlib.sha256(b"private words").hexdigest()
    [entry] = manifest["files"]
    assert (entry["sha256"], entry["bytes"]) == (content, 13)
    assert run.data.tags["data.digest"] == hashlib.sha256(content.encode()).hexdigest()
    [data] = run.inputs.dataset_inputs
    assert data.dataset.digest == run.data.tags["data.digest"][:36]
    text = json.dumps([manifest, data.to_dictionary()])
    assert "jane" not in text
    assert "private" not in text


def test_registered_models_are_champion_then_challenger(server: Server, whole: Path) -> None:
    options = (*FIT, "--tracking.register_model", "true", "--tracking.experiment", "toys/reg")
    folder, client, run = start(server, *options)
    assert client.get_model_version_by_alias("toys.toy", "champion").version == 1
    assert run.data.tags["model.version"] == "toys.toy/1"
    assert run.info.status == "FINISHED"
    start(server, *options)
    assert client.get_model_version_by_alias("toys.toy", "champion").version == 1
    assert client.get_model_version_by_alias("toys.toy", "challenger").version == 2
    _, _, predicted = start(
        server, "predict", "--ckpt_path", str(folder), "--predictions.path", "registered"
    )
    assert predicted.info.run_name == "predict-toy-toy_data-s0"
    assert predicted.data.tags["model.version"] == "toys.toy/1"
    assert predicted.data.tags["mlflow.parentRunId"] == run.info.run_id


def test_system_metrics_on_request(
    server: Server, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, client, run = start(server, *FIT, "--tracking.system_metrics", "true")
    logger = RunLogger(
        json.loads((whole / "run.json").read_text())["tracking_uri"], run.info.run_id, whole
    )
    logger.reopen({})
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    for wanted in (False, True):
        with tracking.system_metrics(logger, TrackingConfig(system_metrics=wanted)):
            time.sleep(2)
        found = {key.split("/")[0] for key in client.get_run(run.info.run_id).data.metrics}
        assert ("system" in found) == wanted
    logger.close("FINISHED")


# Addresses


def test_address_is_absolute_and_read_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(TrackingConfig()) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri(TrackingConfig()) == "http://server:5000"
    assert tracking_uri(TrackingConfig(uri="sqlite:////a/b.db")) == "sqlite:////a/b.db"
    for folder in ("file:///a/mlruns", "mlruns"):
        with pytest.raises(UsageError, match="no longer writes; use sqlite:///"):
            tracking_uri(TrackingConfig(uri=folder))


def test_commands_that_begin_together_share_a_new_file(tmp_path: Path) -> None:
    """MLflow alone fails here: each makes the tables of the file that it finds empty."""
    opened = (
        "import sys; from pathlib import Path; from core.jobs import tracking\n"
        "uri = tracking.tracking_uri(tracking.TrackingConfig(uri=sys.argv[1]))\n"
        "with tracking.readable_errors(uri), tracking.one_at_a_time(uri):\n"
        "    print(tracking.create_run(uri, 'domain/task', 'name', {}, Path('artifacts')))\n"
    )
    command = [sys.executable, "-c", opened, f"sqlite:///{tmp_path}/folder/mlflow.db"]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    assert len({out for out, _ in said}) == 3


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    uri = f"sqlite:///{tmp_path}/taken/mlflow.db"
    with pytest.raises(UsageError, match=r"taken/mlflow.db: .*; check tracking.uri"):  # noqa: SIM117
        with tracking.one_at_a_time(uri):
            pass


def test_errors_of_a_server_hide_its_password() -> None:
    from mlflow.exceptions import MlflowException

    address = "http://me:secret@server"
    with (
        pytest.raises(UsageError, match=r"^tracking at http://server: gone; check") as caught,
        tracking.readable_errors(address),
    ):
        raise MlflowException("gone\nand more")
    assert "secret" not in str(caught.value)


# The logger


class Requests:
    """Counts what a logger sends."""

    def __init__(self, uri: str) -> None:
        self.batches: list[list[tuple[str, float, int]]] = []
        self.figures: list[str] = []
        self.status: list[str] = []

    def log_batch(self, run_id: str, metrics: list[Any]) -> None:
        self.batches.append([(m.key, m.value, m.step) for m in metrics])

    def get_run(self, run_id: str) -> Any:
        return SimpleNamespace(data=SimpleNamespace(metrics={"loss": 0.0}))

    def get_metric_history(self, run_id: str, key: str) -> list[Any]:
        return [SimpleNamespace(step=step) for step in (0, 5, 3)]

    def log_figure(self, run_id: str, figure: Figure, path: str) -> None:
        self.figures.append(path)

    def set_terminated(self, run_id: str, status: str) -> None:
        self.status.append(status)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> type[Requests]:
    monkeypatch.setattr("mlflow.tracking.MlflowClient", Requests)
    return Requests


def test_metrics_go_in_batches(requests: Any, tmp_path: Path) -> None:
    logger = RunLogger("sqlite:///x", "run", tmp_path)
    for step in range(500):
        logger.log_metrics({"loss": step}, step)
    logger.close("FINISHED")
    client: Any = logger.client
    assert len(client.batches) == 3
    assert [step for batch in client.batches for _, _, step in batch] == list(range(500))
    assert client.status == ["FINISHED"]
    assert logger.save_dir == str(tmp_path)


def test_replayed_steps_are_not_logged_again(requests: Any, tmp_path: Path) -> None:
    logger = RunLogger("sqlite:///x", "run", tmp_path, resumed=True)
    for step in range(3, 8):
        logger.log_metrics({"loss": 1.0, "new/one": 2.0}, step)
    logger.flush()
    client: Any = logger.client
    assert [(k, s) for k, _, s in client.batches[0] if k == "loss"] == [("loss", 6), ("loss", 7)]
    assert [s for k, _, s in client.batches[0] if k == "new/one"] == [3, 4, 5, 6, 7]


def test_lightning_does_not_end_the_run(requests: Any, tmp_path: Path) -> None:
    logger = RunLogger("sqlite:///x", "run", tmp_path)
    logger.finalize("failed")
    client: Any = logger.client
    assert client.status == []


@pytest.mark.filterwarnings("ignore:GPU available but not used")
def test_figures_need_a_run(requests: Any, tmp_path: Path) -> None:
    logger = RunLogger("sqlite:///x", "run", tmp_path)
    client: Any = logger.client
    log_figure(Trainer(logger=False, accelerator="cpu"), Figure(), "plots/a.png")
    assert client.figures == []
    log_figure(Trainer(logger=logger, accelerator="cpu"), Figure(), "plots/b.png")
    log_figure(logger, Figure(), "plots/c.png")
    assert client.figures == ["plots/b.png", "plots/c.png"]


# Provenance


def test_hash_ignores_how_long_and_where() -> None:
    config = {"model": {"lr": 1}, "trainer": {"max_epochs": 1, "precision": "32"}}
    same = {
        "trainer": {"precision": "32", "max_epochs": 9},
        "model": {"lr": 1},
        "tracking": {"uri": 3},
    }
    other = {"model": {"lr": 1}, "trainer": {"max_epochs": 1, "precision": "16"}}
    assert provenance.config_hash(config) == provenance.config_hash(same)
    assert provenance.config_hash(config) != provenance.config_hash(other)


def test_process_is_known_by_number_start_and_machine() -> None:
    me = provenance.process_tags()
    assert provenance.process_alive(me) is True
    assert provenance.process_alive({**me, "process.started": "1.0"}) is False
    assert provenance.process_alive({**me, "process.pid": "4999999"}) is False
    assert provenance.process_alive({**me, "process.host": "elsewhere"}) is None
