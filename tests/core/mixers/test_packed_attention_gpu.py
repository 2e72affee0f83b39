"""A padding-free encoder on CUDA: equal to padded rows, few graphs, no waiting, bounded memory.

Compiling is what takes the time here, so the tests share one shape: width 128, two heads of 64,
bf16 autocast, a row at a time.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tolerances import assert_close_to_reference
from torch import Tensor

import core.masked_attention
from core.backbone import MLP, Backbone
from core.masked_attention import attend, masked
from core.mixers.attention import Attention
from core.patterns import GlobalTokens, RandomBlocks, SlidingWindow, Tokens, flex_mask, visible
from core.sequences import Sequences

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # PyTorch's own advice and deprecations while it compiles FlexAttention.
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
]

BIGBIRD = SlidingWindow(192) | GlobalTokens(2) | RandomBlocks(64, 2)
DIM = 128


def build(padding_free: bool) -> Backbone:
    torch.manual_seed(0)

    def attention(dim: int) -> Attention:
        return Attention(dim, causal=False, heads=2, pattern=BIGBIRD)

    blocks = {"attention": attention, "mlp": MLP}
    return Backbone(DIM, blocks, "(attention mlp)*2", padding_free=padding_free).cuda()


def notes(number: int) -> tuple[Tensor, Sequences]:
    """A padded batch of notes; another number gives other lengths and another total."""
    generator = torch.Generator().manual_seed(number)
    lengths = torch.randint(1, 1200, (4 + number % 3,), generator=generator).tolist()
    sequences = Sequences.padded(lengths, max(lengths)).to("cuda")
    return torch.randn(*sequences.document.shape, DIM, generator=generator).cuda(), sequences


def train(backbone: Backbone, x: Tensor, sequences: Sequences) -> list[Tensor]:
    """Output at real tokens, gradients of the input and of every parameter."""
    x = x.detach().requires_grad_()
    with torch.autocast("cuda", torch.bfloat16, enabled=x.dtype != torch.float64):
        out = backbone(x, sequences=sequences)[sequences.real]
    grads = torch.autograd.grad(out.sin().sum(), [x, *backbone.parameters()])
    assert not grads[0][~sequences.real].any()
    return [out.detach(), grads[0][sequences.real], *grads[1:]]


def test_twenty_packed_lengths_make_two_graphs() -> None:
    torch._dynamo.reset()
    core.masked_attention._compiled_flex.cache_clear()
    compiled = torch._dynamo.utils.counters["stats"]
    backbone, before, totals = build(True), compiled["unique_graphs"], set()
    for number in range(20):
        x, sequences = notes(number)
        x[~sequences.real] = float("nan")
        totals.add(int(sequences.real.sum()))
        assert all(y.isfinite().all() for y in train(backbone, x, sequences))
    assert len(totals) == 20
    assert compiled["unique_graphs"] - before <= 2  # one for the first length, one for any
    assert len(core.masked_attention._MASKS) <= core.masked_attention._MASKS_KEPT


def test_packed_equals_padded_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """No further from it than padded rows are, computed by plain PyTorch in the same precision."""
    x, sequences = notes(3)
    packed = train(build(True), x, sequences)
    monkeypatch.setenv("LONGSPAN_OPS", "reference")
    plain = train(build(False), x, sequences)
    exact = train(build(False).double(), x.double(), sequences)
    for got, by_plain, reference in zip(packed, plain, exact, strict=True):
        scale = reference.square().mean().sqrt()
        errors = [(y.double() - reference).square().mean().sqrt() for y in (got, by_plain)]
        assert errors[0] <= 1.5 * errors[1] + 1e-6 * scale
        assert errors[0] <= 0.03 * scale


def test_new_documents_need_no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mask, attention and backward are queued; only `Sequences.one_row` asks the device once."""
    made: list[int] = []
    make = core.masked_attention.flex_mask

    def counted(*args: Any) -> Any:
        made.append(1)
        return make(*args)

    monkeypatch.setattr(core.masked_attention, "flex_mask", counted)
    backbone = build(False)
    for number in range(3):
        x, sequences = notes(number)
        row = sequences.one_row(128)
        x = row.pack(sequences.zero_padding(x)).requires_grad_()
        torch.cuda.synchronize()
        # Two lengths compile; after them nothing may wait.
        torch.cuda.set_sync_debug_mode("error" if number == 2 else "default")
        try:
            with torch.autocast("cuda", torch.bfloat16):
                out = backbone(x, sequences=row.sequences)
            torch.autograd.grad(out.sin().sum(), x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(made) == 3  # once a batch, for both layers


def test_a_mask_of_a_million_tokens_is_blocks_squared() -> None:
    length = 2**20
    offsets = torch.arange(0, length + 1, 2**12)
    tokens = Tokens.of(length, Sequences.from_offsets(offsets).to("cuda"))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    mask = flex_mask(BIGBIRD, False, tokens, tokens, 1)
    assert torch.cuda.max_memory_allocated() - before < 80 * (length // 128) ** 2  # bytes
    kept = int(mask.kv_num_blocks.sum()) + int(mask.full_kv_num_blocks.sum())  # type: ignore[union-attr]
    assert kept <= 32 * (length // 128)  # documents of 32 blocks see no other


@pytest.mark.parametrize("width", [80, 256])
def test_head_sizes_beside_powers_of_two_and_the_largest(width: int) -> None:
    torch.manual_seed(0)
    lengths = [700, 1, 300]
    sequences = Sequences.packed([lengths], sum(lengths)).to("cuda")
    inputs = [
        torch.randn(1, 1001, 2, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in "qkv"
    ]
    weight = torch.randn_like(inputs[0])
    tokens = Tokens.of(1001, sequences)
    mask = visible(BIGBIRD, True, tokens, tokens)
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    outs = [
        attend(*inputs, pattern=BIGBIRD, causal=True, sequences=sequences),
        masked(*doubles, mask, 0.0),
        masked(*inputs, mask, 0.0),
    ]
    assert_close_to_reference("output", *outs, torch.bfloat16)
    grads = [
        torch.autograd.grad(out, of, weight.to(out.dtype))
        for out, of in zip(outs, (inputs, doubles, inputs), strict=True)
    ]
    for name, *triple in zip(("query", "key", "value"), *grads, strict=True):
        assert_close_to_reference(name, *triple, torch.bfloat16, True)


def test_a_cpu_description_of_cuda_tokens_is_named() -> None:
    x, sequences = notes(0)
    elsewhere = sequences.to("cpu")
    with pytest.raises(ValueError, match=r"on cpu, x is .* on cuda"):
        build(True)(x, sequences=elsewhere)
    heads = torch.zeros(*x.shape[:2], 2, 64, device="cuda")
    with pytest.raises(ValueError, match=r"on cpu, query is .* on cuda"):
        attend(heads, heads, heads, pattern=BIGBIRD, causal=False, sequences=elsewhere)
