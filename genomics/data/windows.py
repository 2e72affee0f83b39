"""Windows of one length, laid over regions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from core.jobs.errors import UsageError
from genomics.data.regions import Region


class Windows(Sequence[Region]):
    """Windows of ``length`` bases as a sequence of regions, kept in 12 bytes each.

    A window may leave its region; what lies outside is to be read as N.
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
