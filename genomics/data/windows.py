"""Windows of one length, laid over regions or drawn from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from core.jobs.errors import DataError, UsageError
from genomics.data.fasta import Genome
from genomics.data.regions import Region


class Windows(Sequence[Region]):
    """Windows of ``length`` bases as a sequence of regions, kept in 12 bytes each.

    A window may leave its chromosome; read it with ``Genome.fetch_padded``.
    """

    def __init__(
        self, chroms: Sequence[str], chrom: NDArray[np.int32], start: NDArray[np.int64], length: int
    ) -> None:
        self.chroms, self.chrom, self.start, self.length = tuple(chroms), chrom, start, length

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, index: int) -> Region:  # type: ignore[override]  # no slices
        start = int(self.start[index])
        return Region(self.chroms[self.chrom[index]], start, start + self.length)

    def select(self, keep: NDArray[np.bool_]) -> Windows:
        """Those where ``keep`` (windows,) is true."""
        return Windows(self.chroms, self.chrom[keep], self.start[keep], self.length)


def tile(regions: Iterable[Region], length: int, stride: int | None = None) -> Windows:
    """Windows every ``stride`` bases (``length`` by default) from the start of each region.

    Together they cover each region to its last base: the last window may reach past the end.
    """
    stride = stride or length
    if length < 1 or not 1 <= stride <= length:
        raise UsageError(f"stride {stride} must lie in 1..length={length} to leave no base out")
    chroms: dict[str, int] = {}
    codes, starts = [], []
    for region in regions:
        code = chroms.setdefault(region.chrom, len(chroms))
        count = max(1, -(-(len(region) - length) // stride) + 1) if len(region) else 0
        starts.append(region.start + stride * np.arange(count))
        codes.append(np.full(count, code, np.int32))
    if not starts:
        return Windows((), np.zeros(0, np.int32), np.zeros(0, np.int64), length)
    return Windows(list(chroms), np.concatenate(codes), np.concatenate(starts), length)


def unknown_fraction(windows: Windows, genome: Genome) -> NDArray[np.float64]:
    """(windows,) share of N, lower case included; what lies outside the chromosome counts as N."""
    counts = np.empty(len(windows))
    for i, window in enumerate(windows):
        text = genome.fetch_padded(window.chrom, window.start, window.end)
        counts[i] = text.count("N") + text.count("n")
    return counts / windows.length


def random_windows(
    regions: Sequence[Region],
    genome: Genome,
    length: int,
    count: int,
    seed: int,
    max_unknown: float = 0.1,
) -> Windows:
    """``count`` windows inside ``regions``, each possible start equally likely, the same ones for
    the same seed.

    Those with a larger share of N than ``max_unknown`` are drawn again. Raises DataError if no
    region has ``length`` bases, or if 50 draws leave too few windows.
    """
    places = np.array([max(0, len(region) - length + 1) for region in regions])
    if not places.sum():
        raise DataError(f"{genome.path}: no region has {length} bases for a window")
    names = sorted({region.chrom for region in regions})
    code = np.array([names.index(region.chrom) for region in regions], np.int32)
    ends, first = np.cumsum(places), np.array([region.start for region in regions])
    random = np.random.default_rng(seed)
    kept = Windows(names, np.zeros(0, np.int32), np.zeros(0, np.int64), length)
    for _ in range(50):
        drawn = random.integers(0, ends[-1], count)
        which = np.searchsorted(ends, drawn, side="right")
        start = first[which] + drawn - (ends - places)[which]
        more = Windows(names, code[which], start, length)
        more = more.select(unknown_fraction(more, genome) <= max_unknown)
        kept = Windows(
            names,
            np.concatenate([kept.chrom, more.chrom])[:count],
            np.concatenate([kept.start, more.start])[:count],
            length,
        )
        if len(kept) == count:
            return kept
    raise DataError(
        f"{genome.path}: after 50 draws only {len(kept)} of {count} windows of {length} bases have "
        f"at most {max_unknown:.0%} N; allow more N or name other regions"
    )
