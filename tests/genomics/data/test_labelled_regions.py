"""Regions with classes: windows, splits and strands against the sequence itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from core.jobs.errors import DataError, UsageError
from core.jobs.shards import shard_path
from genomics.data.exports import export_regions
from genomics.data.labelled_regions import LabelledRegions
from genomics.data.tokenizers import NucleotideTokenizer, reverse_complement

CHROMS = {
    name: "".join(np.random.default_rng(seed).choice(list("ACGT"), 100))
    for seed, name in enumerate(("c1", "c2", "c3"))
}
BED = "#chrom\tstart\tend\tname\tscore\tstrand\tlabel\tsplit\n"
ROWS = (
    "c1\t10\t20\ta\t.\t+\t1\ttrain\n"
    "c1\t90\t100\tb\t.\t-\t0\ttrain\n"
    "c2\t0\t6\tc\t.\t+\t1\tval\n"
    "c3\t40\t50\td\t.\t-\t0\ttest\n"
)
GFF = (
    "c1\tx\tCDS\t11\t20\t.\t+\t0\tID=a\n"
    "c1\tx\ttRNA\t91\t100\t.\t-\t.\tID=b\n"
    "c1\tx\tgene\t1\t99\t.\t-\t.\tID=g\n"
    "c2\tx\tCDS\t1\t6\t.\t+\t0\tID=c\n"
    "c3\tx\ttRNA\t41\t50\t.\t-\t.\tID=d\n"
)
PLAN = {"val": ["c2"], "test": ["c3"]}


@pytest.fixture
def fasta(tmp_path: Path) -> str:
    path = tmp_path / "g.fa"
    path.write_text("".join(f">{name}\n{text}\n" for name, text in CHROMS.items()))
    return str(path)


def module(fasta: str, name: str, text: str, **options: object) -> LabelledRegions:
    path = Path(fasta).with_name(name)
    path.write_text(text)
    return LabelledRegions(fasta, str(path), **options)  # type: ignore[arg-type]


def texts(data: LabelledRegions) -> dict[str, list[tuple[str, int | None]]]:
    data.setup("fit")
    decode = NucleotideTokenizer().decode
    return {
        name: [(decode(e.tokens), e.label) for e in examples]
        for name, examples in data.splits.items()
    }


EXPECTED = {
    "train": [(CHROMS["c1"][10:20], 1), (reverse_complement(CHROMS["c1"][90:100]), 0)],
    "val": [(CHROMS["c2"][:6], 1)],
    "test": [(reverse_complement(CHROMS["c3"][40:50]), 0)],
}


def test_bed_with_label_and_split(fasta: str) -> None:
    assert texts(module(fasta, "x.bed", BED + ROWS)) == EXPECTED


def test_bed_without_header_split_by_chromosome(fasta: str) -> None:
    rows = "".join("\t".join(r.split("\t")[:7]) + "\n" for r in ROWS.splitlines())
    columns = ["name", "score", "strand", "enhancer"]
    data = module(fasta, "x.bed", rows, columns=columns, label="enhancer", splits=PLAN)
    assert texts(data) == EXPECTED


def test_gff_types_as_classes(fasta: str) -> None:
    classes = {"CDS": 1, "tRNA": 0}
    data = module(fasta, "x.gff3", GFF, label="type", classes=classes, splits=PLAN)
    assert texts(data) == EXPECTED


def test_genbank_is_genome_and_regions(tmp_path: Path) -> None:
    sequence = CHROMS["c1"].lower()
    lines = [f"{1 + 60 * i:>9} {sequence[60 * i : 60 * (i + 1)]}" for i in range(2)]
    gb = tmp_path / "x.gb"
    gb.write_text(
        f"LOCUS       c1   {len(sequence)} bp   DNA   linear   UNK\nACCESSION   c1\nFEATURES"
        "             Location/Qualifiers\n     CDS             11..20\n"
        "     tRNA            complement(91..100)\nORIGIN\n" + "\n".join(lines) + "\n//\n"
    )
    classes, plan = {"CDS": 1, "tRNA": 0}, {"test": ["c1:81-100"]}
    data = LabelledRegions(str(gb), str(gb), label="type", classes=classes, splits=plan)
    assert texts(data) == {"train": [EXPECTED["train"][0]], "test": [EXPECTED["train"][1]]}


def test_windows_of_one_length_are_padded_at_the_ends(fasta: str) -> None:
    found = texts(module(fasta, "x.bed", BED + ROWS, length=16))
    assert found["train"][0] == (CHROMS["c1"][7:23], 1)
    assert found["train"][1] == (reverse_complement(CHROMS["c1"][87:] + "NNN"), 0)
    assert found["val"] == [("N" * 5 + CHROMS["c2"][:11], 1)]


def test_predicted_records_are_the_test_split_or_a_file(fasta: str, tmp_path: Path) -> None:
    data = module(fasta, "x.bed", BED + ROWS)
    (record,) = data.predict_records()
    assert record == {"id": "d", "chrom": "c3", "start": 40, "end": 50, "strand": "-"}
    example = data.encode(record)
    assert NucleotideTokenizer().decode(example.tokens) == EXPECTED["test"][0][0]
    batch = data.collate([example, example])
    assert batch["columns"]["start"] == [40, 40]
    unnamed = tmp_path / "y.bed"
    unnamed.write_text("c1\t0\t5\nc1\t0\t5\nc2\t7\t9\n")
    records = LabelledRegions(fasta, predict_regions=str(unnamed)).predict_records()
    ids = [records[i]["id"] for i in range(len(records))]
    assert ids == ["c1:1-5.", "c1:1-5.#2", "c2:8-9."]


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("x.bed", BED + ROWS + "c1\t15\t30\te\t.\t+\t1\ttest\n", {}, "1 regions overlap train and"),
        ("x.bed", BED + ROWS + "c9\t15\t30\te\t.\t+\t1\ttest\n", {}, "line 6: chromosome 'c9'"),
        ("x.bed", BED + ROWS + "c1\t30\t31\te\t.\t+\tx\ttrain\n", {}, "has label 'x'"),
        ("x.bed", BED + ROWS + "c1\t30\t31\te\t.\t+\t1\tno\n", {}, "has split 'no'"),
        ("x.bed", BED + ROWS, {"classes": {"x": 1}}, "no region whose label is one of x"),
        ("x.gff", GFF + "c1\tx\tCDS\t90\t101\t.\t+\t0\tID=a\n", {}, "is not inside c1"),
    ],
)
def test_refuses(
    fasta: str, name: str, text: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        module(fasta, name, text, **options).setup("fit")


def test_one_sequence_in_two_splits_is_refused(fasta: str, tmp_path: Path) -> None:
    path = Path(fasta)
    path.write_text(path.read_text() + f">c4\n{CHROMS['c1']}\n")
    twice = ROWS + "c4\t10\t20\te\t.\t-\t1\ttest\n"
    with pytest.raises(DataError, match="1 sequences stand in both train and test"):
        module(fasta, "x.bed", BED + twice).setup("fit")


def test_regions_across_a_border_are_left_out_aloud(fasta: str) -> None:
    data = module(fasta, "x.bed", BED + ROWS, splits={"test": ["c3", "c1:1-15"]})
    with pytest.warns(UserWarning, match="1 regions lie across the border"):
        found = texts(data)
    assert found["train"] == [EXPECTED["train"][1], *EXPECTED["val"]]


def test_wrong_use(fasta: str) -> None:
    with pytest.raises(UsageError, match=r"fit needs data\.regions"):
        LabelledRegions(fasta).setup("fit")
    with pytest.raises(UsageError, match="'dev' is none of"):
        LabelledRegions(fasta, splits={"dev": ["c1"]})
    with pytest.raises(UsageError, match=r"give \.bed"):
        module(fasta, "x.txt", BED).setup("fit")


def test_export(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    manifest = {"records": 3, "rows_per_shard": 3, "format": 1}
    names = {"input_digest": "i", "model_version": "m", "config_hash": "c"}
    (folder / "manifest.json").write_text(json.dumps(manifest | names))
    pl.DataFrame(
        {
            "id": ["b", "a", "empty"],
            "chrom": ["c1", "c1", None],
            "start": [50, 10, None],
            "end": [60, 20, None],
            "strand": ["-", "+", None],
            "prediction": [1, 0, None],
            "probability_0": [0.25, 0.5, None],
            "probability_1": [0.75, 0.5, None],
            "reason": [None, None, "a region of no bases"],
        }
    ).write_parquet(shard_path(folder, 0))
    (folder / "_SUCCESS").write_text("{}")
    export_regions(folder, tmp_path / "x.bed")
    rows = (tmp_path / "x.bed").read_text().splitlines()
    assert rows[1:] == [
        "c1\t10\t20\ta\t.\t+\t0\t0.5\t0.5",
        "c1\t50\t60\tb\t.\t-\t1\t0.25\t0.75",
    ]
    export_regions(folder, tmp_path / "x.bedgraph")
    assert (tmp_path / "x.bedgraph").read_text() == "c1\t10\t20\t0.5\nc1\t50\t60\t0.75\n"
    with pytest.raises(UsageError, match=r"to \.bed or \.bedgraph"):
        export_regions(folder, tmp_path / "x.vcf")
