"""Aaren, attention as a recurrent network (Feng et al. 2024, arXiv 2405.13956)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.arguments import check_integers
from core.mixers.base import CAUSAL_SELF, Mixer, at_least_float32
from core.ops.prefix_attention import PrefixState, prefix_attention, prefix_attention_step
from core.sequences import Sequences


class Aaren(Mixer):
    """Softmax attention of a learned query over every prefix; the state does not grow.

    As ``Attention``, except that the query is not the token's but one learned token (dim), the same
    at every position: ``dim`` more parameters than attention with the same heads. Nothing tells
    the order of earlier tokens apart: add positions to the input. Raises ValueError if ``heads``
    does not divide ``dim``.
    """

    patterns = frozenset({CAUSAL_SELF})
    recurrent = True

    def __init__(self, dim: int, causal: bool = True, *, heads: int = 8) -> None:
        super().__init__(dim, causal)
        check_integers("Aaren", heads=heads)
        if dim % heads:
            raise ValueError(f"Aaren: heads={heads} must divide dim={dim}")
        self.heads, self.head_dim = heads, dim // heads
        self.query = nn.Parameter(torch.randn(dim))
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def _scores_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., dim) -> scores (..., heads), at least float32; values (..., heads, head_dim)."""
        # query . (K x) = (K^T query) . x, and K^T query is the same for all tokens.
        query = self.q_proj(self.query).unflatten(0, (self.heads, 1, self.head_dim))
        key = self.k_proj.weight.unflatten(0, (self.heads, self.head_dim))
        into = (query @ key.to(query.dtype))[:, 0] * self.head_dim**-0.5
        values = self.v_proj(x).unflatten(-1, (self.heads, self.head_dim))
        return at_least_float32(F.linear(x, into.to(x.dtype))), values

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        sequences: Sequences | None = None,
        *,
        state: PrefixState | None = None,
    ) -> Any:
        """(batch, length, dim) -> the same; with ``state``, also the state after the last token."""
        self.check_input(x, context, sequences, state)
        if sequences is not None:
            x = sequences.zero_padding(x)
        scores, values = self._scores_and_values(x)
        out, after = prefix_attention(
            scores,
            values,
            initial_state=state,
            document=None if sequences is None else sequences.document,
        )
        out = self.o_proj(out.flatten(2))
        return out if state is None else (out, after)

    def init_state(self, batch: int, *, device: Any = None, dtype: Any = None) -> PrefixState:
        """Nothing seen yet; float32, or float64 for ``dtype`` float64."""
        weight = self.o_proj.weight
        device = weight.device if device is None else device
        wide = torch.promote_types(dtype or weight.dtype, torch.float32)
        u = torch.zeros(batch, self.heads, device=device, dtype=wide)
        w = torch.zeros(batch, self.heads, self.head_dim, device=device, dtype=wide)
        return PrefixState(torch.full_like(u, -torch.inf), u, w)

    def step(self, x: Tensor, state: PrefixState) -> tuple[Tensor, PrefixState]:
        self.check_step(x, state)
        scores, values = self._scores_and_values(x)
        out, state = prefix_attention_step(scores, values, state)
        return self.o_proj(out.flatten(1)), state
