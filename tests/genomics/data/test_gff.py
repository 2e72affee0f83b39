"""GFF3 and GTF against pysam, and every way a line can be bad."""

from __future__ import annotations

from pathlib import Path

import pysam
import pytest

from core.jobs.errors import DataError
from genomics.data.gff import Feature, read_gff

GFF3 = """##gff-version 3
chr%3E1\t.\tgene\t1\t9000\t.\t+\t.\tID=g1;Name=EDEN%3B1;Dbxref=A:1,B:2
c\thavana\tCDS\t1201\t1500\t0.5\t-\t0\tID=cds1;Parent=m1,m2;
c\thavana\tregion\t7\t7\t1e-3\t?\t.\t.

###
##FASTA
>c
ACGT
"""
GTF = (
    'c\tens\texon\t11\t20\t.\t+\t.\tgene_id "G 1; x"; transcript_id "T1"; exon_number 3;'
    ' tag "a"; tag "b";\n'
    'c\tens\tCDS\t11\t20\t7\t-\t2\tgene_id "G2"; transcript_id ""\n'
)


def write(folder: Path, text: str) -> Path:
    path = folder / "a.gff"
    path.write_text(text)
    return path


def test_gff3(tmp_path: Path) -> None:
    names = {"ID": ["g1"], "Name": ["EDEN;1"], "Dbxref": ["A:1", "B:2"]}
    assert list(read_gff(write(tmp_path, GFF3))) == [
        Feature("chr>1", ".", "gene", 0, 9000, None, "+", None, names),
        Feature(
            "c", "havana", "CDS", 1200, 1500, 0.5, "-", 0, {"ID": ["cds1"], "Parent": ["m1", "m2"]}
        ),
        Feature("c", "havana", "region", 6, 7, 0.001, "?", None, {}),
    ]


def test_gtf(tmp_path: Path) -> None:
    exon, cds = read_gff(write(tmp_path, GTF))
    assert (exon.start, exon.end, exon.score, exon.strand, exon.phase) == (10, 20, None, "+", None)
    assert exon.attributes == {
        "gene_id": ["G 1; x"],
        "transcript_id": ["T1"],
        "exon_number": ["3"],
        "tag": ["a", "b"],
    }
    assert (cds.score, cds.phase) == (7.0, 2)
    assert cds.attributes == {"gene_id": ["G2"], "transcript_id": [""]}


def test_coordinates_are_those_of_pysam(tmp_path: Path) -> None:
    text = GFF3[: GFF3.index("\n\n") + 1].split("\n", 1)[1]
    with write(tmp_path, text).open() as file:
        theirs = list(pysam.tabix_iterator(file, pysam.asGFF3()))
    ours = list(read_gff(write(tmp_path, text)))
    assert [(f.start, f.end, f.type) for f in ours] == [(t.start, t.end, t.feature) for t in theirs]


BAD = {
    "c\t.\tgene\t1\t2\n": "line 2: 5 tab-separated columns, GFF3 and GTF have 9",
    "c\t.\tgene\t0\t2\t.\t+\t.\t.\n": "line 2: start '0' and end '2' are no range counted from 1",
    "c\t.\tgene\t3\t2\t.\t+\t.\t.\n": "start '3' and end '2' are no range",
    "c\t.\tgene\tx\t2\t.\t+\t.\t.\n": "start 'x' and end '2' are no range",
    "c\t.\tgene\t1\t2\tx\t+\t.\t.\n": "score 'x' is not a number",
    "c\t.\tgene\t1\t2\t.\tx\t.\t.\n": "strand 'x' is none of",
    "c\t.\tgene\t1\t2\t.\t+\t3\t.\n": "phase '3' is none of",
    "c\t.\tgene\t1\t2\t.\t+\t.\tID=a;b\n": "attribute 'b' has no '='",
    'c\t.\tgene\t1\t2\t.\t+\t.\tgene_id "a\n': "are neither GFF3 nor GTF",
    "": "no feature in it",
}


@pytest.mark.parametrize(("text", "expected"), BAD.items())
def test_bad_lines(text: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        list(read_gff(write(tmp_path, "# comment\n" + text)))
    assert expected in str(caught.value)
