"""Informer's ProbSparse attention against its definition written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from largest_tensor import LargestTensor
from torch import Tensor
from torch.testing import assert_close

from timeseries.models import informer
from timeseries.models.informer import (
    InformerAttention,
    LayerOptions,
    by_copies,
    log_count,
    prob_sparse_attention,
    sampled_keys,
    sparsity,
)

DIM, HEADS, HIDDEN, FACTOR = 12, 3, 20, 2
OPTIONS = LayerOptions(DIM, HEADS, HIDDEN, 0.0, factor=FACTOR)
ATOL = 1e-5
CPU = torch.device("cpu")


def by_definition(
    query: Tensor, key: Tensor, value: Tensor, sample: Tensor, active: int, causal: bool
) -> Tensor:
    out = torch.zeros_like(value)
    batch, heads, length, width = value.shape
    for b in range(batch):
        for h in range(heads):
            scores = [[float(q @ k) for k in key[b, h]] for q in query[b, h]]
            measure = []
            for i in range(length):
                some = [scores[i][j] for j in sample[i].tolist()]
                measure.append(max(some) - sum(some) / length)
            chosen = sorted(range(length), key=lambda i: measure[i])[length - active :]
            for i in range(length):
                end = i + 1 if causal else length
                weights = [math.exp(s / math.sqrt(width)) for s in scores[i][:end]]
                if i not in chosen:
                    weights = [1.0 if causal else 1 / length] * end
                    total = 1.0
                else:
                    total = sum(weights)
                for j, weight in enumerate(weights):
                    out[b, h, i] += weight / total * value[b, h, j]
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("count", [1, 6, 17])
@pytest.mark.parametrize("active", [1, 6, 16])
@pytest.mark.parametrize("together", [0, 1, 4])
def test_prob_sparse_attention_is_its_definition(
    causal: bool, count: int, active: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all 17 keys the top queries are the exact ones. On other devices than a CPU copies of
    keys lie ``together``."""
    if together:
        monkeypatch.setattr(informer, "in_place", by_copies)
        monkeypatch.setattr(informer, "keys_together", lambda key: together)
    query, key, value = torch.randn(3, 2, 2, 17, 4, dtype=torch.float64)
    sample = sampled_keys(17, count, fresh=True, device=CPU)
    if count == 17:
        assert_close(sample, torch.arange(17).expand(17, 17))
    got = prob_sparse_attention(query, key, value, sample=sample, active=active, causal=causal)
    assert_close(got, by_definition(query, key, value, sample, active, causal))


def test_measure_in_half_precision_is_computed_in_float32() -> None:
    query, key = torch.randn(2, 1, 2, 70, 8).bfloat16()
    sample = sampled_keys(70, 9, fresh=True, device=CPU)
    scores = query.double() @ key.double().transpose(2, 3)
    some = scores.gather(3, sample.expand(1, 2, 70, 9))
    want = some.amax(-1) - some.sum(-1) / 70
    assert_close(sparsity(query, key, sample).double(), want, atol=ATOL, rtol=ATOL)


@pytest.mark.parametrize(
    ("factor", "length", "count"),
    [(5, 96, 25), (3, 48, 12), (5, 720, 35), (4, 20, 12), (5, 20, 15), (5, 4, 4), (1, 1, 1)],
)
def test_counts_of_queries_and_keys(factor: int, length: int, count: int) -> None:
    """Those of the authors' code; transformers takes a step more at 20."""
    assert log_count(factor, length) == count


def test_each_query_draws_keys_of_its_own() -> None:
    first = sampled_keys(50, 20, fresh=True, device=CPU)
    assert first.shape == (50, 20)
    assert len(first.unique(dim=0)) == 50
    many = torch.stack([sampled_keys(50, 20, fresh=True, device=CPU) for _ in range(40)])
    counts = many.flatten().bincount(minlength=50)
    assert len(counts) == 50
    assert ((counts - 800).abs() < 150).all()  # 5 deviations
    torch.manual_seed(0)
    assert_close(sampled_keys(50, 20, fresh=True, device=CPU), first)


def test_keys_drawn_for_a_forecast_are_always_the_same() -> None:
    state = torch.get_rng_state()
    first = sampled_keys(50, 20, fresh=False, device=CPU)
    assert_close(torch.get_rng_state(), state)
    torch.manual_seed(7)
    assert_close(sampled_keys(50, 20, fresh=False, device=CPU), first)
    assert len(first.unique()) == 50
    assert len(first.unique(dim=0)) == 50


def test_training_draws_anew_and_eval_does_not() -> None:
    options = LayerOptions(DIM, HEADS, HIDDEN, 0.0, factor=1)
    layer, x = InformerAttention(options, causal=False), torch.randn(2, 90, DIM)
    assert not torch.equal(layer(x), layer(x))
    torch.manual_seed(3)
    once = layer(x)
    torch.manual_seed(3)
    assert_close(layer(x), once, atol=0, rtol=0)
    layer.eval()
    assert_close(layer(x), layer(x), atol=0, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_no_score_matrix_in_forward_and_backward(causal: bool) -> None:
    length = 1024
    layer = InformerAttention(OPTIONS, causal=causal)
    x = torch.randn(1, length, DIM, requires_grad=True)
    with LargestTensor() as largest:
        layer(x).sum().backward()
    scores = HEADS * log_count(FACTOR, length) * length
    assert scores < length * length / 10
    assert 0 < largest.memory <= 4 * scores
