"""compare and backtest as users run them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import mlflow
import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure

from core.jobs.studies import Trial, _digests
from timeseries import studies
from timeseries.data.forecasts import ForecastWindows
from timeseries.data.protocol import Protocol
from timeseries.data.series import Policies
from timeseries.studies import folds

ROOT = Path(__file__).parents[2]
HOUR = timedelta(hours=1)
# Of mlflow's own use of sqlalchemy.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")

DLINEAR = str(ROOT / "timeseries" / "configs" / "dlinear.yaml")
SMALL = (
    *("--data.init_args.path", "power.parquet", "--data.init_args.protocol.lookback", "48"),
    *("--data.init_args.protocol.stride", "7", "--trainer.max_epochs", "1"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first 1,000 hours of the sample, wide."""
    folder = tmp_path_factory.mktemp("studies")
    sample = pl.read_parquet(ROOT / "timeseries" / "samples" / "household_power.parquet")
    sample.head(1_000).write_parquet(folder / "power.parquet")
    return folder


def timeseries(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)  # another test of this process may have set it
    return subprocess.run(
        [sys.executable, "-m", "timeseries", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment,
    )


def test_compare_goes_on_behind_finished_rows(folder: Path) -> None:
    words = ("compare", "--configs", DLINEAR, "--seeds", "0", "1", "--horizons", "12", *SMALL)
    done = timeseries(folder, *words)
    assert done.returncode == 0, done.stderr
    table = pl.read_csv(folder / "compare.csv")
    assert table.select("model", "horizon", "seed").rows() == [
        ("dlinear", 12, 0),
        ("dlinear", 12, 1),
    ]
    assert "dlinear" in done.stdout.splitlines()[-2]
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    run = client.get_run(table["run_id"][0])
    assert run.data.metrics["test/mse"] == pytest.approx(table["mse"][0])
    fit = client.get_run(run.data.tags["mlflow.parentRunId"])
    parent = client.get_run(fit.data.tags["mlflow.parentRunId"])
    assert parent.info.status == "FINISHED"
    kept = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert kept == {"compare.csv", "plots"}

    table.filter(pl.col("seed") == 1).write_csv(folder / "compare.csv")
    again = timeseries(folder, *words)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("compare ") == 1
    redone = pl.read_csv(folder / "compare.csv").sort("seed")
    assert np.allclose(redone["mse"], table["mse"], rtol=1e-6)


def test_finished_rows_of_other_settings_or_data_are_not_taken_for_these(folder: Path) -> None:
    power = pl.read_parquet(folder / "power.parquet")
    power.write_parquet(folder / "moved.parquet")
    words = ["compare", "--configs", DLINEAR, "--horizons", "12", "--out", "own.csv", *SMALL]
    words[words.index("power.parquet")] = "moved.parquet"
    assert timeseries(folder, *words).returncode == 0
    table = (folder / "own.csv").read_bytes()
    joined = [*words[:-2], f"{words[-2]}={words[-1]}"]  # the same, written otherwise
    assert timeseries(folder, *joined).returncode == 0

    other = timeseries(folder, *words, "--trainer.max_epochs", "2")
    power.select(pl.col("date"), pl.exclude("date") * 2).write_parquet(folder / "moved.parquet")
    for done in (other, timeseries(folder, *words)):
        assert done.returncode == 2, done.stdout
        what = "own.csv: holds model dlinear, horizon 12, seed 0 with other settings or data"
        assert what in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert (folder / "own.csv").read_bytes() == table


@pytest.mark.parametrize("place", ["whole path", "folder beside it", "folder in the config"])
def test_rows_of_a_file_that_changed_are_known_wherever_it_lies(tmp_path: Path, place: str) -> None:
    file, config = tmp_path / "x.csv", tmp_path / "x.yaml"
    config.write_text("data:\n  folder: elsewhere\n  path: x.csv\n")
    arguments = ["--config", str(config), "--data.path", str(file)]
    if place == "folder beside it":
        arguments = ["--config", str(config), f"--data.folder={tmp_path}", "--data.path=x.csv"]
    elif place == "folder in the config":
        config.write_text(f"data:\n  folder: {tmp_path}\n  path: x.csv\n")
        arguments = ["--config", str(config)]
    trial = Trial(labels={"seed": 0}, arguments=tuple(arguments))
    digests = []
    for text in ("ds,y\n", "ds,y\n", "ds,z\n"):
        file.write_text(text)
        digests += _digests([trial])
    assert digests[0] == digests[1] != digests[2]


def test_backtest_moves_the_borders_forward(folder: Path) -> None:
    horizon = ("--data.init_args.protocol.horizon", "12")
    folds = ("--folds", "2", "--span", "60")
    done = timeseries(folder, "backtest", "--config", DLINEAR, *folds, *horizon, *SMALL)
    assert done.returncode == 0, done.stderr
    table = pl.read_csv(folder / "backtest.csv")
    stamps = pl.read_parquet(folder / "power.parquet")["date"]
    assert table["test_end"].to_list() == [str(stamps[940]), str(stamps[999] + HOUR)]
    assert table["series"].to_list() == [1, 1]
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    params = client.get_run(table["run_id"][0]).data.params
    borders = [params[f"data.init_args.protocol.{k}_end"] for k in ("train", "val", "test")]
    assert borders == [str(stamps[row]) for row in (820, 880, 940)]

    fit = client.get_run(client.get_run(table["run_id"][0]).data.tags["mlflow.parentRunId"])
    parent = fit.data.tags["mlflow.parentRunId"]
    drawn = {file.path for file in client.list_artifacts(parent, "plots")}
    assert drawn == {"plots/backtest.png", "plots/backtest_by_horizon.png"}
    stored = client.download_artifacts(parent, "tables/backtest_by_horizon.csv")
    by_step = pl.read_csv(stored)
    assert by_step["step"].to_list() == list(range(1, 13))
    assert by_step["windows"].unique().to_list() == [2 * (60 - 12 + 1)]
    for kind in ("mse", "mae_original", "mase", "mse_seasonal_naive", "coverage_80"):
        assert by_step[kind].mean() == pytest.approx(table[kind].mean(), rel=1e-5), kind


def test_backtest_shows_its_own_folds_alone(folder: Path) -> None:
    """Not those of another number of folds, or of another model, in the same table."""
    words = ["backtest", "--config", DLINEAR, "--span", "60", "--out", "two.csv", *SMALL]
    words += ["--data.init_args.protocol.horizon", "12", "--folds"]
    for count in ("1", "2"):
        done = timeseries(folder, *words, count)
        assert done.returncode == 0, done.stderr
    assert len(pl.read_csv(folder / "two.csv")) == 3
    assert sum(" 0          ┆" in line for line in done.stdout.splitlines()) == 2
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("timeseries/backtest")
    assert experiment is not None
    parent = client.search_runs([experiment.experiment_id], order_by=["start_time DESC"])[0]
    stored = client.download_artifacts(parent.info.run_id, "tables/backtest_by_horizon.csv")
    assert pl.read_csv(stored)["folds"].unique().to_list() == [2]


def test_backtest_of_unequal_series_goes_by_stamps(folder: Path) -> None:
    """The test spans are those of the longest series; others take part where they have room."""
    start = datetime(2024, 1, 1)
    spans = {"long": (0, 400), "ended": (0, 310), "late": (250, 400), "new": (370, 400)}
    rows = [
        (name, start + hour * HOUR, float((7 * hour) % 24 + len(name)))
        for name, (first, end) in spans.items()
        for hour in range(first, end)
    ]
    table = pl.DataFrame(rows, ["unique_id", "ds", "y"], orient="row")
    table.write_parquet(folder / "unequal.parquet")
    words = ["backtest", "--config", DLINEAR, "--folds", "2", "--span", "40", "--out", "u.csv"]
    words += [f"--data.init_args.{key}" for key in ("path=unequal.parquet", "time=ds")]
    words += ["--data.init_args.series=unique_id", "--trainer.max_epochs=1"]
    words += [f"--data.init_args.protocol.{key}" for key in ("lookback=24", "horizon=6")]
    done = timeseries(folder, *words)
    assert done.returncode == 0, done.stderr
    ends = [str(start + hour * HOUR) for hour in (280, 320, 360, 400)]
    found = pl.read_csv(folder / "u.csv")
    assert found["test_end"].to_list() == ends[2:]
    # "late" has 30 rows before hour 280, "ended" none from hour 320 on
    assert found.select("series", "not_tested").rows() == [(2, 2), (2, 2)]
    for fold in (1, 2):
        for name, why in (("new", "begin too late to train on"), ("ended", "have ended by then")):
            said = f"unequal.parquet: fold {fold}, tested from {ends[fold]}, leaves out 1 of 4 "
            assert f"warning: {said}series that {why}, first {name!r}" in done.stderr


def test_folds_of_numbered_stamps(tmp_path: Path) -> None:
    rows = [("a", n, 1.0) for n in range(100, 200)] + [("b", n, 1.0) for n in range(60, 170)]
    pl.DataFrame(rows, ["unique_id", "ds", "y"], orient="row").write_csv(tmp_path / "x.csv")
    data = ForecastWindows(str(tmp_path / "x.csv"), protocol=Protocol(10, 5))
    found = folds(data, tmp_path / "x.csv", 2, 20)
    assert [fold.borders for fold in found] == [
        {"train_end": "stamp 140", "val_end": "stamp 160", "test_end": "stamp 180"},
        {"train_end": "stamp 160", "val_end": "stamp 180", "test_end": "stamp 200"},
    ]
    assert [fold[1:] for fold in found] == [(2, 0, 0), (1, 0, 1)]
    cut = replace(data.protocol, **found[0].borders)  # type: ignore[arg-type]
    a, b = data.series(tmp_path / "x.csv")
    # stamps [160, 180): of "b" the last 10 are missing
    assert [len(cut.origins(one, "test")) for one in (a, b)] == [20 - 5 + 1, 10 - 5 + 1]
    assert cut.spans(a)["test"] == (60, 80)
    assert cut.spans(b)["test"] == (100, 110)


@pytest.mark.filterwarnings("ignore:.*data.policies.gaps:timeseries.data.repairs.RepairWarning")
def test_folds_of_closed_gaps_count_rows(tmp_path: Path) -> None:
    days = np.arange(
        np.datetime64("2024-01-01", "us"), np.datetime64("2024-05-01", "us"), 24 * HOUR
    )
    days = days[np.is_busday(days.astype("datetime64[D]"))]
    pl.DataFrame({"ds": days, "y": np.arange(len(days))}).write_csv(tmp_path / "x.csv")
    path = tmp_path / "x.csv"
    data = ForecastWindows(str(path), protocol=Protocol(10, 8), policies=Policies(gaps="close"))
    (one,) = data.all_series(path)
    for k, fold in enumerate(folds(data, path, 3, 9)):
        cut = replace(data.protocol, **fold.borders)
        end = len(days) - 9 * (2 - k)
        assert cut.spans(one) == {
            "train": (0, end - 18),
            "val": (end - 18, end - 9),
            "test": (end - 9, end),
        }


def test_comparison_has_one_seasonal_naive_and_no_legend_on_bars(tmp_path: Path) -> None:
    models = {"dlinear": 0.5, "seasonal_naive": 1.0, "a_name_that_is_rather_long": 1.2}
    rows = [
        {"model": model, "horizon": horizon, "seed": 0, "mse": mse, "mse_seasonal_naive": 1.0}
        for horizon in (96, 192)
        for model, mse in models.items()
    ]
    table = pl.DataFrame(rows).with_columns(mae=1.0, mase=1.0, seconds=1.0)
    figure = studies.comparison_figure(table)
    (legend,) = figure.legends
    named = [text.get_text() for text in legend.get_texts()]
    assert sorted(named) == ["a_name_that_is_rather_long", "dlinear", "seasonal naive"]
    (axes,) = figure.axes
    assert len(axes.patches) == 4
    figure.savefig(tmp_path / "compare.png")
    assert legend.get_window_extent().x0 >= axes.get_window_extent().x1
    alone = studies.comparison_figure(table.filter(pl.col("model") == "seasonal_naive"))
    assert len(alone.axes[0].patches) == 2


def test_folds_count_by_their_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    # by step and window
    errors = {"one": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], "two": [[7.0], [80.0]]}

    def logged(run: str, path: str) -> pl.DataFrame | None:
        assert path == "tables/test_by_horizon.csv"
        if run not in errors:
            return None
        windows, mse = len(errors[run][0]), [np.mean(step) for step in errors[run]]
        naive, alone = [2 * x for x in mse], ({"coverage_80": [0.5, 1.0]} if run == "one" else {})
        columns = {"mse": mse, "mse_seasonal_naive": naive, **alone}
        return pl.DataFrame({"step": [1, 2], "windows": [windows] * 2, **columns})

    monkeypatch.setattr(studies, "logged_table", logged)
    table = pl.DataFrame({"model": "m", "fold": [1, 2, 3], "run_id": ["one", "two", "gone"]})
    found = studies.backtest_by_horizon(table)
    by_step = found["tables/backtest_by_horizon.csv"]
    assert isinstance(by_step, pl.DataFrame)
    pooled = [np.mean([*a, *b]) for a, b in zip(errors["one"], errors["two"], strict=True)]
    assert by_step["mse"].to_list() == pytest.approx(pooled)
    assert by_step["mse_seasonal_naive"].to_list() == pytest.approx([2 * x for x in pooled])
    assert by_step["coverage_80"].to_list() == [0.5, 1.0]
    assert by_step["folds"].to_list() == [2, 2]
    figure = found["plots/backtest_by_horizon.png"]
    assert isinstance(figure, Figure)
    assert len(figure.axes[0].lines) == 2 + 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("compare",), "the following arguments are required: --configs"),
        (("compare", "--configs", "gone.yaml"), "config gone.yaml cannot be read"),
        (("backtest", "--config", DLINEAR, "--folds", "99", *SMALL), "99 folds of 96 rows"),
    ],
)
def test_wrong_use_is_one_line(folder: Path, words: tuple[str, ...], said: str) -> None:
    done = timeseries(folder, *words, "--out", "new.csv")
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (folder / "new.csv").exists()
