"""Launches of the convolution of what fits a tile."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from core.ops.fft_conv import short_kernel
from core.ops.fft_conv.plan import (
    TILE,
    Gradients,
    Spectrum,
    Targets,
    Tile,
    Windows,
    given,
    input_targets,
    strides,
    tile_constants,
)

WARPS = 4  # the 64 rows of a tile are one warpgroup's
MANY = 2048  # programs that fill a device
SUMS = 512  # programs that keep a sum each: enough of them, no more


def forward(
    u: Tensor,
    h: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    zero: int,
    windows: Windows,
) -> Tensor:
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    spectrum = _spectrum(h, zero, windows.tile)
    _convolve(u, pre_gate, skip, spectrum, [(y, post_gate)], windows, conj=False)
    return y


def backward(
    dy: Tensor,
    u: Tensor,
    h: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    zero: int,
    wanted: Sequence[bool],
    windows: Windows,
    gradients: Gradients,
) -> None:
    _, dh, dskip, _, dpost = gradients
    targets = input_targets(gradients, wanted, u, pre_gate)
    if targets or wanted[4]:
        spectrum = _spectrum(h, zero, windows.tile)
        if wanted[4]:
            _convolve(u, pre_gate, skip, spectrum, [(dpost, dy)], windows, conj=False)
        if targets:
            _convolve(dy, post_gate, skip, spectrum, targets, windows, conj=True)
    if wanted[1] or wanted[2]:
        _correlate(u, pre_gate, dy, post_gate, dh, dskip, zero, wanted, windows)


def _spectrum(h: Tensor, zero: int, tile: Tile) -> Spectrum:
    channels, taps = h.shape
    spectrum = h.new_empty(tile.planes, channels, tile.size, dtype=torch.float16)
    scale = h.new_empty(channels)
    short_kernel.filter_kernel[(triton.cdiv(channels, tile.repeat),)](
        h,
        spectrum,
        scale,
        tile_constants(tile, 0.25, h.device),
        channels,
        taps,
        zero,
        **tile.layout,
        HAS_REVERSE=zero > 0,
        num_warps=WARPS,
        num_stages=1,
    )
    return spectrum, scale


def _tiles(rows: int, channels: int, repeat: int) -> tuple[int, int]:
    """Tiles that one program takes, and programs for a channel: few reload the matrices, many fill
    the device."""
    tiles = triton.cdiv(rows, repeat)
    each = 1
    while each < 8 and each < tiles and channels * tiles >= MANY * each:
        each *= 2
    return each, triton.cdiv(tiles, each)


def _convolve(
    x: Tensor,
    pre: Tensor | None,
    skip: Tensor | None,
    spectrum: Spectrum,
    targets: Targets,
    windows: Windows,
    conj: bool,
) -> None:
    batch, channels, length = x.shape
    pre_rows = given(pre, x)
    (out1, gate1), (out2, gate2) = targets[0], targets[-1]
    gate1_rows, gate2_rows = given(gate1, x), given(gate2, x)
    tile, rows = windows.tile, batch * windows.count
    each, groups = _tiles(rows, channels, tile.repeat)
    short_kernel.convolve_kernel[(channels * groups,)](
        x,
        pre_rows,
        given(skip, x),
        *spectrum,
        out1,
        gate1_rows,
        out2,
        gate2_rows,
        tile_constants(tile, 0.25, x.device),
        *strides(x, pre_rows, out1, gate1_rows, out2, gate2_rows),
        channels,
        rows,
        windows.count,
        length,
        windows.behind if conj else windows.lead,
        windows.hop,
        groups,
        tile.norm,
        **tile.layout,
        TILES=each,
        CONJ=conj,
        WINDOWED=windows.count > 1,
        HAS_PRE=pre is not None,
        HAS_SKIP=skip is not None,
        HAS_GATE1=gate1 is not None,
        HAS_OUT2=len(targets) == 2,
        HAS_GATE2=gate2 is not None,
        num_warps=WARPS,
        num_stages=1,
    )


def _correlate(
    u: Tensor,
    pre_gate: Tensor | None,
    dy: Tensor,
    post_gate: Tensor | None,
    dh: Tensor,
    dskip: Tensor,
    zero: int,
    wanted: Sequence[bool],
    windows: Windows,
) -> None:
    batch, channels, length = u.shape
    pre_rows, post_rows = given(pre_gate, u), given(post_gate, dy)
    tile, rows = windows.tile, batch * windows.count
    tiles = triton.cdiv(rows, tile.repeat)
    groups = max(1, min(tiles, SUMS // channels))
    each = triton.cdiv(tiles, groups)
    groups = triton.cdiv(tiles, each)
    whole = groups == 1
    sums, skip_sums = dh, dskip
    if not whole:
        sums = u.new_empty(tile.planes, groups, channels, TILE, dtype=torch.float32)
        skip_sums = u.new_empty(groups, channels, dtype=torch.float32)
    constants = tile_constants(tile, 0.25, u.device)
    short_kernel.correlate_kernel[(channels * groups,)](
        u,
        pre_rows,
        dy,
        post_rows,
        sums,
        skip_sums,
        constants,
        *strides(u, pre_rows, dy, post_rows),
        channels,
        rows,
        windows.count,
        length,
        windows.lead,
        windows.hop,
        groups,
        each,
        dh.shape[-1],
        zero,
        tile.norm,
        **tile.layout,
        WINDOWED=windows.count > 1,
        WHOLE=whole,
        HAS_REVERSE=zero > 0 and wanted[1],
        HAS_PRE=pre_gate is not None,
        HAS_POST=post_gate is not None,
        HAS_SKIP=wanted[2],
        num_warps=WARPS,
        num_stages=1,
    )
    if whole:
        return
    if wanted[2]:
        dskip.copy_(skip_sums.sum(0))
    if wanted[1]:
        short_kernel.filter_gradient_kernel[(channels,)](
            sums,
            dh,
            constants,
            groups,
            channels,
            dh.shape[1],
            zero,
            tile.norm,
            **tile.layout,
            HAS_REVERSE=zero > 0,
            num_warps=WARPS,
            num_stages=1,
        )
