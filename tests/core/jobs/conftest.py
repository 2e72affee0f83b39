"""One server of forked command lines for all tests that need real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from forked_cli import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Has ``toy.yaml``, a small training, in its folder."""
    server = Server(tmp_path_factory.mktemp("cli"))
    config = {
        "trainer": {"max_epochs": 12, "accelerator": "cpu", "log_every_n_steps": 1},
        "model": {"class_path": "toy_fit.Toy"},
        "data": {"class_path": "toy_fit.ToyData"},
        "checkpoints": {"every_n_train_steps": 3},
    }
    (server.folder / "toy.yaml").write_text(yaml.safe_dump(config))
    yield server
    server.close()


@pytest.fixture(scope="session")
def whole(server: Server) -> Path:
    """The folder of a run that was never stopped; also makes the database."""
    code, output = server.run("fit", "--config", "toy.yaml", "--tracking.experiment", "toys/whole")
    assert code == 0, output
    [folder] = (server.folder / "runs" / "toys" / "whole").iterdir()
    return folder
