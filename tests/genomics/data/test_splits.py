"""Splits against brute force over all pairs."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.jobs.errors import DataError, UsageError
from genomics.data.regions import Region, parse_region
from genomics.data.splits import check_region_splits, check_splits, split_regions
from genomics.data.tokenizers import reverse_complement

LENGTHS = {"chr1": 1000, "chr2": 500, "HLA:01": 30}


def regions(size: int = 8) -> st.SearchStrategy[list[Region]]:
    one = st.builds(
        lambda chrom, start, length: Region(chrom, start, start + length),
        st.sampled_from(["chr1", "chr2"]),
        st.integers(0, 60),
        st.integers(0, 12),
    )
    return st.lists(one, max_size=size)


def overlap(a: Region, b: Region) -> bool:
    return a.chrom == b.chrom and bool(set(range(a.start, a.end)) & set(range(b.start, b.end)))


@given(st.fixed_dictionaries({"train": regions(), "val": regions(), "test": regions()}))
def test_overlaps_are_counted(parts: dict[str, list[Region]]) -> None:
    expected = {
        (one, other): sum(any(overlap(a, b) for b in parts[other]) for a in parts[one])
        for one, other in combinations(parts, 2)
    }
    told = [f"{n} regions overlap {a} and {b}" for (a, b), n in expected.items() if n]
    if not told:
        check_region_splits(parts)
        return
    with pytest.raises(DataError) as caught:
        check_region_splits(parts)
    assert str(caught.value) == (f"splits are not apart: {'; '.join(told)}; split by chromosome")


@given(
    st.fixed_dictionaries(
        {name: st.lists(st.text("ACGT", min_size=2, max_size=3)) for name in "abc"}
    )
)
def test_shared_sequences_are_counted(parts: dict[str, list[str]]) -> None:
    either = {
        name: {frozenset((text, reverse_complement(text))) for text in texts}
        for name, texts in parts.items()
    }
    told = [
        f"{len(either[a] & either[b])} sequences stand in both {a} and {b}"
        for a, b in combinations(either, 2)
        if either[a] & either[b]
    ]
    if not told:
        check_splits(parts)
        return
    with pytest.raises(DataError) as caught:
        check_splits(parts)
    assert str(caught.value) == (f"splits are not apart: {'; '.join(told)}; keep each in one split")


def test_case_does_not_hide_a_duplicate() -> None:
    with pytest.raises(DataError, match="1 sequences stand in both train and test"):
        check_splits({"train": ["AACGT", "C"], "test": ["aacgt"]})


def test_split_by_chromosome_and_stretch() -> None:
    plan = {"val": ["chr2"], "test": ["chr1:101-200", "chr1:301-400"]}
    inside = [Region("chr1", 100, 150), Region("chr1", 390, 400)]
    rest = [Region("chr1", 0, 100), Region("chr1", 200, 300), Region("HLA:01", 0, 30)]
    astride = [Region("chr1", 99, 101), Region("chr1", 150, 350), Region("chr1", 390, 401)]
    val = [Region("chr2", 0, 500)]
    parts, left_out = split_regions([*inside, *rest, *astride, *val], plan, LENGTHS)
    assert parts == {"val": val, "test": inside, "train": rest}
    assert left_out == astride
    check_region_splits(parts)
    assert "train" not in split_regions(rest, plan, LENGTHS, rest=None)[0]


def test_two_claims_on_one_stretch() -> None:
    with pytest.raises(UsageError, match="'val' and 'test' both claim bases of chr1:1-1000"):
        split_regions([], {"val": ["chr1"], "test": ["chr1:1000-1000"]}, LENGTHS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("chr1", Region("chr1", 0, 1000)),
        ("chr1:1-1,000", Region("chr1", 0, 1000)),
        ("HLA:01", Region("HLA:01", 0, 30)),
        ("HLA:01:2-2", Region("HLA:01", 1, 2)),
    ],
)
def test_region_text(text: str, expected: Region) -> None:
    assert parse_region(text, LENGTHS) == expected


@pytest.mark.parametrize(
    "text", ["chr3", "chr3:1-2", "chr1:0-10", "chr1:5-4", "chr1:1-1001", "chr1:5", ""]
)
def test_wrong_region_text(text: str) -> None:
    with pytest.raises(UsageError, match="region"):
        parse_region(text, LENGTHS)
