"""Channel mixers: each token by itself."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from core.backbone.dropout import Dropout


class MLP(nn.Module):
    """Linear, GELU (``exact`` or its tanh approximation), linear; hidden width ``expand * dim``."""

    def __init__(
        self,
        dim: int,
        *,
        expand: float = 4.0,
        approximate: Literal["none", "tanh"] = "tanh",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = round(expand * dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.approximate = approximate
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.dropout(F.gelu(self.fc1(x), approximate=self.approximate)))


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202): W3(silu(W1 x) * W2 x), without biases."""

    def __init__(self, dim: int, *, expand: float = 8 / 3, dropout: float = 0.0) -> None:
        super().__init__()
        hidden = round(expand * dim)
        self.in_proj = nn.Linear(dim, 2 * hidden, bias=False)
        self.out_proj = nn.Linear(hidden, dim, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.in_proj(x).chunk(2, dim=-1)
        return self.out_proj(self.dropout(F.silu(gate) * value))
