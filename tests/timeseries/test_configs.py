"""Every shipped config runs through the command line: fit, test and predict, a few steps each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import torch
from forked_cli import Server, metrics_of

from core.jobs.shards import load_predictions
from timeseries.studies import data_module, trains

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "timeseries" / "configs"
CONFIGS = sorted([*FOLDER.glob("*.yaml"), *FOLDER.glob("long_horizon/*.yaml")])
PRETRAINING = FOLDER / "masked_pretraining.yaml"
EVENTS = [c for c in CONFIGS if "tasks.EventModelling" in c.read_text()]  # test_event_runs.py
CLASSIFICATION = [c for c in CONFIGS if "SeriesClassification" in c.read_text()]
FILLING = [c for c in CONFIGS if c.stem in ("imputation", "anomalies")]
OTHERS = (PRETRAINING, *EVENTS, *CLASSIFICATION, *FILLING)
TRAINED = [c for c in CONFIGS if trains(c) and c not in OTHERS]
UNTRAINED = [c for c in CONFIGS if not trains(c)]
COVARIATES = FOLDER / "covariates.yaml"  # names columns of its own
FORECASTING = [c for c in (*TRAINED, *UNTRAINED, PRETRAINING) if c != COVARIATES]
# Shorter than shipped, to keep the test short.
FEW = ("--data.init_args.protocol.stride", "500", "--data.init_args.batch_size", "4")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Command lines in a folder where the sample lies as the configs name it."""
    server = Server.beside("timeseries", tmp_path_factory.mktemp("configs"))
    yield server
    server.close()


def run(server: Server, *words: str) -> str:
    code, output = server.run(*words)
    assert code == 0, output
    return output


def steps(server: Server, config: Path, *more: str) -> tuple[str, str]:
    """The run folder of a short fit, and what its test says."""
    few = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "2"]
    few += ["--trainer.limit_test_batches", "2"]
    given = ["--config", str(config), *FEW, *few, "--trainer.max_epochs", "1", *more]
    folder = run(server, "fit", *given).split("run folder: ")[1].split("\n")[0]
    assert (server.folder / folder / "checkpoints" / "best.ckpt").exists()
    return folder, run(server, "test", "--ckpt_path", folder, *few)


@pytest.mark.parametrize("config", TRAINED, ids=lambda c: f"{c.parent.name}/{c.stem}")
def test_forecaster_runs(config: Path, server: Server, tmp_path: Path) -> None:
    folder, tested = steps(server, config)
    for metric in ("mse", "mae_original", "mase", "mse_seasonal_naive", "coverage_80"):
        assert f"test/{metric} " in tested
    csv = tmp_path / "rows.csv"
    written = ["--predictions.path", str(tmp_path / "rows"), "--predictions.export", str(csv)]
    run(server, "predict", "--ckpt_path", folder, *written)
    rows = pl.read_csv(csv)
    assert len(rows) == 96 * rows["channel"].n_unique()
    assert rows["forecast"].is_finite().all()
    assert (rows["lower_80"] <= rows["forecast"]).all()
    if "q_10" in rows.columns:
        assert rows["q_10"].to_list() == rows["lower_80"].to_list()
        assert (rows["q_10"] <= rows["q_60"]).all()
    else:
        assert (rows["lower_95"] <= rows["lower_80"]).all()
    assert rows["actual"].null_count() == len(rows)


def meters(folder: Path) -> list[Path]:
    """300 hours of the sample: two channels as a long table, and as wide ones."""
    sample = pl.read_parquet(ROOT / "timeseries/samples/household_power.parquet").head(300)
    wide = sample.select("date", "voltage", "global_intensity")
    long = wide.rename({"date": "ds"}).unpivot(
        index="ds", variable_name="unique_id", value_name="y"
    )
    files = [folder / f"{name}.parquet" for name in ("long", "date", "ds")]
    for file, table in zip(files, (long, wide, wide.rename({"date": "ds"})), strict=True):
        table.write_parquet(file)
    return files


def test_readme_names_every_config_and_compares_forecasters() -> None:
    text = (ROOT / "timeseries" / "README.md").read_text()
    tables = "\n".join(line for line in text.splitlines() if line.startswith("| "))
    named = set(re.findall(r"`([a-z0-9_]+\.yaml)`", tables))
    named |= {c.name for c in CLASSIFICATION if "`..._classifier.yaml`" in tables}
    assert {c.name for c in CONFIGS if c.parent == FOLDER} <= named
    line = text.split("timeseries compare ")[1].split("\ntimeseries ")[0]
    first, braces, last = re.split(r"[{}]", line.split("--configs")[1].strip(" \\\n"))
    compared = [Path(f"{ROOT}/{first}{name}{last}") for name in braces.split(",")]
    assert set(compared) <= set(FORECASTING)


@pytest.mark.parametrize("config", FORECASTING, ids=lambda c: f"{c.parent.name}/{c.stem}")
def test_reads_another_table_by_its_path_alone(config: Path, tmp_path: Path) -> None:
    long, *wide = meters(tmp_path)
    names = ("voltage", "global_intensity")
    short = "--data.protocol.lookback=96"  # one config has more than these rows
    data = data_module(str(config), ["--data.path", str(long), short])
    assert {(one.name, one.channels) for one in data.series(long)} == {(n, ("y",)) for n in names}
    for file in wide:
        data = data_module(str(config), ["--data.path", str(file), short])
        assert [(one.name, one.channels) for one in data.series(file)] == [("table", names)]


def test_first_command(server: Server) -> None:
    meters(server.folder)[0].rename(server.folder / "meters.parquet")
    short = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1")
    short += ("--data.protocol.lookback", "48", "--data.protocol.horizon", "12")
    first = ("fit", "--config", "timeseries/configs/autoformer.yaml")
    run(server, *first, "--data.path", "meters.parquet", *short)
    code, said = server.run("fit", "--config", str(COVARIATES), "--data.path", "meters.parquet")
    assert code == 3
    assert "no column 'global_active_power'; it has ds, unique_id, y; " in said
    assert "--data.targets" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("config", CLASSIFICATION, ids=lambda c: c.stem)
def test_classifier_runs(config: Path, server: Server, tmp_path: Path) -> None:
    few = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
    said = run(server, "fit", "--config", str(config), *few)
    folder = said.split("run folder: ")[1].split("\n")[0]
    tested = run(server, "test", "--ckpt_path", folder)
    for metric in ("accuracy", "macro_f1_nearest_neighbour", "accuracy_at_50"):
        assert f"test/{metric} " in tested
    csv = tmp_path / "rows.csv"
    written = ["--predictions.path", str(tmp_path / "rows"), "--predictions.export", str(csv)]
    run(server, "predict", "--ckpt_path", folder, *written)
    rows = pl.read_csv(csv)
    assert rows["id"].to_list() == [f"test-{n:03d}" for n in range(1, 371)]
    chances = rows.select(pl.col("^probability_.*$"))
    assert chances.columns == [f"probability_{k}" for k in range(1, 10)]
    assert chances.sum_horizontal().is_close(1.0, abs_tol=1e-6).all()
    best = [max(range(9), key=row.__getitem__) + 1 for row in chances.iter_rows()]
    assert best == rows["prediction"].to_list()
    right = (rows["prediction"] == rows["actual"]).mean()
    assert f"test/accuracy {right:.4g} " in tested


def test_imputation_and_anomalies_run(server: Server, tmp_path: Path) -> None:
    short = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
    found = {}
    for config in FILLING:
        said = run(server, "fit", "--config", str(config), *short)
        folder = said.split("run folder: ")[1].split("\n")[0]
        found[config.stem] = run(server, "test", "--ckpt_path", folder)
        written = ["--predictions.path", str(tmp_path / config.stem)]
        run(server, "predict", "--ckpt_path", folder, *written)
    for metric in ("mse_points", "mae_outages_linear", "mse_blocks_seasonal_mean"):
        assert f"test/{metric} " in found["imputation"]
    for metric in ("auroc", "event_recall_z_score", "best_f1_seasonal_difference"):
        assert f"test/{metric} " in found["anomalies"]
    table = pl.read_parquet(ROOT / "timeseries/samples/household_power.parquet")
    filled, scored = (load_predictions(tmp_path / c).collect() for c in ("imputation", "anomalies"))
    keys = ["stamp", "channel"]
    assert len(filled.unique(keys)) == len(filled) == table.null_count().sum_horizontal().item()
    assert len(scored.unique(keys)) == len(scored) == 7 * len(table)
    assert scored["score"].null_count() == len(filled)


def test_pretraining_runs_and_a_forecaster_starts_from_it(server: Server) -> None:
    folder, tested = steps(server, PRETRAINING)
    assert "test/loss " in tested
    pretrained = ("--model.init_args.pretrained", folder)
    # no step moves the weights, so that they are those of the run it started from
    still = ("--model.init_args.optimisation.lr", "0.0")
    forecaster, _ = steps(server, FOLDER / "patchtsmixer.yaml", *pretrained, *still)
    before, after = (
        torch.load(server.folder / where / "checkpoints" / "best.ckpt")["state_dict"]
        for where in (folder, forecaster)
    )
    names = [name for name in before if name.startswith("model.encoder.")]
    assert names
    assert all(torch.equal(before[name], after[name]) for name in names)
    code, said = server.run(*("fit", "--config", str(FOLDER / "dlinear.yaml"), *FEW, *pretrained))
    assert code == 2
    assert f"DLinear has no encoder to start from {folder}" in said


@pytest.mark.parametrize("config", UNTRAINED, ids=lambda c: c.stem)
def test_untrained_runs(config: Path, server: Server, tmp_path: Path) -> None:
    one = ["--config", str(config), "--data.init_args.batch_size", "1"]
    one += ["--data.init_args.targets", "[global_active_power]"]
    said = run(server, "test", *one, "--trainer.limit_test_batches", "2")
    metrics = metrics_of(said)
    if config.stem == "seasonal_naive":
        assert metrics["test/mse"] == metrics["test/mse_seasonal_naive"]
    out = tmp_path / "rows"
    run(server, "predict", *one, "--predictions.path", str(out))
    assert load_predictions(out).collect()["forecast"].is_finite().all()
    code, said = server.run("fit", *one)
    assert code == 2
    assert "StatisticalForecaster has nothing to train" in said
