"""The attention mixer against loops over single queries in float64, and against Llama's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import core.masked_attention
from core.masked_attention import attend
from core.mixers.attention import Attention
from core.mixers.base import UnsupportedPattern
from core.patterns import (
    Dilated,
    Full,
    GlobalTokens,
    Pattern,
    RandomBlocks,
    SlidingWindow,
    Tokens,
    visible,
)
from core.sequences import Sequences

PATTERNS = [
    Full(),
    SlidingWindow(1),
    SlidingWindow(7),
    Dilated(4, 3),
    GlobalTokens(3),
    RandomBlocks(8, 2, seed=5),
    SlidingWindow(5) | GlobalTokens(2),
    SlidingWindow(6) | GlobalTokens(9) | RandomBlocks(8, 1),
    SlidingWindow(3) | Dilated(3, 5),
]
LENGTH = 170
PACKED = Sequences.packed([[80, 1, 60], [150, 20], [3]], LENGTH)
PADDED = Sequences.padded([LENGTH, 0, 95], LENGTH)


def loops(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    causal: bool,
    sequences: Sequences | None,
) -> Tensor:
    """One softmax a query, over the keys listed for it."""
    out = torch.zeros_like(query)
    groups = query.shape[2] // key.shape[2]
    document = torch.zeros(query.shape[:2]) if sequences is None else sequences.document
    for b in range(query.shape[0]):
        for number in document[b].unique():
            own = (document[b] == number).nonzero()[:, 0]
            if number < 0:
                continue
            place = torch.arange(len(own))
            for i, t in enumerate(own):
                sees = pattern.allowed(torch.tensor(i), place)
                keys = own[sees & (place <= i) if causal else sees]
                for h in range(query.shape[2] if len(keys) else 0):
                    scores = key[b, keys, h // groups] @ query[b, t, h] / query.shape[3] ** 0.5
                    out[b, t, h] = scores.softmax(0) @ value[b, keys, h // groups]
    return out


def count(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    calls: list[int] = []
    function = getattr(core.masked_attention, name)

    def counted(*args: Any) -> Any:
        calls.append(1)
        return function(*args)

    monkeypatch.setattr(core.masked_attention, name, counted)
    return calls


@pytest.mark.parametrize("sequences", [None, PACKED, PADDED], ids=["plain", "packed", "padded"])
@pytest.mark.parametrize("causal", [False, True], ids=["noncausal", "causal"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_every_way_equals_loops(
    pattern: Pattern, causal: bool, sequences: Sequences | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows and dense masks as they are chosen, then gathered blocks wherever possible."""
    torch.manual_seed(0)
    q = torch.randn(3, LENGTH, 4, 6, dtype=torch.float64)
    k, v = torch.randn(2, 3, LENGTH, 2, 6, dtype=torch.float64)
    expected = loops(q, k, v, pattern, causal, sequences)
    options: Any = {"pattern": pattern, "causal": causal, "sequences": sequences}
    with monkeypatch.context() as patch:
        windowed = count(patch, "_windowed")
        out = attend(q, k, v, **options)
    assert bool(windowed) == (pattern.reach is not None and pattern.prefix == 0)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)

    monkeypatch.setattr(core.masked_attention, "GATHER_BLOCK", 8)
    monkeypatch.setattr(core.masked_attention, "DENSE_SCORES", 0)
    monkeypatch.setattr(core.masked_attention, "DENSE_SHARE", 2)
    gathered = count(monkeypatch, "_gathered")
    out = attend(q, k, v, **options)
    plain = isinstance(pattern, Full) and sequences is None
    assert bool(gathered) == (not windowed and not plain)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)


def by_dense_mask(
    q: Tensor, k: Tensor, v: Tensor, tokens: Tokens, pattern: Pattern, causal: bool, p: float
) -> Tensor:
    return core.masked_attention.masked(q, k, v, visible(pattern, causal, tokens, tokens), p)


@pytest.mark.parametrize("pattern", [SlidingWindow(6), Dilated(4, 3), PATTERNS[7]], ids=str)
def test_gradients_equal_those_of_the_dense_mask(
    pattern: Pattern, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    heads = [torch.randn(3, LENGTH, 2, 6, dtype=torch.float64, requires_grad=True) for _ in "qkv"]
    weight = torch.randn(3, LENGTH, 2, 6, dtype=torch.float64)

    def gradients() -> tuple[Tensor, ...]:
        out = attend(*heads, pattern=pattern, causal=True, sequences=PACKED)
        return torch.autograd.grad((out * weight).sum(), heads)

    monkeypatch.setattr(core.masked_attention, "GATHER_BLOCK", 8)
    monkeypatch.setattr(core.masked_attention, "DENSE_SCORES", 0)
    monkeypatch.setattr(core.masked_attention, "DENSE_SHARE", 2)
    sparse = gradients()
    monkeypatch.setattr(core.masked_attention, "DENSE_SHARE", 0)
    dense = count(monkeypatch, "masked")
    monkeypatch.setattr(core.masked_attention, "_windowed", by_dense_mask)
    for one, other in zip(sparse, gradients(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
    assert len(dense) == 1


def test_a_window_stops_at_the_row() -> None:
    """Rows lie end to end there: a row's last document and the next row's with the same number."""
    sequences = Sequences.packed([[120, 1, 4, 3], [1, 1, 1, 125]], 128)
    q, k, v = torch.randn(3, 2, 128, 2, 6, dtype=torch.float64)
    for pattern in (SlidingWindow(8), Dilated(8, 2)):
        out = attend(q, k, v, pattern=pattern, causal=False, sequences=sequences)
        expected = loops(q, k, v, pattern, False, sequences)
        torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("pattern", "limit"),
    [
        (SlidingWindow(64), 192),
        (Dilated(8, 8), 64),
        (SlidingWindow(64) | GlobalTokens(8), 512),
        (SlidingWindow(64) | GlobalTokens(8) | RandomBlocks(64, 1), 1024),
    ],
    ids=str,
)
@pytest.mark.parametrize("causal", [False, True], ids=["noncausal", "causal"])
def test_scores_computed_grow_with_the_length_not_its_square(
    pattern: Pattern, limit: int, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores: list[int] = []
    function = core.masked_attention.masked

    def counted(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, p: float) -> Tensor:
        scores[-1] += query.shape[0] * query.shape[1] * key.shape[1]
        return function(query, key, value, mask, p)

    monkeypatch.setattr(core.masked_attention, "masked", counted)
    lengths = 4096, 8192, 16384
    for length in lengths:
        scores.append(0)
        attend(*torch.randn(3, 1, length, 1, 4), pattern=pattern, causal=causal)
    for length, total in zip(lengths, scores, strict=True):
        assert total <= limit * length
    assert scores[2] - scores[1] <= 2.1 * (scores[1] - scores[0])


def test_a_long_window_takes_linear_time() -> None:
    def seconds(length: int) -> float:
        x = torch.randn(3, 1, length, 1, 16)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            attend(*x, pattern=SlidingWindow(64), causal=True)
            times.append(time.perf_counter() - start)
        return min(times)

    seconds(256)
    assert seconds(65536) < 12 * seconds(16384)  # 4 when linear, 16 when quadratic


def model(seed: int = 0, **options: Any) -> Attention:
    torch.manual_seed(seed)
    return Attention(**{"dim": 24, "heads": 4, "kv_heads": 2} | options).double()


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_equals_llama(kv_heads: int) -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = llama.LlamaConfig(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    torch.manual_seed(0)
    theirs = llama.LlamaAttention(config, 0).eval()
    ours = Attention(32, heads=4, kv_heads=kv_heads)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 19, 32)
    angles = llama.LlamaRotaryEmbedding(config)(x, torch.arange(19)[None])
    hidden = torch.full((19, 19), float("-inf")).triu(1)[None, None]
    expected, _ = theirs(x, position_embeddings=angles, attention_mask=hidden)
    torch.testing.assert_close(ours(x), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("causal", [False, True], ids=["noncausal", "causal"])
@pytest.mark.parametrize("pattern", [None, *PATTERNS[1:]], ids=str)
def test_packed_documents_come_out_as_if_alone(
    pattern: Pattern | None, causal: bool, qk_norm: bool
) -> None:
    mixer = model(causal=causal, pattern=pattern, qk_norm=qk_norm, bias=True)
    x = torch.randn(3, LENGTH, 24, dtype=torch.float64)
    x[~PACKED.real] = float("nan")
    x.requires_grad_()
    out = mixer(x, sequences=PACKED)
    for row, parts in enumerate([[80, 1, 60], [150, 20], [3]]):
        start = 0
        for part in parts:
            alone = mixer(x[row : row + 1, start : start + part])
            torch.testing.assert_close(
                out[row : row + 1, start : start + part], alone, atol=1e-12, rtol=0
            )
            start += part
        assert not out[row, start:].any()
    out.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert not x.grad[~PACKED.real].any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())


@pytest.mark.parametrize("cuts", [[170], [1, 3, 166], [64, 64, 42], [1] * 20 + [100, 1, 49]])
@pytest.mark.parametrize("pattern", [None, *PATTERNS[1:]], ids=str)
def test_pieces_equal_the_whole(pattern: Pattern | None, cuts: list[int]) -> None:
    mixer = model(pattern=pattern)
    x = torch.randn(2, sum(cuts), 24, dtype=torch.float64)
    state = mixer.init_state(2)
    pieces = []
    for piece in x.split(cuts, dim=1):
        out, state = mixer(piece, state=state)
        pieces.append(out)
    torch.testing.assert_close(torch.cat(pieces, 1), mixer(x), atol=1e-12, rtol=0)


def test_pieces_gather_blocks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core.masked_attention, "GATHER_BLOCK", 8)
    monkeypatch.setattr(core.masked_attention, "DENSE_SCORES", 0)
    monkeypatch.setattr(core.masked_attention, "DENSE_SHARE", 2)
    test_pieces_equal_the_whole(PATTERNS[7], [50, 70, 50])
    test_pieces_equal_the_whole(PATTERNS[6], [50, 70, 50])


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        (None, 40),
        (SlidingWindow(8), 7),
        (Dilated(4, 3), 9),
        (SlidingWindow(8) | GlobalTokens(3), 10),
    ],
    ids=str,
)
def test_steps_equal_forward_in_constant_memory(pattern: Pattern | None, size: int) -> None:
    mixer = model(pattern=pattern)
    x = torch.randn(2, 40, 24, dtype=torch.float64)
    state, outs = mixer.init_state(2), []
    for t in range(40):
        before = state.keys.clone()
        out, after = mixer.step(x[:, t], state)
        assert torch.equal(state.keys, before)
        state = after
        outs.append(out)
    torch.testing.assert_close(torch.stack(outs, 1), mixer(x), atol=1e-12, rtol=0)
    assert state.keys.shape == state.values.shape == (2, size, 2, 6)
    assert state.length == 40


def test_a_trimmed_state_holds_no_more_memory_than_it_shows() -> None:
    mixer = model(pattern=SlidingWindow(8))
    _, state = mixer(torch.randn(1, 4000, 24, dtype=torch.float64), state=mixer.init_state(1))
    assert state.keys.untyped_storage().nbytes() == state.keys.numel() * 8


@pytest.mark.parametrize("causal", [False, True], ids=["noncausal", "causal"])
def test_cross_attention_equals_loops(causal: bool) -> None:
    """All of the context is visible, whatever the causality; its padding and documents count."""
    mixer = model(causal=causal, context_dim=10)
    x = torch.randn(2, 9, 24, dtype=torch.float64)
    context = torch.randn(2, 13, 10, dtype=torch.float64)
    of_x = Sequences.packed([[4, 3], [9]], 9)
    of_context = Sequences.packed([[5, 6], [2, 1]], 13)

    def expected(mine: Sequences | None, theirs: Sequences | None) -> Tensor:
        q = mixer.q_proj(x).unflatten(-1, (4, 6))
        k = mixer.k_proj(context).unflatten(-1, (2, 6))
        v = mixer.v_proj(context).unflatten(-1, (2, 6))
        out = torch.zeros_like(q)
        for b in range(2):
            for t in range(9):
                keys = torch.ones(13, dtype=torch.bool)
                if theirs is not None:
                    keys = theirs.real[b]
                    if mine is not None:
                        keys = keys & (theirs.document[b] == mine.document[b, t])
                if mine is not None and not mine.real[b, t]:
                    continue
                for h in range(4):
                    weight = (k[b, keys, h // 2] @ q[b, t, h] / 6**0.5).softmax(0)
                    out[b, t, h] = weight @ v[b, keys, h // 2]
        return mixer.o_proj(out.flatten(2))

    for mine in (None, of_x):
        for theirs in (None, of_context):
            out = mixer(x, context=context, sequences=mine, context_sequences=theirs)
            torch.testing.assert_close(out, expected(mine, theirs), atol=1e-12, rtol=0)


def test_nan_in_the_padding_of_a_context_stays_there() -> None:
    mixer = model()
    x, context = torch.randn(2, 2, 9, 24, dtype=torch.float64)
    padding = Sequences.padded([5, 0], 9)
    expected = mixer(x[:1], context=context[:1, :5])
    context[~padding.real] = float("nan")
    out = mixer(x, context=context, context_sequences=padding)
    torch.testing.assert_close(out[:1], expected, atol=1e-12, rtol=0)
    assert not out[1].any()  # a context without a token


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 63, 64, 65, 127, 130])
@pytest.mark.parametrize("causal", [False, True], ids=["noncausal", "causal"])
def test_odd_lengths(length: int, causal: bool) -> None:
    q, k, v = torch.randn(3, 2, length, 2, 6, dtype=torch.float64)
    for pattern in (SlidingWindow(3), Dilated(2, 5), PATTERNS[7]):
        out = attend(q, k, v, pattern=pattern, causal=causal)
        torch.testing.assert_close(out, loops(q, k, v, pattern, causal, None), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("pattern", "packed"),
    [(None, False), (SlidingWindow(7), True), (Dilated(3, 4), False), (PATTERNS[7], True)],
    ids=str,
)
def test_compiles_without_a_graph_break(pattern: Pattern | None, packed: bool) -> None:
    torch._dynamo.reset()
    mixer = model(pattern=pattern).float()

    def run(x: Tensor, document: Tensor | None) -> Tensor:
        return mixer(x, sequences=None if document is None else Sequences(document))

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for length in (LENGTH, 200):
        x = torch.randn(3, length, 24, requires_grad=True)
        document = Sequences.packed([[50, 7], [60], [3]], length).document if packed else None
        one, other = compiled(x, document), run(x, document)
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        grads = [torch.autograd.grad(out.square().sum(), x)[0] for out in (one, other)]
        torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)


def test_autocast_runs_in_bfloat16_and_keeps_the_state_there() -> None:
    mixer = model(pattern=SlidingWindow(7), qk_norm=True).float()
    x = torch.randn(2, LENGTH, 24)
    with torch.autocast("cpu", torch.bfloat16):
        whole = mixer(x)
        piece, state = mixer(x[:, :100], state=mixer.init_state(2))
        rest, state = mixer(x[:, 100:], state=state)
    assert whole.dtype == state.keys.dtype == torch.bfloat16
    torch.testing.assert_close(whole, mixer(x).bfloat16(), atol=0.02, rtol=0.02)
    torch.testing.assert_close(torch.cat((piece, rest), 1), whole, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("pattern", [None, SlidingWindow(7), PATTERNS[7]], ids=str)
def test_dropout_drops_in_training_only(pattern: Pattern | None) -> None:
    mixer = model(pattern=pattern, dropout=0.5)
    x = torch.randn(1, LENGTH, 24, dtype=torch.float64)
    assert not torch.equal(mixer(x), mixer(x))
    assert torch.equal(mixer.eval()(x), mixer(x))
    kept = model(pattern=pattern)
    kept.load_state_dict(mixer.state_dict())
    assert torch.equal(mixer(x), kept(x))


def test_yaml_names_patterns_by_class_path() -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser()
    parser.add_subclass_arguments(Attention, "mixer")
    config = """
mixer:
  class_path: core.mixers.attention.Attention
  init_args:
    dim: 32
    pattern:
      class_path: core.patterns.Union
      init_args:
        parts:
          - class_path: core.patterns.SlidingWindow
            init_args: {window: 64}
          - class_path: core.patterns.GlobalTokens
            init_args: {count: 2}
"""
    mixer = parser.instantiate(parser.parse_string(config)).mixer
    assert mixer.visible == SlidingWindow(64) | GlobalTokens(2)
    assert mixer.causal


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Attention(30, heads=4), "heads=4 must divide dim=30"),
        (lambda: Attention(32, heads=4, kv_heads=3), "kv_heads=3 must divide heads=4"),
        (lambda: Attention(32, dropout=1.0), r"dropout must lie in \[0, 1\)"),
        (lambda: Attention(12, heads=4), "head_dim must be even"),
        (
            lambda: model(pattern=SlidingWindow(2), context_dim=5),
            "leave pattern out to attend to a context of width 5",
        ),
        (lambda: model(context_dim=5)(torch.zeros(1, 2, 24)), "does not compute causal_self"),
        (
            lambda: model()(torch.zeros(1, 2, 24), context=torch.zeros(1, 2, 23)),
            r"context must be \(1, length, 24\)",
        ),
        (
            lambda: model(pattern=SlidingWindow(2))(*torch.zeros(2, 1, 2, 24)),
            "does not compute causal_cross",
        ),
        (
            lambda: model()(*torch.zeros(2, 1, 2, 24), state=model().init_state(1)),
            "leave state out",
        ),
        (
            lambda: model()(torch.zeros(1, 2, 24), context_sequences=Sequences.padded([1], 2)),
            "context_sequences need a context",
        ),
        (
            lambda: model()(*torch.zeros(2, 1, 2, 24), context_sequences=Sequences.padded([1], 3)),
            r"context_sequences describe \(1, 3\)",
        ),
        (
            lambda: model()(*torch.zeros(2, 1, 2, 24), context_sequences=torch.ones(1, 2)),
            "context_sequences must be core.sequences.Sequences, got Tensor",
        ),
        (
            lambda: model()(torch.zeros(1, 2, 24), context=torch.zeros(1, 2, 24).long()),
            r"context must be floating point \(batch, length, context_dim\), got torch.int64",
        ),
    ],
)
def test_wrong_use_is_one_line(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_noncausal_attention_carries_no_state() -> None:
    with pytest.raises(UnsupportedPattern):
        model(causal=False).init_state(1)
