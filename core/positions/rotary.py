"""Rotary position embedding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from core.arguments import check_integers, check_positive


@dataclass(frozen=True)
class Rotary:
    """Turns pairs of features by an angle that grows with the position (Su et al. 2021, RoFormer).

    Feature i is paired with feature i + head_dim / 2 ("rotate half", as in Llama; the paper pairs
    neighbours) and turned by ``position * base ** (-2 i / head_dim)``. The product of a query and
    a key then depends on the distance of their positions only.

    Raises ValueError if ``head_dim`` is odd or ``base`` is not positive.
    """

    head_dim: int
    base: float = 10_000.0

    def __post_init__(self) -> None:
        check_integers("Rotary", head_dim=self.head_dim)
        if self.head_dim % 2:
            raise ValueError(f"Rotary: head_dim must be even, got {self.head_dim}")
        check_positive("Rotary", base=self.base)

    def angles(self, position: Tensor) -> Tensor:
        """Positions (..., length) -> float64 angles in [0, 2 pi), (..., length, head_dim / 2)."""
        # float32 would be off by 0.06 radian at position 2^20, in the fastest pair.
        exponent = torch.arange(0, self.head_dim, 2, device=position.device, dtype=torch.float64)
        frequency = self.base ** (-exponent / self.head_dim)
        return (position[..., None].to(torch.float64) * frequency) % (2 * math.pi)

    def __call__(self, x: Tensor, position: Tensor) -> Tensor:
        """``x`` (batch, length, heads, head_dim) at ``position`` (batch or 1, length), turned.

        Computed in float32 or, for float64, in float64; returned in the type of ``x``.
        """
        if x.ndim != 4 or x.shape[-1] != self.head_dim:
            raise ValueError(
                f"Rotary: x must be (batch, length, heads, {self.head_dim}), got {tuple(x.shape)}"
            )
        dtype = torch.promote_types(x.dtype, torch.float32)
        angle = self.angles(position)[..., None, :]
        cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
        one, other = x.to(dtype).chunk(2, dim=-1)
        turned = torch.cat((one * cos - other * sin, other * cos + one * sin), dim=-1)
        return turned.to(x.dtype)
