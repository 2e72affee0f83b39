"""By which way an op is called."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from core.ops.dispatch import seen_by_autograd_alone
from core.ops.fft_conv import _Direct, fft_conv
from core.ops.prefix_attention import prefix_attention
from core.ops.ssd import ssd


class Marked(Tensor):
    """A tensor of a class of its own."""


def negated(x: Tensor) -> Tensor:
    """-x, of which no kernel has computed the sign yet."""
    found = torch.complex(torch.zeros_like(x), x).conj().imag
    assert found.is_neg()
    return found


def compiled(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    torch.compile(function, fullgraph=True, backend="eager")(x)


def counted(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with FlopCounterMode(display=False):
        function(x)


def traced(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    torch.jit.trace(function, x, check_trace=False)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
@pytest.mark.parametrize(
    ("call", "expected"),
    [
        pytest.param(lambda f, x: f(x), True, id="plain"),
        pytest.param(lambda f, x: f(torch.nn.Parameter(x)), True, id="parameter"),
        pytest.param(lambda f, x: f(x.as_subclass(Marked)), False, id="subclass"),
        pytest.param(lambda f, x: torch.func.vmap(f)(x), False, id="vmap"),
        pytest.param(lambda f, x: f(negated(x)), False, id="negation to be computed"),
        pytest.param(counted, False, id="dispatch mode"),
        pytest.param(compiled, False, id="compiled"),
        pytest.param(traced, False, id="traced"),
    ],
)
def test_what_autograd_alone_sees(call: Callable[..., object], expected: bool) -> None:
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append(seen_by_autograd_alone(x, None))
        return x + 1

    call(look, torch.zeros(3))
    assert seen == [expected]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_both_ways_are_one_op(interpreted_triton: None, dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    u, k, skip = torch.randn(2, 3, 70).to(dtype), torch.randn(3, 70), torch.randn(3)
    leaves = [x.requires_grad_() for x in (u, k, skip)]

    def results() -> list[Tensor]:
        y = fft_conv(u, k, skip=skip)
        return [y, *torch.autograd.grad(y.square().sum(), leaves)]

    directly = results()
    assert "_Direct" in str(directly[0].grad_fn)
    with FlopCounterMode(display=False):
        dispatched = results()
    assert "_Direct" not in str(dispatched[0].grad_fn)
    for got, expected in zip(directly, dispatched, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("way", "message"),
    [
        pytest.param(nullcontext, "once_differentiable", id="directly"),
        pytest.param(
            partial(FlopCounterMode, display=False), "no autograd formula", id="dispatched"
        ),
    ],
)
def test_differentiable_once_both_ways(
    way: Callable[[], AbstractContextManager[object]], message: str, interpreted_triton: None
) -> None:
    pytest.importorskip("triton")
    u, k = torch.randn(1, 2, 9, requires_grad=True), torch.randn(2, 9)
    with way():
        y = fft_conv(u, k)
        (gradient,) = torch.autograd.grad(y.square().sum(), u, create_graph=True)
        with pytest.raises(RuntimeError, match=message):
            gradient.sum().backward()


@pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning")  # inside torch.func.jvp
@pytest.mark.parametrize("op", ["fft_conv", "ssd", "prefix_attention"])
def test_forward_mode_is_refused(op: str) -> None:
    """Of an operator PyTorch gives zeros for a derivative that it cannot compute."""
    x, scores, keys = torch.randn(2, 8, 3, 4), -torch.rand(2, 8, 3), torch.randn(2, 8, 1, 4)
    call: Callable[[Tensor], object] = {
        "fft_conv": lambda x: fft_conv(x[..., 0], torch.ones(8, 3)),
        "ssd": lambda x: ssd(x, scores, keys, keys),
        "prefix_attention": lambda x: prefix_attention(scores, x),
    }[op]
    with pytest.raises(NotImplementedError, match=f"^{op}: differentiates backward only"):
        torch.func.jvp(call, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        call(x)
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.raises(NotImplementedError, match=f"^{op}: differentiates backward only"):
            call(dual)


def test_a_gradient_whose_negation_is_to_be_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def gradients(dy: Tensor, *_: object) -> tuple[Tensor, ...]:
        seen.append(dy)
        return tuple(torch.zeros(1, 2, 5) for _ in range(5))

    monkeypatch.setattr("core.ops.fft_conv._gradients", gradients)
    u, dy = torch.randn(1, 2, 5, requires_grad=True), torch.randn(1, 2, 5)
    y = _Direct.apply(u, torch.randn(2, 5), None, None, None, 0, False, 1.0)
    y.backward(negated(dy))
    (given,) = seen
    assert not given.is_neg()
    torch.testing.assert_close(given, -dy)
