"""VCF: every allele of every record in, scores out beside what was there.

Lines are split here and not by htslib, which tells no line numbers, and so that a record comes
back character by character as it was.
"""

from __future__ import annotations

import math
import os
import re
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pysam

from core.jobs.errors import DataError, UsageError
from core.jobs.files import replacing
from genomics.data.files import open_binary, read_lines, writing
from genomics.data.variants import Variant

_COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
_KEY = re.compile(r"[A-Za-z_][0-9A-Za-z_.]*")
_LONGEST_TABIX = 2**29


@dataclass(frozen=True, slots=True)
class Allele:
    """One alternate allele of one record.

    ``record`` counts records from 0, ``allele`` the record's alternates from 1, as genotypes do.
    ``reason`` says why there is no sequence to score: ``symbolic``, ``breakend``,
    ``spanning_deletion``, ``ambiguous_reference`` or ``no_alternate``; None if there is one.
    """

    record: int
    allele: int
    line: int
    variant: Variant
    reason: str | None

    @property
    def id(self) -> str:
        """Unique in the file: record and allele number."""
        return f"{self.record}.{self.allele}"


class VcfAlleles(Sequence[Allele]):
    """All alternate alleles of a VCF file (plain, gzip, BGZF), in the order of the file.

    A record without an alternate stands for one allele, numbered 0, so that each record is there.
    Positions are 0-based. Memory is about 70 bytes an allele plus the text of long ones.

    Raises DataError with the line number for a file that is not VCF or cut short, POS that is no
    number, REF that is not made of nucleotide codes, and ALT with other bases than A, C, G, T, N.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._numbers = array("q")  # record, allele, line, pos; record, allele, ...
        self._texts: list[str] = []  # chrom, ref, alt; chrom, ...
        self._reasons: list[str | None] = []
        records = (entry for entry in _lines(self.path) if entry[2])
        for record, (line, _, columns) in enumerate(records):
            self._add(record, line, columns)

    def _add(self, record: int, line: int, columns: list[str]) -> None:
        chrom, pos, _, ref, alts = columns[:5]
        where = f"{self.path} line {line}"
        ref = ref.upper()
        if not ref or not set(ref) <= set("ACGTNRYSWKMBDHV"):
            raise DataError(f"{where}: REF {ref!r} is not made of nucleotide codes")
        for number, text in enumerate(alts.split(","), start=1):
            alt = text.upper()
            reason = _why_no_sequence(alt, where)
            if reason is None and not set(ref) <= set("ACGTN"):
                reason = "ambiguous_reference"
            allele = 0 if reason == "no_alternate" else number
            self._numbers.extend((record, allele, line, int(pos) - 1))
            kept = alt if reason is None else text
            self._texts.extend(map(sys.intern, (chrom, ref, kept)))
            self._reasons.append(reason)

    def __len__(self) -> int:
        return len(self._reasons)

    def __getitem__(self, index: int) -> Allele:  # type: ignore[override]  # no slices
        if not -len(self) <= index < len(self):
            raise IndexError(f"allele {index} of {len(self)} in {self.path}")
        index %= len(self)
        record, allele, line, pos = self._numbers[4 * index : 4 * index + 4]
        chrom, ref, alt = self._texts[3 * index : 3 * index + 3]
        return Allele(record, allele, line, Variant(chrom, pos, ref, alt), self._reasons[index])


def _why_no_sequence(alt: str, where: str) -> str | None:
    if alt == ".":
        return "no_alternate"
    if alt == "*":
        return "spanning_deletion"
    if re.fullmatch(r"<.+>", alt):
        return "symbolic"
    if "[" in alt or "]" in alt or re.fullmatch(r"\.[ACGTN]+|[ACGTN]+\.", alt):
        return "breakend"
    if not alt or not set(alt) <= set("ACGTN"):
        raise DataError(
            f"{where}: ALT {alt!r} is neither made of A, C, G, T, N nor a symbolic allele"
        )
    return None


def _lines(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """(line number, line, columns) of all lines; no columns where the line is no record."""
    with open_binary(path) as file:
        start = file.read(16)
    if start.startswith(b"BCF"):
        raise DataError(f"{path}: this is BCF; convert it with bcftools view -O z")
    if not start.startswith(b"##fileformat=VCF"):
        raise DataError(f"{path} line 1: does not begin with ##fileformat=VCF; is it VCF?")
    width = 0
    for number, line in read_lines(path, errors="surrogateescape"):
        record = width > 0 and line != "" and not line.startswith("#")
        if not width and not line.startswith("##"):
            if line != _COLUMNS and not line.startswith(f"{_COLUMNS}\t"):
                raise DataError(f"{path} line {number}: expected the header line #CHROM POS ID ...")
            width = line.count("\t") + 1
        yield number, line, _columns(path, number, line, width) if record else []
    if not width:
        raise DataError(f"{path}: no header line #CHROM; is the file truncated?")


def _columns(path: Path, number: int, line: str, width: int) -> list[str]:
    columns = line.split("\t")
    if len(columns) != width:
        raise DataError(
            f"{path} line {number}: {len(columns)} columns where the header has {width}; "
            "is the file truncated?"
        )
    if not columns[1].isascii() or not columns[1].isdigit():
        raise DataError(f"{path} line {number}: POS {columns[1]!r} is not a number")
    return columns


def write_scores(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    scores: Mapping[str, Sequence[float | None]],
    reasons: Sequence[str | None] | None = None,
    reason_key: str = "REASON",
    descriptions: Mapping[str, str] | None = None,
) -> Path | None:
    """Copy every record of ``source`` in its order, with INFO fields added.

    ``scores`` maps an INFO key to one number an allele, and ``reasons`` holds one text or None an
    allele, both in the order of ``VcfAlleles(source)``; None and NaN are written as missing.
    ``descriptions`` go into the header. The file appears only when it is whole. A target ending in
    ``.gz`` or ``.bgz`` is BGZF, and its index is returned, or None if the records are not sorted.

    Raises UsageError if a key is no INFO key or is in the file already; DataError if the numbers
    of alleles differ.
    """
    source, target = Path(source), Path(target)
    packed = target.suffix in (".gz", ".bgz")
    if not packed and target.suffix != ".vcf":
        raise UsageError(f"{target}: the name of a VCF file ends in .vcf, .vcf.gz or .vcf.bgz")
    added = _Added(scores, reasons, reason_key, descriptions or {})
    order = _Order()
    index: Path | None = None
    with replacing(target) as part:
        with writing(part, packed) as file:
            for line in _with_scores(source, added, order):
                file.write(line.encode(errors="surrogateescape") + b"\n")
        if packed and order.sorted:
            suffix = ".tbi" if order.farthest < _LONGEST_TABIX else ".csi"
            index = target.with_name(target.name + suffix)
            made = part.with_name(part.name + suffix)
            pysam.tabix_index(str(part), preset="vcf", csi=suffix == ".csi", index=str(made))
        for stale in (".tbi", ".csi"):
            target.with_name(target.name + stale).unlink(missing_ok=True)
    if index is not None:
        os.replace(made, index)
    return index


@dataclass(frozen=True)
class _Added:
    """The INFO fields that are added: checked, as header lines and as text of some alleles."""

    scores: Mapping[str, Sequence[float | None]]
    reasons: Sequence[str | None] | None
    reason_key: str
    descriptions: Mapping[str, str]

    def __post_init__(self) -> None:
        for key in self.keys:
            if not _KEY.fullmatch(key):
                raise UsageError(f"{key!r} cannot be an INFO key; use letters, digits, _ and .")
        if len(set(self.keys)) < len(self.keys):
            raise UsageError(f"two INFO fields to write are named {self.reason_key}")
        if not self.keys:
            raise UsageError("there is nothing to add to the VCF; name a score or reasons")

    @property
    def keys(self) -> list[str]:
        return [*self.scores, *([] if self.reasons is None else [self.reason_key])]

    @property
    def counts(self) -> set[int]:
        """The number of alleles that each field has."""
        columns = [*self.scores.values(), *([] if self.reasons is None else [self.reasons])]
        return {len(column) for column in columns}

    def header(self) -> Iterator[str]:
        about = {self.reason_key: "Why an allele has no score", **self.descriptions}
        for key in self.keys:
            kind = "Float" if key in self.scores else "String"
            text = about.get(key, key).replace("\\", "\\\\").replace('"', '\\"')
            yield f'##INFO=<ID={key},Number=A,Type={kind},Description="{text}">'

    def info(self, first: int, count: int) -> str:
        """``KEY=value,value;...``; the reasons are left out of a record that has none."""
        alleles = range(first, first + count)
        parts = [
            f"{key}={','.join(_number(column[i]) for i in alleles)}"
            for key, column in self.scores.items()
        ]
        if self.reasons is not None and any(self.reasons[i] for i in alleles):
            texts = (re.sub(r"[\s,;=%]+", "_", self.reasons[i] or ".") for i in alleles)
            parts.append(f"{self.reason_key}={','.join(texts)}")
        return ";".join(parts)


def _number(value: float | None) -> str:
    return "." if value is None or math.isnan(value) else f"{value:.7g}"


class _Order:
    """Whether the records seen so far are sorted: by position, each chromosome in one piece."""

    def __init__(self) -> None:
        self.sorted, self.farthest = True, 0
        self._chrom, self._pos = "", 0
        self._done: set[str] = set()

    def see(self, chrom: str, pos: int) -> None:
        if chrom != self._chrom:
            self.sorted &= chrom not in self._done
            self._done.add(chrom)
            self._chrom, self._pos = chrom, 0
        self.sorted &= pos >= self._pos
        self._pos = pos
        self.farthest = max(self.farthest, pos)


def _with_scores(source: Path, added: _Added, order: _Order) -> Iterator[str]:
    """All lines of ``source`` with ``added`` in them; what is seen of the order goes to
    ``order``."""
    if len(added.counts) > 1:
        raise DataError(f"{source}: the fields to add have different numbers of alleles")
    total, done = added.counts.pop(), 0
    for number, line, columns in _lines(source):
        if columns:
            order.see(columns[0], int(columns[1]))
            count = columns[4].count(",") + 1
            if done + count > total:
                raise DataError(f"{source} line {number}: more alleles than the {total} scores")
            info = added.info(done, count)
            columns[7] = ";".join(filter(None, (_kept(columns[7]), info))) or "."
            yield "\t".join(columns)
            done += count
            continue
        key = re.match(r"##INFO=<ID=([^,>]+)", line)
        if key and key[1] in added.keys:
            raise UsageError(f"{source} line {number}: INFO field {key[1]} is there already")
        if line.startswith("#CHROM"):
            yield from added.header()
        if line:
            yield line
    if done != total:
        raise DataError(f"{source}: {done} alleles in the file, but {total} scores")


def _kept(info: str) -> str:
    return "" if info == "." else info.rstrip(";")
