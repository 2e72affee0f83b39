"""Packed documents for mixers whose arithmetic is one convolution over the whole row."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from core.sequences import Sequences


def by_document(
    mix: Callable[[Tensor, Sequences | None], Tensor], x: Tensor, sequences: Sequences | None
) -> Tensor:
    """``mix`` over (batch, length, dim); where rows are packed, each document becomes a row.

    ``mix(x, rows)`` sees at most one document a row; it must keep what it computes at padded
    positions (zero in ``x``) from reaching real ones.
    """
    if sequences is None:
        return mix(x, None)
    if sequences.packed_rows:
        apart, rows = sequences.unpack(x)
        return sequences.repack(mix(apart, rows))
    return sequences.zero_padding(mix(sequences.zero_padding(x), sequences))
