"""The Legendre memory unit against SciPy's linear systems and polynomials, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.interpolate import pade
from scipy.signal import cont2discrete, dlsim
from scipy.special import eval_sh_legendre, factorial
from torch import Tensor

from core.mixers import LMU
from core.mixers.lmu import LegendreMemory, delay_system, unroll, zero_order_hold


def scipy_discrete(order: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    A, B = (x.numpy() for x in delay_system(order, theta))
    C, D = np.eye(order), np.zeros((order, 1))
    Ad, Bd, *_ = cont2discrete((A, B, C, D), 1.0, method="zoh")
    return Ad, Bd


def scipy_memory(order: int, theta: float, u: Tensor, state: Tensor | None = None) -> Tensor:
    """One input u (length,) -> the memory after every step (length, order)."""
    Ad, Bd = scipy_discrete(order, theta)
    # dlsim gives the state before each input: one input more shows the last state
    held = np.append(u.double().numpy(), 0.0)
    before = np.zeros(order) if state is None else state.numpy()
    _, _, states = dlsim((Ad, Bd, np.eye(order), np.zeros((order, 1)), 1.0), held, x0=before)
    return torch.from_numpy(states[1:])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_matrices_are_those_of_the_paper() -> None:
    A, B = delay_system(4, 1.0)
    expected = [[-1, -1, -1, -1], [3, -3, -3, -3], [-5, 5, -5, -5], [7, -7, 7, -7]]
    assert A.dtype == B.dtype == torch.float64
    assert A.tolist() == expected
    assert B[:, 0].tolist() == [1, -3, 5, -7]
    slow, gain = delay_system(4, 8.0)
    torch.testing.assert_close(slow, A / 8, rtol=0, atol=0)
    torch.testing.assert_close(gain, B / 8, rtol=0, atol=0)


@pytest.mark.parametrize("order", [1, 2, 3, 6, 9])
def test_transfer_function_is_the_pade_approximant_of_a_delay(order: int) -> None:
    """Sum_i P_i(1) m_i reads the input ``theta`` ago: [order - 1 / order] of exp(-theta s)."""
    theta = 2.5
    A, B = (x.numpy() for x in delay_system(order, theta))
    taylor = (-theta) ** np.arange(2 * order) / factorial(np.arange(2 * order))
    above, below = pade(taylor, order, order - 1)
    for s in (0.3, 1.0 + 0.5j, -0.2j):
        got = np.ones(order) @ np.linalg.solve(s * np.eye(order) - A, B)
        assert got[0] == pytest.approx(above(s) / below(s), rel=1e-8)


@pytest.mark.parametrize(("order", "theta"), [(1, 3.0), (5, 7.5), (64, 128.0), (96, 20.0)])
def test_zero_order_hold_equals_scipy(order: int, theta: float) -> None:
    Ad, Bd = zero_order_hold(*delay_system(order, theta))
    A, B = scipy_discrete(order, theta)
    torch.testing.assert_close(Ad, torch.from_numpy(A), rtol=0, atol=1e-12)
    torch.testing.assert_close(Bd, torch.from_numpy(B), rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 3, 64, 301])
@pytest.mark.parametrize(("order", "theta"), [(5, 7.5), (64, 128.0)])
def test_impulse_response_equals_the_unrolled_recurrence(
    order: int, theta: float, length: int
) -> None:
    A, B = scipy_discrete(order, theta)
    steps = [B]
    for _ in range(length - 1):
        steps.append(A @ steps[-1])
    expected = torch.from_numpy(np.concatenate(steps, 1))
    got = LegendreMemory(order, theta).impulse_response(length)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_unroll_computes_every_power() -> None:
    A, x = noise(4, 4) / 3, noise(4, 2, seed=1)
    expected = torch.stack([torch.linalg.matrix_power(A, t) @ x for t in range(11)], 1)
    torch.testing.assert_close(unroll(A, x, 11), expected)


def test_memory_reconstructs_the_window() -> None:
    """Legendre polynomials read any delay up to theta out of the memory of a slow signal."""
    theta, order = 256, 16
    time = torch.arange(4 * theta, dtype=torch.float64)

    def signal(t: Tensor) -> Tensor:  # at most three periods a window
        phase = 2 * torch.pi * t / theta
        return torch.sin(phase + 0.4) + 0.5 * torch.cos(1.7 * phase) - 0.7 * torch.sin(3 * phase)

    m, _ = LegendreMemory(order, theta)(signal(time)[None, :, None])
    for r in (0.0, 0.1, 0.5, 0.9, 1.0):
        read = torch.from_numpy(eval_sh_legendre(np.arange(order), r))
        # an input is held for a step, so its middle lies half a step before the memory
        expected = signal(time + 0.5 - r * theta)
        error = (m[0, :, 0] @ read - expected)[2 * theta :].abs().max()
        # a system of finite order is worst at the newest input
        assert error < (0.02 if r == 0 else 0.004), (r, error)


@pytest.mark.parametrize("carried", [False, True])
def test_memory_equals_scipys_simulation(carried: bool) -> None:
    order, theta, length = 9, 21.0, 50
    memory = LegendreMemory(order, theta)
    u, state = noise(2, length, 3), noise(2, 3, order, seed=1)
    m, after = memory(u, state) if carried else memory(u)
    for row in range(2):
        for channel in range(3):
            before = state[row, channel] if carried else None
            expected = scipy_memory(order, theta, u[row, :, channel], before)
            torch.testing.assert_close(m[row, :, channel], expected, rtol=0, atol=1e-12)
            torch.testing.assert_close(after[row, channel], expected[-1], rtol=0, atol=1e-12)


def test_forward_is_equations_18_to_20() -> None:
    torch.manual_seed(0)
    mixer = LMU(6, order=4, theta=9.0, inputs=2, input_activation="gelu").double()
    x = noise(1, 12, 6)
    u = torch.nn.functional.gelu(x @ mixer.in_proj.weight.T + mixer.in_proj.bias)
    m = torch.cat([scipy_memory(4, 9.0, u[0, :, i].detach()) for i in range(2)], 1)
    recalled, direct = mixer.out_proj.weight.split([8, 6], 1)
    o = (m @ recalled.T + x[0] @ direct.T + mixer.out_proj.bias).clamp(min=0)
    torch.testing.assert_close(mixer(x)[0], o)


@pytest.mark.parametrize(("order", "theta"), [(16, 1000.0), (128, 64.0)])
def test_float32_steps_and_pieces_equal_forward(order: int, theta: float) -> None:
    torch.manual_seed(0)
    mixer = LMU(8, order=order, theta=theta, inputs=2)
    x = noise(2, 300, 8).float()
    whole = mixer(x)
    state = mixer.init_state(2)
    first, state = mixer(x[:, :200], state=state)
    rest = []
    for t in range(200, 300):
        y, state = mixer.step(x[:, t], state)
        rest.append(y)
    assert state.dtype == torch.float64
    torch.testing.assert_close(torch.cat([first, torch.stack(rest, 1)], 1), whole)


def test_a_cast_model_keeps_the_matrices() -> None:
    mixer = LMU(8, order=12, theta=50.0)
    exact = [x.clone() for x in mixer.memory.discrete()]
    mixer.bfloat16().float().double()
    for kept, expected in zip(mixer.memory.discrete(), exact, strict=True):
        torch.testing.assert_close(kept, expected, rtol=0, atol=0)
    half = LMU(8, order=12, theta=50.0).bfloat16()
    y, state = half(noise(1, 5, 8).bfloat16(), state=half.init_state(1))
    assert y.dtype == torch.bfloat16
    assert half.step(noise(1, 8).bfloat16(), state)[0].dtype == torch.bfloat16


def test_checkpoint_holds_what_is_learned() -> None:
    assert sorted(LMU(8).state_dict()) == [
        "in_proj.bias",
        "in_proj.weight",
        "out_proj.bias",
        "out_proj.weight",
    ]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"order": 0}, "order must be an integer of at least 1"),
        ({"theta": 0.0}, "theta must be positive, got 0.0"),
        ({"theta": float("nan")}, "theta must be positive, got nan"),
        ({"inputs": 0}, "inputs must be an integer of at least 1"),
        (
            {"output_activation": "tanh"},
            "output_activation must be one of identity, relu, gelu, got 'tanh'",
        ),
    ],
)
def test_bad_options_are_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        LMU(8, **options)  # type: ignore[arg-type]
