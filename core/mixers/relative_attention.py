"""Softmax attention with learned relative positions (Music Transformer)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.arguments import check_integers, check_share
from core.mixers.attention import AttentionState
from core.mixers.base import CAUSAL_SELF, NONCAUSAL_SELF, Mixer
from core.patterns import Full, Tokens, visible
from core.sequences import Sequences


class RelativeAttention(Mixer):
    """softmax((Q K^T + S) / sqrt(head_dim)) V with S[i, j] = q_i . e[j - i] (Huang et al. 2018,
    arXiv 1809.04281).

    Each head learns one vector e for each distance from ``-max_distance`` to 0 (causal) or to
    ``max_distance``; keys further away take the last one. S comes from the product of the queries
    with those vectors by a change of shape (`skew`), so that beside the scores only
    length * head_dim numbers a head are kept, where gathering e for each pair needs
    length^2 * head_dim. ``dropout`` drops attention weights in training.

    Raises ValueError if ``heads`` does not divide ``dim``, ``max_distance`` is below 1 or
    ``dropout`` not in [0, 1).
    """

    patterns = frozenset({CAUSAL_SELF, NONCAUSAL_SELF})
    recurrent = True

    def __init__(
        self,
        dim: int,
        causal: bool = True,
        heads: int = 8,
        max_distance: int = 512,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(dim, causal)
        check_integers("RelativeAttention", heads=heads, max_distance=max_distance)
        if dim % heads:
            raise ValueError(f"RelativeAttention: heads={heads} must divide dim={dim}")
        check_share("RelativeAttention", dropout=dropout)
        self.heads, self.head_dim = heads, dim // heads
        self.max_distance, self.dropout = max_distance, dropout
        self.q_proj = nn.Linear(dim, dim, bias=bias)
        self.k_proj = nn.Linear(dim, dim, bias=bias)
        self.v_proj = nn.Linear(dim, dim, bias=bias)
        self.o_proj = nn.Linear(dim, dim, bias=bias)
        distances = max_distance + 1 if causal else 2 * max_distance + 1
        self.relative = nn.Parameter(torch.randn(heads, distances, self.head_dim) * 0.02)

    def extra_repr(self) -> str:
        return f"causal={self.causal}, heads={self.heads}, max_distance={self.max_distance}"

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        sequences: Sequences | None = None,
        state: AttentionState | None = None,
    ) -> Any:
        """(batch, length, dim) -> (batch, length, dim); with ``state``, also the state after it."""
        self.check_input(x, context, sequences, state)
        if sequences is not None:
            x = sequences.zero_padding(x)
        query, key, value = (
            project(x).unflatten(-1, (self.heads, self.head_dim))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if state is not None:
            key = torch.cat((state.keys.to(key.dtype), key), dim=1)
            value = torch.cat((state.values.to(value.dtype), value), dim=1)
        out = self.o_proj(self._attend(query, key, value, sequences).flatten(2))
        if sequences is not None:
            out = sequences.zero_padding(out)
        return out if state is None else (out, AttentionState(key, value, key.shape[1]))

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, sequences: Sequences | None
    ) -> Tensor:
        """(batch, queries, heads, head_dim); the queries are the last of the keys' tokens."""
        length, keys = query.shape[1], key.shape[1]
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        # A document lies side by side, so that distances in it are distances in the row.
        scores = skew(query @ self._embeddings(length, keys).transpose(-1, -2), keys)
        tokens = Tokens.of(keys, sequences, query.device)
        queries = Tokens(*(part[:, keys - length :] for part in tokens))
        seen = visible(Full(), self.causal, queries, tokens)[:, None]
        if sequences is not None:  # padding sees itself, so that no row of weights is empty
            seen = seen | torch.eye(keys, dtype=torch.bool, device=seen.device)
        scores = (scores / self.head_dim**0.5).masked_fill(~seen, -torch.inf)
        return F.scaled_dot_product_attention(
            query, key, value, scores, self.dropout if self.training else 0.0
        ).transpose(1, 2)

    def _embeddings(self, length: int, keys: int) -> Tensor:
        """(heads, n, head_dim): one for each distance from -keys (which `skew` drops) to the
        largest between ``length`` queries and ``keys`` keys."""
        last = 1 if self.causal else length
        distance = torch.arange(-keys, last, device=self.relative.device)
        limit = 0 if self.causal else self.max_distance
        return self.relative[:, distance.clamp(-self.max_distance, limit) + self.max_distance]

    def init_state(self, batch: int, *, device: Any = None, dtype: Any = None) -> AttentionState:
        """Nothing seen yet."""
        if not self.causal:
            return super().init_state(batch, device=device, dtype=dtype)
        weight = self.k_proj.weight
        none = torch.zeros(
            (batch, 0, self.heads, self.head_dim),
            device=weight.device if device is None else device,
            dtype=weight.dtype if dtype is None else dtype,
        )
        return AttentionState(none, none, 0)

    def step(self, x: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        """One token (batch, dim) and the state before it -> its output (batch, dim), new state."""
        self.check_step(x, state)
        out, state = self(x[:, None], state=state)
        return out[:, 0], state


def skew(by_distance: Tensor, keys: int) -> Tensor:
    """(..., queries, n), column c for distance c - keys, -> (..., queries, keys) by key, a view.

    Query i stands at key keys - queries + i. In memory, one row further is one distance less for
    the same key: without the first ``queries`` numbers, rows one shorter line the keys up. Beyond
    the largest distance in ``by_distance`` (causal: 0) the numbers mean nothing.
    """
    queries, columns = by_distance.shape[-2:]
    line = by_distance.flatten(-2)[..., queries:]
    return line.unflatten(-1, (queries, columns - 1))[..., :keys]
