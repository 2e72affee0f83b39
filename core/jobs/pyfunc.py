"""The MLflow model of a task: the predictor of batch jobs behind ``mlflow.pyfunc``."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import ColSpec, Schema
from safetensors.torch import load_model, save_model

from core.jobs.data import Record, RecordDataModule
from core.jobs.predictor import Predictor

_OURS = "longspan"


def log_predictor(
    task: LightningModule,
    datamodule: RecordDataModule,
    *,
    config: Mapping[str, Any],
    name: str | None,
    run_id: str,
    example: Sequence[Record] | None = None,
) -> ModelInfo:
    """Log ``task``, with the weights it has now, as a pyfunc model of the run ``run_id``.

    ``config`` has keys ``model`` and ``data``, each a ``class_path`` with its ``init_args`` in
    plain values, as in the configuration the command line saves; the model is rebuilt from it.
    ``name`` registers a new version under that name. ``example`` are records to keep beside the
    model as its input example. The code of the classes travels with the model, libraries are
    pinned by version. Uses the tracking server that ``mlflow`` is set to.
    """
    config = {key: dict(config[key]) for key in ("model", "data")}
    build(config)  # What cannot be rebuilt must not be logged.
    columns = [ColSpec(kind, column) for column, kind in datamodule.input_columns.items()]
    with tempfile.TemporaryDirectory() as folder:
        folder_path = Path(folder)
        (folder_path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_model(task, str(folder_path / "model.safetensors"))
        with mlflow.start_run(run_id=run_id):
            return mlflow.pyfunc.log_model(
                name="predictor",
                python_model=str(Path(__file__).with_name("served.py")),
                artifacts={"predictor": folder},
                code_paths=code_paths(config),
                pip_requirements=requirements(),
                signature=ModelSignature(inputs=Schema(columns)),
                input_example=None if example is None else pd.DataFrame(list(example)),
                registered_model_name=name,
            )


def build(config: Mapping[str, Any]) -> tuple[LightningModule, RecordDataModule]:
    """The task and data module that ``config`` describes, the task with fresh weights."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model")
    parser.add_subclass_arguments(RecordDataModule, "data")
    objects = parser.instantiate_classes(parser.parse_object(dict(config)))
    return objects.model, objects.data


class PredictorModel(mlflow.pyfunc.PythonModel):
    """Rebuilds task and data module when it is loaded; a table of records in, of rows out."""

    def load_context(self, context: Any) -> None:
        folder = Path(context.artifacts["predictor"])
        task, datamodule = build(json.loads((folder / "config.json").read_text()))
        load_model(task, str(folder / "model.safetensors"))
        self.predictor = Predictor(task, datamodule)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        return self.predictor(model_input).to_pandas()


def code_paths(config: Mapping[str, Any]) -> list[str]:
    """The top-level packages of the classes in ``config`` that no other distribution provides."""
    roots = sorted({path.split(".")[0] for path in _class_paths(config)} | {"core"})
    installed = metadata.packages_distributions()
    paths = []
    for root in roots:
        if not set(installed.get(root, [])) - {_OURS}:
            spec = importlib.util.find_spec(root)
            assert spec is not None
            assert spec.origin is not None
            origin = Path(spec.origin)
            paths.append(str(origin.parent if origin.name == "__init__.py" else origin))
    return paths


def _class_paths(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(value.get("class_path"), str):
            yield value["class_path"]
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _class_paths(item)


def requirements() -> list[str]:
    """This project's own dependencies, without extras, at the versions installed here."""
    names = [
        "torch",
        "numpy",
        "lightning",
        "jsonargparse",
        "mlflow",
        "pandas",
        "pyarrow",
        "safetensors",
    ]
    return [f"{name}=={metadata.version(name)}" for name in names]
