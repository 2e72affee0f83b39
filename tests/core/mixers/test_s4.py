"""S4 against the dense HiPPO-LegS matrix, SciPy's discretisations and plain recurrences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from largest_tensor import LargestTensor
from scipy.signal import cont2discrete
from torch import Tensor

from core.backbone import MLP, Backbone
from core.jobs.optim import adamw
from core.mixers import S4
from core.mixers import s4 as module
from core.mixers.s4 import legs

METHODS = ("bilinear", "zoh")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def build(dim: int = 3, causal: bool = True, *, trained: bool = False, **options: Any) -> S4:
    """In float64; ``trained`` moves every parameter, P and B off the real axis."""
    torch.manual_seed(0)
    mixer = S4(dim, causal, **options).double()
    if trained:
        with torch.no_grad():
            for i, parameter in enumerate(mixer.parameters()):
                parameter.add_(0.3 * noise(*parameter.shape, seed=i))
    return mixer


def hippo(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Equation 2 of the paper, entry by entry, and its B."""
    A = np.zeros((size, size))
    for n in range(size):
        for k in range(n + 1):
            A[n, k] = -(n + 1) if n == k else -math.sqrt(2 * n + 1) * math.sqrt(2 * k + 1)
    return A, np.sqrt(2 * np.arange(size) + 1.0)


def both(x: Tensor) -> np.ndarray:
    """(..., state) -> (..., 2 state): the modes and their conjugates."""
    return torch.cat([x, x.conj()], -1).detach().resolve_conj().numpy()


def complex_of(parameter: Tensor) -> Tensor:
    return torch.view_as_complex(parameter.detach())


def unrolled(A: Any, B: Any, C: Any, dt: float, method: str, length: int) -> np.ndarray:
    """C Abar^l Bbar by one product after another, Abar and Bbar from SciPy."""
    size = len(A)
    system = (A, B[:, None], np.eye(size), np.zeros((size, 1)))
    Abar, x, *_ = cont2discrete(system, dt, method=method)
    kernel = []
    for _ in range(length):
        kernel.append(C @ x[:, 0])
        x = Abar @ x
    return np.stack(kernel, -1)


def worst(got: Tensor, expected: np.ndarray) -> float:
    """The largest error in units of the largest value."""
    assert got.shape == expected.shape
    return float(np.abs(got.detach().numpy() - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("state", [1, 2, 9, 32, 64])
def test_normal_plus_low_rank_form_is_hippo_legs(state: int) -> None:
    A, P, B, V = legs(state)
    basis, low = both(V), both(P)
    np.testing.assert_allclose(basis @ basis.conj().T, np.eye(2 * state), atol=1e-12)
    expected, fed = hippo(2 * state)
    got = basis @ (np.diag(both(A)) - np.outer(low, low.conj())) @ basis.conj().T
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(basis @ both(B), fed, rtol=0, atol=1e-10)
    assert (A.imag > 0).all()
    assert (P.real > 0).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("length", [1, 2, 37, 1024])
def test_kernel_at_the_start_is_that_of_dense_hippo_legs(method: Any, length: int) -> None:
    mixer = build(state=16, discretisation=method)
    Lambda, P, B, V = legs(16)
    start = {"log_A_real": torch.log(-Lambda.real), "A_imag": Lambda.imag}
    start |= {"P": torch.view_as_real(P), "B": torch.view_as_real(B)}
    for name, value in start.items():  # the constructor keeps float32 of them
        parameter = mixer.get_parameter(name)
        value = value.expand_as(parameter)
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-6, atol=1e-7)
        parameter.data.copy_(value)
    A, fed = hippo(32)
    C = 2 * (complex_of(mixer.C)[0] @ V.mH).real.numpy()
    dt = mixer.log_dt.exp().tolist()
    expected = np.stack([unrolled(A, fed, C[d], dt[d], method, length) for d in range(3)])
    assert worst(mixer.kernel(length)[0], expected) < 1e-11


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("length", [1, 2, 3, 64, 101, 1024])
def test_kernel_of_any_parameters_is_the_unrolled_recurrence(method: Any, length: int) -> None:
    mixer = build(causal=False, trained=True, state=6, discretisation=method)
    P, B, C = (both(complex_of(p)) for p in (mixer.P, mixer.B, mixer.C))
    A = both(torch.complex(-mixer.log_A_real.exp(), mixer.A_imag))
    expected = []
    for d in range(3):
        dense = np.diag(A[d]) - np.outer(P[d], P[d].conj())
        dt = mixer.log_dt[d].exp().item()
        kernel = unrolled(dense, B[d], C[:, d], dt, method, length)
        assert np.abs(kernel.imag).max() < 1e-10
        expected.append(kernel.real)
    assert worst(mixer.kernel(length), np.stack(expected, 1)) < 1e-11


@pytest.mark.parametrize("length", [1, 5, 1024])
def test_kernel_of_a_float32_model_loses_nothing(length: int) -> None:
    """In float32 slow channels would be off by up to 3e-4 of their kernel."""
    mixer = build(16, state=32, dt_min=1e-5).float()
    got = mixer.kernel(length)
    assert worst(got, mixer.double().kernel(length).detach().numpy()) < 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_finite_differences(method: Any) -> None:
    mixer = build(2, causal=False, trained=True, state=2, discretisation=method)
    names = ("log_dt", "log_A_real", "A_imag", "P", "B", "C")
    values = [mixer.get_parameter(name).detach().clone().requires_grad_() for name in names]
    for name in names:
        delattr(mixer, name)

    def kernel(*values: Tensor) -> Tensor:
        for name, value in zip(names, values, strict=True):
            setattr(mixer, name, value)
        return mixer.kernel(7)

    assert torch.autograd.gradcheck(kernel, values)


def test_cauchy_matrix_is_neither_whole_nor_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, length = build(4, state=8, trained=True), 4000
    parameters = [mixer.C, mixer.P, mixer.A_imag]
    kernel = mixer.kernel(length)
    weight = noise(*kernel.shape)
    whole = torch.autograd.grad((kernel * weight).sum(), parameters)
    monkeypatch.setattr(module, "CPU_CHUNK", 4 * 8 * 100)
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with LargestTensor() as largest, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        pieces = mixer.kernel(length)
        gradients = torch.autograd.grad((pieces * weight).sum(), parameters)
    torch.testing.assert_close(pieces, kernel, rtol=0, atol=1e-13)
    torch.testing.assert_close(gradients, whole, rtol=1e-9, atol=1e-9)
    assert largest.elements <= 2 * 4 * length  # real numbers of a kernel before and after its FFT
    assert sum(kept) < 2 * 4 * length


@pytest.mark.parametrize("method", METHODS)
def test_steps_and_pieces_equal_the_convolution(method: Any) -> None:
    mixer, length = build(4, trained=True, state=6, discretisation=method), 300
    x = noise(2, length, 4)
    whole = mixer(x)
    state = mixer.init_state(2)
    size, steps = state.shape, []
    for t in range(length):
        y, state = mixer.step(x[:, t], state)
        assert state.shape == size
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=0, atol=1e-11)
    carried, pieces = mixer.init_state(2), []
    for piece in x.split([1, 7, 100, 192], 1):
        y, carried = mixer(piece, state=carried)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-11)
    torch.testing.assert_close(carried, state, rtol=0, atol=1e-11)


def test_float32_steps_stay_with_the_convolution() -> None:
    torch.manual_seed(0)
    mixer, x = S4(8), noise(1, 2000, 8).float()
    state, steps = mixer.init_state(1), []
    with torch.no_grad():
        for t in range(2000):
            y, state = mixer.step(x[:, t], state)
            steps.append(y)
        torch.testing.assert_close(torch.stack(steps, 1), mixer(x), rtol=0, atol=1e-5)


def test_memory_of_steps_does_not_grow() -> None:
    backbone = Backbone(4, {"s4": S4, "mlp": MLP}, "(s4 mlp)*2").eval()
    x, state, seen = noise(2000, 1, 4).float(), backbone.init_state(1), {}
    with torch.no_grad():
        for t, token in enumerate(x):
            with LargestTensor() as largest:
                _, state = backbone.step(token, state)
            held = sum(one.numel() for one in state if one is not None)
            seen[t] = (held, largest.elements, largest.memory)
    assert seen[0][0] == 2 * 4 * 32  # layers, channels, modes
    assert set(seen.values()) == {seen[0]}


def test_noncausal_adds_a_kernel_backward_in_time() -> None:
    mixer, length = build(3, causal=False, state=4), 9
    x = noise(2, length, 3)
    forward, backward = mixer.kernel(length).detach()
    expected = mixer.D.detach() * x
    for t in range(length):
        for s in range(length):
            lag = forward[:, t - s] if s < t else backward[:, s - t]
            if s == t:
                lag = forward[:, 0] + backward[:, 0]
            expected[:, t] += lag * x[:, s]
    torch.testing.assert_close(mixer._convolve(x, None), expected, rtol=0, atol=1e-12)


def test_timesteps_start_log_uniform_in_the_range_of_the_paper() -> None:
    torch.manual_seed(0)
    log_dt = S4(4000, state=1).log_dt.detach()
    assert log_dt.requires_grad is False
    assert S4(2).log_dt.requires_grad
    low, high = math.log(0.001), math.log(0.1)
    assert log_dt.min() >= low
    assert log_dt.max() <= high
    quarters = torch.histc(log_dt, 4, low, high) / 4000
    torch.testing.assert_close(quarters, torch.full((4,), 0.25), rtol=0, atol=0.03)


def test_weights_decay_in_the_projection_alone() -> None:
    mixer = S4(4)
    optimizer = adamw(mixer, lr=1e-3, weight_decay=0.1, warmup=0.1, steps=10)["optimizer"]
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(mixer.out_proj.weight)}


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="S4: state must be an integer of at least 1, got 0"):
        S4(4, state=0)
    method: Any = "euler"
    with pytest.raises(
        ValueError, match="discretisation must be one of zoh, bilinear, got 'euler'"
    ):
        S4(4, discretisation=method)
