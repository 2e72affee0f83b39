"""How a convolution is laid out for matrix products, and the constants of its transforms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import overload

import torch
from torch import Tensor

from core.ops.fft_conv.reference import grid_size

SIDE = 64
TILE = SIDE * SIDE
# Filters up to this long are taken over windows of one tile; a window then has as many outputs.
WINDOW_TAPS = TILE // 2

Spectrum = tuple[Tensor, Tensor]  # (planes, channels, size) float16, and each channel's scale
Targets = list[tuple[Tensor, Tensor | None]]  # what to write, and the gate before it
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # u, h, skip, pre_gate, post_gate


@dataclass(frozen=True)
class Tile:
    """Transforms of ``size`` numbers, ``repeat`` of them in a tile; each multiplies norms by
    ``gain``. Of a ``band`` below 1 the kernels compute half of the frequencies."""

    size: int
    cols: int
    repeat: int
    gain: float
    band: float = 1.0

    @property
    def layout(self) -> dict[str, int]:
        return {"COLS": self.cols, "REPEAT": self.repeat, "HALF": self.band < 1}

    @property
    def norm(self) -> float:
        """What undoes two transforms and an inverse one."""
        return 1 / (self.gain**3 * self.size)

    @property
    def planes(self) -> int:
        """Of a spectrum: half the frequencies are half the numbers."""
        return 2 if self.band == 1 else 1


def tile_of(size: int, band: float = 1.0) -> Tile:
    cols = size // SIDE
    return Tile(size, cols, SIDE // cols, gain_of(SIDE) * gain_of(cols), band)


def gain_of(size: int) -> float:
    """The power of two next to 1 / sqrt(size): transforms keep norms, roughly."""
    return 2.0 ** -((size.bit_length() - 1) // 2)


def _dft(size: int, shift: float) -> Tensor:
    """exp(-2 pi i n (k + shift) / size) [k, n], complex128."""
    k = torch.arange(size, dtype=torch.float64)
    return _phases((k + shift)[:, None] * k / size)


def _phases(turns: Tensor) -> Tensor:
    """exp(-2 pi i turns)"""
    turns = -2 * math.pi * turns.remainder(1)
    return torch.complex(turns.cos(), turns.sin())


def _planes(x: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.stack([x.real, x.imag]).to(dtype).to(device)


@lru_cache(maxsize=64)
def tile_constants(tile: Tile, shift: float, device: torch.device) -> Tensor:
    """(6, 64, 64) float16: the matrices and twiddle factors of a tile (README.md)."""
    f1 = _dft(SIDE, shift) * gain_of(SIDE)
    f2 = _dft(tile.cols, 0.0) * gain_of(tile.cols)
    f2 = torch.block_diag(*[f2 if tile.band == 1 else _lowest(f2, tile.band)] * tile.repeat)
    k = torch.arange(SIDE, dtype=torch.float64)[:, None] + shift
    n = torch.arange(SIDE, dtype=torch.float64) % tile.cols
    parts = [_planes(x, torch.float16, device) for x in (f1, f2, _phases(k * n / tile.size))]
    return torch.cat(parts)


def _lowest(f2: Tensor, band: float) -> Tensor:
    """[Fr, Fi] + i [-Fi, Fr] of the lower half of the columns of F2 = Fr + i Fi, Fr's and Fi's in
    turn: what multiplies a real part, and what an imaginary one. Of a smaller ``band`` the rest are
    zeros."""
    cols = len(f2)
    f2 = f2.roll(cols // 4, 1)[:, : cols // 2].clone()  # from the most negative frequency on
    outside = round(cols * (0.5 - band) / 2)
    f2[:, :outside] = f2[:, cols // 2 - outside :] = 0
    return torch.complex(*(torch.view_as_real(x).flatten(1) for x in (f2, 1j * f2)))


@dataclass(frozen=True)
class Outer:
    """The transform of ``n1`` down the columns: its matrix (2, n1, n1) float16, and the twiddle
    factors of lines of ``n2``: a float16 table (2, n1, n2), or for lines that fill a tile two
    float32 tables to multiply."""

    n1: int
    n2: int
    matrix: Tensor
    coarse: Tensor  # (2, n1, n2) or (2, n1, 64)
    fine: Tensor  # (2, n1, 64)

    @property
    def blocks(self) -> dict[str, int]:
        """Rows of the product, terms of its sum and columns that a program takes at a time."""
        bn = min(self.n2, max(128, TILE // self.n1))
        return {"BM": min(self.n1, 128), "BK": min(self.n1, 64), "BN": bn}

    @property
    def columns(self) -> int:
        return self.n2 // self.blocks["BN"]

    @property
    def programs(self) -> int:
        """For a row."""
        return self.columns * self.n1 // self.blocks["BM"]


@lru_cache(maxsize=64)
def outer_constants(n1: int, n2: int, device: torch.device) -> Outer:
    matrix = _planes(_dft(n1, 0.25) * gain_of(n1), torch.float16, device)
    k = torch.arange(n1, dtype=torch.float64)[:, None] + 0.25

    def table(stop: int, step: int, dtype: torch.dtype) -> Tensor:
        n = torch.arange(0, stop, step, dtype=torch.float64)
        return _planes(_phases(k * n / (n1 * n2)), dtype, device)

    fine = table(SIDE, 1, torch.float32)
    whole = n2 < TILE
    coarse = table(n2, 1, torch.float16) if whole else table(n2, SIDE, torch.float32)
    return Outer(n1, n2, matrix, coarse, fine)


@dataclass(frozen=True)
class Windows:
    """How a sequence lies in tiles: ``count`` windows a row, each with ``hop`` outputs that start
    ``lead`` behind its first position, or ``behind`` for the filter taken backwards."""

    tile: Tile
    count: int
    hop: int
    lead: int
    behind: int


@dataclass(frozen=True)
class Passes:
    """A long transform of ``n1`` lines of ``n2``; ``tile`` is that of a line."""

    n1: int
    n2: int
    tile: Tile


def plan(length: int, taps: int, zero: int, band: float = 1.0) -> Windows | Passes:
    size = max(SIDE, 1 << (length - 1).bit_length()) if band == 1 else grid_size(length, band)
    if size <= TILE:
        return Windows(tile_of(size, band), 1, size, 0, 0)
    # the frequencies of a band are those of the whole sequence
    if taps <= WINDOW_TAPS and band == 1:
        hop = TILE - taps + 1
        return Windows(tile_of(TILE), -(-length // hop), hop, taps - 1 - zero, zero)
    n1 = max(16, size // TILE)
    return Passes(n1, size // n1, tile_of(size // n1, band))


@overload
def rows_of(x: Tensor) -> Tensor: ...
@overload
def rows_of(x: Tensor | None) -> Tensor | None: ...
def rows_of(x: Tensor | None) -> Tensor | None:
    """``x`` with neighbouring positions next to each other."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def given(x: Tensor | None, stand_in: Tensor) -> Tensor:
    """What a kernel gets in place of an absent tensor is never read."""
    return stand_in if x is None else x


def chunks(u: Tensor, n: int, most: int) -> list[slice]:
    """Channels in parts of about ``most`` numbers at ``n`` a row, the first one the largest."""
    batch, channels, _ = u.shape
    step = max(1, most // (batch * n))
    return [slice(i, min(i + step, channels)) for i in range(0, channels, step)]


def strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(stride for x in tensors for stride in x.stride()[:2])


@overload
def cut(x: Tensor, part: slice) -> Tensor: ...
@overload
def cut(x: Tensor | None, part: slice) -> Tensor | None: ...
def cut(x: Tensor | None, part: slice) -> Tensor | None:
    """Channels ``part`` of (batch, channels, length) or (channels, ...)."""
    if x is None:
        return None
    return x[:, part] if x.ndim == 3 else x[part]


def input_targets(
    gradients: Gradients,
    wanted: Sequence[bool],
    u: Tensor,
    pre_gate: Tensor | None,
    part: slice = slice(None),
) -> Targets:
    """du = pre_gate dv and dpre_gate = u dv of some channels, as far as they are wanted."""
    targets: Targets = []
    if wanted[0]:
        targets.append((cut(gradients[0], part), cut(pre_gate, part)))
    if wanted[3]:
        targets.append((cut(gradients[3], part), cut(u, part)))
    return targets
