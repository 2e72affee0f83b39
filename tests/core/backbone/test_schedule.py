from __future__ import annotations

import pytest

from core.backbone import parse_schedule


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("a b", ["a", "b"]),
        ("a*3", ["a"] * 3),
        ("(a b)*2 c", ["a", "b", "a", "b", "c"]),
        ("((a b)*2 c) * 2", ["a", "b", "a", "b", "c"] * 2),
        (["a", "b*2"], ["a", "b", "b"]),
        ("", []),
    ],
)
def test_reads(schedule: str | list[str], expected: list[str]) -> None:
    assert parse_schedule(schedule) == expected


@pytest.mark.parametrize("schedule", ["a)", "(a", "*2", "a*0", "a-b", "a*"])
def test_refuses(schedule: str) -> None:
    with pytest.raises(ValueError, match="cannot read it at position"):
        parse_schedule(schedule)


def test_the_hybrid_of_the_mamba2_study_is_one_line() -> None:
    """43 % Mamba-2, 7 % attention, 50 % MLP (Waleffe et al. 2024) of 56 blocks."""
    names = parse_schedule("((mamba2 mlp)*6 attention mlp)*4")
    share = {kind: round(100 * names.count(kind) / len(names)) for kind in set(names)}
    assert share == {"mamba2": 43, "attention": 7, "mlp": 50}
