"""Softmax attention."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from core.arguments import check_integers, check_kind, check_positive, check_share
from core.masked_attention import attend, kept, masked
from core.mixers.base import (
    CAUSAL_CROSS,
    CAUSAL_SELF,
    NONCAUSAL_CROSS,
    NONCAUSAL_SELF,
    PATTERNS,
    Mixer,
)
from core.patterns import Full, Pattern
from core.positions import Rotary
from core.sequences import Sequences, check_sequences


class AttentionState(NamedTuple):
    """What later tokens may still see.

    ``keys`` (rotated) and ``values`` are (batch, kept, kv_heads, head_dim): all ``length`` tokens
    so far, or only a pattern's first tokens and last window, so that memory stays constant.
    """

    keys: Tensor
    values: Tensor
    length: int


class Attention(Mixer):
    """Multi-head softmax attention (Vaswani et al. 2017) under an attention pattern.

    Query heads share ``kv_heads`` key and value heads (Ainslie et al. 2023, grouped queries).
    Queries and keys are rotated by their position in the document (``rotary_base``; None for no
    positions) and, with ``qk_norm``, normalised per head before. ``pattern`` limits what a query
    sees (`core.patterns`; None for everything); causality and documents limit it further. A query
    that sees nothing gets zeros from the heads. ``dropout`` drops attention weights in training;
    on CUDA that leaves FlexAttention for a slower path.

    With a context no positions apply, and every query sees all of it: a ``pattern`` speaks of
    distances within one sequence, so it leaves self-attention only. ``context_dim`` is the
    context's width, ``dim`` if None; another width leaves cross-attention only.

    Parameter names and head order are those of transformers' LlamaAttention.

    Raises ValueError if the sizes do not divide, or a pattern meets a context of another width.
    """

    patterns = PATTERNS
    recurrent = True

    def __init__(
        self,
        dim: int,
        causal: bool = True,
        heads: int = 8,
        kv_heads: int | None = None,
        rotary_base: float | None = 10_000.0,
        pattern: Pattern | None = None,
        bias: bool = False,
        qk_norm: bool = False,
        dropout: float = 0.0,
        context_dim: int | None = None,
    ) -> None:
        super().__init__(dim, causal)
        kv_heads = heads if kv_heads is None else kv_heads
        check_integers("Attention", heads=heads, kv_heads=kv_heads)
        if dim % heads:
            raise ValueError(f"Attention: heads={heads} must divide dim={dim}")
        if heads % kv_heads:
            raise ValueError(f"Attention: kv_heads={kv_heads} must divide heads={heads}")
        check_share("Attention", dropout=dropout)
        if rotary_base is not None:
            check_positive("Attention", rotary_base=rotary_base)
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, dim // heads
        self.context_dim = dim if context_dim is None else context_dim
        check_integers("Attention", context_dim=self.context_dim)
        self.visible = Full() if pattern is None else pattern
        if not isinstance(self.visible, Pattern):
            raise ValueError(f"Attention: pattern must be one of core.patterns, got {pattern!r}")
        if not isinstance(self.visible, Full):
            self.patterns = self.patterns & {CAUSAL_SELF, NONCAUSAL_SELF}
        if self.context_dim != dim:
            self.patterns = self.patterns & {CAUSAL_CROSS, NONCAUSAL_CROSS}
        if not self.patterns:
            raise ValueError(
                f"Attention: {self.visible} speaks of distances within one sequence; leave pattern "
                f"out to attend to a context of width {self.context_dim}"
            )
        self.rotary = None if rotary_base is None else Rotary(self.head_dim, rotary_base)
        self.dropout = dropout
        narrow = kv_heads * self.head_dim
        self.q_proj = nn.Linear(dim, dim, bias=bias)
        self.k_proj = nn.Linear(self.context_dim, narrow, bias=bias)
        self.v_proj = nn.Linear(self.context_dim, narrow, bias=bias)
        self.o_proj = nn.Linear(dim, dim, bias=bias)
        self.q_norm = nn.RMSNorm(self.head_dim) if qk_norm else None
        self.k_norm = nn.RMSNorm(self.head_dim) if qk_norm else None

    def extra_repr(self) -> str:
        return f"causal={self.causal}, kv_heads={self.kv_heads}, pattern={self.visible}"

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        sequences: Sequences | None = None,
        context_sequences: Sequences | None = None,
        state: AttentionState | None = None,
    ) -> Any:
        """(batch, length, dim) -> (batch, length, dim); with ``state``, also the state after it.

        ``context`` is (batch, any length, context_dim), ``context_sequences`` its padding. If both
        sides have ``sequences``, a query sees the context whose document has its number.
        """
        self.check_input(x, context, sequences, state)
        self._check_context(x, context, context_sequences, state)
        if sequences is not None:
            x = sequences.zero_padding(x)
        if context is not None:
            out, state = self._cross(x, context, sequences, context_sequences), None
        else:
            out, state = self._self(x, sequences, state)
        out = self.o_proj(out.flatten(2))
        if sequences is not None:
            out = sequences.zero_padding(out)
        return out if state is None else (out, state)

    def _check_context(
        self,
        x: Tensor,
        context: Tensor | None,
        sequences: Sequences | None,
        state: AttentionState | None,
    ) -> None:
        if context is None:
            if sequences is not None:
                raise ValueError("Attention: context_sequences need a context")
            return
        check_kind("Attention", "context", context, "batch, length, context_dim")
        if (len(context), context.shape[2]) != (len(x), self.context_dim):
            raise ValueError(
                f"Attention: context must be ({len(x)}, length, {self.context_dim}), got "
                f"{tuple(context.shape)}"
            )
        check_sequences("Attention", "context_sequences", sequences, "context", context)
        if state is not None:
            raise ValueError("Attention: a context leaves no state to carry; leave state out")

    def _heads(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of ``x``, keys and values of ``source``: (batch, length, heads, head_dim)."""
        query = self.q_proj(x).unflatten(-1, (self.heads, self.head_dim))
        key = self.k_proj(source).unflatten(-1, (self.kv_heads, self.head_dim))
        value = self.v_proj(source).unflatten(-1, (self.kv_heads, self.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            # The fused norm wants its input in the type of its weight, which autocast leaves wide.
            query = self.q_norm(query.to(self.q_norm.weight.dtype)).to(value.dtype)
            key = self.k_norm(key.to(self.k_norm.weight.dtype)).to(value.dtype)
        return query, key, value

    def _self(
        self, x: Tensor, sequences: Sequences | None, state: AttentionState | None
    ) -> tuple[Tensor, AttentionState | None]:
        query, key, value = self._heads(x, x)
        seen = 0 if state is None else state.length
        if self.rotary is not None:
            if sequences is None:
                position = torch.arange(seen, seen + x.shape[1], device=x.device)[None]
            else:
                position = sequences.position
            query, key = self.rotary(query, position), self.rotary(key, position)
        if state is not None:
            key = torch.cat((state.keys.to(key.dtype), key), dim=1)
            value = torch.cat((state.values.to(value.dtype), value), dim=1)
        out = attend(
            query,
            key,
            value,
            pattern=self.visible,
            causal=self.causal,
            sequences=sequences,
            seen=seen,
            dropout=self.dropout if self.training else 0.0,
        )
        return out, None if state is None else self._after(key, value, seen + x.shape[1])

    def _after(self, key: Tensor, value: Tensor, length: int) -> AttentionState:
        """The state after ``length`` tokens, of which ``key`` and ``value`` hold the last ones."""
        first, last = kept(self.visible, length)
        if first + last < key.shape[1]:
            start = key.shape[1] - last
            key = torch.cat((key[:, :first], key[:, start:]), dim=1)
            value = torch.cat((value[:, :first], value[:, start:]), dim=1)
        return AttentionState(key, value, length)

    def _cross(
        self,
        x: Tensor,
        context: Tensor,
        sequences: Sequences | None,
        context_sequences: Sequences | None,
    ) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        if context_sequences is None:
            heads = self._heads(x, context)
            return attend(*heads, pattern=self.visible, causal=False, dropout=dropout)
        heads = self._heads(x, context_sequences.zero_padding(context))
        mask = context_sequences.real[:, None, :].expand(-1, x.shape[1], -1)
        if sequences is not None:
            number = sequences.document[:, :, None]
            mask = mask & (number == context_sequences.document[:, None, :])
        return masked(*heads, mask, dropout)

    def init_state(self, batch: int, *, device: Any = None, dtype: Any = None) -> AttentionState:
        """Nothing seen yet."""
        if not self.causal:
            return super().init_state(batch, device=device, dtype=dtype)
        weight = self.k_proj.weight
        none = torch.zeros(
            (batch, 0, self.kv_heads, self.head_dim),
            device=weight.device if device is None else device,
            dtype=weight.dtype if dtype is None else dtype,
        )
        return AttentionState(none, none, 0)

    def step(self, x: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        """One token (batch, dim) and the state before it -> its output (batch, dim), new state."""
        self.check_step(x, state)
        out, state = self(x[:, None], state=state)
        return out[:, 0], state
