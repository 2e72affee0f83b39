"""Commands on a small table of series, and what they say and leave behind."""

from __future__ import annotations

from pathlib import Path

import yaml
from forked_cli import Server

HOURS = [f"2024-01-{1 + h // 24:02d} {h % 24:02d}:00" for h in range(120)]
ROWS = [f"{name},{stamp},{(7 * h) % 24}" for name in "ab" for h, stamp in enumerate(HOURS)]
HEADER = "unique_id,ds,y"
CONFIG = {
    "trainer": {"max_epochs": 1},
    "model": {
        "class_path": "timeseries.tasks.Forecasting",
        "init_args": {"model": {"class_path": "timeseries.models.DLinear"}},
    },
    "data": {
        "class_path": "timeseries.data.forecasts.ForecastWindows",
        "init_args": {"path": "x.csv", "protocol": {"lookback": 24, "horizon": 6}},
    },
}
DATA = "--data.init_args"


def table(rows: list[str], header: str = HEADER) -> str:
    return "\n".join([header, *rows]) + "\n"


def written(folder: Path) -> Path:
    """``folder`` with a good table and the config that names it."""
    (folder / "x.csv").write_text(table(ROWS))
    text = yaml.safe_dump(CONFIG).replace("path: x.csv", f"path: {folder / 'x.csv'}")
    (folder / "x.yaml").write_text(text)
    return folder


def tracking(server: Server, folder: Path) -> list[str]:
    uri = f"sqlite:///{server.folder / 'mlflow.db'}"
    return ["--tracking.root", str(folder / "runs"), "--tracking.uri", uri]


def fit(server: Server, folder: Path, *more: str) -> tuple[int, str]:
    return server.run("fit", "--config", str(folder / "x.yaml"), *tracking(server, folder), *more)


def predict(server: Server, folder: Path, run: str, *more: str) -> tuple[int, str]:
    return server.run(
        *("predict", "--ckpt_path", run, f"{DATA}.predict_path", str(folder / "next.csv")),
        *("--predictions.path", str(folder / "out")),
        *("--predictions.export", str(folder / "out.csv"), *tracking(server, folder), *more),
    )


def one_error(output: str) -> str:
    (line,) = [line for line in output.splitlines() if not line.startswith("warning: ")]
    assert line.startswith("error: "), output
    return line


def nothing_left(folder: Path) -> None:
    """Neither a run's folder nor rows: only what the test put there."""
    assert {file.name for file in folder.iterdir()} <= {"x.csv", "x.yaml", "next.csv"}
