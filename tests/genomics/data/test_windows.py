"""Windows against sets of positions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.jobs.errors import DataError, UsageError
from genomics.data.fasta import Genome
from genomics.data.regions import Region
from genomics.data.windows import random_windows, tile, unknown_fraction


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Genome:
    path = tmp_path_factory.mktemp("windows") / "g.fa"
    path.write_text(">a\n" + "ACGT" * 25 + "\n>b\n" + "N" * 30 + "n" * 10 + "ACGT" * 10 + "\n")
    return Genome(path)


@given(st.integers(0, 40), st.integers(0, 50), st.integers(1, 12), st.data())
def test_tiles_cover_each_base(start: int, size: int, length: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, length))
    windows = tile([Region("a", start, start + size), Region("b", 0, 1)], length, stride)
    tiles = [window for window in windows if window.chrom == "a"]
    assert windows[len(tiles)] == Region("b", 0, length)
    covered = {base for window in tiles for base in range(window.start, window.end)}
    assert covered >= set(range(start, start + size))
    assert all(len(window) == length for window in tiles)
    assert [window.start for window in tiles] == [start + i * stride for i in range(len(tiles))]
    if len(tiles) > 1:  # without the last one the end would be missing
        assert tiles[-2].end < start + size


def test_no_regions_and_wrong_strides() -> None:
    assert list(tile([], 5)) == []
    for length, stride in ((5, 6), (5, -1), (0, None)):
        with pytest.raises(UsageError, match="stride"):
            tile([Region("a", 0, 9)], length, stride)


def test_unknown_bases_are_counted(genome: Genome) -> None:
    windows = tile([Region("b", 0, 80), Region("a", 90, 100)], 20)
    assert unknown_fraction(windows, genome).tolist() == [1, 1, 0, 0, 0.5]
    assert len(windows.select(unknown_fraction(windows, genome) < 0.6)) == 3


def test_random_windows_stay_inside_and_repeat(genome: Genome) -> None:
    regions = [Region("b", 35, 80), Region("a", 3, 20), Region("a", 50, 55)]
    windows = random_windows(regions, genome, 10, 4000, seed=1, max_unknown=0.0)
    assert list(windows) == list(random_windows(regions, genome, 10, 4000, 1, 0.0))
    assert list(windows) != list(random_windows(regions, genome, 10, 4000, 2, 0.0))
    places, counts = np.unique([f"{w.chrom}{w.start:03}" for w in windows], return_counts=True)
    possible = [f"a{i:03}" for i in range(3, 11)] + [f"b{i:03}" for i in range(40, 71)]
    assert places.tolist() == possible
    # 4,000 draws over 39 places: a standard deviation is 10.
    assert abs(counts - 4000 / 39).max() < 45


def test_too_few_places(genome: Genome) -> None:
    with pytest.raises(DataError, match="no region has 101 bases"):
        random_windows([Region("a", 0, 100)], genome, 101, 1, 0)
    with pytest.raises(DataError, match="only 0 of 2 windows of 10 bases have at most 10% N"):
        random_windows([Region("b", 0, 38)], genome, 10, 2, 0)
