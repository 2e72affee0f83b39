"""Which positions of a (batch, length) grid are real, and which of them belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """One description for padded and packed batches.

    ``document`` is an integer tensor (batch, length). Positions with the same value in a row are
    one document and lie side by side; a negative value marks padding. Nothing flows between two
    documents, or between a document and padding.
    """

    document: Tensor

    def __post_init__(self) -> None:
        if self.document.ndim != 2 or self.document.is_floating_point():
            raise ValueError(
                "Sequences.document must be an integer tensor (batch, length), got "
                f"{self.document.dtype} of shape {tuple(self.document.shape)}"
            )

    @classmethod
    def padded(cls, lengths: Tensor | Sequence[int], length: int) -> Sequences:
        """Rows filled from the left: ``lengths[b]`` real positions, then padding up to ``length``.

        Raises ValueError if a length is negative or longer than ``length``.
        """
        lengths = torch.as_tensor(lengths)
        if lengths.numel() and (int(lengths.min()) < 0 or int(lengths.max()) > length):
            raise ValueError(f"lengths must lie in 0..{length}, got {lengths.tolist()}")
        inside = torch.arange(length, device=lengths.device) < lengths[:, None]
        return cls(inside.to(torch.int32) - 1)

    @classmethod
    def packed(cls, lengths: Sequence[Sequence[int]], length: int) -> Sequences:
        """Rows of documents end to end: ``lengths[b]`` lists row b's documents, padding after them.

        Raises ValueError if a document is empty or a row's documents do not fit into ``length``.
        """
        document = torch.full((len(lengths), length), -1, dtype=torch.int32)
        for row, parts in enumerate(lengths):
            if sum(parts) > length or min(parts, default=1) < 1:
                raise ValueError(f"row {row}: documents {list(parts)} do not fit into {length}")
            ids = torch.arange(len(parts), dtype=torch.int32)
            repeats = torch.tensor(parts, dtype=torch.long)
            document[row, : sum(parts)] = ids.repeat_interleave(repeats)
        return cls(document)

    @property
    def real(self) -> Tensor:
        """Boolean (batch, length): True where a position holds data."""
        return self.document >= 0

    @property
    def first(self) -> Tensor:
        """Boolean (batch, length): True at the first position of each document."""
        before = torch.nn.functional.pad(self.document[:, :-1], (1, 0), value=-1)
        return self.real & (self.document != before)

    @property
    def position(self) -> Tensor:
        """Integer (batch, length): distance from the start of the document; 0 in padding."""
        index = torch.arange(self.document.shape[1], device=self.document.device)
        changed = torch.ones_like(self.document, dtype=torch.bool)
        changed[:, 1:] = self.document[:, 1:] != self.document[:, :-1]
        start = torch.where(changed, index, 0).cummax(dim=1).values
        return torch.where(self.real, index - start, 0)

    def to(self, device: torch.device | str) -> Sequences:
        return Sequences(self.document.to(device))

    def zero_padding(self, x: Tensor) -> Tensor:
        """``x`` (batch, length, ...) with every padded position set to zero, whatever it held."""
        real = self.real.reshape(self.real.shape + (1,) * (x.ndim - 2))
        return torch.where(real, x, torch.zeros((), dtype=x.dtype, device=x.device))

    @cached_property
    def packed_rows(self) -> bool:
        """True if some row holds more than one document."""
        return bool((self.first.sum(dim=1) > 1).any())

    @cached_property
    def _grid(self) -> tuple[Tensor, Sequences]:
        """Flat indices (documents, longest) of every document's positions, and which are real."""
        flat_first = self.first.flatten().nonzero()[:, 0]
        number = self.first.flatten().cumsum(0) - 1
        lengths = torch.bincount(number[self.real.flatten()], minlength=len(flat_first))
        longest = int(lengths.max()) if len(lengths) else 0
        index = flat_first[:, None] + torch.arange(longest, device=flat_first.device)
        rows = Sequences.padded(lengths, longest)
        return torch.where(rows.real, index, 0), rows

    def unpack(self, x: Tensor) -> tuple[Tensor, Sequences]:
        """(batch, length, ...) -> (documents, longest, ...), a padded row for each document."""
        index, rows = self._grid
        return rows.zero_padding(x.flatten(0, 1)[index]), rows

    def repack(self, x: Tensor) -> Tensor:
        """The inverse of ``unpack``; padding comes out as zeros."""
        index, rows = self._grid
        flat = x.new_zeros(self.document.numel(), *x.shape[2:])
        flat = flat.index_put((index[rows.real],), x[rows.real])
        return flat.unflatten(0, tuple(self.document.shape))

    def prepended(self, count: int) -> Sequences:
        """``count`` real positions put before every row, part of its first document."""
        first = self.document[:, :1].clamp(min=0)
        return Sequences(torch.cat([first.expand(-1, count), self.document], dim=1))
