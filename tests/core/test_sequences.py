from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
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


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 3))
def test_offsets_and_lengths_say_the_same(lengths: list[int], padding: int) -> None:
    total = sum(lengths)
    got = Sequences.from_offsets([0, *itertools.accumulate(lengths)], total + padding)
    assert torch.equal(got.document, Sequences.packed([lengths], total + padding).document)
    assert got.filled == (padding == 0)


@pytest.mark.parametrize("multiple", [1, 4, 7])
@given(st.lists(st.lists(st.integers(1, 5), max_size=4), min_size=1, max_size=4))
def test_one_row_holds_each_document_once(multiple: int, rows: list[list[int]]) -> None:
    length = max(1, *(sum(parts) for parts in rows)) + 2
    sequences = Sequences.packed(rows, length)
    sequences = Sequences(sequences.document.roll(1, dims=1))  # padding on the left too
    x = torch.randn(len(rows), length, 3)
    x[~sequences.real] = float("nan")
    row = sequences.one_row(multiple)
    y = row.pack(x)
    lengths = [part for parts in rows for part in parts]
    total = sum(lengths)
    tail = -total % multiple if total else 1
    if tail > max(lengths, default=1):
        tail = 0
    assert y.shape == (1, total + tail, 3)
    assert torch.equal(y[0, :total], x[sequences.real])
    assert not y[0, total:].any()
    assert row.sequences.real.all()
    expected = torch.repeat_interleave(torch.tensor([*lengths, tail]))
    assert torch.equal((row.sequences.first.cumsum(1) - 1)[0], expected)
    assert torch.equal(row.unpack(y), sequences.zero_padding(x))


def test_one_row_hands_gradients_to_real_tokens_alone() -> None:
    sequences = Sequences.padded([3, 0, 5], 6)
    x = torch.randn(3, 6, 2, dtype=torch.float64, requires_grad=True)
    row = sequences.one_row(4)
    weight = torch.randn_like(x)
    (row.unpack(row.pack(x).square()) * weight).sum().backward()
    expected = torch.where(sequences.real[..., None], 2 * x * weight, 0)
    torch.testing.assert_close(x.grad, expected.detach())


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list, tuple])
def test_packed_takes_rows_of_any_kind(kind: Callable[[list[list[int]]], Any]) -> None:
    rows = [[2, 3], [1, 4]]
    got = Sequences.packed(kind(rows), 6).document
    assert got.tolist() == [[0, 0, 1, 1, 1, -1], [0, 1, 1, 1, 1, -1]]


TWO = Sequences.padded([2, 3], 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sequences.from_offsets([0, 2, 2]), "must increase, got 2 at 1 and 2 at 2"),
        (lambda: Sequences.from_offsets([0, 3, 1]), "must increase, got 3 at 1 and 1 at 2"),
        (lambda: Sequences.from_offsets([1, 3]), "must start at 0, got 1"),
        (lambda: Sequences.from_offsets([0, 3], 2), "end at 3, beyond length=2"),
        (lambda: Sequences.from_offsets([0]), r"must be two at least, got \[0\]"),
        (lambda: Sequences.from_offsets([0.0, 2.0]), "got torch.float32"),
        (lambda: Sequences.padded([4], 3), "lie in 0..3"),
        (lambda: Sequences.padded([-1], 3), "lie in 0..3"),
        (lambda: Sequences.padded([1.5], 3), r"lengths must be an integer .* torch.float32"),
        (lambda: Sequences.padded([True], 3), r"lengths must be an integer .* torch.bool"),
        (
            lambda: Sequences.padded([[1]], 3),
            r"tensor \(batch\), got torch.int64 of shape \(1, 1\)",
        ),
        (lambda: Sequences.padded([1], -1), "length must be an integer of at least 0, got -1"),
        (lambda: Sequences.padded([], -1), "length must be an integer of at least 0, got -1"),
        (lambda: Sequences.padded([1], 2.5), "length must be an integer of at least 0, got 2.5"),
        (lambda: Sequences.padded(None, 3), "lengths must be integers, got None"),
        (lambda: Sequences.padded([[1], [1, 2]], 3), r"lengths must be integers, got \[\[1\], "),
        (lambda: Sequences.padded(torch.ones(2, dtype=torch.long, device="meta"), 3), "on meta"),
        (lambda: Sequences.packed([[2, 2]], 3), r"row 0 .* 3 together, got \[2, 2\]"),
        (lambda: Sequences.packed([[1], [0, 1]], 3), "row 1"),
        (lambda: Sequences.packed([[1, -1]], 3), "row 0 .* at least 1 each"),
        (lambda: Sequences.packed([[1.5]], 3), r"row 0 .* \(documents\), got torch.float32"),
        (lambda: Sequences.packed([1, 2], 3), r"row 0 .* got torch.int64 of shape \(\)"),
        (lambda: Sequences.packed([["a"]], 3), r"row 0 of lengths must be integers, got \['a'\]"),
        (lambda: Sequences.packed(None, 3), "lengths must list each row's documents, got None"),
        (lambda: Sequences.packed([[1]], -1), "length must be an integer of at least 0, got -1"),
        (lambda: Sequences.from_offsets([0, 3], 4.5), "length must be an integer of at least 0"),
        (lambda: Sequences.from_offsets(None), "offsets must be integers, got None"),
        (lambda: Sequences.from_offsets(torch.tensor([0, 1]) > 0), "got torch.bool"),
        # a mask of real tokens is not a description of documents: its padding would count as real
        (lambda: Sequences(torch.ones(2, 3).bool()), "integer tensor .* got torch.bool"),
        (lambda: Sequences(torch.zeros(2, 3) + 0j), "integer tensor .* got torch.complex64"),
        (lambda: Sequences([[0]]), "document must be a tensor, got list"),
        (
            lambda: TWO.zero_padding(torch.zeros(2, 4, 1)),
            r"x must be \(2, 3, ...\), got \(2, 4, 1\)",
        ),
        (
            lambda: TWO.zero_padding(torch.zeros(1, 3, 1)),
            r"x must be \(2, 3, ...\), got \(1, 3, 1\)",
        ),
        (lambda: TWO.unpack(torch.zeros(2, 9, 1)), r"x must be \(2, 3, ...\), got \(2, 9, 1\)"),
        (lambda: TWO.repack(torch.zeros(2, 4, 1)), r"x must be \(2, 3, ...\), got \(2, 4, 1\)"),
        (lambda: TWO.prepended(-1), "count must be an integer of at least 0, got -1"),
        (lambda: TWO.one_row(0), "multiple must be an integer of at least 1, got 0"),
        (lambda: TWO.one_row().pack(torch.zeros(2, 4, 1)), r"x must be \(2, 3, ...\)"),
        (lambda: TWO.one_row().unpack(torch.zeros(1, 4, 1)), r"x must be \(1, 5, ...\)"),
        (lambda: Sequences(torch.zeros(2, 3)), "integer tensor"),
        (lambda: Sequences(torch.zeros(2, dtype=torch.int32)), "integer tensor"),
    ],
)
def test_bad_descriptions_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()  # type: ignore[operator]
    assert "\n" not in str(caught.value)
