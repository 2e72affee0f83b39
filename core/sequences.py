"""Which positions of a (batch, length) grid are real, and which of them belong together."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from core.arguments import INTEGERS, check_integers, check_kind, check_tensors


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
        check_tensors("Sequences", {"document": self.document})
        check_kind("Sequences", "document", self.document, "batch, length", INTEGERS)

    @classmethod
    def padded(cls, lengths: Tensor | Sequence[int], length: int) -> Sequences:
        """Rows filled from the left: ``lengths[b]`` real positions, then padding up to ``length``.

        Raises ValueError unless ``lengths`` is a line of integers, each in 0 .. ``length``.
        """
        check_integers("Sequences.padded", 0, length=length)
        lengths = _whole("Sequences.padded", "lengths", lengths, "batch")
        if lengths.numel() and (int(lengths.min()) < 0 or int(lengths.max()) > length):
            raise ValueError(
                f"Sequences.padded: lengths must lie in 0..{length}, got {lengths.tolist()}"
            )
        inside = torch.arange(length, device=lengths.device) < lengths[:, None]
        return cls(inside.to(torch.int32) - 1)

    @classmethod
    def packed(cls, lengths: Sequence[Sequence[int]] | Tensor, length: int) -> Sequences:
        """Rows of documents end to end: ``lengths[b]`` lists row b's documents, padding after them.

        Raises ValueError if a document is empty or a row's documents do not fit into ``length``.
        """
        check_integers("Sequences.packed", 0, length=length)
        if not isinstance(lengths, Collection):
            raise ValueError(
                f"Sequences.packed: lengths must list each row's documents, got {lengths!r}"
            )
        device = lengths.device if isinstance(lengths, Tensor) else None
        document = torch.full((len(lengths), length), -1, dtype=torch.int32, device=device)
        for row, parts in enumerate(lengths):
            where, name = "Sequences.packed", f"row {row} of lengths"
            repeats = _whole(where, name, parts, "documents").long()
            total = int(repeats.sum())
            if total > length or (len(repeats) and int(repeats.min()) < 1):
                raise ValueError(
                    f"{where}: {name} must be at least 1 each and {length} together, got "
                    f"{repeats.tolist()}"
                )
            ids = torch.arange(len(repeats), dtype=torch.int32, device=repeats.device)
            document[row, :total] = ids.repeat_interleave(repeats)
        return cls(document)

    @classmethod
    def from_offsets(cls, offsets: Tensor | Sequence[int], length: int | None = None) -> Sequences:
        """One row of documents end to end: document i holds offsets[i] .. offsets[i + 1] - 1.

        The form that variable-length kernels and padding-free collators give (``cu_seqlens``).
        ``length`` is the row's, the last offset if None; what lies behind the last offset is
        padding. Raises ValueError unless ``offsets`` is a line of integers that starts at 0,
        increases and ends within ``length``.
        """
        where = "Sequences.from_offsets"
        offsets = _whole(where, "offsets", offsets, "documents + 1")
        if len(offsets) < 2:
            raise ValueError(f"{where}: offsets must be two at least, got {offsets.tolist()}")
        if int(offsets[0]) != 0:
            raise ValueError(f"{where}: offsets must start at 0, got {int(offsets[0])}")
        short = (offsets[1:] <= offsets[:-1]).nonzero()[:, 0].tolist()
        if short:
            at = short[0]
            raise ValueError(
                f"{where}: offsets must increase, got {int(offsets[at])} at {at} and "
                f"{int(offsets[at + 1])} at {at + 1}"
            )
        end = int(offsets[-1])
        length = end if length is None else length
        check_integers(where, 0, length=length)
        if end > length:
            raise ValueError(f"{where}: offsets end at {end}, beyond length={length}")
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
        _check_grid("Sequences.zero_padding", x, self.document.shape)
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
        _check_grid("Sequences.unpack", x, self.document.shape)
        index, rows = self._grid
        return rows.zero_padding(x.flatten(0, 1)[index]), rows

    def repack(self, x: Tensor) -> Tensor:
        """The inverse of ``unpack``; padding comes out as zeros."""
        index, rows = self._grid
        _check_grid("Sequences.repack", x, index.shape)
        flat = x.new_zeros(self.document.numel(), *x.shape[2:])
        flat = flat.index_put((index[rows.real],), x[rows.real])
        return flat.unflatten(0, tuple(self.document.shape))

    def prepended(self, count: int) -> Sequences:
        """``count`` real positions put before every row, part of its first document."""
        check_integers("Sequences.prepended", 0, count=count)
        first = self.document[:, :1].clamp(min=0)
        return Sequences(torch.cat([first.expand(-1, count), self.document], dim=1), self.filled)

    def one_row(self, multiple: int = 1) -> OneRow:
        """All documents end to end in one row, whose length is a multiple of ``multiple``.

        What rounding adds is one more document, so that the row holds no padding and no mixer
        spends a pass over its input to look for any. The row is not rounded where that document
        would be the longest, which mixers of a limited length might refuse. Waits for the device
        once, for the number of real tokens and the longest document.
        """
        check_integers("Sequences.one_row", multiple=multiple)
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
        _check_grid("OneRow.pack", x, self.shape)
        # index_select, because its backward adds rows, where that of x[index] sorts them first.
        tokens = x.flatten(0, 1).index_select(0, self.index)
        tail = self.sequences.document.shape[1] - len(self.index)
        if tail:
            tokens = torch.cat((tokens, tokens.new_zeros(tail, *x.shape[2:])))
        return tokens[None]

    def unpack(self, x: Tensor) -> Tensor:
        """(1, row, ...) -> (batch, length, ...); padding comes out as zeros."""
        _check_grid("OneRow.unpack", x, self.sequences.document.shape)
        grid = x.new_zeros(math.prod(self.shape), *x.shape[2:])
        return grid.index_copy(0, self.index, x[0, : len(self.index)]).unflatten(0, self.shape)


def check_sequences(where: str, name: str, sequences: object, of: str, x: Tensor) -> None:
    """ValueError unless ``sequences`` are None or describe ``x`` (batch, length, ...), called
    ``of``."""
    if sequences is None:
        return
    if not isinstance(sequences, Sequences):
        raise ValueError(
            f"{where}: {name} must be core.sequences.Sequences, got {type(sequences).__name__}"
        )
    document = sequences.document
    if document.shape != x.shape[:2] or document.device != x.device:
        raise ValueError(
            f"{where}: {name} describe {tuple(document.shape)} on {document.device}, "
            f"{of} is {tuple(x.shape)} on {x.device}"
        )


def _whole(where: str, name: str, values: object, dimensions: str) -> Tensor:
    """``values`` as an integer tensor that can be read."""
    try:
        x = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{where}: {name} must be integers, got {reprlib.repr(values)}") from None
    if not isinstance(values, Tensor) and x.shape == (0,):
        x = x.long()  # of an empty list PyTorch makes floats
    check_kind(where, name, x, dimensions, INTEGERS)
    if x.is_meta:
        raise ValueError(f"{where}: {name} must hold numbers, got a tensor on meta")
    return x


def _check_grid(where: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x.shape[:2]) != tuple(shape):
        raise ValueError(f"{where}: x must be ({shape[0]}, {shape[1]}, ...), got {tuple(x.shape)}")
