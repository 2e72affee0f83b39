"""Launches of the convolution longer than a tile: three passes over float16 intermediates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from core.ops.fft_conv import long_kernel
from core.ops.fft_conv.plan import (
    Gradients,
    Passes,
    Spectrum,
    Targets,
    Tile,
    chunks,
    cut,
    gain_of,
    given,
    input_targets,
    outer_constants,
    strides,
    tile_constants,
)

# Numbers of an intermediate; each takes 4 bytes. The backward pass has two of them at a time.
CHUNK = 2**25
# Measured best on an H100 (docs/kernels.md).
WARPS = 4
OUTER_WARPS, OUTER_STAGES = 8, 3


def forward(
    u: Tensor,
    h: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    zero: int,
    how: Passes,
) -> Tensor:
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    rows, filters = _Rows.of(u, pre_gate), _filters(h, zero)
    for part in chunks(u, how.n1 * how.n2, 2 * CHUNK):
        some = rows.part(part)
        z = _outer(some, how)
        spectrum = _spectrum(filters, part, how)
        targets: Targets = [(y[:, part], cut(post_gate, part))]
        _convolve(z, some, spectrum, cut(skip, part), targets, how, conj=False)
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
    how: Passes,
    gradients: Gradients,
) -> None:
    _, dh, dskip, _, dpost = gradients
    stats = _row_stats(u, pre_gate, dy, post_gate)
    if wanted[2]:
        dskip.copy_(stats[2].sum(1))
    rows_v, rows_g = _Rows.of(u, pre_gate, stats[0]), _Rows.of(dy, post_gate, stats[1])
    filters = _filters(h, zero)
    for part in chunks(u, how.n1 * how.n2, CHUNK):
        v, g = rows_v.part(part), rows_g.part(part)
        targets = input_targets(gradients, wanted, u, pre_gate, part)
        skip_part = cut(skip, part)
        z_g = _outer(g, how) if targets or wanted[1] else None
        z_v = _outer(v, how) if wanted[4] or wanted[1] else None
        if wanted[1]:
            assert z_v is not None
            assert z_g is not None
            _correlate(z_v, z_g, v.power * g.power, dh[part], zero, how)
        spectrum = _spectrum(filters, part, how) if targets or wanted[4] else None
        if targets:
            assert z_g is not None
            assert spectrum is not None
            _convolve(z_g, g, spectrum, skip_part, targets, how, conj=True)
        del z_g
        if wanted[4]:
            assert z_v is not None
            assert spectrum is not None
            out: Targets = [(dpost[:, part], dy[:, part])]
            _convolve(z_v, v, spectrum, skip_part, out, how, conj=False)


def powers(largest: Tensor) -> tuple[Tensor, Tensor]:
    """As `tile_kernel.power_below`, for float32 tensors."""
    exponent = (largest.view(torch.int32) >> 23) & 0xFF
    exponent = torch.where(exponent == 0, 127, exponent.clamp(max=253))
    power, inverse = exponent << 23, (254 - exponent) << 23
    return power.view(torch.float32), inverse.view(torch.float32)


def _row_stats(
    x: Tensor,
    pre: Tensor | None,
    dy: Tensor | None = None,
    post: Tensor | None = None,
) -> Tensor:
    """(1 or 3, channels, batch): largest |v|, largest |g|, sum of v g; v = pre x, g = post dy."""
    batch, channels, length = x.shape
    pre_rows, dy_rows = given(pre, x), given(dy, x)
    post_rows = given(post, dy_rows)
    block, steps = 2048, 8
    pieces = triton.cdiv(length, block * steps)
    rows = batch * channels
    what = 1 if dy is None else 3
    out = torch.empty(what, channels, batch, pieces, dtype=torch.float32, device=x.device)
    long_kernel.row_stats_kernel[(rows * pieces,)](
        x,
        pre_rows,
        dy_rows,
        post_rows,
        out,
        *strides(x, pre_rows, dy_rows, post_rows),
        batch,
        rows,
        length,
        pieces,
        steps,
        HAS_PRE=pre is not None,
        HAS_DY=dy is not None,
        HAS_POST=post is not None,
        BLOCK=block,
    )
    largest = out[:2].amax(3)
    return largest if dy is None else torch.cat([largest, out[2:].sum(3)])


@dataclass(frozen=True)
class _Rows:
    """A sequence with its gate, and the powers of two that its rows (channels, batch) are kept
    at."""

    x: Tensor
    gate: Tensor | None
    power: Tensor
    inverse: Tensor

    @staticmethod
    def of(x: Tensor, gate: Tensor | None, largest: Tensor | None = None) -> _Rows:
        """``largest`` (channels, batch) of the absolute values, if it is known."""
        if largest is None:
            largest = _row_stats(x, gate)[0]
        return _Rows(x, gate, *powers(largest))

    def part(self, part: slice) -> _Rows:
        gate = cut(self.gate, part)
        return _Rows(self.x[:, part], gate, self.power[part], self.inverse[part])


def _outer(rows: _Rows, how: Passes) -> Tensor:
    """(2, channels, batch, N1, N2) float16: the columns' transforms."""
    batch, channels, length = rows.x.shape
    outer = outer_constants(how.n1, how.n2, rows.x.device)
    gate = given(rows.gate, rows.x)
    z = rows.x.new_empty(2, channels, batch, how.n1, how.n2, dtype=torch.float16)
    long_kernel.outer_kernel[(channels * batch * outer.programs,)](
        rows.x,
        gate,
        rows.inverse,
        z,
        outer.matrix,
        *strides(rows.x, gate),
        batch,
        channels * batch,
        length,
        outer.columns,
        HAS_GATE=rows.gate is not None,
        num_warps=OUTER_WARPS,
        num_stages=OUTER_STAGES,
        N1=outer.n1,
        **outer.blocks,
    )
    return z


def _filters(h: Tensor, zero: int) -> tuple[_Rows, _Rows | None]:
    """Filters (channels, taps) as rows: lags from 0 on, and the lags before them backwards."""
    past = None
    largest = _row_stats(h[None], None)[0]
    if zero:
        lags = torch.nn.functional.pad(h[:, :zero].flip(1), (1, 0))
        past = _Rows.of(lags[None], None, largest)
    return _Rows.of(h[None, :, zero:], None, largest), past


def _spectrum(filters: tuple[_Rows, _Rows | None], part: slice, how: Passes) -> Spectrum:
    """(planes, channels, 1, N1, N2) of some channels, and the scale of each."""
    ahead = filters[0].part(part)
    z = _outer(ahead, how)
    past = z if filters[1] is None else _outer(filters[1].part(part), how)
    tile = how.tile
    lines = z[0].numel() // tile.size
    outer = outer_constants(how.n1, how.n2, z.device)
    long_kernel.inner_spectrum_kernel[(lines // tile.repeat,)](
        z,
        past,
        tile_constants(tile, 0.0, z.device),
        outer.coarse,
        outer.fine,
        lines,
        N1=how.n1,
        **tile.layout,
        HAS_REVERSE=filters[1] is not None,
        num_warps=WARPS,
        num_stages=1,
    )
    return z[: tile.planes], ahead.power[:, 0]


def _stages(tile: Tile) -> int:
    """Loads of the next tile run ahead where they are whole lines."""
    return 2 if tile.repeat == 1 else 1


def _norm(how: Passes) -> float:
    gain = gain_of(how.n1) * how.tile.gain
    return 1 / (gain**3 * how.n1 * how.n2)


def _convolve(
    z: Tensor,
    rows: _Rows,
    spectrum: Spectrum,
    skip: Tensor | None,
    targets: Targets,
    how: Passes,
    conj: bool,
) -> None:
    """From the columns' transforms ``z`` of ``rows``, which it overwrites, to the targets."""
    _, channels, batch, n1, _ = z.shape
    tile = how.tile
    tiles = z[0].numel() // (tile.size * tile.repeat)
    each = next(n for n in (8, 4, 2, 1) if tiles % n == 0 and (tiles // n >= 512 or n == 1))
    line = z.new_empty(channels, batch, n1, dtype=torch.float32)
    outer = outer_constants(how.n1, how.n2, z.device)
    long_kernel.inner_convolve_kernel[(tiles // each,)](
        z,
        line,
        spectrum[0],
        tile_constants(tile, 0.0, z.device),
        outer.coarse,
        outer.fine,
        batch,
        line.numel(),
        channels * n1,
        N1=n1,
        **tile.layout,
        TILES=each,
        CONJ=conj,
        num_warps=WARPS,
        num_stages=_stages(tile),
    )
    factor = rows.power * spectrum[1][:, None]
    _outer_inverse(z, line, factor, rows, skip, targets, how)


def _outer_inverse(
    z: Tensor,
    line: Tensor,
    factor: Tensor,
    rows: _Rows | None,
    skip: Tensor | None,
    targets: Targets,
    how: Passes,
) -> None:
    channels, batch = z.shape[1:3]
    (out1, gate1), (out2, gate2) = targets[0], targets[-1]
    x = out1 if rows is None else rows.x
    pre = None if rows is None else rows.gate
    pre_rows, gate1_rows, gate2_rows = (given(g, x) for g in (pre, gate1, gate2))
    outer = outer_constants(how.n1, how.n2, z.device)
    long_kernel.outer_inverse_kernel[(channels * batch * outer.programs,)](
        z,
        line,
        factor,
        x,
        pre_rows,
        given(skip, x),
        out1,
        gate1_rows,
        out2,
        gate2_rows,
        outer.matrix,
        *strides(x, pre_rows, out1, gate1_rows, out2, gate2_rows),
        batch,
        channels * batch,
        out1.shape[-1],
        outer.columns,
        _norm(how),
        HAS_PRE=pre is not None,
        HAS_SKIP=skip is not None,
        HAS_GATE1=gate1 is not None,
        HAS_OUT2=len(targets) == 2,
        HAS_GATE2=gate2 is not None,
        num_warps=OUTER_WARPS,
        num_stages=OUTER_STAGES,
        N1=outer.n1,
        **outer.blocks,
    )


def _correlate(
    z_v: Tensor, z_g: Tensor, weight: Tensor, dh: Tensor, zero: int, how: Passes
) -> None:
    _, channels, batch, n1, n2 = z_v.shape
    tile = how.tile
    parts = 2 if zero else 1
    z = z_v.new_empty(parts, 2, channels, 1, n1, n2)
    line = z_v.new_empty(parts, channels, 1, n1, dtype=torch.float32)
    outer = outer_constants(how.n1, how.n2, z.device)
    long_kernel.inner_correlate_kernel[(channels * n1 // tile.repeat,)](
        z_v,
        z_g,
        weight,
        z[0],
        line[0],
        z[-1],
        line[-1],
        tile_constants(tile, 0.0, z.device),
        outer.coarse,
        outer.fine,
        batch,
        channels,
        N1=n1,
        **tile.layout,
        HAS_REVERSE=zero > 0,
        num_warps=WARPS,
        num_stages=_stages(tile),
    )
    factor = torch.ones(channels, 1, dtype=torch.float32, device=z.device)
    _outer_inverse(z[0], line[0], factor, None, None, [(dh[None, :, zero:], None)], how)
    if zero:
        past = dh.new_empty(1, channels, zero + 1)
        _outer_inverse(z[1], line[1], factor, None, None, [(past, None)], how)
        dh[:, :zero] = past[0, :, 1:].flip(1)
