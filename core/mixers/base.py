"""What every token mixer offers."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from core.arguments import FLOATS, check_flags, check_integers, check_tensors
from core.sequences import Sequences, check_sequences

NONCAUSAL_SELF = "noncausal_self"
CAUSAL_SELF = "causal_self"
NONCAUSAL_CROSS = "noncausal_cross"
CAUSAL_CROSS = "causal_cross"
PATTERNS = frozenset({NONCAUSAL_SELF, CAUSAL_SELF, NONCAUSAL_CROSS, CAUSAL_CROSS})


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision raised to float32, everything else as it is."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def check_rows(name: str, x: Tensor, dim: int, sequences: Sequences | None) -> None:
    """Raises ValueError unless ``x`` is (batch, length >= 1, dim), of which ``sequences`` speak."""
    check_tensors(name, {"x": x})
    if x.ndim != 3 or x.shape[1] < 1 or x.shape[2] != dim or x.dtype not in FLOATS:
        raise ValueError(
            f"{name}: x must be (batch, length, {dim}) with a length of at least 1, "
            f"floating point, got {tuple(x.shape)} {x.dtype}"
        )
    check_sequences(name, "sequences", sequences, "x", x)


class UnsupportedPattern(ValueError):
    """A mixer was asked for a pattern that it does not compute."""


class Mixer(nn.Module):
    """Mixes tokens along the length: (batch, length, dim) -> (batch, length, dim).

    Subclasses name what they compute in ``patterns`` (the four of Zhang et al. 2023, CAB: a causal
    mixer's output t depends on inputs up to t; a cross mixer reads ``context``, all of it visible)
    and are built from ``dim`` and options of their own. Positions that ``sequences`` calls padding
    never change the others and come out as zeros.

    A mixer with ``recurrent = True`` also has ``init_state`` and ``step``, and its ``forward``
    takes ``state`` and then returns ``(output, state)``, so that a long sequence may be fed in
    pieces.
    """

    patterns: frozenset[str] = frozenset()  # an instance may narrow it by its options
    recurrent: ClassVar[bool] = False

    def __init__(self, dim: int, causal: bool) -> None:
        super().__init__()
        check_integers(type(self).__name__, dim=dim)
        check_flags(type(self).__name__, causal=causal)
        self.dim = dim
        self.causal = causal
        if not {self.pattern(cross=False), self.pattern(cross=True)} & self.patterns:
            self._refuse(self.pattern(cross=False))

    def pattern(self, cross: bool) -> str:
        """The name of what is computed with (``cross``) or without a context."""
        if cross:
            return CAUSAL_CROSS if self.causal else NONCAUSAL_CROSS
        return CAUSAL_SELF if self.causal else NONCAUSAL_SELF

    def check_input(
        self,
        x: Tensor,
        context: Tensor | None = None,
        sequences: Sequences | None = None,
        state: Any = None,
    ) -> None:
        """Raises ValueError for what does not fit, UnsupportedPattern for what is missing."""
        name = type(self).__name__
        check_tensors(name, {}, {"context": context})
        check_rows(name, x, self.dim, sequences)
        asked = self.pattern(cross=context is not None)
        if asked not in self.patterns:
            self._refuse(asked)
        if state is not None and not (self.recurrent and self.causal):
            raise UnsupportedPattern(f"{name} carries no state when not causal")
        if state is not None and sequences is not None:
            raise ValueError(
                f"{name}: pieces with a state take no sequences; feed documents "
                "apart, in pieces of equal length"
            )
        if state is not None:
            self._check_state(state, len(x))

    def check_step(self, x: Tensor, state: Any) -> None:
        """Raises ValueError unless x is (batch, dim) and the state one of as many sequences."""
        name = type(self).__name__
        check_tensors(name, {"x": x})
        if x.ndim != 2 or x.shape[1] != self.dim or x.dtype not in FLOATS:
            raise ValueError(
                f"{name}: x of a step must be (batch, {self.dim}), floating point, got "
                f"{tuple(x.shape)} {x.dtype}"
            )
        self._check_state(state, len(x))

    def _check_state(self, state: Any, batch: int) -> None:
        name, parts = type(self).__name__, state if isinstance(state, tuple) else (state,)
        tensors = [part for part in parts if isinstance(part, Tensor)]
        if not tensors:
            raise ValueError(
                f"{name}: state must be one that init_state gives, got {type(state).__name__}"
            )
        if any(part.shape[:1] != (batch,) for part in tensors):
            shapes = ", ".join(str(tuple(part.shape)) for part in tensors)
            raise ValueError(f"{name}: state is {shapes}, x has {batch} sequences")

    def _refuse(self, asked: str) -> None:
        raise UnsupportedPattern(
            f"{type(self).__name__} does not compute {asked}; it computes "
            + ", ".join(sorted(self.patterns))
        )

    def init_state(self, batch: int, *, device: Any = None, dtype: Any = None) -> Any:
        """The state before the first token of ``batch`` sequences: tensors (batch, ...), one or a
        tuple."""
        raise UnsupportedPattern(f"{type(self).__name__} carries no state")

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One token (batch, dim) and the state before it -> its output (batch, dim), new state."""
        raise UnsupportedPattern(f"{type(self).__name__} carries no state")
