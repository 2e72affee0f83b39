"""S4D: diagonal state spaces (Gu et al. 2022, arXiv 2206.11893)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.arguments import check_choice, check_integers, check_positive
from core.mixers.base import CAUSAL_SELF, NONCAUSAL_SELF, Mixer, at_least_float32
from core.mixers.documents import by_document
from core.ops.fft_conv import fft_conv
from core.sequences import Sequences

Initialisation = Literal["lin", "inv", "legs", "real"]


def initial_diagonal(kind: Initialisation, state: int) -> Tensor:
    """Eigenvalues A (state,): S4D-Lin, S4D-Inv, the diagonal of HiPPO-LegS, or S4D-Real.

    Section 4 of the paper; the complex ones are one of each conjugate pair, float64 throughout.
    """
    n = torch.arange(state, dtype=torch.float64)
    if kind == "lin":
        return torch.complex(torch.full_like(n, -0.5), math.pi * n)
    if kind == "inv":
        size = 2 * state
        return torch.complex(torch.full_like(n, -0.5), size / math.pi * (size / (2 * n + 1) - 1))
    if kind == "legs":
        size = 2 * state
        k = torch.arange(size, dtype=torch.float64)
        root = torch.sqrt(2 * k + 1)
        normal = root[:, None] * root[None, :]  # the normal part of HiPPO-LegS is skew - 1/2
        skew = torch.triu(normal, 1) / 2 - torch.tril(normal, -1) / 2
        imaginary = torch.linalg.eigvalsh(skew * -1j)
        return torch.complex(torch.full_like(n, -0.5), imaginary[state:])
    return torch.complex(-(n + 1), torch.zeros_like(n))


class S4D(Mixer):
    """x -> W2 GELU-GLU(K * x + D x), K[l] = sum_n 2 Re(C_n B_n Abar_n^l), one state a channel.

    ``state`` counts complex modes, each standing for a conjugate pair (for ``real``, real modes).
    ``discretisation`` is zero-order hold or bilinear. Not causal: a second kernel runs backward in
    time. The recurrent form keeps (batch, dim, state) complex numbers.
    """

    patterns = frozenset({CAUSAL_SELF, NONCAUSAL_SELF})
    recurrent = True

    def __init__(
        self,
        dim: int,
        causal: bool = True,
        *,
        state: int = 32,
        initialisation: Initialisation = "legs",
        discretisation: Literal["zoh", "bilinear"] = "zoh",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
    ) -> None:
        super().__init__(dim, causal)
        name = type(self).__name__
        check_integers(name, state=state)
        check_choice(name, ("lin", "inv", "legs", "real"), initialisation=initialisation)
        check_choice(name, ("zoh", "bilinear"), discretisation=discretisation)
        check_positive(name, dt_min=dt_min, dt_max=dt_max)
        directions = 1 if causal else 2
        self.state, self.discretisation = state, discretisation
        self.pair = 1.0 if initialisation == "real" else 2.0
        A = initial_diagonal(initialisation, state)
        self.log_dt = nn.Parameter(torch.empty(dim).uniform_(math.log(dt_min), math.log(dt_max)))
        self.log_A_real = nn.Parameter(torch.log(-A.real).float().repeat(dim, 1))
        imaginary = A.imag.float().repeat(dim, 1)
        if initialisation == "real":
            self.register_buffer("A_imag", imaginary)
        else:
            self.A_imag = nn.Parameter(imaginary)
        C = torch.randn(directions, dim, state, 2) * math.sqrt(0.5)
        if initialisation == "real":
            C[..., 1] = 0
        self.C = nn.Parameter(C)
        self.D = nn.Parameter(torch.randn(dim))
        self.out_proj = nn.Linear(dim, 2 * dim)

    def _discrete(self) -> tuple[Tensor, Tensor]:
        """log(Abar) and C Bbar: (dim, state) and (directions, dim, state), complex; B is 1."""
        # complex numbers of half precision hardly exist
        dt = at_least_float32(self.log_dt).exp()[:, None]
        real, imaginary = at_least_float32(self.log_A_real), at_least_float32(self.A_imag)
        A = torch.complex(-real.exp(), imaginary)
        C = torch.view_as_complex(at_least_float32(self.C))
        if self.discretisation == "zoh":
            log_A = A * dt
            return log_A, C * (torch.expm1(log_A) / A)
        half = A * dt / 2
        return torch.log1p(half) - torch.log1p(-half), C * (dt / (1 - half))

    def kernel(self, length: int) -> Tensor:
        """K (directions, dim, length), real.

        Abar^(a s + b) = Abar^(a s) Abar^b with s about sqrt(length): the Vandermonde matrix (dim,
        state, length) is never formed, only two factors and their product over the state.
        """
        log_A, CB = self._discrete()
        fine = math.isqrt(max(length - 1, 0)) + 1
        coarse = -(-length // fine)
        index = torch.arange(max(fine, coarse), device=log_A.device)
        low = torch.exp(log_A[..., None] * index[:fine])
        high = torch.exp(log_A[..., None] * (fine * index[:coarse]))
        product = torch.einsum("cdna,dnb->cdab", CB[..., None] * high, low)
        return self.pair * product.real.flatten(-2)[..., :length]

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
        y = by_document(self._convolve, x, sequences)
        if state is not None:
            tail, state = self._carry(x, state)
            y = y + tail.to(y.dtype)
        out = self._finish(y)
        if sequences is not None:
            out = sequences.zero_padding(out)
        return out if state is None else (out, state)

    def _convolve(self, x: Tensor, rows: Sequences | None) -> Tensor:
        kernels = self.kernel(x.shape[1])
        y = fft_conv(
            x.transpose(1, 2).contiguous(),
            kernels[0],
            skip=self.D,
            reverse_k=None if self.causal else kernels[1],
        )
        return y.transpose(1, 2)

    def _carry(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """What an earlier piece still adds to this one, and the state after this one."""
        length = x.shape[1]
        log_A, CB = self._discrete()
        steps = torch.arange(length, device=x.device)
        powers = torch.exp(log_A[..., None] * steps)  # (dim, state, length)
        decay = torch.exp(log_A)[..., None] * powers
        tail = self.pair * torch.einsum("dn,dnl,bdn->bld", CB[0], decay, state).real
        fed = torch.einsum("dnl,bld->bdn", powers.flip(-1), x.to(powers.dtype))
        return tail, state * torch.exp(log_A * length) + fed

    def _finish(self, y: Tensor) -> Tensor:
        return F.glu(self.out_proj(F.gelu(y)), dim=-1)

    def init_state(self, batch: int, *, device: Any = None, dtype: Any = None) -> Tensor:
        kind = torch.complex128 if (dtype or self.D.dtype) == torch.float64 else torch.complex64
        return torch.zeros(batch, self.dim, self.state, device=device, dtype=kind)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        self.check_step(x, state)
        log_A, CB = self._discrete()
        state = torch.exp(log_A) * state + x[..., None].to(state.dtype)
        y = self.pair * torch.einsum("dn,bdn->bd", CB[0], state).real
        return self._finish(y.to(x.dtype) + self.D.to(x.dtype) * x), state
