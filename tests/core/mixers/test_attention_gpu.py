"""FlexAttention on CUDA against the dense mask in float64, and what it must not cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tolerances import RMS_LIMIT, assert_close_to_reference
from torch import Tensor

import core.masked_attention
from core.masked_attention import attend, masked
from core.mixers.attention import Attention
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

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # PyTorch's own advice and deprecations while it compiles FlexAttention.
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
]

BIGBIRD = SlidingWindow(192) | GlobalTokens(70) | RandomBlocks(64, 2)
PATTERNS = [
    Full(),
    SlidingWindow(2),
    SlidingWindow(100),
    Dilated(40, 3),
    GlobalTokens(130),
    RandomBlocks(64, 2),
    BIGBIRD,
]


def packed(batch: int, length: int) -> Sequences:
    parts = [[length // 2, 1, length // 3], [length], [length // 5] * 2]
    return Sequences.packed([parts[row % 3] for row in range(batch)], length).to("cuda")


def heads(
    batch: int, length: int, width: int, dtype: torch.dtype, number: int = 4, kv_heads: int = 2
) -> list[Tensor]:
    return [
        torch.randn(batch, length, n, width, device="cuda", dtype=dtype, requires_grad=True)
        for n in (number, kv_heads, kv_heads)
    ]


def flexed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    flex = core.masked_attention._flex

    def counted(*args: Any) -> Tensor:
        calls.append(1)
        return flex(*args)

    monkeypatch.setattr(core.masked_attention, "_flex", counted)
    return calls


def judge(name: str, got: Tensor, exact: Tensor, plain: Tensor, gradient: bool) -> None:
    if got.dtype == torch.float32:
        # The second rule compares largest errors with plain PyTorch. In float32 PyTorch's own fused
        # kernels, which run here, sum a gradient over the queries in a worse order than the plain
        # products do (8e-6 to 2e-6), so there the first rule alone is asked for.
        error = (got.double() - exact).square().mean().sqrt()
        assert error <= RMS_LIMIT[got.dtype] * exact.square().mean().sqrt(), name
    else:
        assert_close_to_reference(name, got, exact, plain, got.dtype, gradient)


@pytest.mark.parametrize("sequences", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("causal", [False, True], ids=["noncausal", "causal"])
@pytest.mark.parametrize(
    ("pattern", "dtype"),
    [
        *((pattern, torch.bfloat16) for pattern in PATTERNS),
        (SlidingWindow(100), torch.float32),
        (BIGBIRD, torch.float32),
    ],
    ids=str,
)
def test_equals_the_dense_mask(
    pattern: Pattern,
    causal: bool,
    sequences: bool,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    batch, length = 3, 1000
    which = packed(batch, length) if sequences else None
    tokens = Tokens.of(length, which, torch.device("cuda"))
    mask = visible(pattern, causal, tokens, tokens)
    inputs = heads(batch, length, 32, dtype)
    weight = torch.randn_like(inputs[0])
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    calls = flexed(monkeypatch)
    out = attend(*inputs, pattern=pattern, causal=causal, sequences=which)
    assert bool(calls) == (which is not None or not isinstance(pattern, Full))
    plain = masked(*inputs, mask, 0.0)
    exact = masked(*doubles, mask.expand(batch, -1, -1), 0.0)
    judge("output", out, exact, plain, False)
    got = torch.autograd.grad(out, inputs, weight)
    by_plain = torch.autograd.grad(plain, inputs, weight)
    by_exact = torch.autograd.grad(exact, doubles, weight.double())
    for name, *triple in zip(("query", "key", "value"), got, by_exact, by_plain, strict=True):
        judge(name, *triple, True)


@pytest.mark.parametrize("length", [128, 129, 255, 257, 1023, 2048])
@pytest.mark.parametrize("kv_heads", [1, 3, 6])
def test_odd_lengths_and_groups(length: int, kv_heads: int) -> None:
    inputs = heads(2, length, 64, torch.bfloat16, 6, kv_heads)
    tokens = Tokens.of(length, None, torch.device("cuda"))
    mask = visible(BIGBIRD, True, tokens, tokens)
    out = attend(*inputs, pattern=BIGBIRD, causal=True)
    exact = masked(*(x.double() for x in inputs), mask, 0.0)
    assert_close_to_reference("output", out, exact, masked(*inputs, mask, 0.0), torch.bfloat16)


def test_a_new_length_compiles_nothing_after_the_second() -> None:
    torch._dynamo.reset()
    core.masked_attention._compiled_flex.cache_clear()
    compiled = torch._dynamo.utils.counters["stats"]
    graphs = []
    for length in (640, 1000, 1411, 2048, 3000, 4097):
        attend(
            *heads(3, length, 64, torch.bfloat16),
            pattern=SlidingWindow(200),
            causal=True,
            sequences=packed(3, length),
        )
        graphs.append(compiled["unique_graphs"])
    assert graphs[1:] == graphs[1:2] * 5


def test_many_variants_never_fall_back_to_the_square() -> None:
    """torch.compile runs a function as it is after eight variants; that one needs 8 GiB here."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for size in range(10):
        with torch.no_grad():
            attend(
                *heads(1, 65_536, 16, torch.bfloat16, 1, 1),
                pattern=SlidingWindow(100 + size),
                causal=True,
            )
    assert torch.cuda.max_memory_allocated() - before < 2**29


def test_layers_share_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    make = core.masked_attention.flex_mask

    def counted(*args: Any) -> Any:
        made.append(1)
        return make(*args)

    monkeypatch.setattr(core.masked_attention, "flex_mask", counted)
    inputs = heads(3, 512, 32, torch.bfloat16)
    one, other = packed(3, 512), packed(3, 512)
    for sequences in (one, one, other, one):
        attend(*inputs, pattern=BIGBIRD, causal=True, sequences=sequences)
    assert len(made) == 2
    one.document[:, 100:] += 1  # a new boundary in the same tensor
    attend(*inputs, pattern=BIGBIRD, causal=True, sequences=one)
    assert len(made) == 3


def test_training_follows_inference_mode() -> None:
    mixer = Attention(64, heads=2, pattern=SlidingWindow(50)).cuda()
    x = torch.randn(2, 300, 64, device="cuda")
    with torch.inference_mode():
        expected = mixer(x)
    out = mixer(x)
    out.sum().backward()
    torch.testing.assert_close(out, expected)


def test_a_long_row_takes_no_square_of_memory() -> None:
    inputs = heads(1, 131_072, 64, torch.bfloat16, 2, 2)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = attend(*inputs, pattern=SlidingWindow(512) | GlobalTokens(4), causal=True)
    out.sum().backward()
    # 131,072^2 booleans are 16 GiB; the tensors of a forward and a backward are 0.3 GiB
    assert torch.cuda.max_memory_allocated() - before < 2**30


@pytest.mark.parametrize("pattern", [None, SlidingWindow(50), BIGBIRD], ids=str)
def test_pieces_and_steps_equal_the_whole(pattern: Pattern | None) -> None:
    torch.manual_seed(0)
    mixer = Attention(64, heads=2, kv_heads=1, pattern=pattern).cuda()
    x = torch.randn(2, 700, 64, device="cuda")
    state, pieces = mixer.init_state(2), []
    for piece in x.split([300, 1, 10, 389], dim=1):
        out, state = mixer(piece, state=state)
        pieces.append(out)
    torch.testing.assert_close(torch.cat(pieces, 1), mixer(x), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("pattern", [None, SlidingWindow(50), BIGBIRD], ids=str)
def test_dropout_and_small_heads_leave_flex(
    pattern: Pattern | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = flexed(monkeypatch)
    torch.manual_seed(0)
    mixer = Attention(64, heads=2, dropout=0.1, pattern=pattern).cuda()
    x = torch.randn(3, 700, 64, device="cuda")
    mixer(x, sequences=packed(3, 700)).sum().backward()
    small = Attention(16, heads=2, pattern=pattern).cuda()
    out = small(x[..., :16], sequences=packed(3, 700))
    assert not calls
    assert out.isfinite().all()


@pytest.mark.parametrize("sequences", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("pattern", [None, SlidingWindow(50), BIGBIRD], ids=str)
def test_the_module_compiles_whole_under_autocast(pattern: Pattern | None, sequences: bool) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    mixer = Attention(64, heads=2, pattern=pattern, qk_norm=True).cuda()
    which = packed(3, 700) if sequences else None
    x = torch.randn(3, 700, 64, device="cuda")
    if which is not None:
        x[~which.real] = float("nan")
    x.requires_grad_()

    def run(x: Tensor, document: Tensor | None) -> Tensor:
        return mixer(x, sequences=None if document is None else Sequences(document))

    document = None if which is None else which.document
    compiled = torch.compile(run, fullgraph=True)
    with torch.autocast("cuda", torch.bfloat16):
        one, other = run(x, document), compiled(x, document)
    assert one.dtype == torch.bfloat16
    torch.testing.assert_close(one, other, atol=0.02, rtol=0.02)
    grads = [torch.autograd.grad(out.float().square().sum(), x)[0] for out in (one, other)]
    assert grads[0].isfinite().all()
    torch.testing.assert_close(*grads, atol=0.05, rtol=0.05)
