"""Autoformer's Auto-Correlation, decomposition, embedding and norm against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from timeseries.models.autocorrelation import AutoCorrelation, correlation, delayed_sum
from timeseries.models.autoformer import Embedding, EncoderLayer, SeasonalNorm
from timeseries.models.decomposition import SeriesDecomposition


def by_definition(q: Tensor, k: Tensor, v: Tensor, factor: float, shared: bool) -> Tensor:
    """Correlation as a sum over steps, aggregation as a sum of rolled values, window by window."""
    batch, length, dim = q.shape
    zeros = torch.zeros(batch, max(0, length - k.shape[1]), dim, dtype=q.dtype)
    k, v = (torch.cat([x[:, :length], zeros], 1) for x in (k, v))
    scores = torch.zeros(batch, length, dtype=q.dtype)
    for delay in range(length):
        for t in range(length):
            scores[:, delay] += (q[:, t] * k[:, (t - delay) % length]).mean(1)
    count = min(max(int(factor * torch.tensor(length).log()), 1), length)
    rows = []
    for i in range(batch):
        deciding = scores.mean(0) if shared else scores[i]
        delays = sorted(range(length), key=lambda delay: -deciding[delay].item())[:count]
        weights = torch.stack([scores[i, delay] for delay in delays]).softmax(0)
        rolled = [torch.cat([v[i, delay:], v[i, :delay]]) for delay in delays]
        rows.append(sum(w * values for w, values in zip(weights, rolled, strict=True)))
    return torch.stack(rows)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize(
    ("length", "memory", "factor"),
    [(1, 1, 3), (2, 5, 0.1), (3, 3, 5), (8, 8, 1), (11, 11, 3), (15, 6, 2.5), (7, 12, 1)],
)
def test_auto_correlation_by_definition(
    length: int, memory: int, factor: float, training: bool
) -> None:
    layer = AutoCorrelation(6, factor).double().train(training)
    x, context = (
        3 * torch.randn(4, n, 6, dtype=torch.float64, requires_grad=True) for n in (length, memory)
    )
    qkv = layer.query(x), layer.key(context), layer.value(context)
    expected = layer.out(by_definition(*qkv, factor, shared=training))
    y = layer(x, context)
    assert_close(y, expected, rtol=1e-9, atol=1e-11)

    ahead, to = torch.randn_like(y), [x, context, *layer.parameters()]
    got, want = (torch.autograd.grad(out, to, ahead) for out in (y, expected))
    for name, one, other in zip(range(len(to)), got, want, strict=True):
        assert_close(one, other, rtol=1e-8, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


def test_delays_are_the_period() -> None:
    """cos with period 12 correlates by cos(2 pi delay / 12) / 2 a step: delays 0, 12, 24 and 36."""
    t = torch.arange(48, dtype=torch.float64)
    wave = torch.cos(2 * torch.pi * t / 12)
    x = wave[None, :, None]
    scores = correlation(x, x)
    assert_close(scores, 24 * wave[None])
    weights = AutoCorrelation(1, factor=1.1).eval().delay_weights(scores)
    assert weights[0].nonzero().flatten().tolist() == [0, 12, 24, 36]
    assert_close(weights[0, ::12], torch.full_like(t[:4], 0.25))
    assert_close(delayed_sum(x, weights), x)


def test_delays_look_ahead_by_the_lag_of_the_keys() -> None:
    """Keys 3 steps behind the queries ask for the values 3 steps ahead (Roll in section 3.2)."""
    x = torch.randn(2, 20, 4, dtype=torch.float64)
    assert (correlation(x.roll(3, 1), x).argmax(1) == 3).all()
    at_three = F.one_hot(torch.tensor([3, 3]), 20).double()
    assert_close(delayed_sum(x, at_three), x.roll(-3, 1))


@pytest.mark.parametrize("window_length", [1, 2, 3, 6, 25])
@pytest.mark.parametrize("time", [1, 7, 30])
def test_decomposition_by_definition(window_length: int, time: int) -> None:
    x = torch.randn(2, time, 3, dtype=torch.float64)
    before = window_length // 2
    means = []
    for t in range(time):
        steps = range(t - before, t - before + window_length)
        means.append(sum(x[:, min(max(s, 0), time - 1)] for s in steps) / window_length)
    trend = torch.stack(means, 1)
    got = SeriesDecomposition(window_length)(x)
    assert_close(got, (x - trend, trend))


def test_decomposition_refuses_an_empty_window() -> None:
    with pytest.raises(ValueError, match="window is 0"):
        SeriesDecomposition(0)


@pytest.mark.parametrize("features", [0, 2])
@pytest.mark.parametrize("time", [1, 2, 9])
def test_embedding_by_definition(features: int, time: int) -> None:
    layer = Embedding(3, features, 5, dropout=0.5).double().eval()
    x = torch.randn(2, time, 3, dtype=torch.float64)
    calendar = torch.randn(2, time, features, dtype=torch.float64)
    expected = torch.zeros(2, time, 5, dtype=torch.float64)
    for t in range(time):
        for i, step in enumerate((t - 1, t, t + 1)):
            expected[:, t] += x[:, step % time] @ layer.value.weight[..., i].T
        if features:
            expected[:, t] += calendar[:, t] @ layer.time.weight.T
    assert_close(layer(x, calendar), expected)


def test_value_embeddings_start_as_the_authors_do() -> None:
    """Normal with variance 2 over the inputs of an output: three steps of each channel."""
    weight = Embedding(7, 0, 4096, dropout=0.0).value.weight
    assert weight.mean().item() == pytest.approx(0, abs=0.01)
    assert weight.std().item() == pytest.approx((2 / 21) ** 0.5, rel=0.02)


def test_the_seasonal_norm_leaves_no_mean() -> None:
    norm = SeasonalNorm(6).double()
    nn.init.normal_(norm.weight)
    x = torch.randn(3, 11, 6, dtype=torch.float64)
    scaled = (x - x.mean(2, keepdim=True)) / (x.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected = norm.weight * (scaled - scaled.mean(1, keepdim=True))
    assert_close(norm(x), expected)
    assert_close(norm(x).mean(1), torch.zeros(3, 6, dtype=torch.float64), rtol=0, atol=1e-12)


def test_layers_keep_only_the_seasonal_part() -> None:
    layer = EncoderLayer(8, 12, 1, 3.0, 0.0)  # a moving average over one step is the series
    assert not layer(torch.randn(2, 10, 8)).any()
