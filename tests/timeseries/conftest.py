"""Commands in a folder of a module's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from forked_cli import Server
from series_commands import written


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("commands"))
    yield server
    server.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path)
