"""Short sequences: products with Toeplitz blocks of the filter, gates fused; no FFT.

README.md derives both products.
"""

# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS, STAGES = 4, 2


INTERPRET = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def _rounded(x: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    """float32 to nearest with the last ``BITS`` bits of the fraction zero, ties away from zero."""
    bits = x.to(tl.int32, bitcast=True) + (1 << (BITS - 1))
    return (bits & -(1 << BITS)).to(tl.float32, bitcast=True)


@triton.jit
def _store(pointer: tl.tensor, x: tl.tensor, mask: tl.tensor) -> None:
    if INTERPRET and pointer.dtype.element_ty == tl.bfloat16:
        x = _rounded(x, 16)  # the interpreter's cast cuts off
    tl.store(pointer, x.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _dot(a: tl.tensor, b: tl.tensor, acc: tl.tensor) -> tl.tensor:
    """acc + a b. A tensor core reads 10 bits of a float32's fraction and would cut off the rest."""
    return tl.dot(_rounded(a, 13), _rounded(b, 13), acc, input_precision="tf32")


@triton.jit
def _gated(
    x_ptr: tl.tensor,
    x_offset: tl.tensor,
    gate_ptr: tl.tensor,
    gate_offset: tl.tensor,
    mask: tl.tensor,
    HAS_GATE: tl.constexpr,
) -> tl.tensor:
    x = tl.load(x_ptr + x_offset, mask=mask, other=0.0).to(tl.float32)
    if HAS_GATE:
        x = x * tl.load(gate_ptr + gate_offset, mask=mask, other=0.0).to(tl.float32)
    return x


@triton.jit
def _convolve_kernel(
    x_ptr: tl.tensor,
    gate_ptr: tl.tensor,
    h_ptr: tl.tensor,
    skip_ptr: tl.tensor,
    out1_ptr: tl.tensor,
    out_gate1_ptr: tl.tensor,
    out2_ptr: tl.tensor,
    out_gate2_ptr: tl.tensor,
    x_batch: tl.tensor,
    x_channel: tl.tensor,
    gate_batch: tl.tensor,
    gate_channel: tl.tensor,
    out_gate1_batch: tl.tensor,
    out_gate1_channel: tl.tensor,
    out_gate2_batch: tl.tensor,
    out_gate2_channel: tl.tensor,
    batch: tl.tensor,
    channels: tl.tensor,
    length: tl.tensor,
    taps: tl.tensor,
    zero: tl.tensor,
    blocks: tl.tensor,
    first_lag: tl.tensor,
    last_lag: tl.tensor,
    tiles: tl.tensor,
    HAS_GATE: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_OUT_GATE1: tl.constexpr,
    HAS_OUT2: tl.constexpr,
    FLIP: tl.constexpr,
    CIRCULAR: tl.constexpr,
    ROWS: tl.constexpr,
    P: tl.constexpr,
) -> None:
    """out = out_gate * ((h + skip) * (gate * x)) for ROWS pieces of P positions of one channel.

    A row is a piece (block of the sequence, batch entry); blocks are the slower index, so that the
    rows of a tile need about the same lags. Lag block d: Y[a] += X[a - d] T_d with
    T_d[i, j] = h[d P + j - i]. FLIP reverses time in and out.
    """
    pid = tl.program_id(0)
    channel = (pid // tiles).to(tl.int64)
    tile = tiles - 1 - pid % tiles  # causal: the last blocks have most lags, so they start first
    row = tile * ROWS + tl.arange(0, ROWS)
    block = row // batch
    entry = (row % batch).to(tl.int64)[:, None]
    column = tl.arange(0, P)
    x_base = entry * x_batch + channel * x_channel
    gate_base = entry * gate_batch + channel * gate_channel
    h_ptr += channel * taps + zero
    lag = column[None, :] - column[:, None]

    first, last = first_lag, last_lag
    if not CIRCULAR:
        first = tl.maximum(first, tile * ROWS // batch - blocks + 1)
        last = tl.minimum(last, (tile * ROWS + ROWS - 1) // batch)
    acc = tl.full((ROWS, P), 0.0, tl.float32)
    for d in range(first, last + 1):
        at = (block - d)[:, None] * P + column[None, :]
        if CIRCULAR:
            at = tl.where(at < 0, at + length, at)
        inside = (at >= 0) & (at < length) & (block < blocks)[:, None]
        time = length - 1 - at if FLIP else at
        x = _gated(x_ptr, x_base + time, gate_ptr, gate_base + time, inside, HAS_GATE)
        s = d * P + lag
        t = tl.load(h_ptr + s, mask=(s >= -zero) & (s < taps - zero), other=0.0)
        acc = _dot(x, t, acc)

    at = block[:, None] * P + column[None, :]
    time = length - 1 - at if FLIP else at
    inside = (at < length) & (block < blocks)[:, None]
    if HAS_SKIP:
        x = _gated(x_ptr, x_base + time, gate_ptr, gate_base + time, inside, HAS_GATE)
        acc += tl.load(skip_ptr + channel) * x
    out_offset = (entry * channels + channel) * length + time
    out = acc
    if HAS_OUT_GATE1:
        offset = entry * out_gate1_batch + channel * out_gate1_channel + time
        out = acc * tl.load(out_gate1_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    _store(out1_ptr + out_offset, out, inside)
    if HAS_OUT2:
        offset = entry * out_gate2_batch + channel * out_gate2_channel + time
        out = acc * tl.load(out_gate2_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        _store(out2_ptr + out_offset, out, inside)


@triton.jit
def _correlate_kernel(
    g_ptr: tl.tensor,
    g_gate_ptr: tl.tensor,
    v_ptr: tl.tensor,
    v_gate_ptr: tl.tensor,
    out_ptr: tl.tensor,
    g_batch: tl.tensor,
    g_channel: tl.tensor,
    g_gate_batch: tl.tensor,
    g_gate_channel: tl.tensor,
    v_batch: tl.tensor,
    v_channel: tl.tensor,
    v_gate_batch: tl.tensor,
    v_gate_channel: tl.tensor,
    batch: tl.tensor,
    channels: tl.tensor,
    length: tl.tensor,
    taps: tl.tensor,
    zero: tl.tensor,
    tiles: tl.tensor,
    share: tl.tensor,
    HAS_G_GATE: tl.constexpr,
    HAS_V_GATE: tl.constexpr,
    CIRCULAR: tl.constexpr,
    LAGS: tl.constexpr,
    P: tl.constexpr,
    STEP: tl.constexpr,
) -> None:
    """LAGS x P neighbouring lags of one channel, summed over ``share`` batch entries.

    Lag d P + c - zero (d a row, c a column): out[d, c] = sum_t G[d, t] V[t, c] with
    G[d, t] = g(t + d P - zero), V[t, c] = v(t - c).
    """
    pid = tl.program_id(0)
    tile = pid % tiles
    channel = ((pid // tiles) % channels).to(tl.int64)
    part = pid // tiles // channels
    shift = (tile * LAGS + tl.arange(0, LAGS)) * P - zero
    column = tl.arange(0, P)
    start, stop = 0, length
    if not CIRCULAR:
        start = tl.maximum(0, zero - (tile * LAGS + LAGS - 1) * P)
        stop = tl.minimum(length + P - 1, length + zero - tile * LAGS * P)
    acc = tl.full((LAGS, P), 0.0, tl.float32)
    for b in range(part * share, tl.minimum(part * share + share, batch)):
        entry = tl.cast(b, tl.int64)
        g_base = entry * g_batch + channel * g_channel
        g_gate_base = entry * g_gate_batch + channel * g_gate_channel
        v_base = entry * v_batch + channel * v_channel
        v_gate_base = entry * v_gate_batch + channel * v_gate_channel
        entry_acc = tl.full((LAGS, P), 0.0, tl.float32)
        for begin in range(start, stop, STEP):
            t = begin + tl.arange(0, STEP)
            at_g = t[None, :] + shift[:, None]
            at_v = t[:, None] - column[None, :]
            if CIRCULAR:
                at_g = tl.where(at_g >= length, at_g - length, at_g)
                at_v = tl.where(at_v < 0, at_v + length, at_v)
            in_g = (at_g >= 0) & (at_g < length) & (t < stop)[None, :]
            in_v = (at_v >= 0) & (at_v < length)
            g = _gated(g_ptr, g_base + at_g, g_gate_ptr, g_gate_base + at_g, in_g, HAS_G_GATE)
            v = _gated(v_ptr, v_base + at_v, v_gate_ptr, v_gate_base + at_v, in_v, HAS_V_GATE)
            entry_acc = _dot(g, v, entry_acc)
        acc += entry_acc  # short sums of short sums lose less than one long sum
    s = (tile * LAGS + tl.arange(0, LAGS))[:, None] * P + column[None, :]
    out_ptr += (part * channels + channel) * taps
    tl.store(out_ptr + s, acc, mask=s < taps)


@triton.jit
def _inner_product_kernel(
    g_ptr: tl.tensor,
    g_gate_ptr: tl.tensor,
    v_ptr: tl.tensor,
    v_gate_ptr: tl.tensor,
    out_ptr: tl.tensor,
    g_batch: tl.tensor,
    g_channel: tl.tensor,
    g_gate_batch: tl.tensor,
    g_gate_channel: tl.tensor,
    v_batch: tl.tensor,
    v_channel: tl.tensor,
    v_gate_batch: tl.tensor,
    v_gate_channel: tl.tensor,
    channels: tl.tensor,
    length: tl.tensor,
    HAS_G_GATE: tl.constexpr,
    HAS_V_GATE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Sums of (g_gate g)(t) (v_gate v)(t) over t with the same t mod BLOCK."""
    pid = tl.program_id(0).to(tl.int64)
    b, c = pid // channels, pid % channels
    acc = tl.full((BLOCK,), 0.0, tl.float32)
    for start in range(0, length, BLOCK):
        t = start + tl.arange(0, BLOCK)
        g_at = b * g_batch + c * g_channel + t
        g_gate_at = b * g_gate_batch + c * g_gate_channel + t
        v_at = b * v_batch + c * v_channel + t
        v_gate_at = b * v_gate_batch + c * v_gate_channel + t
        mask = t < length
        g = _gated(g_ptr, g_at, g_gate_ptr, g_gate_at, mask, HAS_G_GATE)
        acc += g * _gated(v_ptr, v_at, v_gate_ptr, v_gate_at, mask, HAS_V_GATE)
    tl.store(out_ptr + pid * BLOCK + tl.arange(0, BLOCK), acc)


def _rows(x: Tensor | None, stand_in: Tensor) -> Tensor:
    """``x`` with neighbouring positions next to each other; an absent one is never read."""
    if x is None:
        return stand_in
    return x if x.stride(-1) == 1 else x.contiguous()


def convolve(
    x: Tensor,
    gate: Tensor | None,
    h: Tensor,
    skip: Tensor | None,
    zero: int,
    circular: bool,
    targets: list[tuple[Tensor, Tensor | None]],
    flip: bool,
) -> None:
    """Writes out_gate * ((h + skip) * (gate * x)) into one or two contiguous (out, out_gate).

    x, gates, outs (B, D, L); h (D, taps) and skip (D,), contiguous float32, lag 0 at ``zero``.
    ``flip`` reverses time: the filter then runs backward.
    """
    batch, channels, length = x.shape
    taps = h.shape[1]
    x = _rows(x, x)
    gate_rows = _rows(gate, x)
    (out1, out_gate1), (out2, out_gate2) = targets[0], targets[-1]
    out_gate1_rows, out_gate2_rows = _rows(out_gate1, x), _rows(out_gate2, x)
    P = 64 if length > 32 else 32
    blocks = triton.cdiv(length, P)
    rows = min(128, max(16, triton.next_power_of_2(batch * blocks)))
    tiles = triton.cdiv(batch * blocks, rows)
    _convolve_kernel[(tiles * channels,)](
        x,
        gate_rows,
        h,
        h if skip is None else skip,
        out1,
        out_gate1_rows,
        out2,
        out_gate2_rows,
        *x.stride()[:2],
        *gate_rows.stride()[:2],
        *out_gate1_rows.stride()[:2],
        *out_gate2_rows.stride()[:2],
        batch,
        channels,
        length,
        taps,
        zero,
        blocks,
        -((zero + P - 1) // P),
        (taps - 1 - zero + P - 1) // P,
        tiles,
        HAS_GATE=gate is not None,
        HAS_SKIP=skip is not None,
        HAS_OUT_GATE1=out_gate1 is not None,
        HAS_OUT2=len(targets) == 2,
        FLIP=flip,
        CIRCULAR=circular,
        ROWS=rows,
        P=P,
        num_warps=WARPS,
        num_stages=STAGES,
    )


def correlate(
    g: Tensor,
    g_gate: Tensor | None,
    v: Tensor,
    v_gate: Tensor | None,
    taps: int,
    zero: int,
    circular: bool,
) -> Tensor:
    """Sum over batch and t of (g_gate g)(t + s) (v_gate v)(t), lags s = -zero .. taps - 1 - zero.

    g, v, gates (B, D, L) -> (D, taps) float32.
    """
    batch, channels, length = g.shape
    g, v = _rows(g, g), _rows(v, v)
    g_gate_rows, v_gate_rows = _rows(g_gate, g), _rows(v_gate, v)
    P = 64 if taps > 1024 else 32
    rows = triton.cdiv(taps, P)
    lags = min(64, max(16, triton.next_power_of_2(rows)))
    tiles = triton.cdiv(rows, lags)
    # Parts of the batch are summed apart when the channels alone would not fill a GPU.
    parts = min(batch, triton.cdiv(1024, tiles * channels))
    share = triton.cdiv(batch, parts)
    parts = triton.cdiv(batch, share)
    out = torch.empty(parts, channels, taps, dtype=torch.float32, device=g.device)
    _correlate_kernel[(parts * channels * tiles,)](
        g,
        g_gate_rows,
        v,
        v_gate_rows,
        out,
        *g.stride()[:2],
        *g_gate_rows.stride()[:2],
        *v.stride()[:2],
        *v_gate_rows.stride()[:2],
        batch,
        channels,
        length,
        taps,
        zero,
        tiles,
        share,
        HAS_G_GATE=g_gate is not None,
        HAS_V_GATE=v_gate is not None,
        CIRCULAR=circular,
        LAGS=lags,
        P=P,
        STEP=32,
        num_warps=WARPS,
        num_stages=STAGES,
    )
    return out[0] if parts == 1 else out.sum(0)


def inner_product(g: Tensor, g_gate: Tensor | None, v: Tensor, v_gate: Tensor | None) -> Tensor:
    """Sum over batch and t of (g_gate g)(t) (v_gate v)(t): (B, D, L) -> (D,) float32."""
    batch, channels, length = g.shape
    g, v = _rows(g, g), _rows(v, v)
    g_gate_rows, v_gate_rows = _rows(g_gate, g), _rows(v_gate, v)
    block = 128
    out = torch.empty(batch, channels, block, dtype=torch.float32, device=g.device)
    _inner_product_kernel[(batch * channels,)](
        g,
        g_gate_rows,
        v,
        v_gate_rows,
        out,
        *g.stride()[:2],
        *g_gate_rows.stride()[:2],
        *v.stride()[:2],
        *v_gate_rows.stride()[:2],
        channels,
        length,
        HAS_G_GATE=g_gate is not None,
        HAS_V_GATE=v_gate is not None,
        BLOCK=block,
    )
    return out.sum((0, 2))
