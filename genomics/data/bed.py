"""BED: regions with names, scores, strands and any further columns."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from core.jobs.errors import DataError
from genomics.data.fasta import Genome
from genomics.data.files import read_lines
from genomics.data.regions import Region

_STANDARD = (
    *("chrom", "start", "end", "name", "score", "strand"),
    *("thickStart", "thickEnd", "itemRgb", "blockCount", "blockSizes", "blockStarts"),
)
_ALIASES = {"chr": "chrom", "chromStart": "start", "chromEnd": "end"}


def read_bed(
    path: str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    genome: Genome | None = None,
) -> list[Region]:
    """All regions of a BED file (plain, gzip, BGZF), in its order.

    ``columns`` names the columns after chrom, start and end. By default a first line ``#chrom
    start end ...`` names them, else they are BED's own. name, score and strand fill the region;
    all others, such as a label or a split, are its ``fields``. Lines that begin with ``track``,
    ``browser`` or ``#`` are no regions. With ``genome``, chromosomes and ends are checked.

    Raises DataError with the line number if there are fewer columns than names or than three,
    start or end is no number, start is negative or after the end, the score is no number, the
    strand none of ``+-.``, or there is no region at all.
    """
    names = [*_STANDARD[:3], *columns] if columns is not None else None
    regions: list[Region] = []
    for number, line in read_lines(path):
        words = line.split(maxsplit=1)
        if line.startswith("#") or not words or words[0] in ("track", "browser"):
            header = _header(line)
            names = header if names is None and header and not regions else names
            continue
        where = f"{path} line {number}"
        values = line.split("\t") if "\t" in line else line.split()
        if names is not None and len(values) < len(names):
            raise DataError(f"{where}: {len(values)} columns where {', '.join(names)} are expected")
        region = _region(values, names or _STANDARD, where)
        if genome is not None:
            _check_inside(region, genome, where)
        regions.append(region)
    if not regions:
        raise DataError(f"{path}: no region in it")
    return regions


def _header(line: str) -> list[str] | None:
    names = [_ALIASES.get(name, name) for name in line.removeprefix("#").strip().split("\t")]
    return names if names[:3] == ["chrom", "start", "end"] else None


def _region(values: list[str], names: Sequence[str], where: str) -> Region:
    if len(values) < 3:
        raise DataError(f"{where}: {len(values)} columns, BED needs chrom, start and end")
    try:
        start, end = int(values[1]), int(values[2])
    except ValueError:
        raise DataError(
            f"{where}: start {values[1]!r} or end {values[2]!r} is not a number"
        ) from None
    if start < 0:
        raise DataError(f"{where}: start {start} is negative")
    if end < start:
        raise DataError(f"{where}: end {end} is before start {start}")
    further = dict(zip(map(sys.intern, names[3:]), map(sys.intern, values[3:]), strict=False))
    strand = further.pop("strand", ".")
    if strand not in ("+", "-", "."):
        raise DataError(f"{where}: strand {strand!r} is none of + - .")
    name, score = further.pop("name", "."), _score(further.pop("score", "."), where)
    return Region(sys.intern(values[0]), start, end, name, score, strand, further)


def _score(text: str, where: str) -> float | None:
    try:
        return None if text == "." else float(text)
    except ValueError:
        raise DataError(f"{where}: score {text!r} is not a number") from None


def _check_inside(region: Region, genome: Genome, where: str) -> None:
    try:
        genome.fetch_bytes(region.chrom, 0, 0)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    length = genome.lengths[region.chrom]
    if region.end > length:
        raise DataError(f"{where}: end {region.end} is beyond {region.chrom}, {length} bases long")
