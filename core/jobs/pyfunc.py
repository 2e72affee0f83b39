"""The MLflow model of a task: the predictor of batch jobs behind ``mlflow.pyfunc``."""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pyarrow as pa
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array
from packaging.requirements import Requirement
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
    inputs = Schema([ColSpec(_input(k), column) for column, k in datamodule.input_columns.items()])
    outputs = None if example is None else _schema(Predictor(task, datamodule)(example))
    with tempfile.TemporaryDirectory() as folder:
        served = Path(folder) / "predictor"
        served.mkdir()
        (served / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (served / "data_state.json").write_text(json.dumps(datamodule.state_dict()) + "\n")
        save_model(task, str(served / "model.safetensors"))
        with _in_run(run_id):
            return mlflow.pyfunc.log_model(
                name="predictor",
                python_model=str(Path(__file__).with_name("served.py")),
                artifacts={"predictor": str(served)},
                code_paths=_without_samples(code_paths(config), Path(folder) / "code"),
                pip_requirements=requirements(config),
                signature=ModelSignature(inputs=inputs, outputs=outputs),
                input_example=None if example is None else pd.DataFrame(list(example)),
                registered_model_name=name,
            )


def _in_run(run_id: str) -> AbstractContextManager[Any]:
    active = mlflow.active_run()
    if active is not None and active.info.run_id == run_id:
        return nullcontext()
    return mlflow.start_run(run_id=run_id, nested=active is not None)


def build(config: Mapping[str, Any]) -> tuple[LightningModule, RecordDataModule]:
    """The task and data module that ``config`` describes, the task with fresh weights."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model")
    parser.add_subclass_arguments(RecordDataModule, "data")
    # jsonargparse puts its own objects into what it is given
    objects = parser.instantiate(parser.parse_object(copy.deepcopy(dict(config))))
    return objects.model, objects.data


class PredictorModel(PythonModel):
    """Rebuilds task and data module when it is loaded; a table of records in, of rows out."""

    def load_context(self, context: Any) -> None:
        folder = Path(context.artifacts["predictor"])
        task, datamodule = build(json.loads((folder / "config.json").read_text()))
        load_model(task, str(folder / "model.safetensors"))
        state = json.loads((folder / "data_state.json").read_text())
        if state:
            datamodule.load_state_dict(state)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.predictor = Predictor(task.to(device), datamodule)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        return _frame(self.predictor(model_input))


def _frame(table: pa.Table) -> pd.DataFrame:
    """With None for a null: pandas's own NaN is no value in JSON, and turns whole numbers into
    fractions."""
    frame = table.to_pandas()
    for name in table.column_names:
        if table[name].null_count:
            frame[name] = pd.Series(table[name].to_pylist(), dtype=object)
    return frame


def _schema(table: pa.Table) -> Schema:
    """MLflow cannot tell the type of a column from nulls alone; Arrow knows it."""
    given = ("record", "id")
    return Schema([ColSpec(_type(f.type), f.name, required=f.name in given) for f in table.schema])


def _input(kind: str) -> DataType | Array:
    """``double[][]`` as MLflow has it."""
    return Array(_input(kind[:-2])) if kind.endswith("[]") else DataType[kind]


def _type(kind: pa.DataType) -> DataType | Array:
    if pa.types.is_list(kind):
        return Array(_type(kind.value_type))
    if pa.types.is_boolean(kind):
        return DataType.boolean
    if pa.types.is_integer(kind):
        return DataType.long
    if pa.types.is_timestamp(kind):
        return DataType.datetime
    if pa.types.is_floating(kind):
        return DataType.float if kind.bit_width < 64 else DataType.double
    return DataType.string


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


def _without_samples(paths: Sequence[str], folder: Path) -> list[str]:
    """Copies of ``paths`` in ``folder``, without sample data and compiled files."""
    folder.mkdir()
    for path in map(Path, paths):
        if path.is_dir():
            left_out = shutil.ignore_patterns("samples", "__pycache__")
            shutil.copytree(path, folder / path.name, ignore=left_out)
        else:
            shutil.copy(path, folder)
    return [str(copy) for copy in sorted(folder.iterdir())]


def _class_paths(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(value.get("class_path"), str):
            yield value["class_path"]
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _class_paths(item)


def requirements(config: Mapping[str, Any]) -> list[str] | None:
    """This project's dependencies, with the extras named like the packages in ``config``, at the
    versions installed here. None, so that MLflow infers them, if the project is not installed."""
    extras = {"", *(path.split(".")[0] for path in _class_paths(config))}
    try:
        lines = metadata.requires(_OURS) or []
    except metadata.PackageNotFoundError:
        return None
    pinned = []
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
            # A local build's tag (+cu130) is not a version that an index knows.
            version = metadata.version(requirement.name).split("+")[0]
            pinned.append(f"{requirement.name}=={version}")
    return pinned
