"""Classification at the command line: what a run keeps, what it predicts, what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import polars as pl
import pytest
import yaml
from forked_cli import Server

from core.jobs.shards import load_predictions

# Of mlflow's own use of sqlalchemy.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")

DATA = "--data.init_args"
CONFIG = {
    "seed_everything": 0,
    "trainer": {"max_epochs": 2},
    "model": {
        "class_path": "timeseries.tasks.SeriesClassification",
        "init_args": {
            "model": {
                "class_path": "timeseries.models.LMUFormer",
                "init_args": {"dim": 4, "theta": 8.0, "expand": 1.0},
            }
        },
    },
    "data": {
        "class_path": "timeseries.data.labelled.LabelledSeriesData",
        "init_args": {"batch_size": 5},
    },
    "checkpoints": {"monitor": "val/loss", "mode": "min"},
}


def table(seed: int = 0, count: int = 20) -> pl.DataFrame:
    """Series of 2 to 8 steps and two channels; the class shifts both."""
    rng = np.random.default_rng(seed)
    rows = [
        (
            f"{seed}-{n}",
            *(3 * (n % 2) + rng.normal(0, 1, 2)),
            "ab"[n % 2],
            "test" if n > 14 else "train",
        )
        for n in range(count)
        for _ in range(rng.integers(2, 9))
    ]
    return pl.DataFrame(rows, schema=["unique_id", "x", "y", "label", "split"], orient="row")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("classes"))
    (server.folder / "c.yaml").write_text(yaml.safe_dump(CONFIG))
    yield server
    server.close()


@pytest.fixture(scope="module")
def folder(server: Server) -> str:
    """A run on a file that is gone afterwards."""
    table().write_csv(server.folder / "x.csv")
    code, said = server.run("fit", "--config", "c.yaml", f"{DATA}.path", "x.csv")
    assert code == 0, said
    (server.folder / "x.csv").unlink()
    return said.split("run folder: ")[1].split("\n")[0]


def predict(server: Server, folder: str, target: Path, rows: pl.DataFrame) -> tuple[int, str]:
    """The command on a file whose only other content is ``rows``."""
    rows.write_csv(target / "next.csv")
    return server.run(
        *("predict", "--ckpt_path", folder, f"{DATA}.predict_path", str(target / "next.csv")),
        *("--predictions.path", str(target / "out"), "--predictions.rows_per_shard", "7"),
    )


@pytest.mark.parametrize("drop", [[], ["label", "split"]], ids=["labelled", "bare"])
def test_every_series_is_predicted_once(
    server: Server, folder: str, tmp_path: Path, drop: list[str]
) -> None:
    given = table(seed=5, count=23)
    code, said = predict(server, folder, tmp_path, given.drop(drop))
    assert code == 0, said
    rows = load_predictions(tmp_path / "out").collect()
    assert rows["id"].to_list() == given["unique_id"].unique(maintain_order=True).to_list()
    labels = given.group_by("unique_id", maintain_order=True).first()["label"].to_list()
    assert rows["actual"].to_list() == (labels if not drop else [None] * 23)
    assert set(rows["prediction"]) <= {"a", "b"}
    assert np.allclose(rows["probability_a"] + rows["probability_b"], 1)


def test_classes_that_are_unknown_or_empty_do_not_stop_a_prediction(
    server: Server, folder: str, tmp_path: Path
) -> None:
    label = {"a": "new", "b": None}
    code, said = predict(
        server, folder, tmp_path, table(2).with_columns(pl.col("label").replace(label))
    )
    assert code == 0, said
    rows = load_predictions(tmp_path / "out").collect()
    assert rows["actual"].to_list() == ["new", None] * 10


def test_a_test_keeps_figures_and_the_table_of_prefixes(server: Server, folder: str) -> None:
    table().write_csv(server.folder / "x.csv")
    code, said = server.run("test", "--ckpt_path", folder)
    (server.folder / "x.csv").unlink()
    assert code == 0, said
    client = mlflow.MlflowClient(f"sqlite:///{server.folder}/mlflow.db")
    [run] = client.search_runs(
        [e.experiment_id for e in client.search_experiments()], "metrics.`test/accuracy` >= 0"
    )
    names = {
        f.path for kind in ("plots", "tables") for f in client.list_artifacts(run.info.run_id, kind)
    }
    assert names == {
        "plots/test_confusion.png",
        "plots/test_accuracy_by_prefix.png",
        "tables/test_accuracy_by_prefix.csv",
    }
    kept = client.download_artifacts(run.info.run_id, "tables/test_accuracy_by_prefix.csv")
    curve = pl.read_csv(kept)
    assert curve["share"].to_list() == [k / 20 for k in range(1, 21)]
    assert curve["accuracy"][-1] == pytest.approx(run.data.metrics["test/accuracy"])
    assert run.data.metrics["test/accuracy_at_25"] == pytest.approx(curve["accuracy"][4])


def changed(column: str, value: object, row: int = 3) -> pl.DataFrame:
    given = table()
    cells = given[column].to_list()
    cells[row] = value
    return given.with_columns(pl.Series(column, cells, strict=False))


def refused(result: tuple[int, str], said: str) -> None:
    code, output = result
    lines = output.strip().splitlines()
    assert code == 3, output
    assert len(lines) == 1, output
    assert said in lines[0]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (table().drop("label"), "x.csv: no column 'label'; it has unique_id, x, y, split"),
        (table().head(0), "the table has no rows"),
        (changed("x", float("nan")), "row 4 has no finite number in x"),
        (changed("y", float("inf")), "row 4 has no finite number in y"),
        (changed("split", "test"), "series '0-0' is 'train' and 'test'; give all its rows one"),
    ],
    ids=["label", "rows", "nan", "inf", "two-splits"],
)
def test_fit_refuses(server: Server, tmp_path: Path, rows: pl.DataFrame, said: str) -> None:
    rows.write_csv(tmp_path / "x.csv")
    refused(server.run("fit", "--config", "c.yaml", f"{DATA}.path", str(tmp_path / "x.csv")), said)


def test_fit_refuses_empty_and_unreadable_files(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "x.ts"
    for text, said in (
        ("", "x.ts: the file is empty"),
        ("@classLabel true a b\n@data\n1,2:a\n1,z:b\n", "x.ts: line 4: could not convert"),
        ("@classLabel true a b\n@data\n1,2:a\n1,?:b\n", "series 'x-2' has empty or infinite"),
    ):
        path.write_text(text)
        refused(server.run("fit", "--config", "c.yaml", f"{DATA}.path", str(path)), said)


def test_test_refuses_an_unknown_class(server: Server, folder: str, tmp_path: Path) -> None:
    rows = table().with_columns(
        label=pl.when(pl.col("unique_id") == "0-19").then(pl.lit("c")).otherwise("label")
    )
    rows.write_csv(tmp_path / "x.csv")
    path = (f"{DATA}.path", str(tmp_path / "x.csv"))
    said = "series '0-19' has class 'c', which was not in training"
    refused(server.run("test", "--ckpt_path", folder, *path), said)
    refused(server.run("fit", "--config", "c.yaml", *path), said)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (table().drop("y"), "next.csv: no column 'y'"),
        (changed("x", float("nan")), "next.csv: row 4 has no finite number in x"),
    ],
    ids=["channel", "nan"],
)
def test_predict_refuses(
    server: Server, folder: str, tmp_path: Path, rows: pl.DataFrame, said: str
) -> None:
    refused(predict(server, folder, tmp_path, rows), said)
    assert not (tmp_path / "out").exists()


def test_predict_refuses_channels_of_another_file(
    server: Server, folder: str, tmp_path: Path
) -> None:
    (tmp_path / "next.ts").write_text("@classLabel false\n@data\n1,2:3,4:5,6\n")
    refused(
        server.run(
            *("predict", "--ckpt_path", folder, f"{DATA}.predict_path", str(tmp_path / "next.ts")),
            *("--predictions.path", str(tmp_path / "out")),
        ),
        "channels are channel_1, channel_2, channel_3; training had x, y",
    )
