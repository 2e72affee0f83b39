"""Softmax attention under a pattern, by the cheapest way the device and the pattern allow.

On CUDA: FlexAttention. Elsewhere (FlexAttention has no backward on a CPU): a window slides over
the keys as a strided view, any other sparse pattern gathers the blocks of keys that it touches,
and what is short or dense is computed under a dense mask. All give the same numbers.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from core.arguments import check_flags, check_integers, check_kind, check_tensors, is_number
from core.ops.dispatch import use_triton
from core.patterns import (
    FLEX_BLOCK,
    Dilated,
    Full,
    Pattern,
    Tokens,
    block_table,
    flex_mask,
    visible,
)
from core.sequences import Sequences, check_sequences

GATHER_BLOCK = 64  # tokens; large enough for the products, small enough to leave little masked
DENSE_SCORES = 256 * 256  # a row with fewer scores is not worth cutting up
DENSE_SHARE = 0.5  # above this share of touched blocks, gathering copies more than it saves
FLEX_LENGTH = 128  # fewer queries do not fill a block of FlexAttention
FLEX_HEAD_DIM = 16, 256  # smallest and largest that its kernels take; others go by the CPU's ways


def kept(pattern: Pattern, length: int) -> tuple[int, int]:
    """Which of ``length`` tokens a later token may see, causally: the first n and the last m.

    n + m = length where the pattern reaches back without bound, or not yet beyond its bound.
    """
    if pattern.reach is None:
        return 0, length
    first = min(pattern.prefix, length)
    return first, min(pattern.reach, length - first)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    pattern: Pattern,
    causal: bool,
    sequences: Sequences | None = None,
    seen: int = 0,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(query key^T / sqrt(head_dim)) value over the keys each query sees.

    ``query`` is (batch, length, heads, head_dim), ``key`` and ``value`` are (batch, length,
    kv_heads, head_dim), kv_heads dividing heads. After ``seen`` earlier tokens, ``key`` and
    ``value`` begin with those that `kept` names; no ``sequences`` then. A query that sees no key
    comes out as zero. ``dropout`` is the share of weights dropped.

    Raises ValueError, before anything is computed, for shapes, types and devices that do not fit.
    """
    _check(query, key, value, pattern, causal, sequences, seen, dropout)
    length, keys = query.shape[1], key.shape[1]
    if isinstance(pattern, Full) and sequences is None and (not causal or not seen or length == 1):
        return _plain(query, key, value, causal and not seen, dropout)
    if _takes_flex(query, dropout):
        mask = _flex_mask(pattern, causal, query, sequences, seen)
        return _flex(query, key, value, mask)
    tokens = _tokens(pattern, length, sequences, seen, query.device)
    if pattern.reach is not None and not pattern.prefix and keys > 2 * pattern.reach + 64:
        return _windowed(query, key, value, tokens, pattern, causal, dropout)
    queries = Tokens(*(x[:, keys - length :] for x in tokens))
    # How many blocks a row of the table touches is known at run time only: not for a compiler.
    if length * keys > DENSE_SCORES and not torch.compiler.is_compiling():
        table, _ = block_table(pattern, causal, queries, tokens, GATHER_BLOCK)
        if table.float().mean() < DENSE_SHARE:
            mask_of = _Mask(pattern, causal, queries, tokens, table.expand(len(query), -1, -1))
            return _gathered(query, key, value, mask_of, dropout)
    return masked(query, key, value, visible(pattern, causal, queries, tokens), dropout)


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    causal: bool,
    sequences: Sequences | None,
    seen: int,
    dropout: float,
) -> None:
    heads_of = {"query": query, "key": key, "value": value}
    check_tensors("attend", heads_of)
    if not isinstance(pattern, Pattern):
        raise ValueError(f"attend: pattern must be one of core.patterns, got {pattern!r}")
    check_flags("attend", causal=causal)
    check_integers("attend", 0, seen=seen)
    for name, x in heads_of.items():
        check_kind("attend", name, x, "batch, length, heads, head_dim")
        if not (x.shape[2] and x.shape[3]):
            raise ValueError(f"attend: {name} must have heads of some width, got {tuple(x.shape)}")
        if (x.dtype, x.device) != (query.dtype, query.device):
            raise ValueError(
                f"attend: {name} is {x.dtype} on {x.device}, query {query.dtype} on {query.device}"
            )
    batch, length, heads, width = query.shape
    if seen and sequences is not None:
        raise ValueError(f"attend: seen={seen} must be 0 with sequences")
    keys = sum(kept(pattern, seen)) + length
    if isinstance(pattern, Full) and not causal and not seen and sequences is None:
        keys = key.shape[1]  # those of a context
    if (key.shape[:2], key.shape[3]) != ((batch, keys), width) or heads % key.shape[2]:
        raise ValueError(
            f"attend: key must be ({batch}, {keys}, kv_heads, {width}), kv_heads dividing {heads}, "
            f"got {tuple(key.shape)}; query is {tuple(query.shape)}, seen={seen}"
        )
    if value.shape != key.shape:
        raise ValueError(
            f"attend: value must have the shape of key, {tuple(key.shape)}, got "
            f"{tuple(value.shape)}"
        )
    check_sequences("attend", "sequences", sequences, "query", query)
    if not is_number(dropout) or not 0 <= dropout <= 1:
        raise ValueError(f"attend: dropout must lie in [0, 1], got {dropout!r}")


def masked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float) -> Tensor:
    """Attention under a boolean ``mask`` (batch or 1, queries, keys); shapes as in `attend`."""
    batch, length, heads, width = query.shape
    kv_heads = key.shape[2]
    groups = heads // kv_heads
    # Heads that share keys queue up as more queries: no copy of the keys for each of them.
    rows = query.unflatten(2, (kv_heads, groups)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    mask = mask[:, None, None].expand(-1, -1, groups, -1, -1).flatten(2, 3)
    some = mask.any(-1, keepdim=True)
    out = F.scaled_dot_product_attention(
        rows, key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask | ~some, dropout_p=dropout
    )
    out = torch.where(some, out, torch.zeros((), dtype=out.dtype, device=out.device))
    out = out.unflatten(2, (groups, length)).permute(0, 3, 1, 2, 4)
    return out.reshape(batch, length, heads, width)


def _plain(query: Tensor, key: Tensor, value: Tensor, causal: bool, dropout: float) -> Tensor:
    groups = query.shape[2] // key.shape[2]
    if groups > 1 and not query.is_cuda:  # shared heads have no fused kernel there
        key, value = (x.repeat_interleave(groups, dim=2) for x in (key, value))
    return F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        is_causal=causal,
        dropout_p=dropout,
        enable_gqa=groups > 1 and query.is_cuda,
    ).transpose(1, 2)


def _tokens(
    pattern: Pattern, length: int, sequences: Sequences | None, seen: int, device: torch.device
) -> Tokens:
    """The tokens that the keys stand for; the queries are the last ``length`` of them."""
    if not seen:
        return Tokens.of(length, sequences, device)
    first, last = kept(pattern, seen)
    start = torch.arange(first, device=device)
    return Tokens.at(torch.cat((start, torch.arange(seen - last, seen + length, device=device))))


# ---- CUDA


def _takes_flex(query: Tensor, dropout: float) -> bool:
    return (
        query.is_cuda
        and use_triton(query)
        and not dropout
        and query.dtype != torch.float64
        and query.shape[1] >= FLEX_LENGTH
        and FLEX_HEAD_DIM[0] <= query.shape[3] <= FLEX_HEAD_DIM[1]
    )


# A model meets more variants (patterns, shapes, training and not) than the eight that torch.compile
# keeps by default; after those FlexAttention would silently compute the whole square.
_VARIANTS = 256


@cache
def _compiled_flex() -> Any:
    return torch.compile(_flex_blocks, fullgraph=True)


def _flex_blocks(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask) -> Tensor:
    """``query`` and the others (batch, blocks, FLEX_BLOCK, heads, head_dim).

    Given as blocks because only then a compiler to which the length is a variable knows that it is
    a multiple of the block, and leaves the checks of every load out.
    """
    grouped = query.shape[3] != key.shape[3]
    query, key, value = (x.flatten(1, 2).transpose(1, 2) for x in (query, key, value))
    out = flex_attention(query, key, value, block_mask=mask, enable_gqa=grouped)
    return out.transpose(1, 2)


def _flex(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask) -> Tensor:
    def blocks(x: Tensor) -> Tensor:
        tail = -x.shape[1] % FLEX_BLOCK
        x = F.pad(x, (0, 0, 0, 0, 0, tail)) if tail else x
        return x.unflatten(1, (-1, FLEX_BLOCK))

    heads = blocks(query), blocks(key), blocks(value)
    if torch.compiler.is_compiling():
        out = _flex_blocks(*heads, mask)
    else:
        with torch._dynamo.config.patch(recompile_limit=_VARIANTS):
            out = _compiled_flex()(*heads, mask)
    return out[:, : query.shape[1]]


# The layers of a model ask for the same mask one after the other. The entry holds the documents'
# tensor, so that no other can take its id meanwhile.
_MASKS: OrderedDict[tuple, tuple[Tensor | None, BlockMask]] = OrderedDict()
_MASKS_KEPT = 8


def _flex_mask(
    pattern: Pattern, causal: bool, query: Tensor, sequences: Sequences | None, seen: int
) -> BlockMask:
    batch, length = query.shape[:2]

    def make() -> BlockMask:
        tokens = _tokens(pattern, length, sequences, seen, query.device)
        keys = tokens.slot.shape[1]
        queries = Tokens(*(x[:, keys - length :] for x in tokens))
        queries, tokens = (
            queries.pad(0, -length % FLEX_BLOCK),
            tokens.pad(0, -keys % FLEX_BLOCK),
        )
        return flex_mask(pattern, causal, queries, tokens, batch)

    if torch.compiler.is_compiling():
        return make()
    document = None if sequences is None else sequences.document
    inference = torch.is_inference_mode_enabled()  # such a mask cannot be saved for a backward
    version = 0 if document is None or document.is_inference() else document._version
    entry = (pattern, causal, batch, length, seen, query.device, id(document), version, inference)
    if entry not in _MASKS:
        _MASKS[entry] = (document, make())
        while len(_MASKS) > _MASKS_KEPT:
            _MASKS.popitem(last=False)
    _MASKS.move_to_end(entry)
    return _MASKS[entry][1]


# ---- windows


def _windowed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tokens: Tokens,
    pattern: Pattern,
    causal: bool,
    dropout: float,
) -> Tensor:
    """Blocks of queries, each with the keys up to the pattern's reach: length * reach scores.

    All rows lie end to end in one line, on which blocks of keys are overlapping views, not copies.
    A dilated pattern becomes a plain window: its line takes the residues of the slot in turn.
    """
    reach, fold = pattern.reach or 0, 1
    if isinstance(pattern, Dilated):
        reach, fold = pattern.window - 1, pattern.dilation
    block = min(256, max(32, (reach + 31) // 32 * 32))
    batch, keys, past = len(key), key.shape[1], key.shape[1] - query.shape[1]
    blocks = (keys + fold * block - 1) // (fold * block)  # of each residue
    tail, right = blocks * fold * block - keys, 0 if causal else reach

    def line(x: Tensor) -> Tensor:
        x = x.reshape(batch, blocks * block, fold, *x.shape[2:]).transpose(1, 2)
        return x.reshape(batch * fold * blocks * block, *x.shape[3:])

    def windows(x: Tensor) -> Tensor:
        return x.unfold(0, reach + block + right, block)

    def heads(x: Tensor) -> Tensor:
        ends = F.pad(line(F.pad(x, (0, 0, 0, 0, 0, tail))), (0, 0, 0, 0, reach, right))
        return windows(ends).permute(0, 3, 1, 2)

    row = torch.arange(batch, device=query.device)[:, None] * (keys + 1)
    document = torch.where(tokens.document < 0, -1, tokens.document + row)
    tokens = Tokens(tokens.slot, tokens.position, document).pad(0, tail)
    on_line = Tokens(*(line(x.expand(batch, -1))[None] for x in tokens))
    mask = visible(
        pattern,
        causal,
        Tokens(*(x.reshape(-1, block) for x in on_line)),
        Tokens(*(windows(x[0]) for x in on_line.pad(reach, right))),
    )
    query = line(F.pad(query, (0, 0, 0, 0, past, tail))).unflatten(0, (-1, block))
    out = masked(query, heads(key), heads(value), mask, dropout)
    out = out.reshape(batch, fold, blocks * block, *out.shape[2:]).transpose(1, 2).flatten(1, 2)
    return out[:, past:keys]


# ---- any other sparse pattern


class _Mask:
    """A pattern cut into blocks, and the mask of any choice of them."""

    def __init__(
        self, pattern: Pattern, causal: bool, query: Tokens, key: Tokens, table: Tensor
    ) -> None:
        self.pattern, self.causal = pattern, causal
        self.table = table  # (batch, query blocks, key blocks)
        self.query, self.key = (self._cut(tokens, len(table)) for tokens in (query, key))

    @staticmethod
    def _cut(tokens: Tokens, batch: int) -> Tokens:
        tokens = tokens.pad(0, -tokens.slot.shape[1] % GATHER_BLOCK)
        return Tokens(*(x.expand(batch, -1).reshape(-1, GATHER_BLOCK) for x in tokens))

    def __call__(self, queries: Tensor, keys: Tensor, valid: Tensor) -> Tensor:
        """Blocks of queries (n), of keys (n, m), which of these count (n, m) -> their mask."""
        slot, position, document = (x[keys].flatten(1) for x in self.key)
        document = torch.where(valid.repeat_interleave(GATHER_BLOCK, dim=1), document, -1)
        key = Tokens(slot, position, document)
        return visible(self.pattern, self.causal, Tokens(*(x[queries] for x in self.query)), key)


def _gathered(query: Tensor, key: Tensor, value: Tensor, mask_of: _Mask, dropout: float) -> Tensor:
    """Each block of queries with a copy of the blocks of keys that it touches.

    Blocks that touch about as many others (to the next power of two) are computed at once.
    """
    batch, length = query.shape[:2]
    table = mask_of.table
    query, key, value = (
        F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % GATHER_BLOCK)).reshape(
            -1, GATHER_BLOCK, *x.shape[2:]
        )
        for x in (query, key, value)
    )
    pairs = table.flatten(0, 1).nonzero()[:, 1]
    counts = table.sum(-1).flatten()
    starts = counts.cumsum(0) - counts
    offset = torch.arange(batch, device=query.device).repeat_interleave(table.shape[1])
    offset = offset * table.shape[2]
    rows = [(counts == 0).nonzero()[:, 0]]
    pieces = [query.new_zeros(len(rows[0]), *query.shape[1:])]
    below, most = 0, int(counts.max())
    while below < most:
        width = min(max(1, 2 * below), most)
        row = ((counts > below) & (counts <= width)).nonzero()[:, 0]
        below = width
        if not len(row):
            continue
        step = torch.arange(width, device=row.device)
        valid = step < counts[row, None]
        chosen = pairs[torch.where(valid, starts[row, None] + step, 0)] + offset[row, None]
        mask = mask_of(row, chosen, valid)
        keys, values = (x[chosen].flatten(1, 2) for x in (key, value))
        pieces.append(masked(query[row], keys, values, mask, dropout))
        rows.append(row)
    out = torch.cat(pieces)[torch.cat(rows).argsort()]
    return out.reshape(batch, -1, *query.shape[2:])[:, :length]
