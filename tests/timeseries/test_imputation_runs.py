"""Imputation at the command line: rows for what is missing, metrics that the rows bear out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import polars as pl
import pytest
from forked_cli import ROOT, Server, metrics_of

from core.jobs.shards import load_predictions

# Of mlflow's own use of pandas when it loads a model.
pytestmark = pytest.mark.filterwarnings("ignore:Operation with range is deprecated")

DATA = "--data.init_args"
ROWS = {"north": 500, "south": 400}
SMALL = (
    *("--config", str(ROOT / "timeseries/configs/imputation.yaml"), f"{DATA}.time", "ds"),
    *(f"{DATA}.series", "unique_id", f"{DATA}.targets", "[x, y]", "--trainer.max_epochs", "1"),
    *("--model.init_args.model.init_args.backbone.init_args.dim", "8"),
    *(f"{DATA}.tiling.length", "48", f"{DATA}.tiling.overlap", "24"),
)


def table(seed: int = 0) -> pl.DataFrame:
    """Two hourly series of other scales with a daily shape, empty cells and missing rows."""
    random, parts = np.random.default_rng(seed), []
    for level, (name, rows) in enumerate(ROWS.items(), 1):
        t = np.arange(rows)
        stamps = np.datetime64("2024-01-01", "us") + t * np.timedelta64(1, "h")
        y = np.sin(2 * np.pi * t / 24)[:, None] + 0.2 * random.standard_normal((rows, 2))
        y = 100 * level + 10**level * y
        y[random.random((rows, 2)) < 0.05] = np.nan
        columns = {"unique_id": [name] * rows, "ds": stamps, "x": y[:, 0], "y": y[:, 1]}
        parts.append(pl.DataFrame(columns).filter(pl.Series((t < 200) | (t > 260))))
    return pl.concat(parts).fill_nan(None)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("gaps"))
    table().write_csv(server.folder / "x.csv")
    yield server
    server.close()


def run(server: Server, *words: str) -> str:
    code, said = server.run(*words)
    assert code == 0, said
    return said


@pytest.fixture(scope="module")
def folder(server: Server) -> str:
    given = (*SMALL, f"{DATA}.path", "x.csv", "--tracking.register_model", "true")
    return run(server, "fit", *given).split("run folder: ")[1].split("\n")[0]


def whole() -> pl.DataFrame:
    """What stands at each stamp and channel, empty cells and missing rows too."""
    parts = []
    for name, rows in ROWS.items():
        stamps = np.datetime64("2024-01-01", "us") + np.arange(rows) * np.timedelta64(1, "h")
        grid = pl.DataFrame({"series": [name] * rows, "stamp": stamps})
        known = table().rename({"unique_id": "series", "ds": "stamp"})
        parts.append(grid.join(known, ["series", "stamp"], how="left", maintain_order="left"))
    long = pl.concat(parts).unpivot(["x", "y"], index=["series", "stamp"], variable_name="channel")
    return long.with_columns(pl.int_range(pl.len()).over("series", "channel").alias("row"))


KEYS = ["series", "stamp", "channel"]


def test_every_missing_value_has_one_row(server: Server, folder: str) -> None:
    given = ("predict", "--ckpt_path", folder, "--predictions.path", "rows")
    run(server, *given, "--predictions.rows_per_shard", "3", "--predictions.export", "rows.csv")
    rows = load_predictions(server.folder / "rows").collect()
    missing = whole().filter(pl.col("value").is_null())
    assert rows.select(KEYS).sort(KEYS).equals(missing.select(KEYS).sort(KEYS))
    assert rows["imputed"].is_finite().all()
    assert rows["actual"].null_count() == len(rows)
    assert len(pl.read_csv(server.folder / "rows.csv")) == len(rows)
    for name, level in (("north", 100), ("south", 200)):
        some = rows.filter(pl.col("series") == name)["imputed"]
        assert abs(some.mean() - level) < level / 2  # type: ignore[operator]


def test_a_job_that_was_cut_off_goes_on(server: Server, folder: str) -> None:
    given = ("predict", "--ckpt_path", folder, "--predictions.path", "again")
    given = (*given, "--predictions.rows_per_shard", "3")
    run(server, *given)
    before = load_predictions(server.folder / "again").collect()
    shards = sorted((server.folder / "again").glob("*.parquet"))
    times = {shard: shard.stat().st_mtime_ns for shard in shards}
    shards[1].unlink()
    (server.folder / "again" / "_SUCCESS").unlink()
    run(server, *given)
    assert load_predictions(server.folder / "again").collect().equals(before)
    kept = [shard for shard in shards if shard.stat().st_mtime_ns == times[shard]]
    assert kept == [shard for shard in shards if shard != shards[1]]


def test_metrics_are_those_of_the_rows(server: Server, folder: str) -> None:
    said = run(server, "test", "--ckpt_path", folder)
    metrics = metrics_of(said)
    given = ("predict", "--ckpt_path", folder, "--predictions.path", "hidden")
    run(server, *given, f"{DATA}.fill", "test")
    rows = load_predictions(server.folder / "hidden").collect()
    truth = whole().drop_nulls()
    both = rows.join(truth, on=KEYS)
    assert len(both) == len(rows)  # nothing that is missing was hidden
    assert rows.group_by("mask", *KEYS).len()["len"].max() == 1
    assert both["actual"].to_list() == pytest.approx(both["value"].to_list())
    size = pl.col("series").replace_strict(ROWS, return_dtype=pl.Int64)
    assert both.select((pl.col("row") >= (size * 0.8).floor()).all()).item()
    train = truth.filter(pl.col("row") < (size * 0.7).floor())
    std = train.group_by("series", "channel").agg(pl.col("value").std(ddof=0).alias("std"))
    error = (pl.col("imputed") - pl.col("value")).abs()
    both = both.join(std, on=["series", "channel"]).with_columns(
        error.alias("mae_original"),
        (error**2).alias("mse_original"),
        (error / pl.col("std")).alias("mae"),
        ((error / pl.col("std")) ** 2).alias("mse"),
    )
    for measure in ("mse", "mae", "mse_original", "mae_original"):
        expected = both[measure].mean()
        assert float(metrics[f"test/{measure}"]) == pytest.approx(expected, rel=1e-3)
    for mask, part in both.group_by("mask"):
        expected = part["mae"].mean()
        assert float(metrics[f"test/mae_{mask[0]}"]) == pytest.approx(expected, rel=1e-3)
        for baseline in ("linear", "previous", "seasonal_naive", "seasonal_mean"):
            assert f"test/mse_{mask[0]}_{baseline}" in metrics
    [file] = (server.folder / "runs").rglob("test_by_mask.csv")
    by_channel = pl.read_csv(file).filter(pl.col("method") == "model")
    wanted = both.group_by("mask", "channel").agg(pl.len(), pl.col("mse_original").mean())
    pair = by_channel.join(wanted, on=["mask", "channel"])
    assert len(pair) == len(by_channel) == len(wanted) == 6
    assert pair["values"].to_list() == pair["len"].to_list()
    assert np.allclose(pair["mse_original"], pair["mse_original_right"], rtol=1e-4)


def test_the_registered_model_fills_in_alike(server: Server, folder: str) -> None:
    part = whole().filter((pl.col("series") == "north") & (pl.col("row") < 48))
    values = part.pivot("channel", index="stamp", values="value").select("x", "y")
    record = {
        "id": "north",
        "series": "north",
        "start": "2024-01-01T00:00:00",
        "values": values.fill_null(float("nan")).to_numpy().tolist(),
    }
    before = mlflow.get_tracking_uri()
    kept = json.loads((server.folder / folder / "run.json").read_text())
    mlflow.set_tracking_uri(kept["tracking_uri"])
    try:
        with warnings.catch_warnings():  # the model's code is this checkout, imported already
            warnings.simplefilter("ignore")
            model = mlflow.pyfunc.load_model("models:/toys.imputation@champion")
        served = model.predict(pd.DataFrame([record]))
    finally:
        mlflow.set_tracking_uri(before)
    assert len(served) == values.null_count().sum_horizontal()[0]
    rows = load_predictions(server.folder / "rows").collect()
    served = pl.DataFrame(served[["stamp", "channel", "imputed"]])
    first = rows.filter((pl.col("series") == "north") & (pl.col("record") == 0))
    pair = first.join(served, on=["stamp", "channel"])
    assert len(pair) == len(first)
    assert np.allclose(pair["imputed"], pair["imputed_right"].cast(pl.Float64), rtol=1e-5)


def test_a_short_series_and_another_file_are_filled_in(server: Server, folder: str) -> None:
    text = "unique_id,ds,x,y\nnorth,2025-01-01 00:00,100,\nnorth,2025-01-01 02:00,,103\n"
    (server.folder / "short.csv").write_text(text)
    given = ("predict", "--ckpt_path", folder, "--predictions.path", "short")
    run(server, *given, f"{DATA}.predict_path", "short.csv", f"{DATA}.frequency", "1h")
    rows = load_predictions(server.folder / "short").collect().sort("stamp", "channel")
    found = [(str(stamp)[11:13], channel) for stamp, channel in rows.select(KEYS[1:]).rows()]
    assert found == [("00", "y"), ("01", "x"), ("01", "y"), ("02", "x")]


BAD = {
    "infinite": (("north,2024-01-01 03:00,inf,1", 3), "x is infinite"),
    "text": (("north,2024-01-01 03:00,much,1", 3), "x 'much' is not a number"),
    "off the grid": (("north,2024-01-01 03:20,1,1", 3), "is off the grid of 1h"),
}


def good_rows() -> list[str]:
    return [f"north,2024-01-{1 + h // 24:02d} {h % 24:02d}:00,{h % 7},{h % 5}" for h in range(300)]


def refused(server: Server, tmp_path: Path, code: int, *more: str) -> str:
    given = (*SMALL, f"{DATA}.path", str(tmp_path / "x.csv"))
    found, said = server.run("fit", *given, "--tracking.root", str(tmp_path / "runs"), *more)
    assert found == code, said
    [line] = [line for line in said.splitlines() if not line.startswith("warning: ")]
    assert line.startswith("error: ")
    assert not (tmp_path / "runs").exists()
    return line


@pytest.mark.parametrize(("row", "message"), BAD.values(), ids=BAD)
def test_bad_rows(server: Server, tmp_path: Path, row: tuple[str, int], message: str) -> None:
    rows = good_rows()
    rows[row[1]] = row[0]
    (tmp_path / "x.csv").write_text("\n".join(["unique_id,ds,x,y", *rows]))
    assert message in refused(server, tmp_path, 3)


def test_bad_files(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("")
    assert f"{file}: the file is empty" in refused(server, tmp_path, 3)
    rows = [row.rpartition(",")[0] + "," for row in good_rows()]
    file.write_text("\n".join(["unique_id,ds,x,y", *rows]))
    assert "series 'north' has no value of y; leave the channel" in refused(server, tmp_path, 3)
    rows = [*rows[:-1], good_rows()[-1]]
    file.write_text("\n".join(["unique_id,ds,x,y", *rows]))
    assert "has no value of y in the training span" in refused(server, tmp_path, 3)


def test_a_span_without_hidden_values_names_the_file(
    server: Server, folder: str, tmp_path: Path
) -> None:
    """The file to predict, which is another than that of training."""
    file = tmp_path / "next.csv"
    file.write_text("unique_id,ds,x,y\nnorth,2025-01-01 00:00,1,1\nnorth,2025-01-01 01:00,1,1\n")
    given = ("predict", "--ckpt_path", folder, "--predictions.path", str(tmp_path / "rows"))
    given = (*given, f"{DATA}.predict_path", str(file), f"{DATA}.fill", "test")
    code, said = server.run(*given, f"{DATA}.tiling.train_end", "1", f"{DATA}.tiling.val_end", "2")
    assert code == 3, said
    assert f"error: {file}: no value of the test span is hidden as points" in said
    assert not (tmp_path / "rows").exists()


def test_windows_of_another_length_than_in_training_are_refused(
    server: Server, folder: str, tmp_path: Path
) -> None:
    given = ("predict", "--ckpt_path", folder, "--predictions.path", str(tmp_path / "rows"))
    given = (*given, f"{DATA}.tiling.length", "36", "--tracking.root", str(tmp_path / "runs"))
    code, said = server.run(*given)
    assert code == 2, said
    (line,) = said.splitlines()
    assert "data.tiling.length is 36, and the model was trained with 48; give that" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("tiling.overlap", "48", "data.tiling.overlap is 48"),
        ("tiling.train_end", "1000", "the borders of data.tiling are rows 1000"),
        ("masks.rate", "1.5", "data.masks.rate is 1.5"),
        ("masks.kinds", "[holes]", "holes"),
        ("policies.missing", "guess", "guess"),
        ("policies.short", "skip", "data.policies.short: no series is too short"),
    ],
)
def test_bad_settings(
    server: Server, tmp_path: Path, option: str, value: str, message: str
) -> None:
    (tmp_path / "x.csv").write_text("\n".join(["unique_id,ds,x,y", *good_rows()]))
    assert message in refused(server, tmp_path, 2, f"{DATA}.{option}", value)


def test_other_policies_keep_gaps(server: Server, tmp_path: Path) -> None:
    """One policy alone leaves the others as they are."""
    rows = [*good_rows()[:100], *good_rows()[110:], good_rows()[-1]]
    (tmp_path / "x.csv").write_text("\n".join(["unique_id,ds,x,y", *rows]))
    said = refused(server, tmp_path, 3)
    assert "stands there twice" in said
    run(
        *(server, "fit", *SMALL, f"{DATA}.path", str(tmp_path / "x.csv")),
        *(f"{DATA}.policies.duplicates", "last", "--tracking.root", str(tmp_path / "runs")),
    )


def test_a_forecast_refuses_to_keep_gaps(server: Server) -> None:
    config = str(ROOT / "timeseries/configs/dlinear.yaml")
    given = ("--config", config, f"{DATA}.path", "x.csv", f"{DATA}.policies.missing", "keep")
    code, said = server.run("fit", *given)
    assert code == 2
    assert "data.policies: a forecast needs every value" in said
