"""VCF in and out, held to pysam, and every way a file can be bad."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pysam
import pytest

from core.jobs.errors import DataError, UsageError
from genomics.data.variants import Variant
from genomics.data.vcf import VcfAlleles, write_scores

HEADER = [
    "##fileformat=VCFv4.2",
    '##INFO=<ID=AF,Number=A,Type=Float,Description="Allele frequency">',
    '##ALT=<ID=DEL,Description="Deletion">',
    '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">',
    "##contig=<ID=c,length=1000>",
    "##contig=<ID=d,length=700000000>",
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ts1",
]
RECORDS = [
    "c\t5\trs1\tA\tT\t1e-3\tPASS\tAF=0.50\tGT\t0/1",
    "c\t5\t.\tA\tC,g,<DEL>\t.\t.\t.\tGT\t1/2",
    "c\t7\tx;y\tACG\tA,*\t10.0\tq10\tAF=1e-10,.;\tGT\t./.",
    "c\t9\t.\tA\tA[c:20[\t.\t.\tAF=.\tGT\t0|1",
    "c\t9\t.\tA\t.\t.\t.\tEND=9;FLAG\tGT\t0|0",
    "c\t10\t.\tM\tT\t.\t.\tAF=0\tGT\t0|1",
    "c\t12\t.\tt\tTAAN\t.\t.\tAF=0\tGT\t0|1",
]
ALLELES = [
    ("0.1", Variant("c", 4, "A", "T"), None),
    ("1.1", Variant("c", 4, "A", "C"), None),
    ("1.2", Variant("c", 4, "A", "G"), None),
    ("1.3", Variant("c", 4, "A", "<DEL>"), "symbolic"),
    ("2.1", Variant("c", 6, "ACG", "A"), None),
    ("2.2", Variant("c", 6, "ACG", "*"), "spanning_deletion"),
    ("3.1", Variant("c", 8, "A", "A[c:20["), "breakend"),
    ("4.0", Variant("c", 8, "A", "."), "no_alternate"),
    ("5.1", Variant("c", 9, "M", "T"), "ambiguous_reference"),
    ("6.1", Variant("c", 11, "T", "TAAN"), None),
]


def write(path: Path, records: list[str], header: list[str] = HEADER) -> Path:
    text = "\n".join([*header, *records]) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".bgz":
        with pysam.BGZFile(str(path), "wb", None) as file:
            file.write(text.encode())
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["a.vcf", "a.vcf.gz", "a.vcf.bgz"])
def test_every_allele_of_every_record(name: str, tmp_path: Path) -> None:
    alleles = VcfAlleles(write(tmp_path / name, RECORDS))
    assert [(a.id, a.variant, a.reason) for a in alleles] == ALLELES
    assert [a.line for a in alleles] == [8, 9, 9, 9, 10, 10, 11, 12, 13, 14]
    assert alleles[-1] == alleles[9]
    assert alleles[3].variant.end == 5
    with pytest.raises(IndexError):
        alleles[10]


def test_real_file_agrees_with_pysam(samples: Path) -> None:
    path = samples / "chr22_20-21M.vcf.gz"
    ours = [(a.record, a.variant) for a in VcfAlleles(path)]
    with pysam.VariantFile(str(path)) as file:
        theirs = [
            (number, Variant(record.chrom, record.start, record.ref or "", alt))
            for number, record in enumerate(file)
            for alt in record.alts or ()
        ]
    assert ours == theirs
    assert len(ours) == 3502


@pytest.fixture
def samples() -> Path:
    return Path(__file__).parents[3] / "genomics" / "samples"


def message(action: Callable[[], object], kind: type[Exception] = DataError) -> str:
    with pytest.raises(kind) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


BAD_RECORDS = {
    "c\tx\t.\tA\tT\t.\t.\t.\tGT\t0/1": "a.vcf line 8: POS 'x' is not a number",
    "c\t-1\t.\tA\tT\t.\t.\t.\tGT\t0/1": "POS '-1' is not a number",
    "c\t1\t.\tAZ\tT\t.\t.\t.\tGT\t0/1": "REF 'AZ' is not made of nucleotide codes",
    "c\t1\t.\t\tT\t.\t.\t.\tGT\t0/1": "REF '' is not made",
    "c\t1\t.\tA\tTE\t.\t.\t.\tGT\t0/1": "line 8: ALT 'TE' is neither made of A, C, G, T, N nor",
    "c\t1\t.\tA\tT,\t.\t.\t.\tGT\t0/1": "ALT '' is neither",
    "c\t1\t.\tA\tR\t.\t.\t.\tGT\t0/1": "ALT 'R' is neither",
    "c\t1\t.\tA\tT\t.\t.": "7 columns where the header has 10; is the file truncated?",
    "c\t1\t.\tA\tT\t.\t.\t.\tGT\t0/1\t1": "11 columns where the header has 10",
}


@pytest.mark.parametrize(("record", "expected"), BAD_RECORDS.items())
def test_bad_records(record: str, expected: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.vcf", [record])
    assert expected in message(lambda: VcfAlleles(path))


BAD_FILES = {
    b"chr1\t1\t.\n": "line 1: does not begin with ##fileformat=VCF; is it VCF?",
    b"": "the file is empty",
    b"##fileformat=VCFv4.2\n##source=x\n": "no header line #CHROM; is the file truncated?",
    b"##fileformat=VCFv4.2\nc\t1\t.\tA\tT\t.\t.\t.\n": "line 2: expected the header line #CHROM",
    b"BCF\x02\x02": "this is BCF; convert it",
}


@pytest.mark.parametrize(("content", "expected"), BAD_FILES.items())
def test_bad_files(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "a.vcf").write_bytes(content)
    assert expected in message(lambda: VcfAlleles(tmp_path / "a.vcf"))


@pytest.mark.parametrize("name", ["a.vcf.gz", "a.vcf.bgz"])
def test_cut_archives(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, RECORDS)
    whole = path.read_bytes()
    for cut in (len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:cut])
        assert "truncated" in message(lambda: VcfAlleles(path))


SCORES: list[float | None] = [0.5, -1, 2.25, None, 1e-9, None, None, None, math.nan, 123456.789]
REASONS = [reason for _, _, reason in ALLELES]


def scored(tmp_path: Path, name: str, records: list[str] = RECORDS) -> tuple[Path, Path | None]:
    source, target = write(tmp_path / "in.vcf", records), tmp_path / name
    count = len(VcfAlleles(source))
    index = write_scores(
        source,
        target,
        {"LLR": SCORES[:count]},
        [*REASONS[:count]],
        "WHY",
        {"LLR": 'log-likelihood ratio, "nats"'},
    )
    return target, index


def test_nothing_but_info_changes(tmp_path: Path) -> None:
    target, index = scored(tmp_path, "out.vcf")
    lines = target.read_text().splitlines()
    assert index is None
    assert [line for line in lines if line not in HEADER][:2] == [
        r'##INFO=<ID=LLR,Number=A,Type=Float,Description="log-likelihood ratio, \"nats\"">',
        '##INFO=<ID=WHY,Number=A,Type=String,Description="Why an allele has no score">',
    ]
    records = [line.split("\t") for line in lines if not line.startswith("#")]
    assert [r[:7] + r[8:] for r in records] == [
        r.split("\t")[:7] + r.split("\t")[8:] for r in RECORDS
    ]
    assert [r[7] for r in records] == [
        "AF=0.50;LLR=0.5",
        "LLR=-1,2.25,.;WHY=.,.,symbolic",
        "AF=1e-10,.;LLR=1e-09,.;WHY=.,spanning_deletion",
        "AF=.;LLR=.;WHY=breakend",
        "END=9;FLAG;LLR=.;WHY=no_alternate",
        "AF=0;LLR=.;WHY=ambiguous_reference",
        "AF=0;LLR=123456.8",
    ]


@pytest.mark.parametrize("name", ["out.vcf.gz", "out.vcf.bgz"])
def test_packed_output_has_an_index_and_pysam_reads_it(name: str, tmp_path: Path) -> None:
    records = [record for record in RECORDS if "FLAG" not in record]
    target, index = scored(tmp_path, name, records)
    assert index == tmp_path / f"{name}.tbi"
    with pysam.VariantFile(str(target)) as file:
        found = [(r.pos, r.info["LLR"]) for r in file.fetch("c", 6, 9)]
    assert found == [(7, (pytest.approx(1e-9), None)), (9, (None,))]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.vcf", name, f"{name}.tbi"]


def test_positions_past_what_tabix_holds_get_the_other_index(tmp_path: Path) -> None:
    records = ["c\t1\t.\tA\tT\t.\t.\t.\tGT\t0/1", "d\t600000000\t.\tA\tT\t.\t.\t.\tGT\t0/1"]
    target, index = scored(tmp_path, "out.vcf.gz", records)
    assert index == tmp_path / "out.vcf.gz.csi"
    with pysam.VariantFile(str(target)) as file:
        assert [r.pos for r in file.fetch("d", 599_999_990, 600_000_010)] == [600_000_000]


def test_unsorted_records_keep_their_order_and_get_no_index(tmp_path: Path) -> None:
    (tmp_path / "out.vcf.gz.tbi").write_bytes(b"of an earlier run")
    records = [RECORDS[2], RECORDS[0]]
    target, index = scored(tmp_path, "out.vcf.gz", records)
    assert index is None
    positions = [a.variant.pos for a in VcfAlleles(target)]
    assert positions == [6, 6, 4]
    assert not (tmp_path / "out.vcf.gz.tbi").exists()


def test_real_file_comes_back_whole(samples: Path, tmp_path: Path) -> None:
    source, target = samples / "chr22_20-21M.vcf.gz", tmp_path / "out.vcf.gz"
    scores = [i / 7 for i in range(3502)]
    write_scores(source, target, {"S": scores})
    assert [a.variant for a in VcfAlleles(target)] == [a.variant for a in VcfAlleles(source)]
    with pysam.VariantFile(str(target)) as file:
        found = [score for record in file for score in record.info["S"]]
    assert found == pytest.approx(scores)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    """A source; afterwards nothing is half-written."""
    yield write(tmp_path / "in.vcf", RECORDS)
    assert [file.name for file in tmp_path.iterdir()] == ["in.vcf"]


def test_wrong_scores(source: Path, tmp_path: Path) -> None:
    for count in (9, 11):
        told = message(lambda n=count: write_scores(source, tmp_path / "o.vcf", {"S": [0.0] * n}))  # type: ignore[misc]
        assert "alleles" in told
    told = message(lambda: write_scores(source, tmp_path / "o.vcf", {"S": [0.0] * 10, "T": [1]}))
    assert "different numbers of alleles" in told


def test_wrong_names(source: Path, tmp_path: Path) -> None:
    zeros = [0.0] * 10
    wrong: dict[str, Callable[[], object]] = {
        "INFO field AF is there already": lambda: write_scores(
            source, tmp_path / "o.vcf", {"AF": zeros}
        ),
        "'a b' cannot be an INFO key": lambda: write_scores(
            source, tmp_path / "o.vcf", {"a b": zeros}
        ),
        "ends in .vcf, .vcf.gz": lambda: write_scores(source, tmp_path / "o.bcf", {"S": zeros}),
        "nothing to add": lambda: write_scores(source, tmp_path / "o.vcf", {}),
        "two INFO fields": lambda: write_scores(
            source, tmp_path / "o.vcf", {"REASON": zeros}, [None] * 10
        ),
    }
    for expected, action in wrong.items():
        assert expected in message(action, UsageError)
