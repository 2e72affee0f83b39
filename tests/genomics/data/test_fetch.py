"""Fetching packages with a stand-in for apt, and real ones where marked slow."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from core.jobs import fetching
from core.jobs.errors import DATA, USAGE, DataError
from core.jobs.fetching import Dataset, main
from genomics.data import make_samples
from genomics.data.fasta import Genome
from genomics.data.fetch import DATASETS, fetch
from genomics.data.variants import check_ref, normalize
from genomics.data.vcf import VcfAlleles

CONTENT = b">a\nACGT\n"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    files = {"usr/share/x.fa": hashlib.sha256(CONTENT).hexdigest()}
    monkeypatch.setitem(DATASETS, "x", Dataset("x-data", "letters", files))
    monkeypatch.setattr("shutil.which", lambda tool: f"/usr/bin/{tool}")
    return tmp_path / "cache"


class Apt:
    """Answers commands as apt-get and dpkg-deb would; ``broken`` ones fail."""

    def __init__(self, content: bytes = CONTENT, broken: tuple[str, ...] = ()) -> None:
        self.content, self.broken, self.calls = content, broken, list[str]()

    def __call__(self, command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
        self.calls.append(command[1])
        if command[1] in self.broken:
            return subprocess.CompletedProcess(command, 100, "", "W: noise\nE: no network\n")
        if command[1] == "download":
            (folder / "x-data_1_all.deb").write_bytes(b"")
        if command[1] == "-x":
            target = Path(command[3]) / "usr/share/x.fa"
            target.parent.mkdir(parents=True)
            target.write_bytes(self.content)
        return subprocess.CompletedProcess(command, 0, "", "")


def test_a_file_is_fetched_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    apt = Apt()
    monkeypatch.setattr(fetching, "_run", apt)
    assert fetch("x")["x.fa"].read_bytes() == CONTENT
    assert main(["x"], DATASETS) == 0
    assert capsys.readouterr().out == f"{cache}/x/x.fa\n"
    assert apt.calls == ["download", "-x"]


@pytest.mark.parametrize(
    ("apt", "expected"),
    [
        (Apt(broken=("download",)), "package x-data could not be downloaded (E: no network)"),
        (Apt(broken=("-x",)), "package x-data could not be unpacked (E: no network)"),
        (Apt(content=b"other"), "x.fa of package x-data has SHA-256 d9298a10d1b07358..., expected"),
    ],
)
def test_what_can_go_wrong(
    cache: Path, apt: Apt, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_run", apt)
    with pytest.raises(DataError) as caught:
        fetch("x")
    assert expected in str(caught.value)
    assert list((cache / "x").iterdir()) == []


def test_without_apt(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: None)
    assert main(["x"], DATASETS) == DATA
    assert capsys.readouterr().err == ("apt-get is not on this machine; package x-data needs it\n")
    assert main(["y"], DATASETS) == USAGE
    assert "no dataset 'y'; there are human-chr20" in capsys.readouterr().err
    assert main([], DATASETS) == 0
    assert "fly-promoters" in capsys.readouterr().out


@pytest.mark.slow
def test_normal_form_is_that_of_vt() -> None:
    """194 real insertions and deletions of chromosome 20, in and out of ``vt normalize``."""
    genome = Genome(fetch("human-chr20")["20.fa.gz"])
    files = fetch("chr20-indels")
    called, normal = (
        [allele.variant for allele in VcfAlleles(files[name])]
        for name in ("01_IN.vcf.gz", "01_OUT.vcf.gz")
    )
    assert len(called) == 194
    assert all(check_ref(variant, genome) is None for variant in called)
    ours = sorted((normalize(variant, genome) for variant in called), key=str)
    assert ours == sorted(normal, key=str)
    assert sum(normalize(variant, genome) != variant for variant in called) == 80


@pytest.mark.slow
def test_samples_are_made_again_byte_for_byte(tmp_path: Path) -> None:
    assert make_samples.main([str(tmp_path)]) == 0
    shipped = Path(make_samples.__file__).parents[1] / "samples"
    made = list(tmp_path.iterdir())
    assert len(made) == 5
    for file in made:
        assert file.read_bytes() == (shipped / file.name).read_bytes()
