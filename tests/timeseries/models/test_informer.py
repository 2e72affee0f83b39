"""Informer against transformers' model on the same random weights and numbers of the authors' code,
and what every forecaster promises."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from informer_cases import ATOL, DIM, FACTOR, HEADS, HIDDEN, inputs, small
from jsonargparse import ArgumentParser
from torch import Tensor, nn
from torch.distributions import StudentT
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import InformerConfig, InformerForPrediction

from timeseries.models import informer
from timeseries.models.informer import Informer, InformerDecoder, InformerEncoder, LayerOptions

# transformers' encoder, decoder and loss


def published(lookback: int, horizon: int, attention: str, distil: bool) -> InformerForPrediction:
    config = InformerConfig(
        prediction_length=horizon,
        context_length=lookback,
        input_size=3,
        lags_sequence=[1, 4],
        num_time_features=2,
        scaling="std",
        d_model=DIM,
        encoder_ffn_dim=HIDDEN,
        decoder_ffn_dim=HIDDEN,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_layers=3,
        decoder_layers=2,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        attention_type=attention,
        sampling_factor=FACTOR,
        distil=distil,
    )
    model = InformerForPrediction(config)
    for parameter in model.parameters():
        if parameter.requires_grad:  # the table of positions stays
            nn.init.normal_(parameter, 0.1, 0.4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


OUR_NAME = {
    "self_attn_layer_norm": "attention_norm",
    "encoder_attn_layer_norm": "cross_norm",
    "final_layer_norm": "mlp_norm",
    "self_attn": "attention",
    "encoder_attn": "cross",
    "out_proj": "o_proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "conv_layers": "distilling",
    "downConv": "conv",
}


def under_our_names(values: dict[str, Any]) -> dict[str, Any]:
    """What of a published encoder or decoder is ours too."""
    renamed = {
        ".".join(OUR_NAME.get(part, part) for part in name.split(".")): value
        for name, value in values.items()
    }
    return {k: v for k, v in renamed.items() if k.split(".")[0] in ("layers", "distilling")}


def embedded(coder: Any, x: Tensor, first: int) -> Tensor:
    """Their embedding, which we do not have; ``first`` is the place of the first step."""
    positions = coder.embed_positions(x.size(), past_key_values_length=first)
    return coder.layernorm_embedding(coder.value_embedding(x) + positions)


def student_t_loss(
    projections: nn.ModuleList, hidden: Tensor, future: Tensor, mean: Tensor, scale: Tensor
) -> Tensor:
    df, loc, width = (project(hidden) for project in projections)
    df, width = ((x + (x * x + 4).sqrt()) / 2 for x in (df, width))
    distribution = StudentT(2 + df, loc, width)
    return -(distribution.log_prob((future - mean) / scale) - scale.log()).sum(-1).mean()


@pytest.fixture
def their_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers draws as many keys as there are, the same ones for all queries."""

    def one_for_all(length: int, count: int, **_: Any) -> Tensor:
        return torch.randint(0, length, (length,)).expand(length, length)

    monkeypatch.setattr(informer, "sampled_keys", one_for_all)


# The lengths, and their halves where distilled, are such that ceil(ln(length)), which the authors
# have, is ceil(ln(1 + length)) of transformers.
@pytest.mark.parametrize(("lookback", "horizon"), [(32, 24), (37, 13)])
@pytest.mark.parametrize("distil", [True, False])
@pytest.mark.parametrize("attention", ["prob", "full"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.usefixtures("their_draws")
def test_hidden_states_loss_and_gradients_are_the_published_ones(
    lookback: int, horizon: int, distil: bool, attention: Any, training: bool
) -> None:
    theirs = published(lookback, horizon, attention, distil).train(training)
    options = LayerOptions(DIM, HEADS, HIDDEN, 0.0, attention, FACTOR, mix=False)
    encoder = InformerEncoder(options, 3, distil=distil).train(training)
    decoder = InformerDecoder(options, 2).train(training)
    coders = theirs.model.encoder, theirs.model.decoder
    for ours, coder in zip((encoder, decoder), coders, strict=True):
        ours.load_state_dict(under_our_names(coder.state_dict()))
    seen: list[tuple[Tensor, Tensor]] = []
    for coder in coders:
        coder.register_forward_hook(
            lambda _, args, given, out: seen.append((given["inputs_embeds"], out[0])),
            with_kwargs=True,
        )
    past, future = torch.randn(4, lookback + 4, 3), torch.randn(4, horizon, 3)
    times = torch.rand(4, lookback + 4, 2), torch.rand(4, horizon, 2)
    torch.manual_seed(1)
    want = theirs(
        past_values=past,
        past_time_features=times[0],
        past_observed_mask=torch.ones_like(past),
        future_values=future,
        future_time_features=times[1],
    )
    (encoder_in, their_memory), (decoder_in, their_hidden) = seen
    torch.manual_seed(1)
    memory = encoder(embedded(coders[0], encoder_in, 0))
    hidden = decoder(embedded(coders[1], decoder_in, lookback), memory)
    assert_close(memory, their_memory, atol=ATOL, rtol=ATOL)
    assert_close(hidden, their_hidden, atol=ATOL, rtol=ATOL)
    loss = student_t_loss(theirs.parameter_projection.proj, hidden, future, want.loc, want.scale)
    assert_close(loss, want.loss, atol=ATOL, rtol=ATOL)

    learned = [p for p in theirs.parameters() if p.requires_grad]
    grads = torch.autograd.grad(want.loss, learned, retain_graph=True)
    wanted = dict(zip(map(id, learned), grads, strict=True))
    for ours, coder in zip((encoder, decoder), coders, strict=True):
        shared = under_our_names(dict(coder.named_parameters()))
        got = torch.autograd.grad(loss, list(ours.parameters()), retain_graph=True)
        for (name, _), grad in zip(ours.named_parameters(), got, strict=True):
            assert_close(grad, wanted[id(shared[name])], atol=ATOL, rtol=1e-4, msg=name)
        before = coder.value_embedding.value_projection.weight  # the gradient of what goes in
        (grad,) = torch.autograd.grad(loss, before, retain_graph=True)
        assert_close(grad, wanted[id(before)], atol=ATOL, rtol=1e-4)


# The authors' code


def wave(steps: int, width: int, step: float) -> Tensor:
    return torch.sin(step * torch.arange(steps * width, dtype=torch.float64)).view(1, steps, width)


def regular_draws(length: int, count: int, *, keys: int, **_: Any) -> Tensor:
    return (7 * torch.arange(length)[:, None] + 3 * torch.arange(count)) % keys


def with_waves(model: Informer) -> Informer:
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            k = torch.arange(parameter.numel(), dtype=torch.float64)
            parameter.copy_(0.7 * torch.sin(k * k + i).view_as(parameter))
    return model


# Steps 0, 4 and 8 of the forecast that github.com/zhouhaoyi/Informer2020 (commit 29f2a73) gives for
# the weights and inputs below, with its draws of keys replaced by those of the test.
AUTHORS = [
    ("prob", True, True, [[1.839619, -0.715679], [1.829249, -0.714673], [1.844875, -0.679582]]),
    ("full", True, True, [[1.827332, -0.709071], [1.820852, -0.703490], [1.819807, -0.701400]]),
    ("prob", False, False, [[1.422022, 2.280453], [1.413689, 2.289558], [1.439343, 2.206939]]),
]


@pytest.mark.parametrize(("attention", "mix", "distil", "want"), AUTHORS)
def test_forecast_is_that_of_the_authors_code(
    attention: Any,
    mix: bool,
    distil: bool,
    want: list[list[float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(informer, "sampled_keys", regular_draws)
    chosen: dict[str, Any] = {"attention": attention, "mix": mix, "distil": distil}
    layers = {"encoder_layers": 3, "decoder_layers": 2, "label_length": 14}
    model = with_waves(small(33, 9, 2, 3, **layers, **chosen).double().eval())
    got = model(wave(33, 2, 0.31), wave(33, 3, 0.17) / 2, wave(9, 3, 0.23) / 2)
    # their positions are computed in float32
    assert_close(got[0, [0, 4, 8]], torch.tensor(want).double(), atol=2e-6, rtol=0)


# As above, of github.com/thuml/Autoformer (commit 8f6d477).
COPY = [[2.194954, -0.952623], [2.609055, -0.565376], [2.612631, -0.612853]]


def test_forecast_is_that_of_the_copy_which_published_tables_ran(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(informer, "sampled_keys", regular_draws)
    layers = {"encoder_layers": 3, "decoder_layers": 2, "label_length": 14}
    model = with_waves(small(33, 9, 2, 3, variant="autoformer", **layers).double().eval())
    for embedding in (model.past_embedding, model.token_embedding):
        assert embedding.calendar is not None
        assert embedding.token.bias is not None
        nn.init.zeros_(embedding.calendar.bias)  # biases that it has not
        nn.init.zeros_(embedding.token.bias)
    got = model(wave(33, 2, 0.31), wave(33, 3, 0.17) / 2, wave(9, 3, 0.23) / 2)
    assert_close(got[0, [0, 4, 8]], torch.tensor(COPY).double(), atol=2e-6, rtol=0)


def test_as_many_parameters_as_the_authors_code() -> None:
    """Of their defaults, which are those for ETTh1 with its 7 channels; counted there."""
    model = Informer(96, 24, 7, 4)
    assert sum(p.numel() for p in model.parameters()) == 11_330_055


# What every forecaster promises

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "full": {"attention": "full"},
    "no distilling": {"distil": False},
    "no mix": {"mix": False, "decoder_layers": 2, "encoder_layers": 3},
    "no start": {"label_length": 0},
}


@contextmanager
def fixed_choice() -> Iterator[None]:
    """Queries chosen without rounding in question: all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(informer, "log_count", lambda factor, length: length)
        yield


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize(
    ("lookback", "horizon", "channels", "features"), [(96, 24, 3, 4), (37, 13, 1, 0), (3, 1, 3, 2)]
)
def test_promises_of_a_forecaster(
    lookback: int, horizon: int, channels: int, features: int, options: dict[str, Any]
) -> None:
    model = small(lookback, horizon, channels, features, **{"dropout": 0.1, **options})
    given = inputs(5, lookback, horizon, channels, features)
    model.train()
    F.mse_loss(model(*given), torch.randn(5, horizon, channels)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    model.eval()
    got = model(*given)
    assert got.shape == (5, horizon, channels)
    assert_close(model(*given), got, atol=0, rtol=0)
    assert_close(model(*(x[2:3] for x in given)), got[2:3], atol=ATOL, rtol=ATOL)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(*given).isfinite().all()
    with fixed_choice():  # a near tie may fall the other way in bfloat16
        got = model(*given)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(*given)
    assert ((rough - got).square().mean() / got.square().mean()).sqrt().item() < 0.03


@pytest.mark.parametrize("attention", ["prob", "full"])
def test_training_in_bfloat16(attention: Any) -> None:
    model = small(48, 12, 2, 3, attention=attention)
    with torch.autocast("cpu", torch.bfloat16):
        forecast = model(*inputs(4, 48, 12, 2, 3))
    forecast.float().square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_every_input_reaches_every_forecast() -> None:
    """Channels are mixed, and so are steps."""
    model = small(48, 12, 3, 4, attention="full", mix=False).double().eval()
    given = [x.double() for x in inputs(1, 48, 12, 3, 4)]
    first = model(*given)
    for i, (step, column) in enumerate([(0, 0), (0, 1), (0, 3)]):
        changed = [x.clone() for x in given]
        changed[i][0, step, column] += 0.5
        assert (model(*changed) != first).all(), i


def test_dropout_acts_in_training_only() -> None:
    given = inputs(2, 40, 8, 2, 3)
    model = small(40, 8, 2, 3, attention="full", dropout=0.5)
    assert not torch.equal(model(*given), model(*given))
    model.eval()
    assert torch.equal(model(*given), model(*given))


def test_learns_a_wave_from_the_calendar() -> None:
    """The amplitude is in the past; the phase of the future is in its calendar only."""
    model = small(24, 8, 1, 1, dim=16, heads=2, label_length=8)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)

    def loss(batch: int) -> Tensor:
        amplitude, phase = torch.rand(batch, 1, 1) + 0.5, torch.rand(batch, 32, 1) - 0.5
        series = amplitude * (2 * math.pi * phase).sin()
        forecast = model(series[:, :24], phase[:, :24], phase[:, 24:])
        return F.mse_loss(forecast, series[:, 24:]) / series.var()

    for _ in range(150):
        optimiser.zero_grad()
        loss(32).backward()
        optimiser.step()
    model.eval()
    assert loss(256).item() < 0.3


# of main_informer.py, all of which their commands for ETTh1 leave as they are at horizon 48
AUTHORS_DEFAULTS = {
    "label_length": 48,
    "factor": 5,
    "mix": True,
    "heads": 8,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "feedforward": 2048,
    "dropout": 0.05,
}


def test_options_reach_the_model_from_the_command_line() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "model")
    sizes = [f"--model.{name}=60" for name in ("lookback", "horizon", "channels", "time_features")]
    chosen = ["--model.attention=full", "--model.dim=32", "--model.distil=false"]
    path = "timeseries.models.informer.Informer"
    given = parser.parse_args([f"--model={path}", *sizes, *chosen])
    saved = given.model.init_args.as_dict()
    assert {name: saved[name] for name in AUTHORS_DEFAULTS} == AUTHORS_DEFAULTS
    model = parser.instantiate(given).model
    assert model.head.in_features == 32
    assert model.encoder.layers[0].attention.options.attention == "full"
    assert len(model.encoder.distilling) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lookback": 0}, "lookback is 0"),
        ({"horizon": 0}, "horizon is 0"),
        ({"channels": 0}, "channels is 0"),
        ({"dim": 0}, "dim is 0"),
        ({"heads": 0}, "heads is 0"),
        ({"heads": 5}, "dim is 512 and heads 5; heads must divide dim"),
        ({"feedforward": 0}, "feedforward is 0"),
        ({"factor": 0}, "factor is 0"),
        ({"encoder_layers": 0}, "encoder_layers is 0"),
        ({"decoder_layers": 0}, "decoder_layers is 0"),
        ({"dropout": 1.0}, r"dropout is 1.0; it must lie in [0, 1)"),
        ({"attention": "sparse"}, "attention is 'sparse'; give one of prob, full"),
        ({"variant": "copy"}, "variant is 'copy'; give one of authors, autoformer"),
        ({"label_length": 97}, "label_length is 97; it must lie between 0 and lookback 96"),
        ({"label_length": -1}, "label_length is -1"),
    ],
)
def test_forecaster_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Informer(**{"lookback": 96, "horizon": 24, "channels": 3, **options})
