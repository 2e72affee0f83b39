"""A stretch of a chromosome: the one currency of readers, windows and splits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from core.jobs.errors import UsageError

_NOTHING: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Region:
    """Bases ``start`` to ``end`` of ``chrom``, 0-based, half-open. Strand is ``+``, ``-`` or ``.``.

    ``fields`` holds the further columns of the file it came from, by name.
    """

    chrom: str
    start: int
    end: int
    name: str = "."
    score: float | None = None
    strand: str = "."
    fields: Mapping[str, str] = field(default_factory=lambda: _NOTHING, hash=False)

    def __len__(self) -> int:
        return self.end - self.start

    def __str__(self) -> str:
        return f"{self.chrom}:{self.start + 1}-{self.end}"


def parse_region(text: str, lengths: Mapping[str, int]) -> Region:
    """``chr1`` or ``chr1:1,001-2,000``, counted from 1 with the end included, as samtools has it.

    ``lengths`` are those of the chromosomes. Raises UsageError if the text is neither, the
    chromosome is unknown or the range leaves it.
    """
    if text in lengths:
        return Region(text, 0, lengths[text])
    match = re.fullmatch(r"(.+):([\d,]+)-([\d,]+)", text)
    if match is None or match[1] not in lengths:
        raise UsageError(f"region {text!r} is neither a known chromosome nor chromosome:first-last")
    first, last = (int(number.replace(",", "") or 0) for number in match.group(2, 3))
    if not 1 <= first <= last <= lengths[match[1]]:
        raise UsageError(
            f"region {text!r} is not within 1-{lengths[match[1]]} of {match[1]} (counted from 1)"
        )
    return Region(match[1], first - 1, last)
