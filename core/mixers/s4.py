"""S4: diagonal plus low-rank state spaces (Gu, Goel and Re 2021, arXiv 2111.00396)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core.mixers.s4d import S4D

# Complex numbers of the Cauchy matrix (dim, state, nodes) that exist at a time. On a CPU 2**18 to
# 2**20 measured alike and 2**23 twice as slow; a GPU wants few launches.
CPU_CHUNK = 2**19
CUDA_CHUNK = 2**24


def legs(state: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """HiPPO-LegS of size 2 ``state`` as A (state,), P (state,), B (state,), V (2 state, state).

    In float64, one of each conjugate pair, so that with V' = [V, conj V] unitary, A' = [A, conj A]
    and so on, HiPPO-LegS (equation 2 of the paper) is V' (diag(A') - P' P'*) V'* and its input
    vector V' B': Theorem 1. Eigenvectors are turned such that P is positive; B is sqrt(2) P.
    """
    n = torch.arange(2 * state, dtype=torch.float64)
    root = torch.sqrt(n + 0.5)
    outer = root[:, None] * root[None, :]
    skew = torch.triu(outer, 1) - torch.tril(outer, -1)
    imaginary, V = torch.linalg.eigh(skew * -1j)
    V = V[:, state:]
    P = V.mH @ root.to(V.dtype)
    V = V * (P / P.abs())
    P = P.abs().to(V.dtype)
    return torch.complex(torch.full((state,), -0.5).double(), imaginary[state:]), P, P * 2**0.5, V


def pair(x: Tensor) -> Tensor:
    """Sum over the modes and their conjugates, kept as a dimension of one."""
    return 2 * x.real.sum(-1, keepdim=True)


def real(x: Tensor) -> Tensor:
    """(..., state) complex -> (..., 2 state) real: on these a linear map is an ordinary matrix."""
    return torch.view_as_real(x.resolve_conj()).flatten(-2)


def modes(x: Tensor) -> Tensor:
    """The inverse of ``real``."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())


def unroll(x: Tensor, M: Tensor, length: int) -> Tensor:
    """x M^t for t < ``length``: x (..., size), M (..., size, size) -> (..., length, size)."""
    out = x[..., None, :]
    while out.shape[-2] < length:
        out = torch.cat([out, (out @ M)[..., : length - out.shape[-2], :]], -2)
        if out.shape[-2] < length:
            M = M @ M
    return out


def power_times(M: Tensor, exponent: int, x: Tensor) -> Tensor:
    """M^exponent x: M (..., size, size), x (..., size, columns)."""
    while exponent:
        if exponent % 2:
            x = M @ x
        exponent //= 2
        if exponent:
            M = M @ M
    return x


class System(NamedTuple):
    """x' = (A - P P*) x + B u on half of the conjugate pairs: (dim, state), dt (dim, 1)."""

    dt: Tensor
    A: Tensor
    P: Tensor
    B: Tensor

    def continuous(self, x: Tensor) -> Tensor:
        """dt (A - P P*) x."""
        return self.dt * (self.A * x - self.P * pair(self.P.conj() * x))

    def bilinear(self, x: Tensor, fed: Tensor | float) -> Tensor:
        """(1 - dt/2 (A - P P*))^-1 ((1 + dt/2 (A - P P*)) x + fed): appendix C.2 of the paper."""
        solved = 1 / (1 - self.dt / 2 * self.A)
        low = self.dt / 2 * solved * self.P
        x = solved * (x + self.continuous(x) / 2 + fed)
        return x - low * pair(self.P.conj() * x) / (1 + pair(self.P.conj() * low))

    def spectrum(self, C: Tensor, half: Tensor) -> Tensor:
        """C (is - c dt (A - P P*))^-1 dt B by Woodbury, s = 2 sin(half), c = cos(half).

        C (directions, dim, state), half (nodes,) -> (directions, dim, nodes). With a = dt A, a mode
        and its conjugate share a denominator: v / (is - ca) + conj(v) / (is - c conj(a))
        = 2 (is Re v - c Re(v conj(a))) / (c^2 |a|^2 - s^2 - 2isc Re a).
        """
        a, sin, cos = self.dt * self.A, 2 * half.sin(), half.cos()
        size = a.abs()[..., None]
        denominator = torch.complex(
            (cos * size - sin) * (cos * size + sin), -2 * sin * cos * a.real[..., None]
        )
        v = torch.stack([*(C * self.B), *(C * self.P), self.P.conj() * self.B, self.P.abs() ** 2])
        v = 2 * torch.cat([v, v * a.conj()]).real.transpose(0, 1)  # (dim, 2 sums, state)
        inverse = torch.view_as_real(denominator.reciprocal())
        sums = (v @ inverse.flatten(-2)).unflatten(-1, (-1, 2))
        over, under = torch.view_as_complex(sums).transpose(0, 1).chunk(2)
        sums = 1j * sin * over - cos * under  # C/B, C/P, P/B, P/P
        CB, CP = sums[:-2].chunk(2)
        cos = cos * self.dt
        return self.dt * (CB - CP * cos * sums[-2] / (1 + cos * sums[-1]))


class S4(S4D):
    """S4D with a low-rank term: x' = (A - P P*) x + B u, from HiPPO-LegS; what follows is S4D's.

    ``state`` counts conjugate pairs: the paper's N is twice that. A has a negative real part and
    the low-rank term is -P P* with P learned (Goel et al. 2022, arXiv 2202.09729; the paper's P Q*
    may become unstable), so that without input the state never grows. C is C itself, not the
    C (1 - Abar^L) of one length L, so that any length will do. The kernel is computed in float64.

    ``bilinear`` is the paper's: its generating function is a Cauchy sum and a step costs O(state).
    The exponential of ``zoh`` has no such form: it is taken of a dense (2 state, 2 state) matrix a
    channel, again in every step.
    """

    def __init__(
        self,
        dim: int,
        causal: bool = True,
        *,
        state: int = 32,
        discretisation: Literal["bilinear", "zoh"] = "bilinear",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
    ) -> None:
        super().__init__(
            dim, causal, state=state, discretisation=discretisation, dt_min=dt_min, dt_max=dt_max
        )
        _, P, B, _ = legs(state)
        self.P = nn.Parameter(torch.view_as_real(P).float().repeat(dim, 1, 1))
        self.B = nn.Parameter(torch.view_as_real(B).float().repeat(dim, 1, 1))

    def _system(self) -> System:
        A = torch.complex(-self.log_A_real.double().exp(), self.A_imag.double())
        P, B = (torch.view_as_complex(x.double()) for x in (self.P, self.B))
        return System(self.log_dt.double().exp()[:, None], A, P, B)

    def _output(self) -> Tensor:
        """C (directions, dim, state), complex, such that y = 2 Re(C x)."""
        return torch.view_as_complex(self.C.double())

    def _dense(self, system: System) -> tuple[Tensor, Tensor]:
        """One step on real rows, x -> x M + u b: M (dim, 2 state, 2 state), b (dim, 2 state)."""
        size = 2 * self.state
        basis = torch.eye(size, dtype=torch.float64, device=system.dt.device)
        x = torch.view_as_complex(basis.view(size, 1, self.state, 2))
        fed = system.dt * system.B
        if self.discretisation == "bilinear":
            b = real(system.bilinear(torch.zeros_like(fed), fed))
            return real(system.bilinear(x, 0.0)).transpose(0, 1), b
        held = torch.cat([real(system.continuous(x)), real(fed)[None]]).transpose(0, 1)
        held = torch.linalg.matrix_exp(nn.functional.pad(held, (0, 1)))[..., :-1]
        return held[:, :-1], held[:, -1]

    def _attuned(self, C: Tensor, system: System, length: int) -> Tensor:
        """C (1 - M^length): with it the generating function ends after ``length`` terms."""
        M, _ = self._dense(system)
        c = real(C.conj()).permute(1, 2, 0)
        c = (c - power_times(M, length, c)).permute(2, 0, 1)
        return modes(c).conj()

    def kernel(self, length: int) -> Tensor:
        """K (directions, dim, length), float64.

        Bilinear: the generating function at the roots of unity z = exp(-2i half) (Algorithm 1 of
        the paper), 1 - z and 1 + z both divided by exp(-i half) so that no node is singular. The
        Cauchy matrix exists in pieces only and is computed again in the backward pass.
        """
        system, C = self._system(), self._output()
        if self.discretisation == "zoh":
            return self._dense_kernel(system, C, length)
        C = checkpoint(
            self._attuned, C, system, length, use_reentrant=False, preserve_rng_state=False
        )
        half = torch.arange(length // 2 + 1, dtype=torch.float64, device=C.device)
        half = half * (math.pi / length)
        nodes = max(1, (CUDA_CHUNK if C.is_cuda else CPU_CHUNK) // (self.dim * self.state))
        parts = [
            checkpoint(
                System.spectrum, system, C, part, use_reentrant=False, preserve_rng_state=False
            )
            for part in half.split(nodes)
        ]
        return torch.fft.irfft(torch.cat(parts, -1) * torch.exp(1j * half), n=length)

    def _dense_kernel(self, system: System, C: Tensor, length: int) -> Tensor:
        """c M^(a s + f) b = (c M^(a s)) (M^f b) with s about sqrt(length), as in S4D."""
        M, b = self._dense(system)
        fine, coarse = _split(length)
        low = unroll(b, M, fine)
        leap = torch.linalg.matrix_power(M, fine)
        high = unroll(2 * real(C.conj()), leap.mT, coarse)
        return torch.einsum("cdan,dfn->cdaf", high, low).flatten(-2)[..., :length]

    def _carry(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """What an earlier piece still adds to this one, and the state after this one."""
        length = x.shape[1]
        system = self._system()
        M, b = self._dense(system)
        c = 2 * real(self._output()[0].conj())
        fine, coarse = _split(length)
        leap = torch.linalg.matrix_power(M, fine)
        first = real(state.to(torch.complex128)).transpose(0, 1)  # (dim, batch, 2 state)
        before = unroll(first @ M, leap[:, None], coarse)
        tail = torch.einsum("dban,dfn->bafd", before, unroll(c, M.mT, fine))
        # zeros before the first token leave a zero state zero
        u = nn.functional.pad(x.double(), (0, 0, fine * coarse - length, 0))
        u = u.unflatten(1, (coarse, fine)).flip(2)
        after = torch.zeros_like(first)
        for fed in torch.einsum("bafd,dfn->adbn", u, unroll(b, M, fine)):
            after = after @ leap + fed
        after = after + power_times(M.mT, length, first.mT).mT
        return tail.flatten(1, 2)[:, :length], modes(after.transpose(0, 1)).to(state.dtype)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        self.check_step(x, state)
        system = self._system()
        u, before = x.double()[..., None], state.to(torch.complex128)
        if self.discretisation == "bilinear":
            after = system.bilinear(before, system.dt * system.B * u)
        else:
            M, b = self._dense(system)
            after = modes(torch.einsum("bdn,dnm->bdm", real(before), M) + u * b)
        y = pair(self._output()[0] * after)[..., 0]
        return self._finish(y.to(x.dtype) + self.D.to(x.dtype) * x), after.to(state.dtype)


def _split(length: int) -> tuple[int, int]:
    """Two factors near sqrt(length), their product at least ``length``."""
    fine = math.isqrt(max(length - 1, 0)) + 1
    return fine, -(-length // fine)
