"""A padding-free backbone against the same weights on padded rows, and on each document alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import core.masked_attention
from core.backbone import MLP, Backbone, GatedMLP, LanguageModel
from core.mixers import S4D, Attention, Hyena, Mamba2
from core.patterns import GlobalTokens, RandomBlocks, SlidingWindow
from core.sequences import Sequences

DIM, LENGTH, LENGTHS = 16, 50, [17, 50, 0, 1, 33]
LONGFORMER = SlidingWindow(5) | GlobalTokens(1)
BIGBIRD = SlidingWindow(4) | GlobalTokens(2) | RandomBlocks(4, 2)
BLOCKS: dict[str, Callable[[int], nn.Module]] = {
    "full": lambda dim: Attention(dim, causal=False, heads=2),
    "longformer": lambda dim: Attention(dim, causal=False, heads=2, pattern=LONGFORMER),
    "bigbird": lambda dim: Attention(dim, causal=False, heads=2, pattern=BIGBIRD),
    "window": lambda dim: Attention(dim, heads=2, pattern=SlidingWindow(5)),
    "mamba2": lambda dim: Mamba2(dim, head_dim=16, state=8),
    "s4d": lambda dim: S4D(dim, state=4),
    "hyena": lambda dim: Hyena(dim, max_length=64),
    "mlp": MLP,
    "gated": GatedMLP,
}
SCHEDULES = [
    "(full mlp)*2",
    "(longformer mlp)*2",
    "(bigbird gated)*2",
    "window mlp mamba2 gated s4d hyena mlp",
]


def build(schedule: str, **options: Any) -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone(DIM, BLOCKS, schedule, **options).double()
    with torch.no_grad():  # so that a norm of zeros is not zero
        for name, parameter in backbone.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return backbone


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Sequences]:
    torch.manual_seed(1)
    sequences = Sequences.padded(LENGTHS, LENGTH)
    x = torch.randn(len(LENGTHS), LENGTH, DIM, dtype=dtype)
    return x, sequences


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_equals_padded_rows(schedule: str, dtype: torch.dtype) -> None:
    x, sequences = batch(dtype)
    padded = build(schedule).to(dtype)(x, sequences=sequences)
    x[~sequences.real] = float("nan")
    out = build(schedule, padding_free=True).to(dtype)(x, sequences=sequences)
    tolerance = 1e-11 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(
        out[sequences.real], padded[sequences.real], atol=tolerance, rtol=tolerance
    )
    assert not out[~sequences.real].any()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_equals_each_document_alone(schedule: str) -> None:
    backbone = build(schedule, padding_free=True)
    x, _ = batch()
    rows = [[17, 9, 20], [50], [], [1, 1], [33]]
    out = backbone(x, sequences=Sequences.packed(rows, LENGTH))
    for row, parts in enumerate(rows):
        start = 0
        for part in parts:
            piece = slice(start, start + part)
            alone = backbone(x[row : row + 1, piece])[0]
            torch.testing.assert_close(out[row, piece], alone, atol=1e-9, rtol=1e-9)
            start += part


@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gradients_equal_those_of_padded_rows(schedule: str, checkpointed: bool) -> None:
    grads = []
    for padding_free in (False, True):
        backbone = build(schedule, padding_free=padding_free, checkpoint_blocks=checkpointed)
        x, sequences = batch()
        x.requires_grad_()
        out = backbone(x, sequences=sequences)
        sequences.zero_padding(out).sin().sum().backward()
        grads.append([x.grad, *(p.grad for p in backbone.parameters())])
    for padded, packed in zip(*grads, strict=True):
        torch.testing.assert_close(packed, padded, atol=1e-9, rtol=1e-9)


def test_blocks_see_real_tokens_alone() -> None:
    backbone = build("(longformer mlp)*2", padding_free=True)
    shapes = []
    for block in backbone.blocks:
        block.register_forward_hook(lambda module, args, out: shapes.append(tuple(out.shape)))
    x, sequences = batch()
    backbone(x, sequences=sequences)
    assert shapes == [(1, 128, DIM)] * 4  # 101 tokens, rounded up; the batch has 250 places
    shapes.clear()
    backbone(x, sequences=Sequences.padded([10] * 5, LENGTH))
    assert shapes == [(1, 50, DIM)] * 4  # 78 more would be a document longer than the others


def test_a_row_of_many_documents_takes_no_square_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs: list[int] = []
    masked = core.masked_attention.masked

    def counted(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, p: float) -> Tensor:
        pairs.append(query.shape[0] * query.shape[1] * key.shape[1])
        return masked(query, key, value, mask, p)

    monkeypatch.setattr(core.masked_attention, "masked", counted)
    lengths = [100, 700, 30, 450] * 4
    x = torch.randn(len(lengths), 700, DIM, dtype=torch.float64)
    build("full", padding_free=True)(x, sequences=Sequences.padded(lengths, 700))
    assert sum(pairs) < 0.2 * sum(lengths) ** 2


@pytest.mark.parametrize("lengths", [[0, 0], [LENGTH, LENGTH]])
def test_nothing_and_everything_real(lengths: list[int]) -> None:
    sequences = Sequences.padded(lengths, LENGTH)
    x = torch.randn(2, LENGTH, DIM, dtype=torch.float64)
    schedule = "longformer mlp mamba2 s4d hyena"
    out = build(schedule, padding_free=True)(x, sequences=sequences)
    expected = build(schedule)(x, sequences=sequences)
    torch.testing.assert_close(out, sequences.zero_padding(expected), atol=1e-11, rtol=0)


def test_a_language_model_with_a_prompt() -> None:
    models = [
        LanguageModel(build("window mlp", padding_free=free), 12).double() for free in (False, True)
    ]
    models[1].load_state_dict(models[0].state_dict())
    tokens, sequences = torch.randint(0, 12, (2, 9)), Sequences.padded([9, 4], 9)
    prompt = torch.randn(3, DIM, dtype=torch.float64)
    padded, free = (model(tokens, sequences, prompt)[sequences.real] for model in models)
    torch.testing.assert_close(free, padded, atol=1e-12, rtol=1e-12)


def test_wrong_use_is_one_line() -> None:
    backbone = build("full", padding_free=True)
    x, sequences = batch()
    with pytest.raises(ValueError, match="padding_free takes no context"):
        backbone(x, context=x, sequences=sequences)
    with pytest.raises(ValueError, match=r"describe \(5, 50\) on cpu, x is \(5, 49, 16\)"):
        backbone(x[:, 1:], sequences=sequences)
    with pytest.raises(ValueError, match=r"describe \(5, 50\) on meta, x is \(5, 50, 16\) on cpu"):
        backbone(x, sequences=Sequences(sequences.document.to("meta")))
