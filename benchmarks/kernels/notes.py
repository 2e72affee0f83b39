"""The notes of the variable-length benchmark: their lengths, and how they are put into batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Shape:
    notes: int = 64
    median: int = 600
    percentile99: int = 8_000
    cut: int = 4_096
    seed: int = 0
    batch: int = 8  # notes
    tokens: int = 32_768  # in a packed batch filled by tokens: as many as 8 padded long notes
    layers: int = 12
    dim: int = 768
    heads: int = 12
    side: int = 256  # tokens that a window sees on each side
    vocabulary: int = 50_265
    repeats: int = 7
    operations: tuple[tuple[int, int], ...] = ((4, 4_096), (1, 16_384), (1, 65_536))


SMALL = Shape(
    notes=12,
    median=60,
    percentile99=800,
    cut=256,
    batch=4,
    tokens=1_024,
    layers=2,
    dim=64,
    heads=4,
    side=16,
    vocabulary=100,
    repeats=2,
    operations=((2, 256),),
)


def note_lengths(shape: Shape) -> list[int]:
    """Log-normal lengths by median and 99th percentile, cut; 67,624 tokens for the base shape."""
    sigma = math.log(shape.percentile99 / shape.median) / 2.326
    normal = torch.randn(shape.notes, generator=torch.Generator().manual_seed(shape.seed))
    return (shape.median * torch.exp(sigma * normal)).long().clamp(1, shape.cut).tolist()


def by_count(lengths: list[int], size: int) -> list[list[int]]:
    return [lengths[i : i + size] for i in range(0, len(lengths), size)]


def by_tokens(lengths: list[int], most: int) -> list[list[int]]:
    """Neighbouring notes of at most ``most`` tokens together."""
    batches: list[list[int]] = [[]]
    for length in lengths:
        if batches[-1] and sum(batches[-1]) + length > most:
            batches.append([])
        batches[-1].append(length)
    return batches
