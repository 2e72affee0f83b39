"""Relative attention by skewing against a loop over pairs that gathers e[j - i], in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from core.mixers.base import UnsupportedPattern
from core.mixers.relative_attention import RelativeAttention, skew
from core.sequences import Sequences

BATCH, LENGTH, DIM, HEADS = 2, 11, 12, 3
REACH = [1, 4, LENGTH - 1, 40]  # distances beyond it, up to it, and never reached


def build(causal: bool, max_distance: int) -> RelativeAttention:
    torch.manual_seed(max_distance)
    mixer = RelativeAttention(DIM, causal, HEADS, max_distance, bias=True).double()
    torch.nn.init.normal_(mixer.relative)
    return mixer


def by_pairs(mixer: RelativeAttention, x: Tensor) -> Tensor:
    """One document a row (batch, length, dim), one pair of tokens at a time."""
    heads, size = mixer.heads, mixer.head_dim
    query, key, value = (
        project(x).unflatten(-1, (heads, size))
        for project in (mixer.q_proj, mixer.k_proj, mixer.v_proj)
    )
    length = x.shape[1]
    mixed = torch.zeros_like(query)
    for row in range(len(x)):
        for head in range(heads):
            for i in range(length):
                last = i + 1 if mixer.causal else length
                score = []
                for j in range(last):
                    distance = max(-mixer.max_distance, min(mixer.max_distance, j - i))
                    e = mixer.relative[head, distance + mixer.max_distance]
                    score.append(query[row, i, head] @ (key[row, j, head] + e) / size**0.5)
                weight = torch.stack(score).softmax(0)
                mixed[row, i, head] = weight @ value[row, :last, head]
    return mixer.o_proj(mixed.flatten(2))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(
        BATCH, LENGTH, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("max_distance", REACH)
def test_equals_gathering(causal: bool, max_distance: int, x: Tensor) -> None:
    mixer = build(causal, max_distance)
    torch.testing.assert_close(mixer(x), by_pairs(mixer, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_gradients_equal_gathering(causal: bool, x: Tensor) -> None:
    mixer = build(causal, 4)
    weight = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    parameters = list(mixer.parameters())
    found = torch.autograd.grad((mixer(x) * weight).sum(), parameters)
    expected = torch.autograd.grad((by_pairs(mixer, x) * weight).sum(), parameters)
    for name, got, wanted in zip(dict(mixer.named_parameters()), found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("max_distance", REACH)
@pytest.mark.parametrize("first", [1, 5, LENGTH - 1])
def test_state_carries_distances(max_distance: int, first: int, x: Tensor) -> None:
    """Pieces, then single tokens, at distances that reach back into the state."""
    mixer = build(True, max_distance)
    start, state = mixer(x[:, :first], state=mixer.init_state(BATCH))
    parts = [start]
    middle = (first + LENGTH) // 2
    if middle > first:
        piece, state = mixer(x[:, first:middle], state=state)
        parts.append(piece)
    for i in range(max(first, middle), LENGTH):
        out, state = mixer.step(x[:, i], state)
        parts.append(out[:, None])
    torch.testing.assert_close(torch.cat(parts, 1), by_pairs(mixer, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("max_distance", REACH)
def test_packed_documents_stand_alone(causal: bool, max_distance: int, x: Tensor) -> None:
    mixer = build(causal, max_distance)
    lengths = [[4, 6], [1, 5, 3]]
    found = mixer(x, sequences=Sequences.packed(lengths, LENGTH))
    for row, parts in enumerate(lengths):
        start = 0
        for part in parts:
            alone = by_pairs(mixer, x[row : row + 1, start : start + part])
            torch.testing.assert_close(
                found[row : row + 1, start : start + part], alone, rtol=1e-12, atol=1e-12
            )
            start += part
        assert (found[row, start:] == 0).all()


def test_skew_lines_up_by_key() -> None:
    """Numbers that say their own distance."""
    queries, keys = 3, 5
    distance = torch.arange(-keys, queries).expand(queries, -1)
    expected = torch.arange(keys) - torch.arange(keys - queries, keys)[:, None]
    assert torch.equal(skew(distance.contiguous(), keys), expected)


def test_zero_embeddings_leave_plain_attention(x: Tensor) -> None:
    mixer = build(True, 4)
    torch.nn.init.zeros_(mixer.relative)
    query, key, value = (
        project(x).unflatten(-1, (HEADS, DIM // HEADS)).transpose(1, 2)
        for project in (mixer.q_proj, mixer.k_proj, mixer.v_proj)
    )
    plain = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    expected = mixer.o_proj(plain.transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "heads=5 must divide dim=12"),
        ({"heads": 3, "max_distance": 0}, "max_distance must be an integer of at least 1, got 0"),
        ({"heads": 3, "dropout": 1.0}, "dropout must lie in"),
    ],
)
def test_refuses_impossible_sizes(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RelativeAttention(DIM, **options)  # type: ignore[arg-type]


def test_no_state_without_causality() -> None:
    with pytest.raises(UnsupportedPattern):
        RelativeAttention(DIM, False, HEADS).init_state(1)
