"""Autoformer against the authors' code, transformers' model and written out definitions.

transformers departs from the authors' code; ``as_the_authors`` takes these departures out of it:

- layer norms after the embedding and after each Auto-Correlation, and the seasonal norm after each
  layer instead of the last one;
- values embedded by a linear map and with positions, biases in the feed-forward nets;
- queries longer than the keys are cut to the difference of the two lengths.

One stays: with more than one head and window, a window gets another one's weights (they are laid
out by head, its values by window). So batches are compared with one head, heads with one window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import StudentT
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import AutoformerConfig, AutoformerForPrediction
from transformers.models.autoformer.modeling_autoformer import AutoformerAttention

from core.backbone import Dropout
from timeseries.models.autocorrelation import AutoCorrelation, correlation
from timeseries.models.autoformer import Autoformer, SeasonalNorm

SMALL: dict[str, Any] = {
    "dim": 8,
    "feedforward": 12,
    "moving_average": 5,
    "dropout": 0.0,
    "label_length": 6,
}
ATOL = 1e-5  # float32 through some ten matrix products and FFTs of values around 1


def window(batch: int, lookback: int, horizon: int, channels: int, features: int) -> list[Tensor]:
    """past, past_time and future_time"""
    time = torch.rand(batch, lookback + horizon, features) - 0.5
    return [torch.randn(batch, lookback, channels), time[:, :lookback], time[:, lookback:]]


def with_random_norms(model: Autoformer) -> Autoformer:
    """Scales other than 1, so that a norm in the wrong place shows."""
    for module in model.modules():
        if isinstance(module, SeasonalNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


# The authors' code


def wave(seed: int, *shape: int) -> Tensor:
    """Numbers that any machine repeats, and that no delay makes alike."""
    j = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (0.5 * torch.sin(0.37 * j * j + seed)).view(shape)


@pytest.mark.parametrize(
    ("training", "last_step", "mean_square"),
    [
        (
            False,
            [0.6562309602, -2.3138725371, 0.4545182506, -2.6557532426, 0.2535952444, -1.9969396813],
            2.3402341181,
        ),
        (
            True,
            [0.3561175842, -2.5849045434, 0.5411947394, -2.5682890485, 0.1878914494, -1.8140573586],
            2.3935346217,
        ),
    ],
    ids=["eval", "training"],
)
def test_forecasts_of_the_authors_code(
    training: bool, last_step: list[float], mean_square: float
) -> None:
    """Computed by thuml/Autoformer, commit 51c7d41, with 2 heads, the n-th of its parameters set to
    wave(n) and the biases of its norms to 0."""
    model = Autoformer(12, 10, 2, 4, **SMALL, factor=2).double().train(training)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):  # in the authors' order
            parameter.copy_(wave(i, *parameter.shape))
    forecast = model(2 * wave(100, 3, 12, 2), wave(200, 3, 12, 4), wave(300, 3, 10, 4))
    expected = torch.tensor(last_step, dtype=torch.float64).view(3, 2)
    assert_close(forecast[:, -1], expected, rtol=0, atol=1e-9)
    assert forecast.square().mean().item() == pytest.approx(mean_square, abs=1e-9)


def test_default_sizes_are_the_authors() -> None:
    model = Autoformer(96, 96, 7, 4)
    biases_of_norms = 2 * 512
    assert sum(p.numel() for p in model.parameters()) == 10_535_943 - biases_of_norms
    assert model.label_length == 48
    assert model.decomposition.window == 25
    attention = model.encoder[0].attention
    assert len(attention.delay_weights(torch.randn(1, 96)).nonzero()) == 13  # 3 ln 96
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.05}


# transformers


def as_the_authors(theirs: AutoformerForPrediction) -> None:
    """Takes out what transformers adds; see the top of this file."""
    encoder, decoder = theirs.model.encoder, theirs.model.decoder
    for half in (encoder, decoder):
        half.layernorm_embedding = nn.Identity()
        nn.init.zeros_(half.embed_positions.weight)
        for layer in half.layers:
            layer.self_attn_layer_norm = nn.Identity()
            layer.encoder_attn_layer_norm = nn.Identity()
            nn.init.zeros_(layer.fc1.bias)
            nn.init.zeros_(layer.fc2.bias)
        for layer in half.layers[:-1]:
            layer.final_layer_norm = nn.Identity()
    config = theirs.config
    missing = config.label_length + config.prediction_length - config.context_length
    for layer in decoder.layers:
        for projection in (layer.encoder_attn.k_proj, layer.encoder_attn.v_proj):
            projection.register_forward_hook(
                lambda module, args, out: F.pad(out, (0, 0, 0, max(0, missing)))
            )


Read = Callable[[Tensor], Any]
Pairs = list[tuple[Any, Any]]


def attention_pairs(ours: AutoCorrelation, theirs: AutoformerAttention, read: Read) -> Pairs:
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
    return [
        (read(getattr(getattr(ours, our), part)), read(getattr(getattr(theirs, their), part)))
        for our, their in names.items()
        for part in ("weight", "bias")
    ]


def pairs(ours: Autoformer, theirs: AutoformerForPrediction, read: Read) -> Pairs:
    """(ours, theirs) of what ``read`` says of each weight that both models have."""
    encoder, decoder = theirs.model.encoder, theirs.model.decoder
    channels, features = ours.seasonal[1].out_features, ours.encoder_embedding.time.in_features
    found: Pairs = []
    for our, their in ((ours.encoder_embedding, encoder), (ours.decoder_embedding, decoder)):
        linear = read(their.value_embedding.value_projection.weight)
        found.append((read(our.value.weight)[..., 1], linear[:, :channels]))
        found.append((read(our.time.weight), linear[:, -features:]))
    for our, their in zip(ours.encoder[:-1], encoder.layers, strict=True):
        found += attention_pairs(our.attention, their.self_attn, read)
    for our, their in zip(ours.decoder, decoder.layers, strict=True):
        found += attention_pairs(our.attention, their.self_attn, read)
        found += attention_pairs(our.cross_attention, their.encoder_attn, read)
        found.append((read(our.trend.weight), read(their.trend_projection.weight)[:channels]))
    for our, their in zip(
        [*ours.encoder[:-1], *ours.decoder], [*encoder.layers, *decoder.layers], strict=True
    ):
        found.append((read(our.feedforward[0].weight), read(their.fc1.weight)))
        found.append((read(our.feedforward[3].weight), read(their.fc2.weight)))
    norms = (encoder, ours.encoder[-1]), (decoder, ours.seasonal[0])
    for half, norm in norms:
        their_norm = half.layers[-1].final_layer_norm.layernorm
        found.append((read(norm.weight), read(their_norm.weight)))
    seasonal = decoder.seasonality_projection
    found.append((read(ours.seasonal[1].weight), read(seasonal.weight)[:channels]))
    found.append((read(ours.seasonal[1].bias), read(seasonal.bias)[:channels]))
    return found


def both(
    lookback: int,
    horizon: int,
    channels: int,
    label_length: int,
    *,
    heads: int = 1,
    factor: int = 3,
    dropout: float = 0.0,
) -> tuple[Autoformer, AutoformerForPrediction]:
    """The two models on the same random weights, with 2 calendar features."""
    sizes: dict[str, Any] = {**SMALL, "label_length": label_length, "dropout": dropout}
    ours = Autoformer(
        lookback, horizon, channels, 2, **sizes, encoder_layers=2, decoder_layers=2, factor=factor
    )
    with_random_norms(ours)
    config = AutoformerConfig(
        context_length=lookback,
        prediction_length=horizon,
        input_size=channels,
        num_time_features=2,
        lags_sequence=[0],
        scaling=False,
        label_length=label_length,
        moving_average=ours.decomposition.window,
        autocorrelation_factor=factor,
        d_model=SMALL["dim"],
        encoder_layers=2,
        decoder_layers=2,
        **{f"{half}_attention_heads": heads for half in ("encoder", "decoder")},
        **{f"{half}_ffn_dim": SMALL["feedforward"] for half in ("encoder", "decoder")},
        **{f"{half}_layerdrop": 0.0 for half in ("encoder", "decoder")},
        dropout=dropout,
        activation_dropout=dropout,
    )
    theirs = AutoformerForPrediction(config)
    as_the_authors(theirs)
    with torch.no_grad():
        for our, their in pairs(ours, theirs, lambda weight: weight):
            # a convolution without its outer steps is a linear map
            their.copy_(our)
        for embedding in (ours.encoder_embedding, ours.decoder_embedding):
            embedding.value.weight[..., [0, 2]] = 0
    return ours, theirs


def batch_of(inputs: list[Tensor], future: Tensor) -> dict[str, Tensor]:
    past, past_time, future_time = inputs
    one = past.shape[2] == 1
    return {
        "past_values": past[..., 0] if one else past,
        "past_time_features": past_time,
        "past_observed_mask": torch.ones_like(past[..., 0] if one else past),
        "future_values": future[..., 0] if one else future,
        "future_time_features": future_time,
    }


SHAPES = pytest.mark.parametrize(
    ("lookback", "label_length", "horizon", "channels", "factor"),
    [(24, 12, 8, 3, 3), (31, 9, 7, 1, 1), (21, 21, 10, 2, 2), (13, 6, 18, 3, 3)],
    ids=["even", "odd", "all is label", "longer queries"],
)


@pytest.mark.parametrize("lengths", [(12, 12), (13, 13), (9, 14)], ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize(("batch", "heads"), [(1, 4), (3, 1)], ids=["heads", "batch"])
def test_auto_correlation_is_transformers(
    lengths: tuple[int, int], training: bool, batch: int, heads: int
) -> None:
    ours = AutoCorrelation(8, factor=2).train(training)
    theirs = AutoformerAttention(8, heads, autocorrelation_factor=2).train(training)
    with torch.no_grad():
        for our, their in attention_pairs(ours, theirs, lambda weight: weight):
            their.copy_(our)
    x, context = (torch.randn(batch, length, 8, requires_grad=True) for length in lengths)
    y = ours(x, context)
    expected, correlations = theirs(x, context)
    scores = correlation(ours.query(x), ours.key(context)[:, : lengths[0]])
    assert_close(scores, correlations.mean((1, 3)), rtol=0, atol=ATOL)
    assert_close(y, expected, rtol=0, atol=ATOL)
    ahead = torch.randn_like(y)
    for got, want in zip(
        torch.autograd.grad(y, (x, context, ours.query.weight), ahead),
        torch.autograd.grad(expected, (x, context, theirs.q_proj.weight), ahead),
        strict=True,
    ):
        assert_close(got, want, rtol=1e-4, atol=ATOL)


def outputs_of(modules: list[nn.Module]) -> list[Tensor]:
    """Fills with what the modules give when they run; of a pair the first."""
    seen: list[Tensor] = []
    for module in modules:
        module.register_forward_hook(
            lambda module, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
        )
    return seen


@SHAPES
def test_hidden_states_and_trend_are_transformers(
    lookback: int, label_length: int, horizon: int, channels: int, factor: int
) -> None:
    ours, theirs = both(lookback, horizon, channels, label_length, heads=2, factor=factor)
    ours.eval(), theirs.eval()
    inputs = window(3, lookback, horizon, channels, 2)
    # our last norm stands behind the layers, theirs in the last one
    our_layers = [ours.encoder[0], ours.encoder[-1], ours.decoder[0], ours.seasonal[0]]
    states = outputs_of([*our_layers, ours.seasonal])
    forecast = ours(*inputs)
    their_layers = [*theirs.model.encoder.layers, *theirs.model.decoder.layers]
    their_states = outputs_of(their_layers)
    for i in range(3):
        one = batch_of([x[i : i + 1] for x in inputs], torch.zeros(1, horizon, channels))
        out = theirs.model(**one)
        *hidden, projected = (state[i] for state in states)
        for got, want in zip(hidden, their_states, strict=True):
            assert_close(got, want[0], rtol=0, atol=ATOL)
        their_states.clear()
        assert_close(projected, out.last_hidden_state[0, :, :channels], rtol=0, atol=ATOL)
        trend = out.trend[0, label_length:, :channels]
        assert_close(forecast[i] - projected[label_length:], trend, rtol=0, atol=ATOL)


def dropped(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout drawn by position; PyTorch draws in the order of memory, where the models differ."""
    return x * (torch.rand(x.shape) >= p) / (1 - p) if training else x


def squareplus(x: Tensor) -> Tensor:
    return (x + (x.square() + 4).sqrt()) / 2


@SHAPES
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_training_loss_and_gradients_are_transformers(
    lookback: int,
    label_length: int,
    horizon: int,
    channels: int,
    factor: int,
    dropout: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their loss is the likelihood of a Student-T around the forecast."""
    monkeypatch.setattr(F, "dropout", dropped)
    monkeypatch.setattr(Dropout, "forward", lambda self, x: dropped(x, self.p, self.training))
    ours, theirs = both(lookback, horizon, channels, label_length, factor=factor, dropout=dropout)
    with torch.no_grad():
        for head in theirs.parameter_projection.proj:
            head.weight[:, channels:] = 0
    inputs, future = window(4, lookback, horizon, channels, 2), torch.randn(4, horizon, channels)

    torch.manual_seed(1)
    expected = theirs(**batch_of(inputs, future)).loss
    torch.manual_seed(1)
    forecast = ours(*inputs)
    df, loc, scale = (
        F.linear(forecast, head.weight[:, :channels], head.bias)
        for head in theirs.parameter_projection.proj
    )
    distribution = StudentT(2 + squareplus(df), loc, squareplus(scale))
    loss = -distribution.log_prob(future).sum(2).mean()
    assert_close(loss, expected, rtol=0, atol=ATOL)

    expected.backward()
    loss.backward()
    for got, want in pairs(ours, theirs, lambda weight: weight.grad):
        assert_close(got, want, rtol=1e-4, atol=ATOL)


# Promises of a forecaster

SIZES = pytest.mark.parametrize(
    ("lookback", "horizon", "channels", "features"),
    [(24, 12, 3, 4), (17, 9, 1, 0), (7, 23, 3, 1), (6, 1, 1, 2)],
)


@SIZES
def test_a_forecast_is_of_its_window_alone(
    lookback: int, horizon: int, channels: int, features: int
) -> None:
    model = with_random_norms(Autoformer(lookback, horizon, channels, features, **SMALL)).eval()
    inputs = window(5, lookback, horizon, channels, features)
    together = model(*inputs)
    assert together.shape == (5, horizon, channels)
    assert torch.equal(together, model(*inputs))
    alone = torch.cat([model(*(x[i : i + 1] for x in inputs)) for i in range(5)])
    assert_close(together, alone, rtol=0, atol=ATOL)
    inputs[0][1:] *= 100
    assert_close(model(*inputs)[0], together[0], rtol=0, atol=ATOL)


@SIZES
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16"])
def test_gradients_are_finite(
    lookback: int, horizon: int, channels: int, features: int, autocast: bool
) -> None:
    model = Autoformer(lookback, horizon, channels, features, **{**SMALL, "dropout": 0.1})
    inputs = window(4, lookback, horizon, channels, features)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        forecast = model(*inputs)
        loss = (forecast - torch.randn_like(forecast)).square().mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # a bias that is the same at all steps moves no delay, and only the trend
        assert parameter.grad.any() or name.endswith("bias"), name


def test_bf16_forecasts_stay_close() -> None:
    """Rounding may change the last delay chosen, so with all delays: factor 20."""
    model = Autoformer(24, 12, 3, 4, **SMALL, factor=20).eval()
    inputs = window(4, 24, 12, 3, 4)
    with torch.no_grad():
        exact = model(*inputs)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(*inputs)
        whole = model.bfloat16()(*(x.bfloat16() for x in inputs))
    assert_close(rounded.float(), exact, rtol=0, atol=0.05)  # 2^-8 of values up to 3, a few times
    assert whole.dtype == torch.bfloat16
    assert_close(whole.float(), exact, rtol=0, atol=0.05)


@pytest.mark.parametrize("label_length", [0, 1, 5, 9])
def test_without_projections_the_forecast_is_the_mean(label_length: int) -> None:
    model = Autoformer(9, 4, 2, **{**SMALL, "label_length": label_length}).eval()
    for layer in (model.seasonal[1], *(layer.trend for layer in model.decoder)):
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    past, *times = window(3, 9, 4, 2, 0)
    assert_close(model(past, *times), past.mean(1, keepdim=True).expand(-1, 4, -1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"lookback": 0},
        {"horizon": 0},
        {"channels": -1},
        {"time_features": -1},
        {"dim": 0},
        {"encoder_layers": 0},
        {"decoder_layers": 0},
        {"feedforward": 0},
        {"moving_average": 0},
        {"factor": 0},
        {"factor": float("nan")},
        {"label_length": 25},
        {"label_length": -1},
    ],
    ids=str,
)
def test_wrong_arguments(wrong: dict[str, Any]) -> None:
    sizes = {"lookback": 24, "horizon": 8, "channels": 2, "time_features": 1}
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} is [^\n]*$"):
        Autoformer(**{**sizes, **SMALL, **wrong})
