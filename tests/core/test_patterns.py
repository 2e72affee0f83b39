"""Patterns against scalar definitions, and the bounds they give against their own dense mask."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from largest_tensor import LargestTensor
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from core.patterns import (
    Dilated,
    Full,
    GlobalTokens,
    Pattern,
    RandomBlocks,
    SlidingWindow,
    Tokens,
    Union,
    block_table,
    flex_mask,
    visible,
)
from core.sequences import Sequences

DEFINED: list[tuple[Pattern, Callable[[int, int], bool]]] = [
    (Full(), lambda q, k: True),
    (SlidingWindow(1), lambda q, k: q == k),
    (SlidingWindow(6), lambda q, k: -6 < q - k < 6),
    (Dilated(3, 4), lambda q, k: q - k in (-8, -4, 0, 4, 8)),
    (GlobalTokens(3), lambda q, k: q < 3 or k < 3),
    (SlidingWindow(2) | GlobalTokens(1), lambda q, k: abs(q - k) < 2 or q == 0 or k == 0),
]
RANDOM = RandomBlocks(block=4, count=2, seed=7)
ALL = [pattern for pattern, _ in DEFINED] + [RANDOM, SlidingWindow(5) | GlobalTokens(2) | RANDOM]
PACKED = Sequences.packed([[30, 1, 41, 12], [90], [7, 7, 7]], 100)


def dense(pattern: Pattern, length: int) -> Tensor:
    tokens = Tokens.of(length, None)
    return visible(pattern, False, tokens, tokens)[0]


@pytest.mark.parametrize(("pattern", "rule"), DEFINED, ids=[str(pattern) for pattern, _ in DEFINED])
def test_the_mask_is_the_scalar_definition(
    pattern: Pattern, rule: Callable[[int, int], bool]
) -> None:
    expected = torch.tensor([[rule(q, k) for k in range(40)] for q in range(40)])
    assert torch.equal(dense(pattern, 40), expected)


@pytest.mark.parametrize("pattern", ALL, ids=str)
def test_causality_documents_and_padding_are_intersected(pattern: Pattern) -> None:
    tokens = Tokens.of(100, PACKED)
    mask = visible(pattern, True, tokens, tokens)
    expected = torch.zeros_like(mask)
    for row, parts in enumerate([[30, 1, 41, 12], [90], [7, 7, 7]]):
        start = 0
        for part in parts:
            inside = slice(start, start + part)
            expected[row, inside, inside] = dense(pattern, part).tril()
            start += part
    assert torch.equal(mask, expected)


@pytest.mark.parametrize("sequences", [None, PACKED], ids=["plain", "packed"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pattern", ALL, ids=str)
def test_block_table_never_misses(
    pattern: Pattern, causal: bool, sequences: Sequences | None
) -> None:
    """What it leaves out holds no visible pair, what it calls covered no hidden one."""
    tokens = Tokens.of(100, sequences)
    mask = visible(pattern, causal, tokens, tokens)
    for size in (4, 10, 16, 64):
        touched, covered = block_table(pattern, causal, tokens, tokens, size)
        pad = -100 % size
        blocks = torch.nn.functional.pad(mask, (0, pad, 0, pad))
        blocks = blocks.unflatten(2, (-1, size)).unflatten(1, (-1, size))
        assert not (blocks.any(4).any(2) & ~touched).any()
        assert not (covered & ~blocks.all(4).all(2)).any()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "pattern", [Full(), SlidingWindow(40), GlobalTokens(16), RandomBlocks(8, 2)], ids=str
)
def test_block_table_is_exact_without_documents(pattern: Pattern, causal: bool) -> None:
    tokens = Tokens.of(160, None)
    mask = visible(pattern, causal, tokens, tokens)
    touched, covered = block_table(pattern, causal, tokens, tokens, 8)
    blocks = mask.unflatten(2, (-1, 8)).unflatten(1, (-1, 8))
    assert torch.equal(touched, blocks.any(4).any(2))
    if not isinstance(pattern, RandomBlocks):
        assert torch.equal(covered, blocks.all(4).all(2))


@pytest.mark.parametrize("pattern", ALL, ids=str)
def test_nothing_is_allowed_beyond_the_reach(pattern: Pattern) -> None:
    mask = dense(pattern, 60)
    assert torch.equal(mask, mask.T)
    if pattern.reach is None:
        return
    q, k = (mask.nonzero()[:, side] for side in (0, 1))
    behind = torch.minimum(q, k) >= pattern.prefix
    assert ((q - k).abs()[behind] <= pattern.reach).all()


def test_random_links_stay_as_a_sequence_grows() -> None:
    assert torch.equal(dense(RANDOM, 200)[:90, :90], dense(RANDOM, 90))
    assert not torch.equal(dense(RandomBlocks(4, 2, seed=8), 200), dense(RANDOM, 200))


def test_random_draws_are_uniform_over_earlier_blocks() -> None:
    block, draws = 40, 20_000
    pattern = RandomBlocks(1, draws, seed=3)
    drawn = torch.stack([pattern.partner(torch.tensor(block), draw) for draw in range(draws)])
    assert int(drawn.min()) == 0
    assert int(drawn.max()) == block - 1
    expected = draws / block
    chi2 = float(((drawn.bincount(minlength=block) - expected) ** 2 / expected).sum())
    assert chi2 < (block - 1) + 5 * math.sqrt(2 * (block - 1))


def test_neighbouring_blocks_and_seeds_draw_independently() -> None:
    blocks = torch.arange(1000, 3000)
    for one, other in (
        (RandomBlocks(1, 1).partner(blocks, 0), RandomBlocks(1, 1).partner(blocks + 1, 0)),
        (RandomBlocks(1, 1).partner(blocks, 0), RandomBlocks(1, 2).partner(blocks, 1)),
        (RandomBlocks(1, 1).partner(blocks, 0), RandomBlocks(1, 1, seed=1).partner(blocks, 0)),
    ):
        both = torch.stack((one / blocks, other / blocks))
        assert abs(float(both.corrcoef()[0, 1])) < 5 / math.sqrt(2000)


def test_union_is_hashable_from_a_list_and_nests() -> None:
    union = Union([SlidingWindow(2), Union([GlobalTokens(1), RANDOM])])
    assert hash(union) == hash(SlidingWindow(2) | (GlobalTokens(1) | RANDOM))
    assert union.prefix == 1
    assert union.reach is None
    assert (SlidingWindow(4) | Dilated(2, 9) | GlobalTokens(5)).reach == 9


def test_longformer_window_and_global_tokens() -> None:
    """The mask that transformers' LongformerSelfAttention realises, found through its gradient."""
    transformers = pytest.importorskip("transformers.models.longformer.modeling_longformer")
    config = transformers.LongformerConfig(
        hidden_size=8, num_attention_heads=1, attention_window=[8], num_hidden_layers=1
    )
    torch.manual_seed(0)
    attention = transformers.LongformerSelfAttention(config, 0).eval()
    length, count = 32, 3
    x = torch.randn(1, length, 8)
    is_global = torch.arange(length)[None] < count

    def run(x: Tensor) -> Tensor:
        out = attention(
            x,
            attention_mask=is_global.float() * 10_000,
            is_index_masked=torch.zeros_like(is_global),
            is_index_global_attn=is_global,
            is_global_attn=True,
        )
        return out[0].squeeze().sum(-1)

    sees = torch.autograd.functional.jacobian(run, x).squeeze(1).abs().sum(-1) > 0
    assert torch.equal(sees, dense(SlidingWindow(5) | GlobalTokens(count), length))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SlidingWindow(0), "SlidingWindow: window must be an integer of at least 1, got 0"),
        (lambda: SlidingWindow(2.5), "SlidingWindow: window must be .* got 2.5"),
        (lambda: SlidingWindow(None), "SlidingWindow: window must be .* got None"),
        (lambda: Dilated(2, 0), "Dilated: dilation must be .* got 0"),
        (lambda: Dilated(float("nan"), 1), "Dilated: window must be .* got nan"),
        (lambda: GlobalTokens(True), "GlobalTokens: count must be .* got True"),
        (lambda: RandomBlocks(0, 1), "RandomBlocks: block must be .* got 0"),
        (lambda: RandomBlocks(4, 0), "RandomBlocks: count must be .* got 0"),
        (lambda: RandomBlocks(4, 1, "3"), "RandomBlocks: seed must be an integer, got '3'"),
        (lambda: Union([]), r"Union: parts must be a list of patterns, got \[\]"),
        (lambda: Union((Full(), 3)), r"Union: parts must be a list of patterns, got \(Full"),
        (lambda: SlidingWindow(3) | None, "Union: parts must be a list of patterns"),
        (lambda: Union(Full()), "Union: parts must be a list of patterns, got Full"),
    ],
)
def test_what_is_no_pattern_is_refused(make: Callable[[], Pattern], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


BIGBIRD = SlidingWindow(192) | GlobalTokens(70) | RandomBlocks(64, 2)
NOTES = [700, 40, 1500, 129, 4, 900, 333]  # clinical notes end to end, borders anywhere


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "pattern",
    [
        Full(),
        SlidingWindow(100),
        SlidingWindow(257) | GlobalTokens(1),
        SlidingWindow(100) | GlobalTokens(130),
        BIGBIRD,
    ],
    ids=str,
)
def test_flex_mask_is_what_pytorch_finds_by_looking_at_every_pair(
    pattern: Pattern, causal: bool
) -> None:
    """Without random links the very same blocks, in both lists; with them some more partial ones.

    A few blocks may also be listed as partial though every pair in them is allowed.
    """
    length = 128 * 29
    tokens = Tokens.of(length, Sequences.packed([NOTES], length))
    ours = flex_mask(pattern, causal, tokens, tokens, 1)
    theirs = create_block_mask(ours.mask_mod, 1, None, length, length, device="cpu")
    expected = visible(pattern, causal, tokens, tokens)
    pairs = torch.arange(length)
    zero = torch.tensor(0)
    assert torch.equal(ours.mask_mod(zero, zero, pairs[:, None], pairs), expected[0])
    assert ours.full_kv_num_blocks is not None
    assert theirs.full_kv_num_blocks is not None
    exact = theirs.to_dense().bool()
    assert not (exact & ~ours.to_dense().bool()).any()
    if pattern is not BIGBIRD:
        assert torch.equal(ours.to_dense().bool(), exact)
    full, exactly_full = (
        int(m.full_kv_num_blocks.sum())  # type: ignore[union-attr]
        for m in (ours, theirs)
    )
    assert full <= exactly_full
    if not isinstance(pattern, Union):
        assert full == exactly_full


def test_flex_mask_costs_blocks_squared_not_tokens_squared() -> None:
    length, blocks = 16_384, 128
    sequences = Sequences.packed([[5000, 1, 9000, 2000]], length)
    with LargestTensor() as largest:
        tokens = Tokens.of(length, sequences)
        flex_mask(BIGBIRD, False, tokens, tokens, 1)
    facts = (BIGBIRD.described_by + 1) * length
    assert largest.elements <= max(blocks * (blocks + 1), facts)  # PyTorch keeps a spare column
