"""Makes the files of ``genomics/samples``: ``python -m genomics.data.make_samples FOLDER``.

Promoters: for every fly promoter of 2,000 bases, the 300 bases next to the transcription start
(label 1) and the 300 at the far end (label 0). Only the distance to the start tells them apart:
both come from the same sequence, strand and chromosome.
"""

from __future__ import annotations

import gzip
import re
import shutil
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pysam

from core.jobs.errors import UserError
from core.jobs.files import replacing
from genomics.data.fasta import read_fasta
from genomics.data.fetch import fetch
from genomics.data.files import read_lines
from genomics.data.tokenizers import reverse_complement

WINDOW = 300
APART = 2_500
SPLITS = {"chr3L": "val", "chr2R": "test"}
CHROM = "chr22_20-21M"

_HEADER = re.compile(
    r"(?P<transcript>.+)_up_2000_(?P<chrom>chr\w+)_(?P<start>-?\d+)_(?P<strand>[fr])"
)


class Promoter(NamedTuple):
    """2,000 bases upstream of a transcript, 5' to 3' on its strand; ``start`` is 0-based."""

    chrom: str
    start: int
    strand: str
    transcript: str
    sequence: str


def promoters() -> list[Promoter]:
    """Whole, distinct promoters without N whose first bases lie at least 2,500 apart."""
    distinct: dict[str, Promoter] = {}
    for name, sequence in read_fasta(fetch("fly-promoters")["dm3_upstream2000.fa.gz"]):
        match = _HEADER.fullmatch(name)
        if match is None or len(sequence) < 2_000 or "N" in sequence.upper():
            continue
        strand = "+" if match["strand"] == "f" else "-"
        found = (match["chrom"], int(match["start"]) - 1, strand, match["transcript"])
        distinct.setdefault(sequence.upper(), Promoter(*found, sequence.upper()))
    kept: list[Promoter] = []
    for promoter in sorted(distinct.values()):
        if kept and kept[-1].chrom == promoter.chrom and promoter.start - kept[-1].start < APART:
            continue
        kept.append(promoter)
    return kept


def promoter_rows() -> Iterator[list[str]]:
    """Rows id, sequence, label, split, chrom, start, end, strand; no window twice on any strand."""
    seen: set[str] = set()
    for chrom, begin, strand, transcript, sequence in promoters():
        for label, window in ((1, sequence[-WINDOW:]), (0, sequence[:WINDOW])):
            key = min(window, reverse_complement(window))
            if key in seen:
                continue
            seen.add(key)
            at_end = (label == 1) == (strand == "+")
            start = begin + 2_000 - WINDOW if at_end else begin
            place = [chrom, str(start), str(start + WINDOW), strand]
            yield [
                f"{transcript}_{start}_{label}",
                window,
                str(label),
                SPLITS.get(chrom, "train"),
                *place,
            ]


def write_promoters(target: Path) -> None:
    """Tab-separated and gzipped; the same bytes each time."""
    header = ["id", "sequence", "label", "split", "chrom", "start", "end", "strand"]
    with (
        replacing(target) as part,
        part.open("wb") as raw,
        gzip.GzipFile("", "wb", 9, raw, mtime=0) as file,
    ):
        for row in (header, *promoter_rows()):
            file.write(("\t".join(row) + "\n").encode())


def write_chr22(target: Path) -> str:
    """The 1 Mb of chromosome 22 as BGZF FASTA; returns its sequence."""
    ((_, sequence),) = read_fasta(fetch("human-chr22-1mb")["22_20-21M.fa"])
    with replacing(target) as part, pysam.BGZFile(str(part), "wb", None) as file:
        file.write(f">{CHROM} hg19 chr22:20000001-21000000\n".encode())
        for start in range(0, len(sequence), 60):
            file.write(f"{sequence[start : start + 60]}\n".encode())
    return sequence


def chr22_variants(sequence: str) -> Iterator[tuple[int, str, str, str]]:
    """(POS from 1, ID, REF, ALT) of HISAT2's list: type, 0-based position, then the base put
    there, the bases put before it, or the number of bases taken from there on."""
    rows = []
    for _, line in read_lines(fetch("human-chr22-1mb")["22_20-21M.snp"]):
        name, kind, _, place, change = line.split("\t")
        at = int(place)
        if kind == "single":
            ref, alt = sequence[at], change
        elif kind == "insertion":
            at -= 1
            ref, alt = sequence[at], sequence[at] + change
        else:
            at -= 1
            ref, alt = sequence[at : at + 1 + int(change)], sequence[at]
        rows.append((at + 1, ref.upper(), name, alt.upper()))
    for (pos, ref), same in groupby(sorted(set(rows)), key=lambda row: row[:2]):
        _, _, names, alts = zip(*same, strict=True)
        yield pos, ";".join(dict.fromkeys(names)), ref, ",".join(dict.fromkeys(alts))


def write_variants(sequence: str, target: Path) -> None:
    """VCF 4.2 in BGZF with a tabix index."""
    lines = [
        "##fileformat=VCFv4.2",
        "##reference=hg19",
        f"##contig=<ID={CHROM},length={len(sequence)}>",
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO",
    ]
    lines += [
        f"{CHROM}\t{pos}\t{name}\t{ref}\t{alt}\t.\t.\t."
        for pos, name, ref, alt in chr22_variants(sequence)
    ]
    with replacing(target) as part, pysam.BGZFile(str(part), "wb", None) as file:
        file.write(("\n".join(lines) + "\n").encode())
    pysam.tabix_index(str(target), preset="vcf", force=True)


def main(arguments: list[str]) -> int:
    """Write all samples into the folder named; the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m genomics.data.make_samples FOLDER\n")
        return 2
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_promoters(folder / "promoters.tsv.gz")
        sequence = write_chr22(folder / f"{CHROM}.fa.gz")
        write_variants(sequence, folder / f"{CHROM}.vcf.gz")
        shutil.copyfile(fetch("chloroplast")["NC_000932.gb.gz"], folder / "NC_000932.gb.gz")
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
