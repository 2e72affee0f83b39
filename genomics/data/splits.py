"""Training, validation and test apart: by chromosome, and checked for what they share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np

from core.jobs.errors import DataError, UsageError
from genomics.data.regions import Region, parse_region
from genomics.data.tokenizers import reverse_complement


def split_regions(
    regions: Iterable[Region],
    plan: Mapping[str, Sequence[str]],
    lengths: Mapping[str, int],
    rest: str | None = "train",
) -> tuple[dict[str, list[Region]], list[Region]]:
    """Regions by split, and those that straddle a border and so belong to none.

    ``plan`` names chromosomes or stretches of them by split, such as ``{"val": ["chr3"], "test":
    ["chr2", "chr4:1-1000000"]}`` (from 1, end included); ``rest`` takes what no split names, or
    None leaves it out. Raises UsageError if a stretch is unknown or two splits claim the same
    bases.
    """
    claims = [(name, parse_region(text, lengths)) for name, texts in plan.items() for text in texts]
    for (one, a), (other, b) in combinations(claims, 2):
        if one != other and a.chrom == b.chrom and a.start < b.end and b.start < a.end:
            raise UsageError(f"splits {one!r} and {other!r} both claim bases of {a} and {b}")
    by_chrom: dict[str, list[tuple[str, Region]]] = {}
    for name, claim in claims:
        by_chrom.setdefault(claim.chrom, []).append((name, claim))
    splits: dict[str, list[Region]] = {name: [] for name in (*plan, *([rest] if rest else []))}
    astride: list[Region] = []
    for region in regions:
        touched = [
            (name, claim.start <= region.start and region.end <= claim.end)
            for name, claim in by_chrom.get(region.chrom, ())
            if claim.start < region.end and region.start < claim.end
        ]
        if not touched and rest:
            splits[rest].append(region)
        elif touched and touched[0][1]:
            splits[touched[0][0]].append(region)
        elif touched:
            astride.append(region)
    return splits, astride


def check_splits(sequences: Mapping[str, Iterable[str]]) -> None:
    """Refuse sequences that stand in more than one split, on either strand, in whatever case.

    ``sequences`` maps a split's name to its sequences. Raises DataError with the number of
    distinct shared sequences for each pair of splits.
    """
    seen = {name: {_key(sequence) for sequence in part} for name, part in sequences.items()}
    shared = {pair: len(seen[pair[0]] & seen[pair[1]]) for pair in combinations(seen, 2)}
    _refuse(shared, "sequences stand in both", "keep each in one split")


def check_region_splits(regions: Mapping[str, Iterable[Region]]) -> None:
    """Refuse regions that overlap a region of another split by a base or more, on any strand.

    Raises DataError with, for each pair of splits, the number of regions of the first that do.
    """
    chroms = {name: _by_chrom(part) for name, part in regions.items()}
    shared = {
        (one, other): sum(
            _overlapping(starts_ends, chroms[other][chrom])
            for chrom, starts_ends in chroms[one].items()
            if chrom in chroms[other]
        )
        for one, other in combinations(chroms, 2)
    }
    _refuse(shared, "regions overlap", "split by chromosome")


def _refuse(shared: Mapping[tuple[str, str], int], what: str, advice: str) -> None:
    found = [f"{count} {what} {a} and {b}" for (a, b), count in shared.items() if count]
    if found:
        raise DataError(f"splits are not apart: {'; '.join(found)}; {advice}")


def _key(sequence: str) -> bytes:
    """16 bytes that a sequence and its reverse complement share."""
    upper = sequence.upper().replace("U", "T")
    canonical = min(upper, reverse_complement(upper))
    return hashlib.blake2b(canonical.encode(), digest_size=16).digest()


def _by_chrom(regions: Iterable[Region]) -> dict[str, np.ndarray]:
    """Chromosome -> (regions, 2) starts and ends."""
    places: dict[str, list[tuple[int, int]]] = {}
    for region in regions:
        if len(region):
            places.setdefault(region.chrom, []).append((region.start, region.end))
    return {chrom: np.array(pairs) for chrom, pairs in places.items()}


def _overlapping(ours: np.ndarray, theirs: np.ndarray) -> int:
    """How many of ``ours`` share a base with any of ``theirs``: of those that begin before our
    end, does one end after our start?"""
    theirs = theirs[np.argsort(theirs[:, 0])]
    reach = np.maximum.accumulate(theirs[:, 1])
    before = np.searchsorted(theirs[:, 0], ours[:, 1])
    return int(np.sum((before > 0) & (reach[np.maximum(before, 1) - 1] > ours[:, 0])))
