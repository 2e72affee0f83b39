"""The logged model against the predictor it was made of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import torch
from toy_predict import ToyData, ToyTask

from core.jobs.predictor import Predictor

with warnings.catch_warnings():  # mlflow warns of its own type hints while it is imported
    warnings.simplefilter("ignore")
    from mlflow.models.model import ModelInfo

    from core.jobs.pyfunc import build, code_paths, log_predictor, requirements

pytestmark = [
    # Of mlflow's own use of sqlalchemy and pandas.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated"),
]

RECORDS = [{"id": f"r{n}", "value": n / 2} for n in range(7)]
CONFIG = {
    "model": {"class_path": "toy_predict.ToyTask", "init_args": {"rows": 2}},
    "data": {"class_path": "toy_predict.ToyData", "init_args": {"file": "gone", "skip": [3]}},
}


def trained() -> tuple[ToyTask, ToyData]:
    task, data = build(CONFIG)
    assert isinstance(task, ToyTask)
    assert isinstance(data, ToyData)
    with torch.no_grad():
        task.linear.weight.copy_(torch.tensor([[0.3, -0.7]]))
    return task, data


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelInfo]:
    folder = tmp_path_factory.mktemp("mlflow")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("toy/predict", artifact_location=str(folder / "files"))
    run = client.create_run(experiment)
    task, data = trained()
    yield log_predictor(
        task, data, config=CONFIG, name="toy.score", run_id=run.info.run_id, example=RECORDS[:2]
    )
    mlflow.set_tracking_uri(before)


def test_loaded_model_gives_the_predictors_rows(logged: ModelInfo) -> None:
    model = mlflow.pyfunc.load_model("models:/toy.score/1")
    rows = model.predict(pd.DataFrame(RECORDS))
    plain = json.loads(json.dumps(rows.to_dict(orient="records"), default=lambda a: a.tolist()))
    assert plain == Predictor(*trained())(RECORDS).to_pylist()
    assert len(rows) == 13
    assert rows["reason"].dropna().tolist() == ["r3 is on the list"]


def test_signature_and_example(logged: ModelInfo) -> None:
    assert logged.signature is not None
    assert {c.name: c.type.name for c in logged.signature.inputs.inputs} == {
        "id": "string",
        "value": "double",
    }
    outputs = {c.name: str(c.type) for c in logged.signature.outputs.inputs}
    assert outputs == {
        "record": "DataType.long",
        "id": "DataType.string",
        "score": "DataType.float",
        "pair": "Array(double)",
        "label": "DataType.string",
        "reason": "DataType.string",
    }
    model = mlflow.pyfunc.load_model(logged.model_uri)
    assert len(model.predict(model.input_example)) == 4


def test_run_is_finished_and_registered_version_names_it(logged: ModelInfo) -> None:
    client = mlflow.MlflowClient()
    assert logged.run_id is not None
    assert client.get_run(logged.run_id).info.status == "FINISHED"
    assert client.get_model_version("toy.score", "1").run_id == logged.run_id


def test_served_from_elsewhere_like_here(logged: ModelInfo, tmp_path: Path) -> None:
    """Another process, another folder, no project on the path: the code came with the model."""
    file, out = tmp_path / "in.csv", tmp_path / "out.json"
    pd.DataFrame(RECORDS).to_csv(file, index=False)
    command = [sys.executable, "-m", "mlflow", "models", "predict", "--env-manager", "local"]
    files = ["--content-type", "csv", "--input-path", str(file), "--output-path", str(out)]
    subprocess.run(
        [*command, "--model-uri", logged.model_uri, *files],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": "", "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()},
        check=True,
        capture_output=True,
        timeout=300,
    )
    rows = json.loads(out.read_text())["predictions"]
    assert rows == Predictor(*trained())(RECORDS).to_pylist()


def test_classes_outside_the_libraries_travel_with_their_code() -> None:
    nested = {"model": {"class_path": "toy_predict.ToyTask", "init_args": {"inner": [CONFIG]}}}
    nested["data"] = {"class_path": "torch.nn.Linear", "init_args": {}}
    tests = Path(__file__).parents[2]
    assert code_paths(nested) == [str(tests.parent / "core"), str(tests / "toy_predict.py")]


def test_requirements_are_pinned_and_know_the_packages_extras() -> None:
    pinned = requirements(CONFIG)
    assert pinned is not None
    names = {line.split("==")[0] for line in pinned}
    assert {"torch", "lightning", "mlflow", "pyarrow"} <= names
    assert not {"pytest", "pysam"} & names
    genomics = {"model": {"class_path": "genomics.tasks.Anything"}}
    assert "pysam" in {line.split("==")[0] for line in requirements(genomics) or []}
    assert not [line for line in pinned if "+" in line]


def test_model_that_cannot_be_rebuilt_is_not_logged() -> None:
    config: dict[str, Any] = {**CONFIG, "model": {"class_path": "toy_predict.Gone"}}
    with pytest.raises(Exception, match="Gone"):
        log_predictor(*trained(), config=config, name=None, run_id="none")
