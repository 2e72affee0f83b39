"""The parallel Legendre memory unit (Chilkuri and Eliasmith 2021, arXiv 2102.11417)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.arguments import check_choice, check_integers, check_positive
from core.mixers.base import CAUSAL_SELF, Mixer, at_least_float32
from core.mixers.documents import by_document
from core.ops.fft_conv import fft_conv
from core.sequences import Sequences

Activation = Literal["identity", "relu", "gelu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
}


def delay_system(order: int, theta: float) -> tuple[Tensor, Tensor]:
    """A (order, order) and B (order, 1), float64, of m' = A m + B u, time in steps.

    a_ij = (2i + 1) / theta * (-1 if i < j else (-1)^(i - j + 1)), b_i = (2i + 1) / theta * (-1)^i
    (Voelker, Kajic and Eliasmith 2019, equation 2). Then u(t - r theta), 0 <= r <= 1, is about
    sum_i P_i(2r - 1) m_i(t), P_i the Legendre polynomials (their equation 3).
    """
    i = torch.arange(order, dtype=torch.float64)[:, None]
    j = i.T
    sign = 1 - 2 * torch.remainder(i, 2)
    scale = (2 * i + 1) / theta
    return scale * torch.where(i < j, -1.0, -sign * sign.T), scale * sign


def zero_order_hold(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """exp(A) and the integral of exp(A s) B over one step, from one exponential of both."""
    order = A.shape[0]
    both = torch.zeros(order + B.shape[1], order + B.shape[1], dtype=A.dtype)
    both[:order] = torch.cat([A, B], 1)
    discrete = torch.linalg.matrix_exp(both)[:order]
    return discrete[:, :order], discrete[:, order:]


def unroll(A: Tensor, x: Tensor, length: int) -> Tensor:
    """A^t x for t < ``length``: A (order, order), x (order, columns) -> (order, length, columns).

    Squares A instead of walking along t; the powers stay in the dtype of A, the rest in that of x.
    """
    out, power = x[:, None], A
    while out.shape[1] < length:
        if out.shape[1] > 1:
            power = power @ power
        more = out[:, : length - out.shape[1]]
        more = (power.to(x.dtype) @ more.flatten(1)).view_as(more)
        out = torch.cat([out, more], 1)
    return out


class LegendreMemory(nn.Module):
    """m_t = Abar m_{t-1} + Bbar u_t for each of the inputs by itself, nothing to learn.

    ``theta`` is the window in steps, ``order`` the number of Legendre coefficients kept of it.
    The state (batch, inputs, order) is float64 whatever the dtype of the input: over a window of
    10,000 steps the recurrence in float32 is off by 5e-5 of the memory, the FFT by 2e-7.
    """

    bits: Tensor

    def __init__(self, order: int, theta: float) -> None:
        super().__init__()
        check_integers("LegendreMemory", order=order)
        check_positive("LegendreMemory", theta=theta)
        self.order, self.theta = order, theta
        discrete = torch.cat(zero_order_hold(*delay_system(order, theta)), 1)
        # as integers, so that .float() and .bfloat16() on the model leave the matrices alone
        self.register_buffer("bits", discrete.view(torch.int64), persistent=False)

    def discrete(self) -> tuple[Tensor, Tensor]:
        """Abar (order, order) and Bbar (order, 1), float64."""
        both = self.bits.view(torch.float64)
        return both[:, :-1], both[:, -1:]

    def impulse_response(self, length: int) -> Tensor:
        """H (order, length), float64, H_t = Abar^t Bbar: equation 23 of the paper."""
        A, B = self.discrete()
        return unroll(A, B, length)[..., 0]

    def forward(self, u: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """u (batch, length, inputs) -> m (batch, length, inputs, order) and the state after it.

        m = H * u by FFT (equation 26) in at least float32. One step is the recurrence itself.
        """
        length, inputs = u.shape[1:]
        u = at_least_float32(u)
        if state is not None and length == 1:
            state = self.step(u[:, 0], state)
            return state.to(u.dtype)[:, None], state
        rows = u.transpose(1, 2)[:, :, None].expand(-1, -1, self.order, -1).flatten(1, 2)
        m = fft_conv(rows, self.impulse_response(length).repeat(inputs, 1))
        m = m.unflatten(1, (inputs, self.order)).permute(0, 3, 1, 2)
        if state is not None:
            m = m + self._remembered(state, length, u.dtype)
        return m, m[:, -1].double()

    def _remembered(self, state: Tensor, length: int, dtype: torch.dtype) -> Tensor:
        """Abar^(t + 1) m: what an earlier piece still adds to this one."""
        A, _ = self.discrete()
        first = (state @ A.T).to(dtype)
        tail = unroll(A, first.flatten(0, 1).T, length)
        return tail.unflatten(2, first.shape[:2]).permute(2, 1, 3, 0)

    def init_state(self, batch: int, inputs: int, *, device: Any = None) -> Tensor:
        return torch.zeros(batch, inputs, self.order, device=device, dtype=torch.float64)

    def step(self, u: Tensor, state: Tensor) -> Tensor:
        """One step: u (batch, inputs) and the state before it -> the state after it."""
        A, B = self.discrete()
        return state @ A.T + u.double()[..., None] * B[:, 0]


class LMU(Mixer):
    """u = f1(U x + b), m = the Legendre memory of u, o = f2(W [m, x] + b): equations 18 to 20.

    ``inputs`` is the width of u, each with a memory of ``order`` coefficients over a window of
    ``theta`` steps. The paper leaves f1 and f2 open; both are ReLU here, as in LMUFormer's code.
    """

    patterns = frozenset({CAUSAL_SELF})
    recurrent = True

    def __init__(
        self,
        dim: int,
        causal: bool = True,
        *,
        order: int = 64,
        theta: float = 128.0,
        inputs: int = 1,
        input_activation: Activation = "relu",
        output_activation: Activation = "relu",
    ) -> None:
        super().__init__(dim, causal)
        check_integers("LMU", inputs=inputs)
        self.inputs = inputs
        activations = {"input_activation": input_activation, "output_activation": output_activation}
        check_choice("LMU", tuple(ACTIVATIONS), **activations)
        self.f1, self.f2 = ACTIVATIONS[input_activation](), ACTIVATIONS[output_activation]()
        self.in_proj = nn.Linear(dim, inputs)
        self.memory = LegendreMemory(order, theta)
        self.out_proj = nn.Linear(inputs * order + dim, dim)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        sequences: Sequences | None = None,
        *,
        state: Tensor | None = None,
    ) -> Any:
        """(batch, length, dim) -> the same; with ``state``, also the state after the last token."""
        self.check_input(x, context, sequences, state)
        if state is not None:
            m, state = self.memory(self.f1(self.in_proj(x)), state)
            return self._finish(x, m), state
        return by_document(self._mix, x, sequences)

    def _mix(self, x: Tensor, rows: Sequences | None) -> Tensor:
        u = self.f1(self.in_proj(x))
        if rows is not None:  # the bias speaks in padding too
            u = rows.zero_padding(u)
        m, _ = self.memory(u)
        return self._finish(x, m)

    def _finish(self, x: Tensor, m: Tensor) -> Tensor:
        return self.f2(self.out_proj(torch.cat([m.flatten(-2).to(x.dtype), x], -1)))

    def init_state(self, batch: int, *, device: Any = None, dtype: Any = None) -> Tensor:
        """(batch, inputs, order), float64 for every ``dtype``."""
        return self.memory.init_state(batch, self.inputs, device=device)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        self.check_step(x, state)
        state = self.memory.step(self.f1(self.in_proj(x)), state)
        return self._finish(x, state), state
