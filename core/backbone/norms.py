"""Norms by name."""

from __future__ import annotations

from typing import Literal

from torch import nn

Norm = Literal["layer", "rms"]


def make_norm(kind: Norm, dim: int, eps: float = 1e-5) -> nn.Module:
    """LayerNorm or RMSNorm over the last dimension."""
    return nn.LayerNorm(dim, eps=eps) if kind == "layer" else nn.RMSNorm(dim, eps=eps)
