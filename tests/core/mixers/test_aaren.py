"""Aaren against PyTorch's own attention with the learned query at every position, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from core.mixers import Aaren, Attention
from core.sequences import Sequences

BATCH, LENGTH, DIM, HEADS = 2, 140, 12, 3  # longer than two chunks of the op


def build() -> Aaren:
    torch.manual_seed(0)
    return Aaren(DIM, heads=HEADS).double()


def by_pytorch(mixer: Aaren, x: Tensor) -> Tensor:
    """Causal softmax attention in which every token asks the same question."""

    def heads(projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (HEADS, DIM // HEADS)).transpose(1, 2)

    query = heads(mixer.q_proj(mixer.query).expand_as(x))
    mixed = F.scaled_dot_product_attention(
        query, heads(mixer.k_proj(x)), heads(mixer.v_proj(x)), is_causal=True
    )
    return mixer.o_proj(mixed.transpose(1, 2).flatten(2))


@pytest.fixture
def x() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64, generator=generator)


def test_equals_attention_with_the_learned_query(x: Tensor) -> None:
    mixer = build()
    torch.testing.assert_close(mixer(x), by_pytorch(mixer, x), rtol=1e-12, atol=1e-12)


def test_gradients_equal_those_of_attention(x: Tensor) -> None:
    mixer = build()
    weight = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    leaves = [x.requires_grad_(), *mixer.parameters()]
    found = torch.autograd.grad((mixer(x) * weight).sum(), leaves)
    expected = torch.autograd.grad((by_pytorch(mixer, x) * weight).sum(), leaves)
    for name, got, wanted in zip(
        ["x", *dict(mixer.named_parameters())], found, expected, strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12, msg=name)


def test_pieces_and_steps_equal_attention(x: Tensor) -> None:
    mixer = build()
    first, state = mixer(x[:, :70], state=mixer.init_state(BATCH))
    parts = [first]
    for t in range(70, LENGTH):
        out, state = mixer.step(x[:, t], state)
        parts.append(out[:, None])
    torch.testing.assert_close(torch.cat(parts, 1), by_pytorch(mixer, x), rtol=1e-12, atol=1e-12)


def test_packed_documents_equal_each_alone(x: Tensor) -> None:
    mixer = build()
    lengths = [[70, 1, 64], [100, 40]]
    found = mixer(x, sequences=Sequences.packed(lengths, LENGTH))
    for row, parts in enumerate(lengths):
        start = 0
        for part in parts:
            here = slice(start, start + part)
            alone = by_pytorch(mixer, x[row : row + 1, here])
            torch.testing.assert_close(found[row : row + 1, here], alone, rtol=1e-12, atol=1e-12)
            start += part
        assert (found[row, start:] == 0).all()


def test_state_does_not_grow(x: Tensor) -> None:
    mixer = build()
    empty = mixer.init_state(BATCH)
    _, full = mixer(x, state=empty)
    assert [t.shape for t in full] == [t.shape for t in empty]


def test_a_query_vector_more_than_attention() -> None:
    sizes = [
        sum(parameter.numel() for parameter in mixer.parameters())
        for mixer in (Aaren(DIM, heads=HEADS), Attention(DIM, heads=HEADS))
    ]
    assert sizes[0] == sizes[1] + DIM


def test_scores_stay_wide_in_half_precision() -> None:
    mixer = Aaren(DIM, heads=HEADS).bfloat16()
    state = mixer.init_state(BATCH)
    out, state = mixer.step(torch.randn(BATCH, DIM, dtype=torch.bfloat16), state)
    assert out.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in state} == {torch.float32}


def test_refuses_heads_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match=f"heads=5 must divide dim={DIM}"):
        Aaren(DIM, heads=5)
