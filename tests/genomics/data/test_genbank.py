"""GenBank files written by biopython, and every way one can be bad."""

from __future__ import annotations

from pathlib import Path

import pytest
from Bio import SeqIO
from Bio.Seq import Seq
from Bio.SeqFeature import SeqFeature, SimpleLocation
from Bio.SeqRecord import SeqRecord

from core.jobs.errors import DataError
from genomics.data.genbank import read_genbank

SEQUENCE = "ACGTACGTAC" * 13


def genbank(name: str = "X.1") -> str:
    spliced = SimpleLocation(100, 110, -1) + SimpleLocation(20, 40, -1)
    features = [
        SeqFeature(SimpleLocation(0, 130, 0), "source"),
        SeqFeature(SimpleLocation(3, 33, 1), "gene", qualifiers={"gene": ["psbA"]}),
        SeqFeature(spliced, "CDS", qualifiers={"gene": ["rps12"], "db_xref": ["A:1", "B:2"]}),
    ]
    record = SeqRecord(Seq(SEQUENCE), name, annotations={"molecule_type": "DNA"}, features=features)
    return record.format("genbank")


def test_records_and_features(tmp_path: Path) -> None:
    path = tmp_path / "a.gb"
    path.write_text(genbank() + "\n" + genbank("Y.2"))
    first, second = read_genbank(path)
    assert (first.id, second.id) == ("X.1", "Y.2")
    assert first.sequence == SEQUENCE
    found = [(f.type, f.start, f.end, f.strand) for f in first.features]
    assert found == [
        ("source", 0, 130, "+"),
        ("gene", 3, 33, "+"),
        ("CDS", 100, 110, "-"),
        ("CDS", 20, 40, "-"),
    ]
    assert first.features[1].attributes == {"gene": ["psbA"]}
    assert first.features[3].attributes == {"gene": ["rps12"], "db_xref": ["A:1", "B:2"]}
    assert {f.chrom for f in second.features} == {"Y.2"}


def test_features_agree_with_biopython(tmp_path: Path) -> None:
    path = tmp_path / "a.gb"
    path.write_text(genbank())
    (record,) = read_genbank(path)
    theirs = SeqIO.read(path, "genbank")
    gene = record.features[1]
    assert record.sequence[gene.start : gene.end] == str(theirs.features[1].extract(theirs.seq))


BAD = {
    "": "the file is empty",
    "\n\n": "no record in it; is it GenBank?",
    ">a\nACGT\n": "line 1: expected LOCUS; is it GenBank?",
    genbank()[:-10]: "line 1: record without its end (//); is the file truncated?",
    genbank() + genbank()[:300]: "record without its end (//)",
    genbank().replace("121 acgtacgtac\n", "121 acgtac\n"): "LOCUS says 130 bases, the record has",
    genbank().split("ORIGIN")[0] + "//\n": "line 1: not a GenBank record",
}


@pytest.mark.parametrize(("text", "expected"), BAD.items(), ids=range(len(BAD)))
def test_bad_files(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "a.gb").write_text(text)
    with pytest.raises(DataError) as caught:
        list(read_genbank(tmp_path / "a.gb"))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
