"""The small convolutional baseline of GenomicBenchmarks (Gresova et al. 2023), as an encoder."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from core.sequences import Sequences
from genomics.data.tokenizers import BASES, FIRST_BASE


class ConvEncoder(nn.Module):
    """Embedding, then convolutions with batch norm and ReLU, ``dim`` features a position."""

    causal = False

    def __init__(self, dim: int = 64, layers: int = 2, taps: int = 9, embedding: int = 16) -> None:
        super().__init__()
        self.dim = dim
        self.embedding = nn.Embedding(FIRST_BASE + len(BASES), embedding)
        widths = [embedding] + [dim] * layers
        self.convolutions = nn.ModuleList(
            nn.Conv1d(a, b, taps, padding=taps // 2) for a, b in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(dim) for _ in range(layers))

    def embed(
        self, tokens: Tensor, sequences: Sequences | None = None, prompt: Tensor | None = None
    ) -> Tensor:
        """Per-position features; ``prompt`` is not for convolutions and is refused."""
        if prompt is not None:
            raise ValueError("ConvEncoder takes no soft prompt")
        x = self.embedding(tokens)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            if sequences is not None:
                x = sequences.zero_padding(x)
            x = norm(convolution(x.transpose(1, 2))).relu().transpose(1, 2)
        return x
