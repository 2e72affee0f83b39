"""Bad input ends a command before its run begins: exit code, one line, and nothing left behind: no
predictions, no run folder, no run in the tracking store."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from forked_cli import Server
from series_commands import ROWS, table

AUTOFORMER = {  # whose weights fit any look-back and horizon
    "class_path": "timeseries.models.Autoformer",
    "init_args": {"dim": 8, "feedforward": 8, "label_length": 6, "moving_average": 5},
}
CONFIG = {
    "trainer": {"max_epochs": 1},
    "model": {
        "class_path": "timeseries.tasks.Forecasting",
        "init_args": {"model": AUTOFORMER},
    },
    "data": {
        "class_path": "timeseries.data.forecasts.ForecastWindows",
        "init_args": {
            "path": "x.csv",
            "time": "ds",
            "series": "unique_id",
            "protocol": {"lookback": 24, "horizon": 6, "stride": 4, "val_end": 0.9},
        },
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Its folder holds ``x.csv``, a config that names it, and a run."""
    server = Server(tmp_path_factory.mktemp("before"))
    (server.folder / "x.csv").write_text(table(ROWS))
    (server.folder / "x.yaml").write_text(yaml.safe_dump(CONFIG))
    yield server
    server.close()


@pytest.fixture(scope="module")
def run(server: Server) -> str:
    code, output = server.run("fit", "--config", "x.yaml")
    assert code == 0, output
    return output.split("run folder: ")[1].split("\n")[0]


def one_error(output: str) -> str:
    (line,) = output.splitlines()
    assert line.startswith("error: ")
    return line


def ends_before_its_run(server: Server, folder: Path, code: int, message: str, *words: str) -> None:
    """``words`` end in ``code`` and a line with ``message``; ``folder``, where the command would
    put all that it makes, is as before."""
    before = sorted(folder.rglob("*"))
    store = f"sqlite:///{folder / 'mlflow.db'}"
    got, output = server.run(*words, "--tracking.root", f"{folder}/runs", "--tracking.uri", store)
    assert got == code, output
    assert message in one_error(output)
    assert sorted(folder.rglob("*")) == before  # the store too is made by the first run


DAILY = [f"a,2024-02-{day:02d},1" for day in range(1, 29)]
OTHER = table([row for row in ROWS if row < "b"], "unique_id,ds,z")
KNOWN, SHORT = table(ROWS), table([*ROWS[:31], *ROWS[120:151]])
DATA = {
    "look-back": (2, "protocol.lookback", "12", KNOWN, "lookback is 12, and the model was trained"),
    "horizon": (2, "protocol.horizon", "4", KNOWN, "horizon is 4, and the model was trained with"),
    "scale": (2, "protocol.scale", "none", KNOWN, "scale is none, and the model was trained with"),
    "channels": (3, "targets", "[z]", OTHER, "the values are z; the model was trained on y"),
    "frequency": (3, "origins", "end", table(DAILY), "has steps of 1d; the model was trained on"),
    "no room": (3, "origins", "test", SHORT, "next.csv: the test span has no room for a horizon"),
    "short": (3, "origins", "end", table(ROWS[:23]), "1 of 1 series are shorter than look-back"),
    "infinite": (3, "origins", "end", table(["a,2024-01-01,inf"]), "next.csv row 1: y is infinite"),
}  # fmt: skip


@pytest.mark.parametrize(("code", "key", "value", "text", "message"), DATA.values(), ids=DATA)
def test_predict_from_data_unlike_training(
    *, server: Server, run: str, tmp_path: Path, code: int, key: str, value: str, text: str,
    message: str,
) -> None:  # fmt: skip
    (tmp_path / "next.csv").write_text(text)
    given = ["--data.predict_path", str(tmp_path / "next.csv"), f"--data.{key}", value]
    ends_before_its_run(server, tmp_path, code, message, *predict(run, tmp_path), *given)


def predict(run: str, folder: Path) -> list[str]:
    return ["predict", "--ckpt_path", run, "--predictions.path", str(folder / "out")]


def words_of(command: str, run: str, folder: Path) -> list[str]:
    """Of a command that works."""
    if command == "fit":
        return ["fit", "--config", "x.yaml"]
    return predict(run, folder) if command == "predict" else [command, "--ckpt_path", run]


OPTIONS = {
    "export to another kind": ("predictions.export", "x.xlsx", "x.xlsx: cannot export to this"),
    "export to no folder": ("predictions.export", "no/x.csv", "no/x.csv: give a file in a folder"),
    "export over the input": ("predictions.export", "x.csv", "x.csv: is the input itself; export"),
    "folder of something else": ("predictions.path", ".", ": exists and holds no predictions; "),
    "shards of nothing": ("predictions.rows_per_shard", "0", "rows_per_shard is 0; it must be at"),
    "some batches": ("trainer.limit_predict_batches", "1", "limit_predict_batches and fast_dev"),
    "weights": ("model.init_args.model.init_args.dim", "16", "does not fit the configured"),
}  # fmt: skip


@pytest.mark.parametrize(("key", "value", "message"), OPTIONS.values(), ids=OPTIONS)
def test_predict_with_options_that_cannot_work(
    server: Server, run: str, tmp_path: Path, key: str, value: str, message: str
) -> None:
    ends_before_its_run(server, tmp_path, 2, message, *predict(run, tmp_path), f"--{key}", value)


@pytest.mark.parametrize("command", ["validate", "test"])
def test_another_look_back_than_in_training(
    server: Server, run: str, tmp_path: Path, command: str
) -> None:
    words = [command, "--ckpt_path", run, "--data.protocol.lookback", "12"]
    message = "data.protocol.lookback is 12, and the model was trained with 24; give that"
    ends_before_its_run(server, tmp_path, 2, message, *words)


def test_a_model_that_refuses_its_options(server: Server, tmp_path: Path) -> None:
    options = "--model.init_args.model"
    words = ["fit", "--config", "x.yaml", f"{options}.init_args.dim=-1"]
    ends_before_its_run(server, tmp_path, 2, "error: dim is -1; it must be at least 1", *words)
    statistical = ["StatisticalForecaster", f"{options}.init_args.method=auto_theta"]
    words = ["test", "--config", "x.yaml", f"{options}={statistical[0]}", statistical[1]]
    cache = f"{options}.init_args.cache={server.folder / 'x.csv'}"
    message = f"error: cache {server.folder / 'x.csv'}: [Errno 20] Not a directory"
    ends_before_its_run(server, tmp_path, 2, message, *words, cache)


TRAINERS = {
    "devices": ("fit", "0", "trainer: `Trainer(devices='0')` value is not a valid input using cpu"),
    "accelerator": ("fit", "nonsense", "trainer: You selected an invalid accelerator name: `accel"),
    "precision": ("fit", "nonsense", "trainer.precision: "),
    "strategy": ("test", "nonsense", "trainer: You selected an invalid strategy name: `strategy="),
    "max_epochs": ("fit", "-5", "trainer: `max_epochs` must be a non-negative integer or -1. You"),
    "profiler": ("predict", "nonsense", "trainer: When passing string value for the `profiler`"),
}


@pytest.mark.parametrize("key", TRAINERS)
def test_a_trainer_that_cannot_be_built(server: Server, run: str, tmp_path: Path, key: str) -> None:
    command, value, message = TRAINERS[key]
    words = words_of(command, run, tmp_path)
    cpu = [] if key == "accelerator" else ["--trainer.accelerator=cpu"]
    given = [f"--trainer.{key}={value}", *cpu]
    ends_before_its_run(server, tmp_path, 2, f"error: {message}", *words, *given)


@pytest.mark.parametrize("command", ["fit", "test", "predict"])
def test_half_precision_throughout(server: Server, run: str, tmp_path: Path, command: str) -> None:
    words = words_of(command, run, tmp_path)
    given = ("--trainer.precision=bf16-true", "--trainer.accelerator=cpu")
    message = "error: trainer.precision bf16-true would round the data to 3 digits or fewer; give "
    ends_before_its_run(server, tmp_path, 2, message, *words, *given)


def test_a_study_builds_every_trainer_first(server: Server, run: str) -> None:
    before = (tracked(server), sorted(server.folder.glob("runs/**/*")))
    words = ("backtest", "--config", "x.yaml", "--out", "built.csv", "--trainer.devices=0")
    got, output = server.run(*words)
    assert got == 2, output
    assert ": trainer: `Trainer(devices='0')` value is not a valid input" in one_error(output)
    assert (tracked(server), sorted(server.folder.glob("runs/**/*"))) == before


CONFIGS = {
    "not YAML": (2, "x.yaml", "model: {", "config bad.yaml cannot be read"),
    "unknown key": (2, "horizon: 6", "horizn: 6", "data: unknown key 'horizn'"),
    "size": (2, "horizon: 6", "horizon: 0", "data.protocol.horizon is 0; it must be"),
    "data": (3, "path: x.csv", "path: none.csv", "none.csv: no such file"),
    "test span": (3, "val_end: 0.9", "val_end: 0.99", "x.csv: the test span has no"),
}  # fmt: skip


@pytest.mark.parametrize(("code", "old", "new", "message"), CONFIGS.values(), ids=CONFIGS)
def test_compare_looks_at_every_config_first(
    server: Server, run: str, code: int, old: str, new: str, message: str
) -> None:
    """Its parent run lies in the store of the folder that it is called in."""
    text = (server.folder / "x.yaml").read_text()
    (server.folder / "bad.yaml").write_text(new if old == "x.yaml" else text.replace(old, new))
    before = (tracked(server), sorted(server.folder.glob("runs/**/*")))
    words = (
        "compare",
        "--configs",
        "x.yaml",
        "bad.yaml",
        "--seeds",
        "0",
        "1",
        "--out",
        "new/t.csv",
    )
    got, output = server.run(*words)
    assert got == code, output
    where = "" if old == "x.yaml" else "model bad, seed 0: "
    assert one_error(output).startswith(f"error: {where}{message}")
    assert (tracked(server), sorted(server.folder.glob("runs/**/*"))) == before
    assert not (server.folder / "new").exists()


UNKEPT = ["trainer.logger=false", "trainer.fast_dev_run=true", "trainer.enable_checkpointing=false"]
UNKEPT += ["trainer.barebones=true"]


@pytest.mark.parametrize("setting", UNKEPT)
@pytest.mark.parametrize("command", ["compare", "backtest"])
def test_a_study_refuses_to_keep_nothing(
    server: Server, run: str, command: str, setting: str
) -> None:
    before = (tracked(server), sorted(server.folder.glob("runs/**/*")))
    config, first = ("--config", "fold 1") if command == "backtest" else ("--configs", "seed 0")
    got, output = server.run(command, config, "x.yaml", "--out", "kept.csv", f"--{setting}")
    assert got == 2, output
    named = setting.removesuffix("=true")
    assert f"{first}" in one_error(output)
    assert f": {named} keeps nothing that a study reads; leave it out" in one_error(output)
    assert (tracked(server), sorted(server.folder.glob("runs/**/*"))) == before
    assert not (server.folder / "kept.csv").exists()


def tracked(server: Server) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(server.folder / "mlflow.db")) as store:
        return store.execute("select run_uuid, status from runs").fetchall()
