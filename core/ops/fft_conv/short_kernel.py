"""Convolutions that fit a tile: one read and one write of the sequence (README.md).

Rows of a tile are windows of ``hop`` outputs each: window ``w`` of a batch element holds positions
``w hop - lead + n``. Sequences up to 4,096 are one window with ``lead`` 0; with a short filter,
longer ones are many that overlap.
"""

# Triton's decorators carry no types.
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl

from core.ops.fft_conv.tile_kernel import (
    SIDE,
    contain,
    invert_real,
    largest_of_rows,
    load_gated,
    load_spectrum,
    magnitude,
    matrices,
    paired,
    power_below,
    round_store,
    scale_of_rows,
    scaled,
    store_spectrum,
    transform,
    unpaired,
)


@triton.jit
def place(
    row: tl.tensor,
    n: tl.tensor,
    rows: tl.tensor,
    windows: tl.tensor,
    hop: tl.tensor,
    lead: tl.tensor,
    length: tl.tensor,
    WINDOWED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Batch element and position of each number, which of them exist, and which are the row's own
    outputs."""
    if WINDOWED:
        t = (row % windows) * hop - lead + n
        mask = (row < rows) & (t >= 0) & (t < length)
        return (row // windows).to(tl.int64), t, mask, mask & (n >= lead) & (n < lead + hop)
    mask = (row < rows) & (n < length)
    return row.to(tl.int64), n, mask, mask


@triton.jit
def convolve_kernel(
    x_ptr: tl.tensor,
    pre_ptr: tl.tensor,
    skip_ptr: tl.tensor,
    spectrum_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    out1_ptr: tl.tensor,
    gate1_ptr: tl.tensor,
    out2_ptr: tl.tensor,
    gate2_ptr: tl.tensor,
    consts: tl.tensor,
    x_batch: tl.tensor,
    x_channel: tl.tensor,
    pre_batch: tl.tensor,
    pre_channel: tl.tensor,
    out1_batch: tl.tensor,
    out1_channel: tl.tensor,
    gate1_batch: tl.tensor,
    gate1_channel: tl.tensor,
    out2_batch: tl.tensor,
    out2_channel: tl.tensor,
    gate2_batch: tl.tensor,
    gate2_channel: tl.tensor,
    channels: tl.tensor,
    rows: tl.tensor,
    windows: tl.tensor,
    length: tl.tensor,
    lead: tl.tensor,
    hop: tl.tensor,
    groups: tl.tensor,
    norm: tl.tensor,
    COLS: tl.constexpr,
    REPEAT: tl.constexpr,
    HALF: tl.constexpr,
    TILES: tl.constexpr,
    CONJ: tl.constexpr,
    WINDOWED: tl.constexpr,
    HAS_PRE: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_GATE1: tl.constexpr,
    HAS_OUT2: tl.constexpr,
    HAS_GATE2: tl.constexpr,
) -> None:
    """out = gate (h * v + skip v), v = pre x, of ``TILES`` tiles of one channel, for one or two
    (out, gate). ``CONJ`` takes the filter backwards in time."""
    pid = tl.program_id(0).to(tl.int64)
    c, group = pid // groups, pid % groups
    i, j = tl.arange(0, SIDE)[:, None], tl.arange(0, SIDE)[None, :]
    n = i * COLS + j % COLS
    size = SIDE * COLS
    h_at = c * size + n
    factor = tl.load(scale_ptr + c) * norm
    m = matrices(consts)
    plane = tl.cast(channels, tl.int64) * size
    h_real, h_imag = load_spectrum(spectrum_ptr, plane, h_at, tl.float16, HALF)
    if CONJ:
        h_imag = -h_imag
    for tile in range(TILES):
        row = ((group * TILES + tile) * REPEAT).to(tl.int32) + j // COLS
        b, t, mask, own = place(row, n, rows, windows, hop, lead, length, WINDOWED)
        x_row, pre_row = (
            x_ptr + b * x_batch + c * x_channel,
            pre_ptr + b * pre_batch + c * pre_channel,
        )
        x = load_gated(x_row, pre_row, t, mask, HAS_PRE)
        scale, inverse = scale_of_rows(largest_of_rows(magnitude(x, REPEAT), COLS, REPEAT), REPEAT)
        # before the product: next to the cast it would select halves of registers
        real, imag = transform((contain(x, scale, REPEAT) * inverse).to(tl.float16), m, HALF)
        real, imag = real.to(tl.float16), imag.to(tl.float16)
        z = invert_real(real * h_real - imag * h_imag, real * h_imag + imag * h_real, m, HALF)
        z = z * factor * scale
        if HAS_SKIP:
            z += tl.load(skip_ptr + c) * load_gated(x_row, pre_row, t, own, HAS_PRE)
        y = z
        if HAS_GATE1:
            gate_row = gate1_ptr + b * gate1_batch + c * gate1_channel
            y = z * tl.load(gate_row + t, mask=own, other=0.0).to(tl.float32)
        round_store(out1_ptr + b * out1_batch + c * out1_channel + t, y, own)
        if HAS_OUT2:
            y = z
            if HAS_GATE2:
                gate_row = gate2_ptr + b * gate2_batch + c * gate2_channel
                y = z * tl.load(gate_row + t, mask=own, other=0.0).to(tl.float32)
            round_store(out2_ptr + b * out2_batch + c * out2_channel + t, y, own)


@triton.jit
def correlate_kernel(
    x_ptr: tl.tensor,
    pre_ptr: tl.tensor,
    dy_ptr: tl.tensor,
    post_ptr: tl.tensor,
    dh_ptr: tl.tensor,
    dskip_ptr: tl.tensor,
    consts: tl.tensor,
    x_batch: tl.tensor,
    x_channel: tl.tensor,
    pre_batch: tl.tensor,
    pre_channel: tl.tensor,
    dy_batch: tl.tensor,
    dy_channel: tl.tensor,
    post_batch: tl.tensor,
    post_channel: tl.tensor,
    channels: tl.tensor,
    rows: tl.tensor,
    windows: tl.tensor,
    length: tl.tensor,
    lead: tl.tensor,
    hop: tl.tensor,
    groups: tl.tensor,
    tiles: tl.tensor,
    taps: tl.tensor,
    zero: tl.tensor,
    norm: tl.tensor,
    COLS: tl.constexpr,
    REPEAT: tl.constexpr,
    HALF: tl.constexpr,
    WINDOWED: tl.constexpr,
    WHOLE: tl.constexpr,
    HAS_REVERSE: tl.constexpr,
    HAS_PRE: tl.constexpr,
    HAS_POST: tl.constexpr,
    HAS_SKIP: tl.constexpr,
) -> None:
    """The filter's gradient from conj(V) G summed over ``tiles`` tiles of one channel, v = pre x,
    g = post dy: itself (channels, taps) with ``WHOLE``, else that sum as a spectrum (groups,
    channels, REPEAT, size); and the sum of v g to ``dskip`` (groups, channels)."""
    pid = tl.program_id(0).to(tl.int64)
    c, group = pid // groups, pid % groups
    i, j = tl.arange(0, SIDE)[:, None], tl.arange(0, SIDE)[None, :]
    n = i * COLS + j % COLS
    WIDTH: tl.constexpr = SIDE // 2 if HALF else SIDE
    sum_real = tl.zeros((SIDE, WIDTH), tl.float32)
    sum_imag = tl.zeros((SIDE, WIDTH), tl.float32)
    dskip = 0.0
    m = matrices(consts)
    for tile in range(tiles):
        row = ((group * tiles + tile) * REPEAT).to(tl.int32) + j // COLS
        b, t, mask, own = place(row, n, rows, windows, hop, lead, length, WINDOWED)
        x_row, pre_row = (
            x_ptr + b * x_batch + c * x_channel,
            pre_ptr + b * pre_batch + c * pre_channel,
        )
        v = load_gated(x_row, pre_row, t, mask, HAS_PRE)
        dy_row = dy_ptr + b * dy_batch + c * dy_channel
        g = load_gated(dy_row, post_ptr + b * post_batch + c * post_channel, t, own, HAS_POST)
        if HAS_SKIP:
            dskip += tl.sum(tl.sum(v * g, 1), 0)
        v_scale, v_inverse = power_below(largest_of_rows(tl.abs(v), COLS, REPEAT))
        g_scale, g_inverse = power_below(largest_of_rows(tl.abs(g), COLS, REPEAT))
        v_real, v_imag = transform((v * v_inverse).to(tl.float16), m, HALF)
        # half the registers while the other transform runs
        v_real, v_imag = v_real.to(tl.float16), v_imag.to(tl.float16)
        g_real, g_imag = transform((g * g_inverse).to(tl.float16), m, HALF)
        g_real, g_imag = scaled(g_real, g_imag, g_scale * v_scale, HALF)
        sum_real += v_real * g_real + v_imag * g_imag
        sum_imag += v_real * g_imag - v_imag * g_real
    if WHOLE:
        dh_row = dh_ptr + c * taps
        store_filter(
            dh_row, sum_real, sum_imag, taps, zero, norm, m, COLS, REPEAT, HALF, HAS_REVERSE
        )
    else:
        at = (group * channels + c) * (SIDE * SIDE) + j // COLS * (SIDE * COLS) + n
        plane = tl.cast(groups, tl.int64) * channels * (SIDE * SIDE)
        store_spectrum(dh_ptr, plane, at, sum_real, sum_imag, None, HALF)
    if HAS_SKIP:
        tl.store(dskip_ptr + group * channels + c, dskip)


@triton.jit
def filter_kernel(
    h_ptr: tl.tensor,
    spectrum_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    consts: tl.tensor,
    channels: tl.tensor,
    taps: tl.tensor,
    zero: tl.tensor,
    COLS: tl.constexpr,
    REPEAT: tl.constexpr,
    HALF: tl.constexpr,
    HAS_REVERSE: tl.constexpr,
) -> None:
    """Spectra (channels, size) of filters (channels, taps) with lag 0 at ``zero``, each divided by
    its ``scale`` (channels,)."""
    i, j = tl.arange(0, SIDE)[:, None], tl.arange(0, SIDE)[None, :]
    n = i * COLS + j % COLS
    c = tl.program_id(0).to(tl.int64) * REPEAT + j // COLS
    at = c * taps + zero
    x = tl.load(h_ptr + at + n, mask=(c < channels) & (zero + n < taps), other=0.0)
    largest = largest_of_rows(magnitude(x, REPEAT), COLS, REPEAT)
    past = x
    if HAS_REVERSE:
        past = tl.load(h_ptr + at - n, mask=(c < channels) & (n > 0) & (n <= zero), other=0.0)
        largest = tl.maximum(largest, largest_of_rows(magnitude(past, REPEAT), COLS, REPEAT))
    scale, inverse = scale_of_rows(largest, REPEAT)
    m = matrices(consts)
    real, imag = transform((contain(x, scale, REPEAT) * inverse).to(tl.float16), m, HALF)
    if HAS_REVERSE:
        past = (contain(past, scale, REPEAT) * inverse).to(tl.float16)
        r_real, r_imag = transform(past, m, HALF)
        real, imag = real + r_real, imag - r_imag
    at, mask = c * (SIDE * COLS) + n, c < channels
    plane = tl.cast(channels, tl.int64) * SIDE * COLS
    store_spectrum(spectrum_ptr, plane, at, real, imag, mask, HALF)
    tl.store(scale_ptr + c, scale, mask=mask & (j % COLS == 0))


@triton.jit
def _over_sequences(x: tl.tensor, COLS: tl.constexpr, REPEAT: tl.constexpr) -> tl.tensor:
    """The sum of a tile's sequences, in place of each of them."""
    x = tl.sum(tl.reshape(x, (SIDE, REPEAT, COLS)), 1)
    return tl.reshape(tl.broadcast_to(x[:, None, :], (SIDE, REPEAT, COLS)), (SIDE, SIDE))


@triton.jit
def store_filter(
    h_row: tl.tensor,
    real: tl.tensor,
    imag: tl.tensor,
    taps: tl.tensor,
    zero: tl.tensor,
    norm: tl.tensor,
    m: tl.tuple,
    COLS: tl.constexpr,
    REPEAT: tl.constexpr,
    HALF: tl.constexpr,
    HAS_REVERSE: tl.constexpr,
) -> None:
    """The filter (taps,) with lag 0 at ``zero`` that has the sum of a tile's spectra."""
    i, j = tl.arange(0, SIDE)[:, None], tl.arange(0, SIDE)[None, :]
    n = i * COLS + j
    if REPEAT > 1:
        if HALF:
            real, imag = unpaired(_over_sequences(paired(real, imag), COLS, REPEAT))
        else:
            real = _over_sequences(real, COLS, REPEAT)
            imag = _over_sequences(imag, COLS, REPEAT)
    largest = tl.max(tl.max(tl.maximum(tl.abs(real), tl.abs(imag)), 1), 0)
    scale, inverse = power_below(largest)
    real, imag = real * inverse, imag * inverse
    h = invert_real(real, imag, m, HALF) * norm * scale
    tl.store(h_row + zero + n, h, mask=(j < COLS) & (zero + n < taps))
    if HAS_REVERSE:
        h = invert_real(real, -imag, m, HALF) * norm * scale
        tl.store(h_row + zero - n, h, mask=(j < COLS) & (n > 0) & (n <= zero))


@triton.jit
def filter_gradient_kernel(
    partial_ptr: tl.tensor,
    dh_ptr: tl.tensor,
    consts: tl.tensor,
    groups: tl.tensor,
    channels: tl.tensor,
    taps: tl.tensor,
    zero: tl.tensor,
    norm: tl.tensor,
    COLS: tl.constexpr,
    REPEAT: tl.constexpr,
    HALF: tl.constexpr,
    HAS_REVERSE: tl.constexpr,
) -> None:
    """dh (channels, taps) from the sum over groups of ``partial``, spectra (groups, channels,
    REPEAT, size)."""
    i, j = tl.arange(0, SIDE)[:, None], tl.arange(0, SIDE)[None, :]
    c = tl.program_id(0).to(tl.int64)
    plane = tl.cast(groups, tl.int64) * channels * (SIDE * SIDE)
    WIDTH: tl.constexpr = SIDE // 2 if HALF else SIDE
    real = tl.zeros((SIDE, WIDTH), tl.float32)
    imag = tl.zeros((SIDE, WIDTH), tl.float32)
    inside = j // COLS * (SIDE * COLS) + i * COLS + j % COLS
    for group in range(groups):
        at = (tl.cast(group, tl.int64) * channels + c) * (SIDE * SIDE) + inside
        part_real, part_imag = load_spectrum(partial_ptr, plane, at, tl.float32, HALF)
        real += part_real
        imag += part_imag
    m = matrices(consts)
    dh_row = dh_ptr + c * taps
    store_filter(dh_row, real, imag, taps, zero, norm, m, COLS, REPEAT, HALF, HAS_REVERSE)
