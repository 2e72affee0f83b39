"""Mamba-2 (Dao and Gu 2024, arXiv 2405.21060, section 7)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.arguments import check_integers, check_positive
from core.mixers.base import CAUSAL_SELF, Mixer, at_least_float32
from core.mixers.short_conv import causal_conv1d
from core.ops.ssd import ssd, ssd_step
from core.sequences import Sequences


class Mamba2State(NamedTuple):
    """``conv`` (batch, taps - 1, channels), ``ssm`` (batch, heads, head_dim, state) in float32."""

    conv: Tensor
    ssm: Tensor


class GatedRMSNorm(nn.Module):
    """RMS norm of ``x * silu(gate)``, the norm before Mamba-2's output projection."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        gated = at_least_float32(x) * F.silu(at_least_float32(gate))
        normed = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + self.eps)
        return self.weight.to(x.dtype) * normed.to(x.dtype)


class Mamba2(Mixer):
    """Selective state space with a scalar decay a head, computed by ``core.ops.ssd``.

    Parameter names are those of the published checkpoints (``in_proj``, ``conv1d``, ``dt_bias``,
    ``A_log``, ``D``, ``norm``, ``out_proj``). ``state`` is the size of each head's state,
    ``groups`` the number of independent B and C. Raises ValueError if the sizes do not divide.
    """

    patterns = frozenset({CAUSAL_SELF})
    recurrent = True

    def __init__(
        self,
        dim: int,
        causal: bool = True,
        *,
        state: int = 64,
        expand: int = 2,
        head_dim: int = 64,
        groups: int = 1,
        taps: int = 4,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
    ) -> None:
        super().__init__(dim, causal)
        check_integers("Mamba2", state=state, expand=expand, head_dim=head_dim)
        check_integers("Mamba2", groups=groups, taps=taps)
        check_positive("Mamba2", dt_min=dt_min, dt_max=dt_max)
        inner = expand * dim
        if inner % head_dim or (inner // head_dim) % groups:
            raise ValueError(
                f"Mamba2: expand * dim = {inner} must be a multiple of head_dim = {head_dim}, "
                f"and the number of heads a multiple of groups = {groups}"
            )
        self.heads, self.head_dim, self.groups, self.state = (
            inner // head_dim,
            head_dim,
            groups,
            state,
        )
        self.inner, self.taps = inner, taps
        self.channels = inner + 2 * groups * state
        self.in_proj = nn.Linear(dim, inner + self.channels + self.heads, bias=False)
        self.conv1d = nn.Conv1d(self.channels, self.channels, taps, groups=self.channels)
        dt = torch.exp(torch.empty(self.heads).uniform_(math.log(dt_min), math.log(dt_max)))
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
        self.A_log = nn.Parameter(torch.log(torch.empty(self.heads).uniform_(1, 16)))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = GatedRMSNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def _split(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Channels -> x (..., heads, head_dim), B and C (..., groups, state)."""
        x, B, C = mixed.split([self.inner, self.groups * self.state, self.groups * self.state], -1)
        return (
            x.unflatten(-1, (self.heads, self.head_dim)),
            B.unflatten(-1, (self.groups, self.state)),
            C.unflatten(-1, (self.groups, self.state)),
        )

    def _steps(self, dt: Tensor) -> tuple[Tensor, Tensor]:
        """Projected dt (..., heads) -> step size and log-decay dt * A, in float32 or finer."""
        dt = F.softplus(at_least_float32(dt) + self.dt_bias)
        return dt, -dt * torch.exp(at_least_float32(self.A_log))

    def _finish(self, y: Tensor, x: Tensor, gate: Tensor) -> Tensor:
        y = (y + self.D[:, None].to(x.dtype) * x).flatten(-2)
        return self.out_proj(self.norm(y, gate))

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        sequences: Sequences | None = None,
        *,
        state: Mamba2State | None = None,
    ) -> Any:
        """(batch, length, dim) -> the same; with ``state``, also the state after the last token."""
        self.check_input(x, context, sequences, state)
        if sequences is not None:
            x = sequences.zero_padding(x)
        gate, mixed, dt = self.in_proj(x).split([self.inner, self.channels, self.heads], -1)
        mixed, conv_after = causal_conv1d(
            mixed,
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            sequences,
            None if state is None else state.conv,
        )
        inner, B, C = self._split(F.silu(mixed))
        dt, log_decay = self._steps(dt)
        y, ssm_after = ssd(
            inner * dt[..., None].to(inner.dtype),
            log_decay,
            B,
            C,
            initial_state=None if state is None else state.ssm,
            document=None if sequences is None else sequences.document,
        )
        out = self._finish(y, inner, gate)
        if sequences is not None:
            out = sequences.zero_padding(out)
        return out if state is None else (out, Mamba2State(conv_after, ssm_after))

    def init_state(self, batch: int, *, device: Any = None, dtype: Any = None) -> Mamba2State:
        dtype = dtype or self.in_proj.weight.dtype
        ssm_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        return Mamba2State(
            torch.zeros(batch, self.taps - 1, self.channels, device=device, dtype=dtype),
            torch.zeros(
                batch, self.heads, self.head_dim, self.state, device=device, dtype=ssm_dtype
            ),
        )

    def step(self, x: Tensor, state: Mamba2State) -> tuple[Tensor, Mamba2State]:
        self.check_step(x, state)
        gate, mixed, dt = self.in_proj(x).split([self.inner, self.channels, self.heads], -1)
        mixed, conv = causal_conv1d(
            mixed[:, None], self.conv1d.weight[:, 0], self.conv1d.bias, state=state.conv
        )
        inner, B, C = self._split(F.silu(mixed[:, 0]))
        dt, log_decay = self._steps(dt)
        y, ssm = ssd_step(inner * dt[..., None].to(inner.dtype), log_decay, B, C, state.ssm)
        return self._finish(y.to(inner.dtype), inner, gate), Mamba2State(conv, ssm)
