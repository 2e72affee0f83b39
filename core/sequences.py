"""Which positions of a (batch, length) grid are real, and which of them belong together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Sequences:
    """One description for padded and packed batches.

    ``document`` is an integer tensor (batch, length). Positions with the same value in a row are
    one document and lie side by side; a negative value marks padding. Nothing flows between two
    documents, or between a document and padding. ``filled`` is a promise that nothing is padding,
    known without a look at the tensor; `zero_padding` then has nothing to do.
    """

    document: Tensor
    filled: bool = False

    def __post_init__(self) -> None:
        if self.document.ndim != 2 or self.document.is_floating_point():
            raise ValueError(
                "Sequences.document must be an integer tensor (batch, length), got "
                f"{self.document.dtype} of shape {tuple(self.document.shape)}"
            )

    @classmethod
    def padded(cls, lengths: Tensor | Sequence[int], length: int) -> Sequences:
        """Rows filled from the left: ``lengths[b]`` real positions, then padding up to ``length``.

        Raises ValueError unless ``lengths`` is a line of integers, each in 0 .. ``length``.
        """
        lengths = torch.as_tensor(lengths)
        empty = not lengths.numel()  # of an empty list PyTorch makes floats
        whole = not (lengths.is_floating_point() or lengths.is_complex())
        if lengths.ndim != 1 or not (empty or (whole and lengths.dtype != torch.bool)):
            raise ValueError(
                f"lengths must be an integer tensor (batch), got {lengths.dtype} of shape "
                f"{tuple(lengths.shape)}"
            )
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

    @classmethod
    def from_offsets(cls, offsets: Tensor | Sequence[int], length: int | None = None) -> Sequences:
        """One row of documents end to end: document i holds offsets[i] .. offsets[i + 1] - 1.

        The form that variable-length kernels and padding-free collators give (``cu_seqlens``).
        ``length`` is the row's, the last offset if None; what lies behind the last offset is
        padding. Raises ValueError unless ``offsets`` is a line of integers that starts at 0,
        increases and ends within ``length``.
        """
        offsets = torch.as_tensor(offsets)
        kind = f"{offsets.dtype} of shape {tuple(offsets.shape)}"
        if offsets.ndim != 1 or offsets.is_floating_point() or len(offsets) < 2:
            raise ValueError(f"offsets must be an integer tensor (documents + 1), got {kind}")
        if int(offsets[0]) != 0:
            raise ValueError(f"offsets must start at 0, got {int(offsets[0])}")
        short = (offsets[1:] <= offsets[:-1]).nonzero()[:, 0].tolist()
        if short:
            at = short[0]
            raise ValueError(
                f"offsets must increase, got {int(offsets[at])} at {at} and "
                f"{int(offsets[at + 1])} at {at + 1}"
            )
        end = int(offsets[-1])
        length = end if length is None else length
        if end > length:
            raise ValueError(f"offsets end at {end}, beyond length={length}")
        place = torch.arange(length, device=offsets.device)
        document = torch.bucketize(place, offsets, right=True, out_int32=True) - 1
        return cls(torch.where(place < end, document, -1)[None], filled=end == length)

    @property
    def real(self) -> Tensor:
        """Boolean (batch, length): True where a position holds data."""
        return self.document >= 0

    @property
    def first(self) -> Tensor:
        """Boolean (batch, length): True at the first position of each document."""
        before = F.pad(self.document[:, :-1], (1, 0), value=-1)
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
        return Sequences(self.document.to(device), self.filled)

    def zero_padding(self, x: Tensor) -> Tensor:
        """``x`` (batch, length, ...) with every padded position set to zero, whatever it held."""
        if self.filled:
            return x
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
        return Sequences(torch.cat([first.expand(-1, count), self.document], dim=1), self.filled)

    def one_row(self, multiple: int = 1) -> OneRow:
        """All documents end to end in one row, whose length is a multiple of ``multiple``.

        What rounding adds is one more document, so that the row holds no padding and no mixer
        spends a pass over its input to look for any. The row is not rounded where that document
        would be the longest, which mixers of a limited length might refuse. Waits for the device
        once, for the number of real tokens and the longest document.
        """
        real = self.real.flatten()
        last = F.pad(self.position.flatten(), (0, 1)).max()
        tokens, longest = torch.stack((real.sum(), last + 1)).tolist()
        slot = torch.where(real, real.cumsum(0) - 1, tokens)
        index = slot.new_empty(tokens + 1)
        index = index.scatter_(0, slot, torch.arange(len(real), device=real.device))[:tokens]
        number = self.first.flatten().cumsum(0, dtype=torch.int32) - 1
        tail = -tokens % multiple if tokens else 1  # a row of nothing is no input for a mixer
        tail = tail if tail <= longest else 0
        document = F.pad(number[index], (0, tail), value=len(real))
        return OneRow(index, (*self.document.shape,), Sequences(document[None], filled=True))


@dataclass(frozen=True)
class OneRow:
    """A batch without its padding: the real tokens of all rows in one row (`Sequences.one_row`)."""

    index: Tensor  # (tokens,) into the flattened batch
    shape: tuple[int, ...]  # of the batch: (batch, length)
    sequences: Sequences  # of the row

    def pack(self, x: Tensor) -> Tensor:
        """(batch, length, ...) -> (1, row, ...); what rounding added is zero."""
        # index_select, because its backward adds rows, where that of x[index] sorts them first.
        tokens = x.flatten(0, 1).index_select(0, self.index)
        tail = self.sequences.document.shape[1] - len(self.index)
        if tail:
            tokens = torch.cat((tokens, tokens.new_zeros(tail, *x.shape[2:])))
        return tokens[None]

    def unpack(self, x: Tensor) -> Tensor:
        """(1, row, ...) -> (batch, length, ...); padding comes out as zeros."""
        grid = x.new_zeros(math.prod(self.shape), *x.shape[2:])
        return grid.index_copy(0, self.index, x[0, : len(self.index)]).unflatten(0, self.shape)
