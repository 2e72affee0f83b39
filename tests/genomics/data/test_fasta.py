"""FASTA access against pysam and plain string slices, and every way a file can be bad."""

from __future__ import annotations

import gzip
import os
import pickle
import random
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pysam
import pytest

from core.jobs.errors import DataError
from genomics.data.fasta import FastaRecords, Genome, nearest_name, read_fasta


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))


def chromosomes() -> dict[str, str]:
    rng = random.Random(0)
    return {
        name: "".join(rng.choices("ACGTNacgt", k=length))
        for name, length in {"chr1": 1003, "chr2": 60, "chrM": 7}.items()
    }


def fasta_text(records: dict[str, str], width: int = 60, end: str = "\n") -> str:
    lines = []
    for name, sequence in records.items():
        lines.append(f">{name} some > words")
        lines += [sequence[i : i + width] for i in range(0, len(sequence), width)]
    return end.join(lines) + end


def write_plain(path: Path, text: str) -> Path:
    path.write_text(text, newline="")
    return path


def write_gzip(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()))
    return path


def write_bgzf(path: Path, text: str) -> Path:
    with pysam.BGZFile(str(path), "wb", None) as file:
        file.write(text.encode())
    return path


WRITERS = {"plain": write_plain, "gzip": write_gzip, "bgzf": write_bgzf}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_fetch_is_a_slice(write: Callable[[Path, str], Path], end: str, tmp_path: Path) -> None:
    expected = chromosomes()
    genome = Genome(write(tmp_path / "g.fa", fasta_text(expected, end=end)))
    assert genome.lengths == {name: len(text) for name, text in expected.items()}
    rng = random.Random(1)
    for name, text in expected.items():
        for _ in range(100):
            start, stop = sorted(rng.choices(range(len(text) + 1), k=2))
            assert genome.fetch(name, start, stop) == text[start:stop]
            assert genome.fetch_bytes(name, start, stop) == text[start:stop].encode()
        padded = "N" * 2000 + text + "N" * 2000
        for _ in range(100):
            start, stop = sorted(rng.choices(range(-2000, len(text) + 2001), k=2))
            assert genome.fetch_padded(name, start, stop) == padded[start + 2000 : stop + 2000]


def test_fetch_agrees_with_pysam(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "g.fa", fasta_text(chromosomes(), width=50))
    ours = Genome(path)
    with pysam.FastaFile(str(path)) as theirs:  # reads the index that we left beside the file
        for name in theirs.references:
            assert ours.fetch(name, 3, ours.lengths[name]) == theirs.fetch(name, 3)


def fetch_some(genome: Genome) -> str:
    return genome.fetch("chr1", 100, 900)


def test_workers_share_the_map(tmp_path: Path) -> None:
    genome = Genome(write_bgzf(tmp_path / "g.fa.gz", fasta_text(chromosomes())))
    expected = chromosomes()["chr1"][100:900]
    assert fetch_some(pickle.loads(pickle.dumps(genome))) == expected
    with get_context("spawn").Pool(2) as pool:
        assert pool.map(fetch_some, [genome] * 4) == [expected] * 4


def test_a_folder_that_cannot_be_written_gets_its_index_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "frozen"
    folder.mkdir()
    path = write_plain(folder / "g.fa", fasta_text(chromosomes()))
    may = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: mode != os.W_OK and may(p, mode))
    assert Genome(path).fetch("chr2", 0, 9) == chromosomes()["chr2"][:9]
    assert [file.name for file in folder.iterdir()] == ["g.fa"]
    assert len(list((tmp_path / "cache").glob("g.fa.*.fai"))) == 1


def message(action: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_unknown_chromosome_offers_the_nearest(tmp_path: Path) -> None:
    genome = Genome(write_plain(tmp_path / "x.fa", ">20\nACGT\n>MT\nAC\n"))
    for asked, near in {"chr20": "20", "chrM": "MT", "21": "20"}.items():
        told = message(lambda asked=asked: genome.fetch(asked, 0, 1))  # type: ignore[misc]
        assert told == f"chromosome {asked!r} is not in x.fa; nearest is {near!r}"
    assert nearest_name("7", ["chr1", "chr7"]) == "chr7"


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (0, 5), (3, 2)])
def test_ranges_outside_are_refused(start: int, end: int, tmp_path: Path) -> None:
    genome = Genome(write_plain(tmp_path / "x.fa", ">20\nACGT\n"))
    assert f"20:{start}-{end} (0-based)" in message(lambda: genome.fetch("20", start, end))


BAD_GENOMES = {
    "": "the file is empty",
    "chr1\t0\t100\n": "x.fa line 1: text before the first '>'; is it FASTA?",
    "\n\n": "x.fa: no sequence in it; is it FASTA?",
    ">a\nACGT\n>b\n": "x.fa line 3: record 'b' has no sequence; is the file truncated?",
    ">a\nACGT\n>a\nAC\n": "two sequences are named 'a'; rename one",
    ">a\nACGT\n>b\nCC\n>a\nAC\n>c\nT\n": "two sequences are named 'a'; rename one",
    ">a\nACGT\nACGTAC\nAC\n": "x.fa line 3: lines of a sequence must have one length",
    ">a\nACGT\nAC\nACGT\n": "x.fa line 4: lines of a sequence must have one length",
    ">a\nACGT\n\nACGT\n": "x.fa line 4: lines of a sequence must have one length",
    "\x00\x01\x02": "is it FASTA?",
}


@pytest.mark.parametrize(("text", "expected"), BAD_GENOMES.items())
def test_bad_genomes(text: str, expected: str, tmp_path: Path) -> None:
    path = write_plain(tmp_path / "x.fa", text)
    assert expected in message(lambda: Genome(path))
    assert sorted(file.name for file in tmp_path.iterdir() if file.suffix == ".part") == []


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert message(lambda: Genome(tmp_path / "x.fa")).endswith("x.fa: no such file")
    assert message(lambda: FastaRecords(tmp_path)).endswith("not a regular file")


@pytest.mark.parametrize("write", [write_gzip, write_bgzf])
@pytest.mark.parametrize("open_file", [Genome, FastaRecords, lambda path: list(read_fasta(path))])
def test_cut_archives(
    write: Callable[[Path, str], Path], open_file: Callable[[Path], object], tmp_path: Path
) -> None:
    path = write(tmp_path / "x.fa.gz", fasta_text({"a": "ACGT" * 50000}))
    whole = path.read_bytes()
    for cut in (len(whole) // 2, len(whole) - 5, len(whole) - 28):  # 28: the BGZF end marker
        path.write_bytes(whole[:cut])
        assert "truncated" in message(lambda: open_file(path))
    assert not [*tmp_path.glob("cache/*")]


def age(path: Path, seconds: int) -> None:
    """Make ``path`` older than now."""
    state = path.stat()
    os.utime(path, (state.st_atime, state.st_mtime - seconds))


@pytest.mark.parametrize(
    "later",
    [
        ">a\nACGT\nACG\n>b\nCC\n>c\nTT\n",  # one more
        ">a\nACGT\nACG\n",  # one less
        ">a\nACGTACG\n>b\nCC\n",  # same size, other lines
        ">a\nACGT\nAC\n>b\nCCC\n",
        ">b\nACGT\nACG\n>a\nCC\n",  # other names
    ],
)
@pytest.mark.parametrize("older", [0, 100])
def test_index_out_of_date(later: str, older: int, tmp_path: Path) -> None:
    path = write_plain(tmp_path / "x.fa", ">a\nACGT\nACG\n>b\nCC\n")
    Genome(path)
    index = tmp_path / "x.fa.fai"
    age(index, older)
    write_plain(path, later)
    if "ACGTACG" in later and not older:
        os.utime(path)  # same size: only the time of change tells
    told = message(lambda: Genome(path))
    assert "index is out of date" in told
    assert "delete the .fai" in told
    index.unlink()
    assert Genome(path).lengths == {name: len(text) for name, text in read_fasta(path)}


def test_a_copied_file_newer_than_a_fitting_index_is_read(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "x.fa", fasta_text(chromosomes()))
    Genome(path)
    age(tmp_path / "x.fa.fai", 100)
    assert Genome(path).fetch("chr2", 0, 60) == chromosomes()["chr2"]


def test_an_index_that_is_none(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "x.fa", ">a\nACGT\n")
    (tmp_path / "x.fa.fai").write_text("a\tb\n")
    assert "x.fa.fai line 1: not a FASTA index" in message(lambda: Genome(path))


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_records_and_stream_agree(write: Callable[[Path, str], Path], tmp_path: Path) -> None:
    ragged = ">r1 first\nACG\nT\n\nAC\n>r2\r\nGG\r\nG\r\n>r3\nnnN"
    path = write(tmp_path / "r.fa", ragged)
    expected = [("r1", "ACGTAC"), ("r2", "GGG"), ("r3", "nnN")]
    assert list(read_fasta(path)) == expected
    records = FastaRecords(path)
    assert [(r["id"], r["sequence"]) for r in records] == expected
    assert records[-1] == records[2] == pickle.loads(pickle.dumps(records))[2]
    assert records[1:] == [records[1], records[2]]
    with pytest.raises(IndexError):
        records[3]


BAD_RECORDS = {
    "ACGT\n>a\nAC\n": "r.fa line 1: text before the first '>'; is it FASTA?",
    "hello\n": "is it FASTA?",
    ">a\nACGT\n>\nAC\n": "r.fa line 3",
    ">a\nACGT\n> b\nAC\n": "header without an id",
    ">a\nACGT\n>b\n": "has no sequence; is the file truncated?",
}


@pytest.mark.parametrize(("text", "expected"), BAD_RECORDS.items())
def test_bad_records(text: str, expected: str, tmp_path: Path) -> None:
    path = write_plain(tmp_path / "r.fa", text)
    assert expected in message(lambda: list(read_fasta(path)))
    assert expected in message(lambda: list(FastaRecords(path)))


def test_an_id_used_twice_is_named_with_its_line(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "r.fa", ">a x\nAC\nGT\n>b\nAC\n>a y\nAC\n")
    told = message(lambda: FastaRecords(path))
    assert "r.fa line 6: record 2: id 'a' was used before, in record 0" in told


def test_many_records_take_little_memory(tmp_path: Path) -> None:
    """The ids and sequences of 50,000 records would be over 20 MB as Python objects."""
    import tracemalloc

    path = write_plain(tmp_path / "r.fa", "".join(f">r{i}\n{'ACGT' * 50}\n" for i in range(50_000)))
    tracemalloc.start()
    records = FastaRecords(path)
    assert sum(len(record["sequence"]) for record in records) == 10_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000
