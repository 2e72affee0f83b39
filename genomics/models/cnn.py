"""A small convolutional baseline, after that of GenomicBenchmarks (Gresova et al. 2023)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from core.sequences import Sequences
from genomics.data.tokenizers import BASES, FIRST_BASE


class ConvEncoder(nn.Module):
    """Embedding, then convolutions with batch norm and ReLU, ``dim`` features a position.

    After the first layer every ``pooling`` positions are one, by their maximum; in the end each
    position has the features of its group.
    """

    causal = False

    def __init__(
        self,
        dim: int = 64,
        layers: int = 2,
        taps: int = 9,
        embedding: int = 16,
        pooling: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim, self.pooling = dim, pooling
        self.embedding = nn.Embedding(FIRST_BASE + len(BASES), embedding)
        widths = [embedding] + [dim] * layers
        self.convolutions = nn.ModuleList(
            nn.Conv1d(a, b, taps, padding=taps // 2) for a, b in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(dim) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)

    def embed(
        self, tokens: Tensor, sequences: Sequences | None = None, prompt: Tensor | None = None
    ) -> Tensor:
        """Features (batch, length, dim); ``prompt`` is not for convolutions and is refused."""
        if prompt is not None:
            raise ValueError("ConvEncoder takes no soft prompt")
        length = tokens.shape[1]
        x = self.embedding(tokens).transpose(1, 2)
        real = x.new_ones(1, 1, length) if sequences is None else sequences.real[:, None].to(x)
        for layer, (convolution, norm) in enumerate(
            zip(self.convolutions, self.norms, strict=True)
        ):
            x = norm(convolution(x * real)).relu()
            if layer == 0:
                x = self.dropout(F.max_pool1d(x * real, self.pooling, ceil_mode=True))
                real = F.max_pool1d(real, self.pooling, ceil_mode=True)
        return x.repeat_interleave(self.pooling, -1)[..., :length].transpose(1, 2)
