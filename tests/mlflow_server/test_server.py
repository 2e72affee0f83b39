"""A team's server as it is started by hand, a run that a user makes against it, and its model."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path

import mlflow
import polars as pl
import pytest
from mlflow.entities import Run
from polars.testing import assert_frame_equal

from core.jobs.shards import load_predictions

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "genomics" / "samples" / "promoters.tsv.gz"
FIT = (
    *("--config", "genomics/configs/promoters_cnn.yaml", "--trainer.max_steps", "8"),
    *("--trainer.val_check_interval", "4", "--trainer.limit_val_batches", "2"),
    *("--trainer.log_every_n_steps", "1", "--tracking.register_model", "true"),
)
MODEL = "genomics.sequence_classification"

# Of mlflow's own use of pandas when it loads a model.
pytestmark = pytest.mark.filterwarnings("ignore:Operation with range is deprecated")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server that mlflow/start.sh runs, until SIGTERM ends it cleanly."""
    folder = tmp_path_factory.mktemp("a server")  # its name has a space
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    environment = {**os.environ, "LONGSPAN_MLFLOW_DATA": str(folder / "data")}
    log = folder / "log"  # a file: a pipe that nobody reads fills, and the server stands still
    with log.open("w") as written:
        process = subprocess.Popen(
            [str(ROOT / "mlflow" / "start.sh"), "--port", port, "--name", "team.example"],
            stdout=written,
            stderr=written,
            env={**environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        )
    said = f"MLflow at http://127.0.0.1:{port}, data in {folder / 'data'}"
    patience = time.monotonic() + 120
    while said not in log.read_text().splitlines():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < patience, log.read_text()
        time.sleep(0.1)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"http://127.0.0.1:{port}")
    yield f"http://127.0.0.1:{port}"
    mlflow.set_tracking_uri(before)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", int(port)))
    assert (folder / "data" / "mlflow.db").is_file()


def genomics(uri: str, root: Path, *arguments: str) -> Path:
    """One command of the command line, with the server named as users name it; its run folder."""
    ended = subprocess.run(
        [sys.executable, "-m", "genomics", *arguments, "--tracking.root", str(root)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    [folder] = [line for line in ended.stdout.splitlines() if line.startswith("run folder: ")]
    made = json.loads((Path(folder.removeprefix("run folder: ")) / "run.json").read_text())
    experiment = mlflow.MlflowClient().get_run(made["run_id"]).info.experiment_id
    page = f"{uri}/#/experiments/{experiment}/runs/{made['run_id']}"
    assert f"see it: {page}" in ended.stdout.splitlines()
    return Path(folder.removeprefix("run folder: "))


@pytest.fixture(scope="module")
def folder(uri: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return genomics(uri, tmp_path_factory.mktemp("runs"), "fit", *FIT)


@pytest.fixture(scope="module")
def run(uri: str, folder: Path) -> Run:
    run_id = json.loads((folder / "run.json").read_text())["run_id"]
    return mlflow.MlflowClient().get_run(run_id)


def answer(uri: str, **headers: str) -> int:
    """Status of a search for experiments, as a browser asks for it."""
    asked = urllib.request.Request(
        f"{uri}/ajax-api/2.0/mlflow/experiments/search",
        data=b'{"max_results": 1}',
        headers={"Content-Type": "application/json", **headers},
    )
    try:
        with urllib.request.urlopen(asked, timeout=10) as got:
            return got.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_server_answers_to_its_names_and_no_other(uri: str) -> None:
    with urllib.request.urlopen(f"{uri}/health", timeout=10) as got:
        assert (got.status, got.read()) == (200, b"OK")
    assert answer(uri) == 200
    assert answer(uri, Host="localhost:5000", Origin="http://localhost:5000") == 200
    assert answer(uri, Host="team.example", Origin="https://team.example") == 200
    assert answer(uri, Host="team.example:5000", Origin="http://team.example:5000") == 200
    assert answer(uri, Host="evil.example") == 403
    assert answer(uri, Origin="http://evil.example") == 403


def test_run_holds_what_the_readme_says(run: Run) -> None:
    client = mlflow.MlflowClient()
    assert run.info.status == "FINISHED"
    assert client.get_experiment(run.info.experiment_id).name == "genomics/sequence_classification"
    assert run.info.run_name == "conv_encoder-labelled_sequences-s0"
    assert run.data.params["model.init_args.model.class_path"] == "genomics.models.ConvEncoder"
    assert run.data.params["model.init_args.optimisation.lr"] == "0.001"
    assert run.data.params["trainer.max_steps"] == "8"
    assert {"train/loss", "val/loss", "val/auroc"} <= set(run.data.metrics)
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert len({m.step for m in losses}) == len(losses) == 8
    tags = ["domain", "command", "git.sha", "git.dirty", "config.sha256", "data.digest", "seed"]
    tags += ["device", "version.longspan", "version.torch", "version.mlflow", "model.version"]
    assert set(tags) <= set(run.data.tags)
    assert run.data.tags["domain"] == "genomics"
    assert run.data.tags["seed"] == "0"
    assert run.inputs is not None
    [given] = run.inputs.dataset_inputs
    assert run.data.tags["data.digest"].startswith(given.dataset.digest)
    assert given.tags[0].value == "fit"


def test_artifacts_come_back_through_the_server(run: Run, folder: Path, tmp_path: Path) -> None:
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    there = Path(
        mlflow.artifacts.download_artifacts(run_id=run.info.run_id, dst_path=str(tmp_path))
    )
    files = {str(p.relative_to(there)) for p in there.rglob("*") if p.is_file()}
    assert files >= {
        *("config.yaml", "data/manifest.json", "checkpoints/best.ckpt"),
        "plots/val_classification.png",
    }
    assert (there / "config.yaml").read_text() == (folder / "config.yaml").read_text()
    best = folder / "checkpoints" / "best.ckpt"
    assert (there / "checkpoints" / "best.ckpt").read_bytes() == best.read_bytes()
    assert (there / "plots" / "val_classification.png").read_bytes().startswith(b"\x89PNG")


def test_registered_model_gives_the_batch_jobs_rows(
    uri: str, run: Run, folder: Path, tmp_path: Path
) -> None:
    version = mlflow.MlflowClient().get_model_version_by_alias(MODEL, "champion")
    assert (version.version, version.run_id) == ("1", run.info.run_id)
    out = tmp_path / "rows"
    genomics(uri, tmp_path, "predict", "--ckpt_path", str(folder), "--predictions.path", str(out))
    batch = load_predictions(out).collect()
    table = pl.read_csv(SAMPLE, separator="\t").filter(pl.col("split") == "test")
    records = table.select("id", "sequence").to_pandas()
    with warnings.catch_warnings():  # the model's code is this checkout, which is imported already
        warnings.simplefilter("ignore")
        model = mlflow.pyfunc.load_model(f"models:/{MODEL}@champion")
    code = Path(mlflow.artifacts.download_artifacts(version.source)) / "code" / "genomics"
    assert (code / "__main__.py").is_file()
    assert not (code / "samples").exists()
    served = pl.from_pandas(model.predict(records))
    assert len(table) > 3000
    assert served["id"].to_list() == table["id"].to_list()
    assert_frame_equal(served, batch, check_dtypes=False, rel_tol=0, abs_tol=1e-6)


@pytest.mark.slow
def test_mlproject_entry_point_runs(uri: str, tmp_path: Path) -> None:
    started = time.time() * 1000
    options = {"trainer.max_steps": 2, "trainer.limit_val_batches": 1, "tracking.root": tmp_path}
    config = ROOT / "genomics" / "configs" / "promoters_cnn.yaml"
    given = {"config": config, "trainer.val_check_interval": 2, **options}
    binaries = Path(sys.executable).parent
    ended = subprocess.run(
        [str(binaries / "mlflow"), "run", str(ROOT), "-e", "genomics_fit", "--env-manager", "local"]
        + [word for key, value in given.items() for word in ("-P", f"{key}={value}")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            **{**os.environ, "MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1"},
            "PATH": f"{binaries}:{os.environ['PATH']}",
        },
    )
    assert ended.returncode == 0, ended.stderr
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("genomics/sequence_classification")
    assert experiment is not None
    [made, *_] = client.search_runs([experiment.experiment_id], max_results=1)
    assert made.info.start_time > started
    assert made.data.params["trainer.max_steps"] == "2"
    assert "val/auroc" in made.data.metrics
    launcher = client.get_run(made.data.tags["mlflow.parentRunId"])
    assert launcher.data.tags["mlflow.project.entryPoint"] == "genomics_fit"
