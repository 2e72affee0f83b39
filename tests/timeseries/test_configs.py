"""Every shipped config runs through the command line: fit, test and predict, a few steps each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from forked_cli import Server

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "timeseries" / "configs").glob("*.yaml"))
# Shorter than shipped, to keep the test short.
FEW = ("--data.init_args.protocol.stride", "500", "--data.init_args.batch_size", "4")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Command lines in a folder where the sample lies as the configs name it."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "timeseries").symlink_to(ROOT / "timeseries")
    server = Server(folder)
    yield server
    server.close()


def run(server: Server, *words: str) -> str:
    code, output = server.run(*words)
    assert code == 0, output
    return output


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.stem)
def test_config_runs(config: Path, server: Server, tmp_path: Path) -> None:
    given = ["--config", str(config), *FEW]
    few = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "2"]
    few += ["--trainer.limit_test_batches", "2"]
    fitted = run(server, "fit", *given, *few, "--trainer.max_epochs", "1")
    folder = fitted.split("run folder: ")[1].split("\n")[0]
    assert (server.folder / folder / "checkpoints" / "best.ckpt").exists()
    tested = run(server, "test", "--ckpt_path", folder, *few)
    for metric in ("mse", "mae_original", "mase", "mse_seasonal_naive", "coverage_80"):
        assert f"test/{metric} " in tested
    out = str(tmp_path / "rows")
    csv = tmp_path / "rows.csv"
    run(
        server,
        "predict",
        "--ckpt_path",
        folder,
        "--predictions.path",
        out,
        "--predictions.export",
        str(csv),
    )
    rows = pl.read_csv(csv)
    assert len(rows) == 96 * 7
    assert rows["forecast"].is_finite().all()
    assert (rows["lower_80"] <= rows["forecast"]).all()
    assert (rows["lower_95"] <= rows["lower_80"]).all()
    assert rows["actual"].null_count() == len(rows)
