"""Predictions of variants in the field's formats."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pysam
import pytest

from core.jobs.errors import DataError, UsageError
from core.jobs.shards import shard_path
from genomics.data.exports import export_variants, write_bed, write_bedgraph

VCF = """##fileformat=VCFv4.2
##contig=<ID=c2,length=1000>
##contig=<ID=c1,length=1000>
#CHROM	POS	ID	REF	ALT	QUAL	FILTER	INFO
c2	5	.	A	T,C	.	.	X=1
c2	9	.	ACG	A	.	.	.
c2	11	.	G	<DEL>	.	.	.
c1	3	.	A	AT	.	.	.
"""
NAN = float("nan")
ROWS = pl.DataFrame(
    {
        "id": ["0.1", "0.2", "1.1", "2.1", "3.1"],
        "chrom": ["c2", "c2", "c2", None, "c1"],
        "start": [4, 4, 8, None, 2],
        "ref": ["A", "A", "ACG", None, "A"],
        "alt": ["T", "C", "A", None, "AT"],
        "score": [0.5, -2.0, 1e-12, None, 1 / 3],
        "score_1": [1.0, NAN, 3.0, None, 4.0],
        "reason": [None, None, None, "symbolic", None],
    }
)


def predictions(folder: Path, rows: pl.DataFrame = ROWS) -> Path:
    """A finished prediction folder of two shards."""
    folder.mkdir()
    manifest = {"records": len(rows), "rows_per_shard": 3}
    names = {"input_digest": "i", "model_version": "m", "config_hash": "c", "format": 1}
    (folder / "manifest.json").write_text(json.dumps(manifest | names))
    for shard in range(2):
        rows[3 * shard : 3 * shard + 3].write_parquet(shard_path(folder, shard))
    (folder / "_SUCCESS").write_text("{}")
    return folder


@pytest.fixture
def vcf(tmp_path: Path) -> Path:
    path = tmp_path / "in.vcf"
    path.write_text(VCF)
    return path


def test_vcf_holds_every_record(vcf: Path, tmp_path: Path) -> None:
    export_variants(predictions(tmp_path / "p"), vcf, tmp_path / "out.vcf")
    records = [
        line.split("\t")
        for line in (tmp_path / "out.vcf").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert [r[:5] for r in records] == [
        line.split("\t")[:5] for line in VCF.splitlines() if not line.startswith("#")
    ]
    assert [r[7] for r in records] == [
        "X=1;SCORE=0.5,-2;SCORE_1=1,.",
        "SCORE=1e-12;SCORE_1=3",
        "SCORE=.;SCORE_1=.;REASON=symbolic",
        "SCORE=0.3333333;SCORE_1=4",
    ]


def test_bed_is_sorted_and_names_its_columns(vcf: Path, tmp_path: Path) -> None:
    export_variants(predictions(tmp_path / "p"), vcf, tmp_path / "out.bed")
    assert (tmp_path / "out.bed").read_text().splitlines() == [
        "#chrom\tstart\tend\tname\tscore\tscore_1",
        "c1\t2\t3\tA>AT\t0.3333333\t4",
        "c2\t4\t5\tA>T\t0.5\t1",
        "c2\t4\t5\tA>C\t-2\t.",
        "c2\t8\t11\tACG>A\t1e-12\t3",
    ]


def test_bedgraph_has_one_value_a_position(vcf: Path, tmp_path: Path) -> None:
    export_variants(predictions(tmp_path / "p"), vcf, tmp_path / "out.bedgraph.gz")
    with pysam.BGZFile(str(tmp_path / "out.bedgraph.gz"), "rb", None) as file:
        text = file.read().decode()
    assert text.splitlines() == ["c1\t2\t3\t0.3333333", "c2\t4\t5\t-2", "c2\t8\t9\t1e-12"]


def test_predictions_of_another_file_are_refused(vcf: Path, tmp_path: Path) -> None:
    folder = predictions(tmp_path / "p")
    vcf.write_text(VCF.replace("T,C", "T"))
    with pytest.raises(DataError, match="not those of the predictions"):
        export_variants(folder, vcf, tmp_path / "out.vcf")
    assert not (tmp_path / "out.vcf").exists()


def test_what_cannot_be_exported(vcf: Path, tmp_path: Path) -> None:
    folder = predictions(tmp_path / "p")
    with pytest.raises(UsageError, match=r"exported to \.vcf, \.bed or \.bedgraph"):
        export_variants(folder, vcf, tmp_path / "out.txt")
    bare = predictions(tmp_path / "q", ROWS.drop("score", "score_1"))
    with pytest.raises(UsageError, match="no column of numbers"):
        export_variants(bare, vcf, tmp_path / "out.vcf")
    (folder / "_SUCCESS").unlink()
    with pytest.raises(UsageError, match="no finished predictions"):
        export_variants(folder, vcf, tmp_path / "out.vcf")


def test_a_bedgraph_may_not_overlap(tmp_path: Path) -> None:
    table = pl.DataFrame(
        {"chrom": ["a", "b", "a"], "start": [5, 5, 0], "end": [9, 9, 6], "value": [1.0, 2.0, 3.0]}
    ).lazy()
    with pytest.raises(DataError, match="overlap at a:5"):
        write_bedgraph(table, tmp_path / "x.bedgraph")
    assert not list(tmp_path.iterdir())
    apart = pl.DataFrame({"chrom": ["b", "a"], "start": [0, 5], "end": [5, 9], "value": [1, 2]})
    write_bedgraph(apart.lazy(), tmp_path / "x.bedgraph")
    assert (tmp_path / "x.bedgraph").read_text() == "a\t5\t9\t2\nb\t0\t5\t1\n"
    write_bed(table, tmp_path / "x.bed")
    assert (tmp_path / "x.bed").read_text().splitlines()[1] == "a\t0\t6\t3"
