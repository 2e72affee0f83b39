"""Windows against sets of positions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.jobs.errors import UsageError
from genomics.data.fasta import Genome
from genomics.data.regions import Region
from genomics.data.windows import tile


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
