"""LMUFormer against PyTorch's functions and SciPy's linear systems put together by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.signal import cont2discrete, dlsim
from torch import Tensor, nn
from torch.nn import functional as F

from core.mixers.lmu import delay_system
from core.sequences import Sequences
from timeseries.models.lmuformer import LIF, BatchNorm, CausalConv, LMUFormer, PrefixMean, Spike

CHANNELS, CLASSES, DIM, TIME, THETA = 3, 4, 10, 26, 12.0


@pytest.fixture(params=[False, True], ids=["real", "spiking"])
def spiking(request: pytest.FixtureRequest) -> bool:
    return request.param


def signal(batch: int = 3, time: int = TIME, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(batch, time, CHANNELS, dtype=torch.float64, generator=generator)


def build(spiking: bool, depth: int = 2) -> LMUFormer:
    """In eval mode, with running statistics and scales as after training, so that neurons fire."""
    torch.manual_seed(0)
    model = LMUFormer(
        CHANNELS, CLASSES, dim=DIM, depth=depth, theta=THETA, expand=1.5, spiking=spiking
    ).double()
    norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.uniform_(norm.weight, 0.8, 1.2)
        nn.init.uniform_(norm.bias, 0.3, 0.7)
    model(signal(16, seed=5))
    return model.eval()


def lif(x: Tensor, threshold: float = 1.0) -> Tensor:
    """(batch, dim, time) currents -> spikes, tau = 2."""
    out, v = [], torch.zeros_like(x[..., 0])
    for t in range(x.shape[-1]):
        v = (v + x[..., t]) / 2
        out.append((v >= threshold).double())
        v = torch.where(v >= threshold, 0.0, v)
    return torch.stack(out, -1)


def scipy_memory(u: Tensor, order: int) -> Tensor:
    """(batch, 1, time) -> (batch, order, time)."""
    assert u.any()  # else nothing is compared
    A, B = (x.numpy() for x in delay_system(order, THETA))
    eye, none = np.eye(order), np.zeros((order, 1))
    Ad, Bd, *_ = cont2discrete((A, B, eye, none), 1.0, method="zoh")
    rows = [dlsim((Ad, Bd, eye, none, 1.0), np.append(row, 0.0))[2][1:].T for row in u[:, 0]]
    return torch.from_numpy(np.stack(rows))


class ByHand:
    """The network in (batch, dim, time), taking the model's layers in the order of use."""

    def __init__(self, model: LMUFormer) -> None:
        learned = (nn.Conv1d, nn.Linear, nn.BatchNorm1d)
        self.layers = [m for m in model.modules() if isinstance(m, learned)]

    def conv(self, x: Tensor) -> Tensor:
        layer = self.layers.pop(0)
        if isinstance(layer, nn.Conv1d):
            return F.conv1d(F.pad(x, (2, 0)), layer.weight)
        return F.conv1d(x, layer.weight[..., None], layer.bias)

    def norm(self, x: Tensor) -> Tensor:
        n = self.layers.pop(0)
        return F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias)

    def real(self, x: Tensor, depth: int) -> Tensor:
        for _ in range(4):
            x = self.norm(self.conv(x).relu())
        x = x + self.conv(x)
        for _ in range(depth):
            m = scipy_memory(self.conv(x).relu().detach(), DIM)
            h = self.conv(torch.cat([m, x], 1)).relu()
            x = x + self.norm(self.conv(h))
            h = F.gelu(self.norm(self.conv(x)))
            x = x + self.norm(self.conv(h)).relu()
        return x

    def spiking(self, x: Tensor, depth: int) -> Tensor:
        for _ in range(3):
            x = lif(self.norm(self.conv(x)))
        x = self.conv(x)
        x = x + self.conv(lif(self.norm(x)))
        for _ in range(depth):
            s = lif(self.norm(x), 0.5)
            m = scipy_memory(lif(self.norm(self.conv(s))).detach(), 2 * DIM)
            h = lif(self.norm(self.conv(torch.cat([lif(self.norm(m)), s], 1))))
            x = x + self.norm(self.conv(h))
            h = lif(self.norm(self.conv(lif(self.norm(x)))))
            x = x + self.conv(h)
        return lif(self.norm(x))


@pytest.mark.parametrize("depth", [1, 2])
def test_the_network_by_hand(spiking: bool, depth: int) -> None:
    model, x = build(spiking, depth), signal()
    by_hand = ByHand(model)
    body = by_hand.spiking if spiking else by_hand.real
    features = body(x.transpose(1, 2), depth).transpose(1, 2)
    assert features.std() > 0.1
    prefixes = [features[:, : t + 1].mean(1) for t in range(TIME)]
    expected = torch.stack([F.linear(p, model.head.weight, model.head.bias) for p in prefixes], 1)
    assert by_hand.layers == [model.head]
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-10)


def test_as_many_parameters_as_the_authors_code() -> None:
    """Speech Commands: 128 mel bands, 35 words; counted there."""
    for spiking, count in ((False, 1_621_796), (True, 1_689_894)):
        model = LMUFormer(128, 35, spiking=spiking)
        assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("cuts", [tuple(range(1, TIME)), (1,), (TIME - 1,), (9, 10, 17)])
def test_streaming_equals_forward(spiking: bool, cuts: tuple[int, ...]) -> None:
    model, x = build(spiking), signal()
    state = model.init_state(len(x))
    pieces = []
    for piece in torch.tensor_split(x, cuts, dim=1):
        logits, state = model.extend(piece, state)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), model(x), rtol=1e-9, atol=1e-10)


def test_steps_equal_forward(spiking: bool) -> None:
    model, x = build(spiking), signal()
    state, steps = model.init_state(len(x)), []
    for t in range(TIME):
        logits, state = model.step(x[:, t], state)
        steps.append(logits)
    torch.testing.assert_close(torch.stack(steps, 1), model(x), rtol=1e-9, atol=1e-10)


def test_steps_in_float32(spiking: bool) -> None:
    model, x = build(spiking).float(), signal().float()
    state, steps = model.init_state(len(x)), []
    for t in range(TIME):
        logits, state = model.step(x[:, t], state)
        steps.append(logits)
    torch.testing.assert_close(torch.stack(steps, 1), model(x), rtol=1e-5, atol=1e-5)


def test_each_prefix_is_answered_as_if_it_were_all(spiking: bool) -> None:
    model, x = build(spiking), signal()
    whole = model(x)
    assert whole.shape == (3, TIME, CLASSES)
    for t in (1, 2, 11, TIME - 1):
        later = x.clone()
        later[:, t:] = 50.0
        torch.testing.assert_close(model(x[:, :t]), whole[:, :t], rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(model(later)[:, :t], whole[:, :t], rtol=1e-9, atol=1e-10)


def test_rows_do_not_meet(spiking: bool) -> None:
    model, x = build(spiking), signal()
    torch.testing.assert_close(model(x[1:2]), model(x)[1:2], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("current", [1.01, 1.3, 1.9, 2.0, 7.0])
@pytest.mark.parametrize("tau", [1.0, 2.0, 5.0])
def test_neurons_fire_at_the_rate_of_the_closed_form(current: float, tau: float) -> None:
    """From 0, v after n steps is I (1 - (1 - 1/tau)^n); it starts anew after each spike."""
    leak = 1 - 1 / tau
    period = 1 if leak == 0 else math.ceil(math.log(1 - 1 / current) / math.log(leak) - 1e-9)
    spikes = LIF(1, tau=tau)(torch.full((1, 50, 1), current, dtype=torch.float64))[0, :, 0]
    expected = [float((n + 1) % period == 0) for n in range(50)]
    assert spikes.tolist() == expected


def test_weak_current_never_fires() -> None:
    spikes, v = LIF(2)(torch.full((1, 40, 2), 0.999), state=torch.zeros(1, 2))
    assert not spikes.any()
    torch.testing.assert_close(v, torch.full((1, 2), 0.999))


def test_surrogate_gradient_is_that_of_a_sigmoid() -> None:
    x = torch.linspace(-2, 2, 41, dtype=torch.float64, requires_grad=True)
    weight = torch.linspace(1, 3, 41, dtype=torch.float64)
    (got,) = torch.autograd.grad((Spike.apply(x) * weight).sum(), x)
    (expected,) = torch.autograd.grad((torch.sigmoid(4 * x) * weight).sum(), x)
    torch.testing.assert_close(got, expected)


def test_gradient_through_time_does_not_pass_the_reset() -> None:
    x = signal(1, 30)[..., :1].requires_grad_()
    loss, v = torch.zeros((), dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for t in range(30):
        v = v + (x[0, t] - v) / 2
        fired = v >= 1
        soft = torch.sigmoid(4 * (v - 1))
        loss = loss + (t + 1) * (soft + (fired.double() - soft).detach()).sum()
        v = torch.where(fired, 0 * v, v)
    weight = torch.arange(1.0, 31.0, dtype=torch.float64)[:, None]
    spikes = LIF(1)(x)
    assert 0 < spikes.sum() < 30
    (expected,) = torch.autograd.grad(loss, x)
    (got,) = torch.autograd.grad((spikes[0] * weight).sum(), x)
    torch.testing.assert_close(got, expected)


def test_only_spikes_reach_the_multiplications_of_a_spiking_model() -> None:
    model = build(spiking=True)
    seen: list[Tensor] = []
    first = model.body.layers[0].conv
    for layer in model.body.modules():
        if isinstance(layer, nn.Conv1d | nn.Linear) and layer is not first:
            layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(signal())
    assert len(seen) == 4 + 2 * 5
    for x in seen:
        assert set(x.unique().tolist()) == {0.0, 1.0}


def test_training_statistics_are_over_batch_and_time() -> None:
    norm, x = BatchNorm(CHANNELS).double(), signal() + 3
    expected = F.batch_norm(x.transpose(1, 2), None, None, training=True).transpose(1, 2)
    torch.testing.assert_close(norm(x), expected)
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean((0, 1)))


def test_training_statistics_leave_padding_out() -> None:
    norm, x = BatchNorm(CHANNELS).double(), signal() + 3
    real = Sequences.padded([TIME, 7, 1], TIME).real
    expected = F.batch_norm(x[real], None, None, training=True)
    x[~real] = 1e6
    y = norm(x, real=real)
    torch.testing.assert_close(y[real], expected)
    assert not y[~real].any()
    torch.testing.assert_close(norm.running_mean, 0.1 * x[real].mean(0))
    norm.eval()
    torch.testing.assert_close(norm(x, real=real), norm(x))


def test_padded_equals_unpadded(spiking: bool) -> None:
    model, x, lengths = build(spiking), signal(), [TIME, 9, 1]
    sequences = Sequences.padded(lengths, TIME)
    x[~sequences.real] = torch.nan
    logits = model(x, sequences)
    for row, length in enumerate(lengths):
        alone = model(x[row : row + 1, :length])[0]
        torch.testing.assert_close(logits[row, :length], alone, rtol=1e-9, atol=1e-10)


def test_more_padding_trains_the_same(spiking: bool) -> None:
    x, lengths = signal(), [TIME, 9, 4]
    found = []
    for more in (0, 15):
        model = build(spiking).train()
        padded = F.pad(x, (0, 0, 0, more), value=9.0)
        sequences = Sequences.padded(lengths, TIME + more)
        logits = model(padded, sequences)[sequences.real]
        logits.square().sum().backward()
        norms = [m.running_var for m in model.modules() if isinstance(m, BatchNorm)]
        found.append([logits, *norms, *(p.grad for p in model.parameters())])
    for short, long in zip(*found, strict=True):
        torch.testing.assert_close(short, long, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_training_reaches_every_parameter(spiking: bool, dtype: torch.dtype) -> None:
    model, x = build(spiking).float().train(), signal(8).float()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        logits = model(x)
    F.cross_entropy(logits[:, -1].float(), torch.arange(8) % CLASSES).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_learns_what_came_first(spiking: bool) -> None:
    """A pulse at the start tells the class; noise follows until the end."""
    torch.manual_seed(0)
    model = LMUFormer(1, 2, dim=16, theta=24, expand=2, spiking=spiking)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    draw = torch.Generator().manual_seed(0)

    def batch() -> tuple[Tensor, Tensor]:
        labels = torch.randint(2, (64,), generator=draw)
        x = 0.5 * torch.randn(64, 24, 1, generator=draw)
        x[:, 2:5, 0] += torch.where(labels == 1, 2.0, -2.0)[:, None]
        return x, labels

    for _ in range(40):
        x, labels = batch()
        loss = F.cross_entropy(model(x)[:, -1], labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    x, labels = batch()
    right = (model(x).argmax(-1) == labels[:, None]).double().mean(0)
    assert right[-1] > 0.9
    assert right[0] < 0.75  # nothing to know yet


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: LMUFormer(classes=2), "channels must be at least 1, got 0"),
        (lambda: LMUFormer(3), "classes must be at least 1, got 0"),
        (lambda: LMUFormer(3, 2, depth=0), "depth must be at least 1"),
        (lambda: LMUFormer(3, 2, dim=4, expand=0.1), r"expand \* dim must be at least 1"),
        (lambda: LMUFormer(3, 2, theta=-1.0), "theta must be positive"),
        (lambda: LMUFormer(3, 2, spiking=True, tau=0.5), "tau must be at least 1 step"),
        (lambda: LMUFormer(3, 2, dim=4)(torch.zeros(1, 5, 2)), r"\(batch, time >= 1, 3\)"),
        (lambda: LMUFormer(3, 2, dim=4)(torch.zeros(1, 0, 3)), r"got \(1, 0, 3\)"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        call()


def test_state_of_a_layer() -> None:
    conv, mean = CausalConv(2, 5), PrefixMean(5)
    x = torch.randn(1, 4, 2)
    y, kept = conv(x, state=conv.init_state(1))
    torch.testing.assert_close(kept, x[:, -2:])
    averaged, (total, count) = mean(y, state=mean.init_state(1))
    torch.testing.assert_close(averaged[:, -1], y.mean(1))
    torch.testing.assert_close(total, y.sum(1).double())
    assert count.item() == 4
