"""BED lines, and every way they can be bad."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from core.jobs.errors import DataError
from genomics.data.bed import read_bed
from genomics.data.fasta import Genome
from genomics.data.regions import Region

HEAD = "browser position c:1-9\ntrack name=x\n# a comment\n\n"


def bed(folder: Path, text: str, name: str = "a.bed") -> Path:
    path = folder / name
    data = text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("name", ["a.bed", "a.bed.gz"])
def test_standard_columns(name: str, tmp_path: Path) -> None:
    text = f"{HEAD}c\t0\t9\n\nd\t5\t5\tpeak\t12.5\t-\t5\t5\t0\r\nc 1 2 spaced 0 +\n"
    regions = read_bed(bed(tmp_path, text, name))
    assert regions == [
        Region("c", 0, 9),
        Region("d", 5, 5, "peak", 12.5, "-", {"thickStart": "5", "thickEnd": "5", "itemRgb": "0"}),
        Region("c", 1, 2, "spaced", 0.0, "+"),
    ]
    assert len(regions[0]) == 9


def test_columns_named_by_the_caller_or_the_first_line(tmp_path: Path) -> None:
    line = "c\t0\t9\tpos\ttrain\tleft over\n"
    expected = [Region("c", 0, 9, fields={"label": "pos", "split": "train"})]
    assert read_bed(bed(tmp_path, line), ["label", "split"]) == expected
    headed = f"#chrom\tstart\tend\tlabel\tsplit\n{line}"
    assert read_bed(bed(tmp_path, headed)) == expected
    headed = f"#chrom\tchromStart\tchromEnd\tsplit\tname\n{line}"
    assert read_bed(bed(tmp_path, headed)) == [Region("c", 0, 9, "train", fields={"split": "pos"})]


BAD = {
    "c\t0\n": "line 5: 2 columns, BED needs chrom, start and end",
    "c\t5\t4\n": "line 5: end 4 is before start 5",
    "c\t-1\t4\n": "line 5: start -1 is negative",
    "c\tx\t4\n": "line 5: start 'x' or end '4' is not a number",
    "c\t1\t2.5\n": "line 5: start '1' or end '2.5' is not a number",
    "c\t1\t2\tn\thigh\n": "line 5: score 'high' is not a number",
    "c\t1\t2\tn\t0\tup\n": "line 5: strand 'up' is none of + - .",
    "c\t0\t10\nc\t0\t11\n": "line 6: end 11 is beyond c, 10 bases long",
    "chrc\t0\t10\n": "line 5: chromosome 'chrc' is not in g.fa; nearest is 'c'",
    "": "no region in it",
}


@pytest.mark.parametrize(("text", "expected"), BAD.items())
def test_bad_lines(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "g.fa").write_text(">c\nACGTACGTAC\n")
    with pytest.raises(DataError) as caught:
        read_bed(bed(tmp_path, HEAD + text), genome=Genome(tmp_path / "g.fa"))
    assert expected in str(caught.value)


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1: 3 columns where chrom, start, end, label are"):
        read_bed(bed(tmp_path, "c\t0\t9\n"), ["label"])
