"""Attention patterns: which keys a query sees, each described once.

A pattern is a function of two positions, counted from the start of the document. From it come the
dense mask (`visible`), the mask function and block mask of FlexAttention (`flex_mask`) and the
table of blocks worth computing (`block_table`) that the gathered path on a CPU follows. Causality,
documents and padding are no part of a pattern: the functions here intersect them.

    SlidingWindow(257) | GlobalTokens(2)                          # Longformer, attention_window 512
    SlidingWindow(192) | GlobalTokens(128) | RandomBlocks(64, 3)  # BigBird's three parts
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask

from core.arguments import check_integers
from core.sequences import Sequences

FLEX_BLOCK = 128  # FlexAttention's own default; its backward takes multiples of it only


class Tokens(NamedTuple):
    """Where tokens stand. Integer tensors (rows, length); rows is 1 where all rows are alike."""

    slot: Tensor  # in the row
    position: Tensor  # in the document
    document: Tensor  # counted up along the row, negative in padding

    @classmethod
    def of(
        cls, length: int, sequences: Sequences | None, device: torch.device | None = None
    ) -> Tokens:
        """The tokens of ``length`` long rows, one document each unless ``sequences`` tell more."""
        if sequences is None:
            return cls.at(torch.arange(length, device=device))
        document = sequences.first.cumsum(1) - 1
        return cls(
            torch.arange(length, device=document.device).expand_as(document),
            sequences.position.to(torch.int32),
            torch.where(sequences.real, document, -1),
        )

    @classmethod
    def at(cls, position: Tensor) -> Tokens:
        """Tokens of one document at ``position`` (length)."""
        row = position[None]
        return cls(row, row.to(torch.int32), torch.zeros_like(row))

    def pad(self, left: int, right: int) -> Tokens:
        """With padding tokens on both ends of the row."""
        slot, position = (F.pad(x, (left, right)) for x in (self.slot, self.position))
        return Tokens(slot, position, F.pad(self.document, (left, right), value=-1))


class Spans(NamedTuple):
    """Blocks of ``size`` neighbouring tokens; tensors that broadcast to (rows, blocks, blocks)."""

    first: Tensor  # lowest and highest slot in the row
    last: Tensor
    low: Tensor  # lowest and highest position in a document
    high: Tensor
    entry: Tensor  # position of the first token
    document_low: Tensor
    document_high: Tensor
    real: Tensor  # True where no token of the block is padding
    size: int

    def begins(self, count: int, other: Spans) -> Tensor:
        """True where one of the first ``count`` tokens of a document that ``other`` holds is here.

        True too often where the first token of a block is padding.
        """
        begun = self.document_low + (self.entry >= count)  # its first document may be further on
        low = torch.maximum(begun, other.document_low)
        shared = low <= torch.minimum(self.document_high, other.document_high)
        return shared if count else torch.zeros_like(shared)

    @classmethod
    def of(cls, tokens: Tokens, size: int, dim: int) -> Spans:
        """Cuts rows into blocks, which end up along ``dim`` (-1 or -2) of (rows, 1, 1)."""
        tokens = tokens.pad(0, -tokens.slot.shape[1] % size)
        # Tables of pairs of blocks come of these: four bytes an entry, not eight.
        slot, position, document = (x.to(torch.int32).unflatten(1, (-1, size)) for x in tokens)
        real = document >= 0
        other = -1 if dim == -2 else -2

        def low(x: Tensor) -> Tensor:
            return torch.where(real, x, torch.iinfo(x.dtype).max // 2).amin(-1).unsqueeze(other)

        def high(x: Tensor) -> Tensor:
            return torch.where(real, x, -1).amax(-1).unsqueeze(other)

        return cls(
            first=low(slot),
            last=high(slot),
            low=low(position),
            high=high(position),
            entry=position[..., 0].unsqueeze(other),
            document_low=low(document),
            document_high=high(document),
            real=real.all(-1).unsqueeze(other),
            size=size,
        )


class Pattern(ABC):
    """Which keys a query may see.

    ``describe`` and ``decide`` are the definition, `allowed` joins them. The rest bounds it, so
    that nobody evaluates it where nothing is allowed: ``touches`` may say True too often and
    ``covers`` False too often, never the reverse.
    """

    @property
    def prefix(self) -> int:
        """The first tokens of a document that ``reach`` does not speak of."""
        return 0

    @property
    def reach(self) -> int | None:
        """Largest distance between a query and a key it sees, both behind the prefix.

        None where there is no bound.
        """
        return None

    @property
    def described_by(self) -> int:
        """How many tensors `describe` gives."""
        return 1

    def describe(self, position: Tensor) -> tuple[Tensor, ...]:
        """What of an integer position decides who sees whom: integers of its shape and type."""
        return (position,)

    @abstractmethod
    def decide(self, query: Sequence[Tensor], key: Sequence[Tensor]) -> Tensor:
        """Boolean, elementwise over descriptions that broadcast against each other."""

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """Boolean, elementwise over integer positions that broadcast against each other."""
        return self.decide(self.describe(query), self.describe(key))

    def touches(self, query: Spans, key: Spans) -> Tensor:
        """Boolean per pair of blocks: False only where no query sees any key."""
        seen = query.begins(self.prefix, key) | key.begins(self.prefix, query)
        if self.reach is None:
            return torch.ones_like(seen)
        apart = torch.maximum(query.first - key.last, key.first - query.last)
        return seen | (apart <= self.reach)

    def covers(self, query: Spans, key: Spans) -> Tensor:
        """Boolean per pair of blocks of one document: True only where all pairs are allowed."""
        return torch.zeros_like((query.low < 0) | (key.low < 0))

    def __or__(self, other: Pattern) -> Union:
        return Union((self, other))


@dataclass(frozen=True)
class Full(Pattern):
    """Every key."""

    def decide(self, query: Sequence[Tensor], key: Sequence[Tensor]) -> Tensor:
        return (query[0] >= 0) & (key[0] >= 0)

    def covers(self, query: Spans, key: Spans) -> Tensor:
        return self.touches(query, key)


@dataclass(frozen=True)
class SlidingWindow(Pattern):
    """Keys less than ``window`` away: |query - key| < window (Beltagy et al. 2020, Longformer).

    Causal attention sees the last ``window`` tokens, the query's own among them. Noncausal
    attention sees ``window - 1`` more on the right; Longformer's ``attention_window`` counts both
    sides, so it is ``2 * (window - 1)``.
    """

    window: int

    def __post_init__(self) -> None:
        check_integers("SlidingWindow", window=self.window)

    @property
    def reach(self) -> int:
        return self.window - 1

    def decide(self, query: Sequence[Tensor], key: Sequence[Tensor]) -> Tensor:
        return (query[0] - key[0]).abs() < self.window

    def covers(self, query: Spans, key: Spans) -> Tensor:
        apart = torch.maximum(query.last - key.first, key.last - query.first)
        return apart <= self.reach


@dataclass(frozen=True)
class Dilated(Pattern):
    """A sliding window with gaps: ``window`` keys a side, every ``dilation``-th token.

    |query - key| < window * dilation, the distance a multiple of ``dilation`` (Longformer, figure
    2c; the own token counts, as in `SlidingWindow`).
    """

    window: int
    dilation: int

    def __post_init__(self) -> None:
        check_integers("Dilated", window=self.window, dilation=self.dilation)

    @property
    def reach(self) -> int:
        return (self.window - 1) * self.dilation

    def decide(self, query: Sequence[Tensor], key: Sequence[Tensor]) -> Tensor:
        apart = (query[0] - key[0]).abs()
        return (apart <= self.reach) & (apart % self.dilation == 0)


@dataclass(frozen=True)
class GlobalTokens(Pattern):
    """The first ``count`` tokens of each document see all and are seen by all.

    Longformer's global attention; with causality they only are seen by all, which together with a
    window is the attention sink of Xiao et al. 2023, StreamingLLM.
    """

    count: int

    def __post_init__(self) -> None:
        check_integers("GlobalTokens", count=self.count)

    @property
    def prefix(self) -> int:
        return self.count

    @property
    def reach(self) -> int:
        return 0

    def decide(self, query: Sequence[Tensor], key: Sequence[Tensor]) -> Tensor:
        return (query[0] < self.count) | (key[0] < self.count)

    def touches(self, query: Spans, key: Spans) -> Tensor:
        return query.begins(self.count, key) | key.begins(self.count, query)

    def covers(self, query: Spans, key: Spans) -> Tensor:
        return (query.high < self.count) | (key.high < self.count)


@dataclass(frozen=True)
class RandomBlocks(Pattern):
    """Random links between blocks of ``block`` tokens (Zaheer et al. 2020, BigBird).

    Each block draws ``count`` earlier blocks (fewer where a draw repeats), and a link lets both
    ends see each other. BigBird draws among all blocks of a fixed length; here the draw of a block
    depends on its number and ``seed`` alone, so a sequence that grows keeps its links, and causal
    attention keeps ``count`` of them a block. A block has no link to itself: unite with a window.
    """

    block: int
    count: int
    seed: int = 0

    def __post_init__(self) -> None:
        check_integers("RandomBlocks", block=self.block, count=self.count)
        check_integers("RandomBlocks", None, seed=self.seed)

    def partner(self, block: Tensor, draw: int | Tensor) -> Tensor:
        """The earlier block that ``block`` draws in its draw number ``draw``; -1 for block 0."""
        # A small integer hash (multiply, fold the high bits down), kept under 2**31 so that
        # products fit into int64.
        low = 0x7FFFFFFF
        # The mask keeps a compiler from taking the product of a draw, which is an index, in int32.
        salt = (self.seed * 2654435761 & low) + (draw + 1 & low) * (40503 * 65537 & low)
        x = (block.to(torch.int64) * 1103515245 + salt) & low
        for factor in (73244475, 668265263):
            x = ((x ^ (x >> 15)) * factor) & low
        x = x ^ (x >> 16)
        return torch.where(block > 0, x % block.clamp(min=1), -1).to(block.dtype)

    def partners(self, block: Tensor) -> tuple[Tensor, ...]:
        """What ``block`` draws, a tensor of its shape for each draw; all of them at once."""
        draw = torch.arange(self.count, device=block.device)
        return self.partner(block, draw.view(-1, *(1,) * block.ndim)).unbind()

    @property
    def described_by(self) -> int:
        return 1 + self.count

    def describe(self, position: Tensor) -> tuple[Tensor, ...]:
        # Hashed here, once a position, and not in `decide`, once a pair.
        block = position // self.block
        return (block, *self.partners(block))

    def decide(self, query: Sequence[Tensor], key: Sequence[Tensor]) -> Tensor:
        links = [partner == key[0] for partner in query[1:]]
        return reduce(torch.logical_or, links + [partner == query[0] for partner in key[1:]])

    def touches(self, query: Spans, key: Spans) -> Tensor:
        # Blocks across a border of documents are left to `allowed`.
        seen = (query.document_low != query.document_high) | (key.document_low != key.document_high)
        for one, other in ((query, key), (key, query)):
            low, high = other.low // self.block, other.high // self.block
            most = (one.size - 1) // self.block + 2  # blocks of the pattern in one of the mask
            offset = torch.arange(most, device=low.device, dtype=low.dtype)[:, None, None, None]
            blocks = (one.low // self.block + offset).minimum(one.high // self.block)
            for partners in self.partners(blocks):
                for partner in partners:
                    seen = seen | ((partner >= low) & (partner <= high))
        return seen


@dataclass(frozen=True)
class Union(Pattern):
    """What any of ``parts`` allows; also written ``a | b``."""

    parts: Sequence[Pattern]

    def __post_init__(self) -> None:
        parts = tuple(self.parts) if isinstance(self.parts, Sequence) else ()
        if not parts or not all(isinstance(part, Pattern) for part in parts):
            raise ValueError(f"Union: parts must be a list of patterns, got {self.parts!r}")
        object.__setattr__(self, "parts", parts)  # a list cannot be hashed

    @property
    def prefix(self) -> int:
        return max(part.prefix for part in self.parts)

    @property
    def reach(self) -> int | None:
        reaches = [part.reach for part in self.parts]
        return None if None in reaches else max(reach for reach in reaches if reach is not None)

    @property
    def described_by(self) -> int:
        return sum(part.described_by for part in self.parts)

    def describe(self, position: Tensor) -> tuple[Tensor, ...]:
        return tuple(value for part in self.parts for value in part.describe(position))

    def decide(self, query: Sequence[Tensor], key: Sequence[Tensor]) -> Tensor:
        start, seen = 0, []
        for part in self.parts:
            end = start + part.described_by
            seen.append(part.decide(query[start:end], key[start:end]))
            start = end
        return reduce(torch.logical_or, seen)

    def touches(self, query: Spans, key: Spans) -> Tensor:
        return reduce(torch.logical_or, (part.touches(query, key) for part in self.parts))

    def covers(self, query: Spans, key: Spans) -> Tensor:
        return reduce(torch.logical_or, (part.covers(query, key) for part in self.parts))


def visible(pattern: Pattern, causal: bool, query: Tokens, key: Tokens) -> Tensor:
    """Boolean (rows, queries, keys): True where a query sees a key."""
    q, k = query.position[..., :, None], key.position[..., None, :]
    document = query.document[..., :, None]
    seen = (document == key.document[..., None, :]) & (document >= 0)
    if not isinstance(pattern, Full):
        seen = seen & pattern.allowed(q, k)
    return seen & (k <= q) if causal else seen


def block_table(
    pattern: Pattern, causal: bool, query: Tokens, key: Tokens, size: int
) -> tuple[Tensor, Tensor]:
    """Two booleans (rows, query blocks, key blocks) for blocks of ``size`` tokens.

    The first is False only where no query of the block sees any key of the other, the second True
    only where every query sees every key. Costs (length / size)^2.
    """
    q, k = Spans.of(query, size, -2), Spans.of(key, size, -1)
    touched = (q.document_low <= k.document_high) & (k.document_low <= q.document_high)
    touched = touched & pattern.touches(q, k)
    alone = (q.document_low == q.document_high) & (k.document_low == k.document_high)
    covered = touched & alone & q.real & k.real & pattern.covers(q, k)
    if causal:
        touched, covered = touched & (k.first <= q.last), covered & (k.last <= q.first)
    return touched, covered


def flex_mask(pattern: Pattern, causal: bool, query: Tokens, key: Tokens, batch: int) -> BlockMask:
    """FlexAttention's block mask for ``batch`` rows, made on the tokens' device.

    Built from the table of blocks: no (length, length) mask is evaluated on the way. Lengths must
    be multiples of ``FLEX_BLOCK``; `Tokens.pad` makes them so.
    """
    touched, covered = block_table(pattern, causal, query, key, FLEX_BLOCK)
    q_position, q_document = (x.expand(batch, -1) for x in query[1:])
    k_position, k_document = (x.expand(batch, -1) for x in key[1:])
    q_facts, k_facts = (
        torch.stack(pattern.describe(x.position)).expand(-1, batch, -1) for x in (query, key)
    )
    count = pattern.described_by

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        document = q_document[b, q]
        seen = (document == k_document[b, k]) & (document >= 0)
        one = [q_facts[i, b, q] for i in range(count)]
        other = [k_facts[i, b, k] for i in range(count)]
        seen = seen & pattern.decide(one, other)
        return seen & (k_position[b, k] <= q_position[b, q]) if causal else seen

    def listed(table: Tensor) -> tuple[Tensor, Tensor]:
        table = table[:, None].to(torch.int32)
        order = table.argsort(dim=-1, descending=True, stable=True)
        return table.sum(-1, dtype=torch.int32), order.to(torch.int32)

    return BlockMask.from_kv_blocks(
        *listed(touched & ~covered),
        *listed(covered),
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=mask_mod,
        seq_lengths=(query.slot.shape[1], key.slot.shape[1]),
    )
