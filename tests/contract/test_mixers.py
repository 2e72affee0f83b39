"""What every mixer in ``core.mixers.MIXERS`` must do, in every pattern it claims."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from core.mixers import MIXERS, PATTERNS, Mixer, UnsupportedPattern
from core.patterns import GlobalTokens, SlidingWindow
from core.sequences import Sequences

DIM, LENGTH = 32, 21

# Beside each mixer's defaults, the options whose arithmetic takes another path.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "Aaren": [{"heads": 2}],
    "Attention": [
        {"heads": 4, "kv_heads": 2},
        {"pattern": SlidingWindow(5)},
        {"pattern": SlidingWindow(3) | GlobalTokens(2)},
    ],
    "ButterflyConv": [{"max_length": LENGTH, "squash": 0.0, "smooth": 5}],
    "Hyena": [{"order": 3, "shift": 0.05}, {"train_features": True}],
    "S4": [{"state": 5, "discretisation": "zoh"}],
    "S4D": [
        {"initialisation": "real"},
        {"initialisation": "inv", "discretisation": "bilinear"},
    ],
    "LMU": [{"inputs": 3, "order": 7, "theta": 5.5, "input_activation": "identity"}],
    "LongConv": [
        {"max_length": LENGTH, "smooth": 7},
        {"initialisation": "random", "squash": 0.0, "kernel_dropout": 0.2},
    ],
    "RelativeAttention": [{"heads": 4, "max_distance": 6}],
    "Mamba2": [{"head_dim": 16, "groups": 2, "state": 8}],
}
CASES = [(cls, options) for cls in MIXERS for options in [{}, *OPTIONS.get(cls.__name__, [])]]


def build(cls: type[Mixer], options: dict[str, Any], causal: bool) -> Mixer:
    torch.manual_seed(0)
    return cls(DIM, causal=causal, **options).double().eval()


def claimed(cls: type[Mixer], options: dict[str, Any]) -> list[str]:
    modules = {causal: build(cls, options, causal) for causal in sides(cls)}
    return [p for p in sorted(PATTERNS) for c, m in modules.items() if asks(p, c) in m.patterns]


def sides(cls: type[Mixer]) -> list[bool]:
    """With which values of ``causal`` the mixer can be built at all."""
    return [c for c in (True, False) if any(asks(p, c) for p in cls.patterns)]


def asks(pattern: str, causal: bool) -> str | None:
    return pattern if pattern.startswith("causal") == causal else None


def case_id(value: tuple[Any, ...]) -> str:
    cls, options, *pattern = value
    return "-".join([cls.__name__, ",".join(f"{k}={v}" for k, v in options.items()), *pattern])


CLAIMS = [(*case, pattern) for case in CASES for pattern in claimed(*case)]
RECURRENT = [case for case in CASES if case[0].recurrent]


@pytest.fixture(params=CASES, ids=case_id)
def case(request: pytest.FixtureRequest) -> tuple[type[Mixer], dict[str, Any]]:
    return request.param


@pytest.fixture(params=CLAIMS, ids=case_id)
def mix(request: pytest.FixtureRequest) -> Mix:
    cls, options, pattern = request.param
    return Mix(build(cls, options, pattern.startswith("causal")), pattern)


@pytest.fixture(params=[c for c in CLAIMS if c[2].startswith("causal")], ids=case_id)
def causal_mix(request: pytest.FixtureRequest) -> Mix:
    cls, options, pattern = request.param
    return Mix(build(cls, options, causal=True), pattern)


@pytest.fixture(params=[c for c in CLAIMS if c[2] == "noncausal_self"], ids=case_id)
def two_sided_mix(request: pytest.FixtureRequest) -> Mix:
    cls, options, pattern = request.param
    return Mix(build(cls, options, causal=False), pattern)


@pytest.fixture(params=RECURRENT, ids=case_id)
def recurrent(request: pytest.FixtureRequest) -> Mixer:
    cls, options = request.param
    return build(cls, options, causal=True)


class Mix:
    """A mixer and, for a cross pattern, a fixed context."""

    def __init__(self, module: Mixer, pattern: str) -> None:
        self.module = module
        self.causal = pattern.startswith("causal")
        self.cross = pattern.endswith("cross")

    def context(self, batch: int, dtype: torch.dtype = torch.float64) -> Tensor | None:
        if not self.cross:
            return None
        generator = torch.Generator().manual_seed(7)
        return torch.randn(1, 9, DIM, generator=generator).to(dtype).expand(batch, -1, -1)

    def __call__(self, x: Tensor, sequences: Sequences | None = None) -> Tensor:
        return self.module(x, self.context(len(x), x.dtype), sequences)


def sample(batch: int = 2, length: int = LENGTH, seed: int = 1) -> Tensor:
    return torch.randn(
        batch, length, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def test_shape_and_dtype(mix: Mix) -> None:
    for dtype in (torch.float64, torch.float32):
        mix.module.to(dtype)
        y = mix(sample().to(dtype))
        assert y.shape == (2, LENGTH, DIM)
        assert y.dtype == dtype
        assert torch.isfinite(y).all()


def test_output_depends_on_the_input(mix: Mix) -> None:
    assert not torch.allclose(mix(sample(seed=1)), mix(sample(seed=2)))


def test_noncausal_self_sees_both_sides(two_sided_mix: Mix) -> None:
    mix = two_sided_mix
    x = sample(1)
    changed = x.clone()
    changed[:, -1] += 1
    assert not torch.allclose(mix(x)[:, -2], mix(changed)[:, -2])


def test_no_future_leak_by_perturbation(causal_mix: Mix) -> None:
    mix = causal_mix
    x = sample()
    for cut in (1, LENGTH // 2, LENGTH - 1):
        changed = x.clone()
        changed[:, cut:] = torch.randn_like(changed[:, cut:])
        torch.testing.assert_close(mix(changed)[:, :cut], mix(x)[:, :cut], rtol=1e-9, atol=1e-10)


def test_no_future_leak_by_gradient(causal_mix: Mix) -> None:
    mix = causal_mix
    x = sample().requires_grad_()
    cut = LENGTH // 2
    (grad,) = torch.autograd.grad(mix(x)[:, : cut + 1].square().sum(), x)
    assert grad[:, cut + 1 :].abs().max() < 1e-10
    assert grad[:, : cut + 1].abs().max() > 1e-6


@pytest.mark.parametrize("filling", [0.0, 3.0, float("nan")])
def test_padding_changes_nothing(mix: Mix, filling: float) -> None:
    lengths = [LENGTH, 13, 1]
    x = sample(3)
    for row, length in enumerate(lengths):
        x[row, length:] = filling
    y = mix(x, Sequences.padded(lengths, LENGTH))
    for row, length in enumerate(lengths):
        alone = mix(x[row : row + 1, :length])
        torch.testing.assert_close(y[row : row + 1, :length], alone, rtol=1e-8, atol=1e-9)
        assert (y[row, length:] == 0).all()


def test_left_padding_changes_nothing(mix: Mix) -> None:
    document = torch.zeros(2, LENGTH, dtype=torch.int32)
    document[1, :6] = -1
    x = sample(2)
    x[1, :6] = float("nan")
    y = mix(x, Sequences(document))
    torch.testing.assert_close(y[1:, 6:], mix(x[1:, 6:]), rtol=1e-8, atol=1e-9)


def test_packing_equals_each_document_alone(mix: Mix) -> None:
    rows = [[5, 1, 9], [LENGTH], [7, 11, 2, 1]]
    x = sample(3)
    x[0, 15:] = float("nan")
    y = mix(x, Sequences.packed(rows, LENGTH))
    for row, parts in enumerate(rows):
        start = 0
        for part in parts:
            alone = mix(x[row : row + 1, start : start + part])
            torch.testing.assert_close(
                y[row : row + 1, start : start + part], alone, rtol=1e-8, atol=1e-9
            )
            start += part


def test_padding_gets_no_gradient(mix: Mix) -> None:
    x = sample().requires_grad_()
    y = mix(x, Sequences.padded([LENGTH, 8], LENGTH))
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    assert (grad[1, 8:] == 0).all()
    assert torch.isfinite(grad).all()


def test_step_equals_forward(recurrent: Mixer) -> None:
    x = sample()
    state = recurrent.init_state(2, dtype=torch.float64)
    steps = []
    for t in range(LENGTH):
        y, state = recurrent.step(x[:, t], state)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, 1), recurrent(x), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("cuts", [(4,), (1, 2), (LENGTH - 1,), (7, 14)])
def test_pieces_equal_whole(recurrent: Mixer, cuts: tuple[int, ...]) -> None:
    x = sample()
    state = recurrent.init_state(2, dtype=torch.float64)
    pieces = []
    for piece in torch.tensor_split(x, cuts, dim=1):
        y, state = recurrent(piece, state=state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), recurrent(x), rtol=1e-8, atol=1e-9)
    y, _ = recurrent.step(sample(seed=3)[:, 0], state)
    whole = recurrent(torch.cat([x, sample(seed=3)[:, :1]], 1))
    torch.testing.assert_close(y, whole[:, -1], rtol=1e-8, atol=1e-9)


def test_state_with_sequences_is_refused(recurrent: Mixer) -> None:
    with pytest.raises(ValueError, match="take no sequences"):
        recurrent(
            sample(),
            sequences=Sequences.padded([3, 4], LENGTH),
            state=recurrent.init_state(2, dtype=torch.float64),
        )


def test_deterministic(mix: Mix) -> None:
    torch.testing.assert_close(mix(sample()), mix(sample()), rtol=0, atol=0)


def test_state_dict_round_trip(mix: Mix) -> None:
    twin = copy.deepcopy(mix.module)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    twin.load_state_dict(mix.module.state_dict())
    x, context = sample(), mix.context(2)
    torch.testing.assert_close(twin(x, context), mix(x), rtol=0, atol=0)


def test_backward_is_finite_and_reaches_every_parameter(mix: Mix) -> None:
    for length in (1, LENGTH):
        mix.module.zero_grad()
        x = sample(length=length).requires_grad_()
        mix(x).square().sum().backward()
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()
        for key, parameter in mix.module.named_parameters():
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key


def test_bf16_autocast(mix: Mix) -> None:
    mix.module.float()
    x = sample().float().requires_grad_()
    whole = mix(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = mix(x)
    half.float().square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    error = (half.float() - whole).square().mean().sqrt() / whole.square().mean().sqrt()
    assert error < 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_in_half_precision(mix: Mix, dtype: torch.dtype) -> None:
    half = mix.module.to(dtype)
    x = sample().to(dtype)
    y = mix(x)
    assert y.dtype == dtype
    if mix.module.recurrent and mix.causal and not mix.cross:
        state, steps = half.init_state(2, dtype=dtype), []
        for token in x.unbind(1):
            now, state = half.step(token, state)
            steps.append(now)
        torch.testing.assert_close(torch.stack(steps, 1), y, rtol=0.05, atol=0.02)
    mix.module.double()  # the same weights
    whole = mix(x.double())
    error = (y.double() - whole).square().mean().sqrt() / whole.square().mean().sqrt()
    assert error < 0.2  # 0.17 of Hyena, whose filters are sines; 0.02 of most


def test_unclaimed_patterns_are_refused(case: tuple[type[Mixer], dict[str, Any]]) -> None:
    cls, options = case
    for pattern in sorted(PATTERNS - set(claimed(cls, options))):
        # at construction if neither self nor cross exists with this causality
        with pytest.raises(UnsupportedPattern, match=f"compute {pattern.split('_')[0]}"):
            Mix(build(cls, options, pattern.startswith("causal")), pattern)(sample())


def test_wrong_width_is_refused(mix: Mix) -> None:
    with pytest.raises(ValueError, match=rf"must be \(batch, length, {DIM}\)"):
        mix(torch.zeros(2, 5, DIM + 1))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (None, "x must be a tensor, got NoneType"),
        (torch.zeros(2, 5, DIM).long(), r"floating point, got \(2, 5, 32\) torch.int64"),
        (torch.zeros(2, 0, DIM), r"a length of at least 1, .* got \(2, 0, 32\)"),
    ],
)
def test_what_is_no_input_is_named(mix: Mix, x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{type(mix.module).__name__}: .*{message}"):
        mix.module(x)


def test_what_describes_no_sequences_is_named(mix: Mix) -> None:
    x, real = sample(), torch.ones(2, LENGTH)
    with pytest.raises(ValueError, match=r"sequences must be core.sequences.Sequences, got Tensor"):
        mix(x, real)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"sequences describe .* on meta, x is .* on cpu"):
        mix(x, Sequences(real.int()).to("meta"))


def test_a_state_that_does_not_fit_is_named(recurrent: Mixer) -> None:
    x, state = sample(batch=3), recurrent.init_state(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"state is .*, x has 3 sequences"):
        recurrent(x, state=state)
    with pytest.raises(ValueError, match=r"state is .*, x has 3 sequences"):
        recurrent.step(x[:, 0], state)
    with pytest.raises(ValueError, match="state must be one that init_state gives, got int"):
        recurrent(x, state=3)
    with pytest.raises(ValueError, match="state is \\(\\), x has 3 sequences"):
        recurrent(x, state=torch.zeros(()))
    for wrong in (x[:2, :1], x[:2, 0].long()):
        with pytest.raises(ValueError, match=r"x of a step must be \(batch, 32\), floating point"):
            recurrent.step(wrong, state)


def options_that_do_not_fit() -> list[tuple[type[Mixer], str, object]]:
    """Each option that is a number, with values that are none it can take."""
    bad: dict[str, list[object]] = {"int": [2.5, "3", -1, 0], "float": [float("nan"), "x"]}
    found = []
    for cls in MIXERS:
        for name, option in inspect.signature(cls).parameters.items():
            kind = str(option.annotation).removesuffix(" | None")
            found += [(cls, name, value) for value in bad.get(kind, [])]
    # no inner layer is a number of them
    return [(c, name, v) for c, name, v in found if name != "filter_layers" or v == "3"]


@pytest.mark.parametrize(("cls", "name", "value"), options_that_do_not_fit())
def test_options_that_do_not_fit_are_named(cls: type[Mixer], name: str, value: object) -> None:
    options = {"causal": sides(cls)[0], "dim": DIM, name: value}
    with pytest.raises(ValueError, match=rf"^\w+: {name}\W") as caught:
        cls(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cls", MIXERS)
def test_causal_is_a_boolean(cls: type[Mixer]) -> None:
    """A "no" would count as True."""
    for value in ("no", 1, None):
        with pytest.raises(ValueError, match=rf"^{cls.__name__}: causal must be True or False"):
            cls(DIM, causal=value)


@pytest.mark.parametrize(
    "cls", [cls for cls in MIXERS if "max_length" in inspect.signature(cls).parameters]
)
def test_more_tokens_than_filters_reach_are_refused_with_what_to_do(cls: type[Mixer]) -> None:
    options: dict[str, int] = {"max_length": LENGTH - 1}
    named = f"^{cls.__name__}: {LENGTH} tokens.*; build it with more"
    with pytest.raises(ValueError, match=named):
        cls(DIM, **options)(sample().float())


def test_sequences_of_another_shape_are_refused(mix: Mix) -> None:
    with pytest.raises(ValueError, match="sequences describe"):
        mix(sample(), Sequences.padded([3, 4], LENGTH + 1))


def test_compiles_whole(mix: Mix) -> None:
    mix.module.float()
    x = sample().float()
    context = mix.context(2, torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(mix.module, fullgraph=True, backend="aot_eager")
    expected, got = mix.module(x, context), compiled(x, context)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    got.square().sum().backward()
