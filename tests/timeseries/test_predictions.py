"""From training to a forecast of next week's file: what the run keeps, and what serves it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import polars as pl
import pytest
import yaml
from forked_cli import ROOT, Server

from core.jobs.shards import load_predictions

# Of mlflow's own use of pandas when it loads a model.
pytestmark = pytest.mark.filterwarnings("ignore:Operation with range is deprecated")

LOOKBACK, HORIZON = 48, 12


def series(rows: int, offset: int = 0) -> pl.DataFrame:
    """Two hourly series of a daily shape, of different scale, with noise."""
    t = np.arange(offset, offset + rows)
    stamps = pl.Series(np.datetime64("2024-01-01", "us") + t * np.timedelta64(1, "h"))
    rng = np.random.default_rng(offset)
    parts = []
    for name, level, size in (("north", 5.0, 1.0), ("south@1", -300.0, 40.0)):
        y = level + size * (np.sin(2 * np.pi * t / 24) + 0.1 * rng.standard_normal(rows))
        parts.append(pl.DataFrame({"unique_id": [name] * rows, "ds": stamps, "y": y}))
    return pl.concat(parts)


@pytest.fixture(scope="module")
def folder(server: Server) -> Path:
    """A registered run on a file that is gone afterwards."""
    path = server.folder / "meters.parquet"
    series(600).write_parquet(path)
    code, said = server.run(
        *("fit", "--config", str(ROOT / "timeseries/configs/dlinear.yaml")),
        *("--data.path", "meters.parquet", "--trainer.max_epochs", "3"),
        *("--data.init_args.protocol.lookback", str(LOOKBACK)),
        *("--data.init_args.protocol.horizon", str(HORIZON)),
        *("--tracking.register_model", "true"),
    )
    assert code == 0, said
    path.unlink()
    return server.folder / said.split("run folder: ")[1].split("\n")[0]


@pytest.fixture(scope="module")
def rows(server: Server, folder: Path) -> pl.DataFrame:
    """Forecasts from the end of another file."""
    series(100, offset=600).write_csv(server.folder / "next.csv")
    code, said = server.run(
        *("predict", "--ckpt_path", str(folder), "--predictions.path", "rows"),
        *("--data.init_args.predict_path", "next.csv"),
    )
    assert code == 0, said
    return load_predictions(server.folder / "rows").collect()


def test_config_holds_the_sizes_of_the_data(folder: Path) -> None:
    task = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]
    assert (task["horizon"], task["channels"], task["season"]) == (HORIZON, 1, 24)
    assert task["model"]["init_args"]["lookback"] == LOOKBACK


def test_rows_follow_the_file_on_the_training_scale(rows: pl.DataFrame) -> None:
    assert len(rows) == 2 * HORIZON
    assert rows["id"].unique().sort().to_list() == [
        "north@2024-01-30T03:00:00.000000",
        "south@1@2024-01-30T03:00:00.000000",
    ]
    truth = series(700 + HORIZON).filter(pl.col("ds") > pl.datetime(2024, 1, 30, 3))
    both = rows.join(truth, left_on=["series", "stamp"], right_on=["unique_id", "ds"])
    assert len(both) == len(rows)
    errors = both.group_by("series").agg((pl.col("forecast") - pl.col("y")).abs().mean())
    found = dict(errors.iter_rows())
    assert found["north"] < 0.4
    assert found["south@1"] < 16
    assert (rows["lower_80"] < rows["upper_80"]).all()


def test_registered_model_gives_the_same_rows(
    server: Server, folder: Path, rows: pl.DataFrame
) -> None:
    records = [
        {
            "id": f"{name}@2024-01-30T03:00:00.000000",
            "series": name,
            "origin": "2024-01-30T03:00:00.000000",
            "values": [[value] for value in part["y"].to_list()[-LOOKBACK:]],
        }
        for (name,), part in series(100, offset=600).group_by("unique_id", maintain_order=True)
    ]
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(json.loads((folder / "run.json").read_text())["tracking_uri"])
    try:
        with warnings.catch_warnings():  # the model's code is this checkout, imported already
            warnings.simplefilter("ignore")
            model = mlflow.pyfunc.load_model("models:/toys.forecasting@champion")
        served = model.predict(pd.DataFrame(records))
    finally:
        mlflow.set_tracking_uri(before)
    for column in ("forecast", "lower_95", "upper_80"):
        assert np.allclose(served[column].to_numpy(float), rows[column].to_numpy(), atol=1e-5)
    assert served["step"].tolist() == rows["step"].to_list()
    assert served["stamp"].tolist() == rows["stamp"].to_list()


def with_price(rows: int, offset: int, ahead: int = 0) -> pl.DataFrame:
    """``series`` beside what is known of it; of the last ``ahead`` rows nothing else is."""
    table = series(rows + ahead, offset)
    row = pl.int_range(pl.len()).over("unique_id")
    price = (row + offset) % 7
    known = pl.when(row < rows).then(pl.col("y"))
    return table.with_columns(known.alias("y"), price.alias("price"), pl.lit("home").alias("kind"))


def test_registered_model_takes_covariates(server: Server) -> None:
    with_price(300, 0).write_csv(server.folder / "priced.csv")
    with_price(100, 300, ahead=HORIZON).write_csv(server.folder / "later.csv")
    data = "--data.init_args"
    code, said = server.run(
        *("fit", "--config", str(ROOT / "timeseries/configs/informer.yaml")),
        *("--model.init_args.model.init_args.dim", "8", f"{data}.path", "priced.csv"),
        *("--model.init_args.model.init_args.feedforward", "8", f"{data}.time", "ds"),
        *(f"{data}.series", "unique_id", "--trainer.max_epochs", "1"),
        *(f"{data}.known", "[price]", f"{data}.static", "[kind]"),
        *(f"{data}.protocol.lookback", str(LOOKBACK), f"{data}.protocol.horizon", str(HORIZON)),
        *("--tracking.register_model", "true", "--tracking.experiment", "priced"),
    )
    assert code == 0, said
    run = server.folder / said.split("run folder: ")[1].split("\n")[0]
    later = ("--predictions.path", "priced", f"{data}.predict_path", "later.csv")
    code, said = server.run("predict", "--ckpt_path", str(run), *later)
    assert code == 0, said
    rows = load_predictions(server.folder / "priced").collect()
    kept = json.loads((run / "run.json").read_text())
    records = []
    for (name,), part in with_price(100, 300, HORIZON).group_by("unique_id", maintain_order=True):
        origin = str(part["ds"].to_numpy()[-HORIZON - 1])
        records.append(
            {
                "id": f"{name}@{origin}",
                "series": name,
                "origin": origin,
                "values": [[y] for y in part["y"].drop_nulls().to_list()[-LOOKBACK:]],
                "known": [[float(x)] for x in part["price"].to_list()[-LOOKBACK - HORIZON :]],
            }
        )
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(kept["tracking_uri"])
    try:
        with warnings.catch_warnings():  # the model's code is this checkout, imported already
            warnings.simplefilter("ignore")
            versions = mlflow.MlflowClient().search_model_versions(f"run_id='{kept['run_id']}'")
            model = mlflow.pyfunc.load_model(f"models:/{versions[0].name}/{versions[0].version}")
        served = model.predict(pd.DataFrame(records))
    finally:
        mlflow.set_tracking_uri(before)
    assert model.metadata.get_input_schema().input_names()[-1] == "known"
    assert np.allclose(served["forecast"].to_numpy(float), rows["forecast"].to_numpy(), atol=1e-5)
    assert served["stamp"].tolist() == rows["stamp"].to_list()
