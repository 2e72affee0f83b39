"""Anomaly scores at the command line: a row for every stamp and channel, metrics as in sklearn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from forked_cli import ROOT, Server, metrics_of
from sklearn.metrics import average_precision_score, roc_auc_score

from core.jobs.shards import load_predictions

DATA, ROWS = "--data.init_args", 1200
TRAIN, VAL = 700, 900
SMALL = (
    *("--config", str(ROOT / "timeseries/configs/anomalies.yaml"), f"{DATA}.time", "ds"),
    *(f"{DATA}.series", "unique_id", f"{DATA}.targets", "[x, y]", "--trainer.max_epochs", "2"),
    *("--model.init_args.model.init_args.backbone.init_args.dim", "8"),
    *(f"{DATA}.tiling.length", "48", f"{DATA}.tiling.overlap", "24"),
    *(f"{DATA}.tiling.train_end", str(TRAIN), f"{DATA}.tiling.val_end", str(VAL)),
    *("--model.init_args.false_alarms", "0.01", f"{DATA}.inject", "null"),
)


def table(names: tuple[str, ...] = ("a", "b")) -> pl.DataFrame:
    """Two hourly series of a daily shape, with empty cells, and spikes at labelled rows of the
    test span, which ``odd`` marks; it is empty where nobody knows."""
    random, parts = np.random.default_rng(0), []
    for level, name in enumerate("ab", 1):
        t = np.arange(ROWS)
        stamps = np.datetime64("2024-01-01", "us") + t * np.timedelta64(1, "h")
        y = np.sin(2 * np.pi * t / 24)[:, None] + 0.2 * random.standard_normal((ROWS, 2))
        odd = np.zeros(ROWS)
        places = random.choice(np.arange(VAL + 30, ROWS - 30), 20, replace=False)
        odd[places] = 1
        y[places, random.integers(0, 2, 20)] += 2
        y[random.random((ROWS, 2)) < 0.02] = np.nan
        odd[VAL + 3 : VAL + 9] = np.nan
        y = 100 * level + 10**level * y
        columns = {"unique_id": [name] * ROWS, "ds": stamps, "x": y[:, 0], "y": y[:, 1]}
        parts.append(pl.DataFrame({**columns, "odd": odd}).fill_nan(None))
    return pl.concat(parts)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("odd"))
    table().write_parquet(server.folder / "x.parquet")
    row = pl.int_range(pl.len()).over("unique_id")
    table().filter(row >= VAL).drop("odd").write_csv(server.folder / "later.csv")
    yield server
    server.close()


def run(server: Server, *words: str) -> str:
    code, said = server.run(*words)
    assert code == 0, said
    return said


@pytest.fixture(scope="module")
def folder(server: Server) -> str:
    given = (*SMALL, f"{DATA}.path", "x.parquet", f"{DATA}.labels", "odd")
    return run(server, "fit", *given).split("run folder: ")[1].split("\n")[0]


@pytest.fixture(scope="module")
def rows(server: Server, folder: str) -> pl.DataFrame:
    """Of the test span as a file of its own, without labels."""
    given = ("predict", "--ckpt_path", folder, "--predictions.path", "rows")
    export = ("--predictions.export", "rows.csv", "--predictions.rows_per_shard", "4")
    run(server, *given, *export, f"{DATA}.predict_path", "later.csv")
    return load_predictions(server.folder / "rows").collect()


def test_every_stamp_and_channel_has_one_row(rows: pl.DataFrame) -> None:
    row = pl.int_range(pl.len()).over("unique_id")
    wanted = table().filter(row >= VAL).rename({"unique_id": "series", "ds": "stamp"})
    long = wanted.unpivot(["x", "y"], index=["series", "stamp"], variable_name="channel")
    keys = ["series", "stamp", "channel"]
    both = rows.join(long, on=keys, how="full", suffix="_true")
    assert len(both) == len(rows) == len(long)
    assert both["value"].null_count() == both["value_true"].null_count() > 0
    assert np.allclose(both["value"].drop_nulls(), both["value_true"].drop_nulls())
    missing = pl.col("value").is_null()
    for column in ("score", "p_value", "flag"):
        assert rows.select((pl.col(column).is_null() == missing).all()).item()
    assert rows["expected"].is_finite().all()


def test_flags_scores_and_p_values_agree(rows: pl.DataFrame) -> None:
    some = rows.drop_nulls(["score"])
    assert some.select(((pl.col("score") > 1) == pl.col("flag")).all()).item()
    assert some.select(((pl.col("p_value") <= 0.01) == pl.col("flag")).all()).item()
    assert some["p_value"].is_between(0, 1, closed="right").all()
    stamps = some.group_by("series", "stamp").agg(
        pl.col("stamp_score").n_unique().alias("values"),
        pl.col("score").max(),
        pl.col("stamp_score").first(),
    )
    assert (stamps["values"] == 1).all()
    ratio = stamps["stamp_score"] / stamps["score"]  # the stamps' own threshold
    assert ratio.max() == pytest.approx(ratio.min())  # type: ignore[arg-type]
    # an error of one channel is in proportion to its score
    for _, part in some.group_by("series", "channel"):
        error = (part["value"] - part["expected"]).abs()
        unit = (error / part["score"]).to_numpy()
        assert np.allclose(unit, np.median(unit), rtol=1e-3)


def test_metrics_are_sklearns_on_the_rows(server: Server, folder: str, rows: pl.DataFrame) -> None:
    said = run(server, "test", "--ckpt_path", folder)
    metrics = metrics_of(said)
    labels = table().rename({"unique_id": "series", "ds": "stamp"})
    stamps = rows.unique(["series", "stamp"]).join(labels, on=["series", "stamp"])
    alarms = stamps["stamp_flag"].drop_nulls()
    assert float(metrics["test/alarm_rate"]) == pytest.approx(alarms.mean(), rel=1e-3)
    # the test leaves out stamps that one of the baselines has no score for
    full = labels.with_columns(pl.col("x", "y").shift(24).over("series").name.suffix("_before"))
    for channel in "xy":
        near = [pl.col(channel), pl.col(f"{channel}_before")]
        near += [pl.col(channel).shift(k).over("series") for k in (-1, 1)]
        ends = pl.col("stamp") == pl.col("stamp").max()
        sides = pl.all_horizontal(x.is_not_null() for x in near[2:3]) | ends
        complete = near[0].is_not_null() & near[3].is_not_null() & sides
        full = full.with_columns(
            complete.alias(f"near_{channel}"),
            (near[0].is_not_null() & near[1].is_not_null()).alias(f"season_{channel}"),
        )
    usable = (
        pl.any_horizontal("near_x", "near_y")
        & pl.any_horizontal("season_x", "season_y")
        & pl.col("odd").is_not_null()
    )
    keep = full.filter(usable).select("series", "stamp")
    stamps = stamps.join(keep, on=["series", "stamp"])
    odd, score = stamps["odd"].to_numpy(), stamps["stamp_score"].to_numpy()
    assert float(metrics["test/auroc"]) == pytest.approx(roc_auc_score(odd, score), rel=1e-3)
    expected = average_precision_score(odd, score)
    assert float(metrics["test/auprc"]) == pytest.approx(expected, rel=1e-3)
    found = stamps.filter(pl.col("odd") == 1)["stamp_flag"].mean()
    assert float(metrics["test/recall"]) == pytest.approx(found, rel=1e-3)
    assert float(metrics["test/auroc"]) > 0.8
    for baseline in ("seasonal_difference", "z_score", "neighbours"):
        assert f"test/event_recall_{baseline}" in metrics


def test_injected_anomalies_are_tested_by_kind(server: Server) -> None:
    given = (*SMALL, f"{DATA}.path", "x.parquet", f"{DATA}.inject", "{each: 2, length: 8}")
    said = run(server, "fit", *given, "--tracking.root", "injected")
    folder = said.split("run folder: ")[1].split("\n")[0]
    said = run(server, "test", "--ckpt_path", folder, "--tracking.root", "injected")
    assert "test/auprc " in said
    files = server.folder.rglob("test_by_kind.csv")
    found = pl.read_csv(max(files, key=lambda file: file.stat().st_mtime_ns))
    found = found.filter(pl.col("method") == "model")
    assert found["kind"].to_list() == ["spikes", "shifts", "flats"]
    assert found["stamps"][0] <= 4  # two in each of two series
    assert found["stamps"][1] <= 32
    assert found["stamps"].min() > 1  # type: ignore[operator]


def refused(server: Server, tmp_path: Path, code: int, *more: str, command: str = "fit") -> str:
    """The line that is said; there is no run folder."""
    given = (*SMALL, "--tracking.root", str(tmp_path / "runs"), *more)
    found, said = server.run(command, *given)
    assert found == code, said
    [line] = [line for line in said.splitlines() if not line.startswith("warning: ")]
    assert line.startswith("error: ")
    assert not (tmp_path / "runs").exists()
    return line


@pytest.mark.parametrize(
    ("code", "message", "more"),
    [
        (3, "no column 'label'; it has unique_id, ds, x, y, odd", [f"{DATA}.labels", "label"]),
        (2, "column 'x' is named twice", [f"{DATA}.labels", "x"]),
        (2, "are both given", [f"{DATA}.labels", "odd", f"{DATA}.inject", "{each: 2}"]),
        (2, "data.inject: give at least 1", [f"{DATA}.inject", "{each: 0}"]),
        (
            2,
            "previous and linear would fill in data.labels too",
            [f"{DATA}.labels", "odd", f"{DATA}.policies.missing", "previous"],
        ),
    ],
)
def test_bad_labels(
    server: Server, tmp_path: Path, code: int, message: str, more: list[str]
) -> None:
    assert message in refused(server, tmp_path, code, f"{DATA}.path", "x.parquet", *more)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("folds", "1", "model.folds must be at least 2"),
        ("block", "48", "model.block is 48 and data.tiling.length 48; a block must be shorter"),
        ("false_alarms", "2", "model.false_alarms is 2; give a share of stamps below 1"),
        ("false_alarms", "0.0001", "model.false_alarms is 0.0001; give a share of stamps below 1"),
        ("false_alarms", "0.001", "needs 999 values on the validation span, and x has 3"),
    ],
)
def test_bad_settings(
    server: Server, tmp_path: Path, option: str, value: str, message: str
) -> None:
    given = (f"{DATA}.path", "x.parquet", f"--model.init_args.{option}", value)
    assert message in refused(server, tmp_path, 2, *given)


def test_an_empty_span_is_refused(server: Server, tmp_path: Path) -> None:
    given = (f"{DATA}.path", "x.parquet", f"{DATA}.tiling.val_end", str(TRAIN))
    said = refused(server, tmp_path, 3, *given)
    assert "x.parquet: the val span is empty; move data.tiling's borders" in said


@pytest.mark.parametrize("command", ["test", "predict"])
def test_usual_errors_come_from_a_checkpoint(server: Server, tmp_path: Path, command: str) -> None:
    rows = ("--predictions.path", str(tmp_path / "rows"))
    given = (f"{DATA}.path", "x.parquet", *(rows if command == "predict" else ()))
    said = refused(server, tmp_path, 2, *given, command=command)
    assert f"{command} needs --ckpt_path, which knows the usual errors" in said
    assert not (tmp_path / "rows").exists()


def test_a_baseline_with_too_few_values_is_left_out(server: Server, tmp_path: Path) -> None:
    """Beside every second value that is missing, no value has two neighbours."""
    row = pl.int_range(pl.len()).over("unique_id")
    holes = (row % 2 == 1) & (row >= TRAIN) & (row < VAL)
    some = table().with_columns(pl.when(~holes).then(pl.col(c)).alias(c) for c in "xy")
    some.write_parquet(tmp_path / "x.parquet")
    given = (*SMALL, f"{DATA}.path", str(tmp_path / "x.parquet"), f"{DATA}.labels", "odd")
    given = (*given, "--tracking.root", str(tmp_path / "runs"))
    folder = run(server, "fit", *given).split("run folder: ")[1].split("\n")[0]
    said = run(server, "test", "--ckpt_path", folder)
    assert "warning: neighbours has too few values on the validation span" in said
    assert "test/auroc_z_score" in said
    assert "test/auroc_neighbours" not in said
