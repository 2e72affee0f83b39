"""Informer's attention, embedding and layers against definitions written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from informer_cases import ATOL, DIM, HEADS, HIDDEN, inputs, small
from torch import Tensor, nn
from torch.testing import assert_close

from timeseries.models.informer import (
    InformerAttention,
    InformerDecoder,
    InformerEmbedding,
    InformerLayer,
    LayerOptions,
)


def test_all_queries_and_keys_make_full_attention() -> None:
    """12 ceil(ln 36) = 48 > 36, so nothing is left out."""
    sparse = small(36, 10, 2, 3, factor=12, encoder_layers=3).eval()
    full = small(36, 10, 2, 3, attention="full", encoder_layers=3).eval()
    full.load_state_dict(sparse.state_dict())
    given = inputs(3, 36, 10, 2, 3)
    assert_close(sparse(*given), full(*given), atol=ATOL, rtol=ATOL)


def test_mix_reads_heads_and_steps_in_the_other_order() -> None:
    plain = InformerAttention(LayerOptions(DIM, HEADS, HIDDEN, 0.0, mix=False), causal=True).eval()
    mixed = InformerAttention(LayerOptions(DIM, HEADS, HIDDEN, 0.0, mix=True), causal=True).eval()
    nn.init.eye_(plain.o_proj.weight)
    nn.init.zeros_(plain.o_proj.bias)
    mixed.load_state_dict(plain.state_dict())
    x = torch.randn(2, 30, DIM)
    heads = plain(x).unflatten(-1, (HEADS, -1))
    got = mixed(x)
    for b in range(2):
        pieces = [heads[b, t, h] for h in range(HEADS) for t in range(30)]
        for t in range(30):
            assert_close(got[b, t], torch.cat(pieces[t * HEADS : (t + 1) * HEADS]))
    encoder = InformerAttention(plain.options, causal=False).eval()
    other = InformerAttention(mixed.options, causal=False).eval()
    other.load_state_dict(encoder.state_dict())
    assert_close(encoder(x), other(x), atol=0, rtol=0)


@pytest.mark.parametrize("attention", ["prob", "full"])
def test_decoder_is_causal_but_for_mix_and_the_choice_of_queries(attention: Any) -> None:
    factor = 7  # all 20 queries are chosen, so the choice sees nothing
    options = LayerOptions(DIM, HEADS, HIDDEN, 0.0, attention, factor, mix=False)
    decoder, memory = InformerDecoder(options, 2).eval(), torch.randn(2, 9, DIM)
    x = torch.randn(2, 20, DIM)
    later = x.clone()
    later[:, 12:] += 1
    assert_close(decoder(later, memory)[:, :12], decoder(x, memory)[:, :12])
    assert not torch.allclose(decoder(later, memory)[:, 12:], decoder(x, memory)[:, 12:])


@pytest.mark.parametrize("features", [0, 3])
@pytest.mark.parametrize("dim", [6, 5])
def test_embedding_by_hand(features: int, dim: int) -> None:
    layer = InformerEmbedding(11, 2, features, dim, dropout=0.0).double()
    values, time = torch.randn(2, 11, 2).double(), torch.randn(2, 11, features).double()
    got = layer(values, time)
    for b in range(2):
        for t in range(11):
            want = layer.token.bias.clone()
            for tap in range(3):
                want = want + layer.token.weight[:, :, tap] @ values[b, (t + tap - 1) % 11]
            if layer.calendar is not None:
                want = want + layer.calendar.weight @ time[b, t] + layer.calendar.bias
            place = []
            for i in range(dim):
                angle = t / 10_000 ** ((i - i % 2) / dim)
                place.append(math.cos(angle) if i % 2 else math.sin(angle))
            assert_close(got[b, t], want + want.new_tensor(place), atol=1e-6, rtol=1e-6)
    assert (layer.calendar is None) is (features == 0)


def test_token_weights_start_as_the_authors_do() -> None:
    weight = InformerEmbedding(8, 7, 0, 512, dropout=0.0).token.weight
    assert_close(weight.std().item(), math.sqrt(2 / (7 * 3)), atol=0.01, rtol=0)
    assert abs(weight.mean().item()) < 0.01


@pytest.mark.parametrize("label", [0, 5, 21])
def test_decoder_starts_from_the_end_of_the_look_back(label: int) -> None:
    model = small(21, 8, 2, 3, label_length=label).eval()
    tokens: list[tuple[Tensor, Tensor]] = []
    model.token_embedding.register_forward_pre_hook(lambda _, args: tokens.append(args))
    past, past_time, future_time = inputs(2, 21, 8, 2, 3)
    model(past, past_time, future_time)
    values, time = tokens[0]
    assert values.shape == (2, label + 8, 2)
    assert_close(values[:, :label], past[:, 21 - label :])
    assert not values[:, label:].any()
    assert_close(time, torch.cat([past_time[:, 21 - label :], future_time], 1))


@pytest.mark.parametrize("decoder", [False, True])
def test_what_is_dropped_in_training(decoder: bool) -> None:
    """With a rate of almost 1 all that may be dropped is."""
    rate = 1 - 1e-7
    x, memory = torch.randn(2, 30, DIM), torch.randn(2, 9, DIM)
    layer = InformerLayer(LayerOptions(DIM, HEADS, HIDDEN, rate), decoder=decoder)
    want = layer.attention_norm(x)
    if layer.cross is not None and layer.cross_norm is not None:
        want = layer.cross_norm(want)
        assert_close(layer.cross(x, memory), layer.cross.o_proj.bias.expand_as(x))
    assert_close(layer(x, memory), layer.mlp_norm(want))
    assert_close(layer.mlp(x), layer.mlp.fc2.bias.expand_as(x))
    full = InformerAttention(LayerOptions(DIM, HEADS, HIDDEN, rate, "full"), causal=decoder)
    assert_close(full(x), full.o_proj.bias.expand_as(x))
    sparse = InformerAttention(LayerOptions(DIM, HEADS, HIDDEN, rate), causal=decoder)
    plain = InformerAttention(LayerOptions(DIM, HEADS, HIDDEN, 0.0), causal=decoder)
    plain.load_state_dict(sparse.state_dict())
    torch.manual_seed(1)
    want = plain(x)
    torch.manual_seed(1)
    assert_close(sparse(x), want)
    embedding = InformerEmbedding(30, 2, 0, DIM, dropout=rate)
    assert not embedding(x[..., :2], x[..., :0]).any()
