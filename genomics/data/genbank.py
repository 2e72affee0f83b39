"""GenBank flat files: sequences with their features."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from Bio import BiopythonParserWarning, SeqIO
from Bio.SeqFeature import SeqFeature, SimpleLocation
from Bio.SeqRecord import SeqRecord

from core.jobs.errors import DataError
from core.jobs.files import cached_name, replacing
from core.jobs.tables import existing_file
from genomics.data.files import read_lines
from genomics.data.gff import Feature

_ENDINGS = (".gb", ".gbk", ".gbff", ".genbank")
_LINE = 60


class GenBankRecord(NamedTuple):
    """One sequence; a feature of several parts, such as a spliced gene, is one feature a part."""

    id: str
    sequence: str
    features: list[Feature]


def is_genbank(path: Path) -> bool:
    """By its name, compressed or not."""
    return path.name.lower().removesuffix(".gz").removesuffix(".bgz").endswith(_ENDINGS)


def as_fasta(path: Path) -> Path:
    """The sequences of a GenBank file as FASTA in the cache, made on first use."""
    target = cached_name(existing_file(path), ".fa")
    if not target.exists():
        with replacing(target) as part, part.open("w") as file:
            for record in read_genbank(path):
                file.write(f">{record.id}\n")
                for start in range(0, len(record.sequence), _LINE):
                    file.write(record.sequence[start : start + _LINE] + "\n")
    return target


def read_genbank(path: str | os.PathLike[str]) -> Iterator[GenBankRecord]:
    """Records of a GenBank file (plain, gzip, BGZF), one in memory at a time.

    Coordinates are 0-based, half-open; an uncertain end is taken as it is written. Raises
    DataError with the line number of the record if it does not begin with LOCUS, is cut short or
    cannot be parsed.
    """
    lines: list[str] = []
    begin = 0
    for number, line in read_lines(path):
        if not lines and not line.strip():
            continue
        if not lines:
            begin = number
            if not line.startswith("LOCUS"):
                raise DataError(f"{path} line {number}: expected LOCUS; is it GenBank?")
        lines.append(line)
        if line.startswith("//"):
            yield _parsed("\n".join(lines) + "\n", f"{path} line {begin}")
            lines = []
    if lines:
        raise DataError(f"{path} line {begin}: record without its end (//); is the file truncated?")
    if not begin:
        raise DataError(f"{path}: no record in it; is it GenBank?")


def _parsed(text: str, where: str) -> GenBankRecord:
    try:
        with warnings.catch_warnings():
            # Such as a LOCUS line in an old layout; what matters below is checked.
            warnings.simplefilter("ignore", BiopythonParserWarning)
            record: SeqRecord = SeqIO.read(io.StringIO(text), "genbank")
            sequence = str(record.seq)
    except Exception as error:  # biopython raises many kinds, assertions among them
        raise DataError(f"{where}: not a GenBank record: {str(error).splitlines()[0]}") from error
    stated = text.split(maxsplit=3)[2]
    if not stated.isdigit() or int(stated) != len(sequence):
        raise DataError(f"{where}: LOCUS says {stated} bases, the record has {len(sequence)}")
    name = record.id or "."
    features = [part for feature in record.features for part in _parts(feature, name, where)]
    return GenBankRecord(name, sequence, features)


def _parts(feature: SeqFeature, name: str, where: str) -> Iterator[Feature]:
    if feature.location is None:
        raise DataError(f"{where}: a {feature.type} feature without a location")
    attributes = {key: list(map(str, values)) for key, values in feature.qualifiers.items()}
    for part in feature.location.parts:
        assert isinstance(part, SimpleLocation)
        strand = {1: "+", -1: "-"}.get(part.strand, ".")
        yield Feature(
            name,
            "GenBank",
            feature.type,
            int(part.start),
            int(part.end),
            None,
            strand,
            None,
            attributes,
        )
