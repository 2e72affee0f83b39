"""One line of a config computes utterances of unequal length without padding: the same weights give
the same loss, metrics and predictions as on padded rows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import polars.selectors as cs
import pytest
import torch
from forked_cli import Server
from torch import Tensor

from core.jobs.runs import open_folder
from core.jobs.shards import load_predictions
from core.jobs.weights import load_weights

with warnings.catch_warnings():  # mlflow's own, at its import
    warnings.simplefilter("ignore")
    from core.jobs.pyfunc import build

# Of mlflow's own use of sqlalchemy.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "timeseries" / "configs" / "padding_free_classifier.yaml"
LINE = "--model.init_args.model.init_args.backbone.init_args.padding_free"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server.beside("timeseries", tmp_path_factory.mktemp("padding_free"))
    yield server
    server.close()


def run(server: Server, *words: str) -> Path:
    """The command's run folder."""
    code, said = server.run(*words)
    assert code == 0, said
    return server.folder / said.split("run folder: ")[1].split("\n")[0]


@pytest.fixture(scope="module")
def fitted(server: Server) -> Path:
    few = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2")
    return run(server, "fit", "--config", str(CONFIG), *few)


def test_a_run_is_evaluated_alike_on_padded_rows(server: Server, fitted: Path) -> None:
    found: list[dict[str, float]] = []
    for free in ("true", "false"):
        folder = run(server, "test", "--ckpt_path", str(fitted), LINE, free)
        assert f"padding_free: {free}" in (folder / "config.yaml").read_text()
        record = open_folder(folder).run
        client = mlflow.MlflowClient(record.tracking_uri)
        found.append(client.get_run(record.run_id).data.metrics)
    assert {"test/loss", "test/accuracy", "test/accuracy_at_50"} <= found[0].keys()
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_run_predicts_alike_on_padded_rows(server: Server, fitted: Path, tmp_path: Path) -> None:
    for free in ("true", "false"):
        written = ("--predictions.path", str(tmp_path / free))
        run(server, "predict", "--ckpt_path", str(fitted), LINE, free, *written)
    row, rows = (load_predictions(tmp_path / free).collect() for free in ("true", "false"))
    chances = cs.starts_with("probability")
    assert row["id"].n_unique() == 370
    assert row.drop(chances).equals(rows.drop(chances))
    assert row.select(chances).width == 9
    torch.testing.assert_close(
        row.select(chances).to_torch(), rows.select(chances).to_torch(), atol=1e-5, rtol=1e-4
    )


def trained(fitted: Path, padding_free: bool) -> tuple[Tensor, list[Tensor | None], torch.Size]:
    """Loss of one batch of training and its gradients, float64; what a block put out."""
    folder = open_folder(fitted)
    config = folder.config()
    network = config["model"]["init_args"]["model"]["init_args"]
    network["dropout"] = 0.0
    network["backbone"]["init_args"]["padding_free"] = padding_free
    config["data"]["init_args"]["path"] = str(ROOT / config["data"]["init_args"]["path"])
    task: Any
    task, data = build({key: config[key] for key in ("model", "data")})
    load_weights(task, folder.checkpoints / "best.ckpt", config["model"])
    task.double().log = lambda *_, **__: None  # there is no trainer
    shapes: list[torch.Size] = []
    block = task.model.backbone.blocks[0]
    block.register_forward_hook(lambda module, args, out: shapes.append(out.shape))
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    loss = task.training_step({**batch, "values": batch["values"].double()}, 0)
    loss.backward()
    return loss.detach(), [p.grad for p in task.parameters()], shapes[0]


def test_a_training_step_is_the_same_without_its_padding(fitted: Path) -> None:
    loss, gradients, row = trained(fitted, padding_free=True)
    expected, padded, rows = trained(fitted, padding_free=False)
    assert row.numel() < 0.8 * rows.numel()
    assert (row[0], rows[0]) == (1, 32)
    torch.testing.assert_close(loss, expected, atol=0, rtol=1e-12)
    for own, other in zip(gradients, padded, strict=True):
        torch.testing.assert_close(own, other, atol=1e-12, rtol=1e-9)
