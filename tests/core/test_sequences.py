from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.sequences import Sequences


def test_padded_marks_the_real_positions() -> None:
    sequences = Sequences.padded([3, 0, 2], 3)
    assert sequences.real.tolist() == [[True] * 3, [False] * 3, [True, True, False]]
    assert not sequences.packed_rows


def test_packed_numbers_documents_and_positions() -> None:
    sequences = Sequences.packed([[2, 3], [1]], 6)
    assert sequences.document.tolist() == [[0, 0, 1, 1, 1, -1], [0, -1, -1, -1, -1, -1]]
    assert sequences.position.tolist() == [[0, 1, 0, 1, 2, 0], [0] * 6]
    assert sequences.first.tolist() == [
        [True, False, True, False, False, False],
        [True, False, False, False, False, False],
    ]
    assert sequences.packed_rows


@given(st.lists(st.lists(st.integers(1, 5), max_size=4), min_size=1, max_size=4))
def test_unpack_and_repack_are_inverse(rows: list[list[int]]) -> None:
    length = max(1, *(sum(parts) for parts in rows)) + 2
    sequences = Sequences.packed(rows, length)
    x = torch.randn(len(rows), length, 3)
    apart, alone = sequences.unpack(x)
    assert len(apart) == sum(len(parts) for parts in rows)
    assert alone.real.sum(1).tolist() == [part for parts in rows for part in parts]
    torch.testing.assert_close(sequences.repack(apart), sequences.zero_padding(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sequences.padded([4], 3), "lie in 0..3"),
        (lambda: Sequences.padded([-1], 3), "lie in 0..3"),
        (lambda: Sequences.packed([[2, 2]], 3), "row 0"),
        (lambda: Sequences.packed([[1], [0, 1]], 3), "row 1"),
        (lambda: Sequences(torch.zeros(2, 3)), "integer tensor"),
        (lambda: Sequences(torch.zeros(2, dtype=torch.int32)), "integer tensor"),
    ],
)
def test_bad_descriptions_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
