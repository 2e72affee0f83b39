"""GFF3 and GTF: features with their attributes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote

from core.jobs.errors import DataError
from genomics.data.files import read_lines

_GTF_ATTRIBUTE = re.compile(r'\s*([^\s;"=]+)\s+("(?:[^"\\]|\\.)*"|[^\s;"]+)\s*(?:;|$)')


@dataclass(frozen=True, slots=True)
class Feature:
    """One line: bases ``start`` to ``end``, 0-based, half-open. ``score`` and ``phase`` may be
    None; ``attributes`` maps a name to all its values."""

    chrom: str
    source: str
    type: str
    start: int
    end: int
    score: float | None
    strand: str
    phase: int | None
    attributes: dict[str, list[str]]


def read_gff(path: str | os.PathLike[str]) -> Iterator[Feature]:
    """Features of a GFF3 or GTF file (plain, gzip, BGZF) in its order; ``##FASTA`` ends them.

    Attributes are told apart line by line: ``name=value,value`` (GFF3, percent-encoded) or ``name
    "value"`` (GTF). Raises DataError with the line number if a line has not nine columns, a
    coordinate, score, strand or phase is wrong, attributes are neither, or there is no feature.
    """
    found = False
    for number, line in read_lines(path):
        if line.startswith(("##FASTA", ">")):
            break
        if line.startswith("#") or not line.strip():
            continue
        found = True
        yield _feature(line.split("\t"), f"{path} line {number}")
    if not found:
        raise DataError(f"{path}: no feature in it")


def _feature(columns: list[str], where: str) -> Feature:
    if len(columns) != 9:
        raise DataError(f"{where}: {len(columns)} tab-separated columns, GFF3 and GTF have 9")
    chrom, source, kind, first, last, score, strand, phase, attributes = columns
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise DataError(f"{where}: start {first!r} and end {last!r} are no range counted from 1")
    if strand not in ("+", "-", ".", "?"):
        raise DataError(f"{where}: strand {strand!r} is none of + - . ?")
    if phase not in ("0", "1", "2", "."):
        raise DataError(f"{where}: phase {phase!r} is none of 0 1 2 .")
    try:
        value = None if score == "." else float(score)
    except ValueError:
        raise DataError(f"{where}: score {score!r} is not a number") from None
    return Feature(
        sys.intern(unquote(chrom)),
        sys.intern(source),
        sys.intern(kind),
        int(first) - 1,
        int(last),
        value,
        strand,
        None if phase == "." else int(phase),
        _attributes(attributes.strip(), where),
    )


def _attributes(text: str, where: str) -> dict[str, list[str]]:
    if text in (".", ""):
        return {}
    found: dict[str, list[str]] = {}
    if re.match(r'[^\s"=;]+=', text):
        for part in filter(None, map(str.strip, text.split(";"))):
            name, equals, values = part.partition("=")
            if not equals:
                raise DataError(f"{where}: attribute {part!r} has no '='")
            found.setdefault(unquote(name), []).extend(map(unquote, values.split(",")))
        return found
    end = 0
    while end < len(text):
        match = _GTF_ATTRIBUTE.match(text, end)
        if match is None:
            raise DataError(f"{where}: attributes {text[end:][:40]!r} are neither GFF3 nor GTF")
        found.setdefault(match[1], []).append(match[2].strip('"'))
        end = match.end()
    return found
