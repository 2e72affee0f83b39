"""Convolutions longer than a tile, in three passes over float16 intermediates (README.md).

With n = n1 N2 + n2 and k = k1 + N1 k2 a transform of N = N1 N2 is one of N1 down the columns n2
(`outer_kernel`), twiddle factors, and one of N2 along each line k1 (tiles). Rows are ordered
(channel, batch); an intermediate is (rows, N1, N2) in two planes. Numbers are kept near 1: each row
comes with the ``inverse`` of its scale, each line gets a scale of its own on the way back.
"""

# Triton's decorators carry no types.
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl

from core.ops.fft_conv.tile_kernel import (
    SIDE,
    dot_add,
    invert,
    largest_of_rows,
    load_gated,
    load_spectrum,
    magnitudes,
    matrices,
    power_below,
    round_store,
    scaled,
    store_spectrum,
    transform_complex,
)


@triton.jit
def row_stats_kernel(
    x_ptr: tl.tensor,
    pre_ptr: tl.tensor,
    dy_ptr: tl.tensor,
    post_ptr: tl.tensor,
    out_ptr: tl.tensor,
    x_batch: tl.tensor,
    x_channel: tl.tensor,
    pre_batch: tl.tensor,
    pre_channel: tl.tensor,
    dy_batch: tl.tensor,
    dy_channel: tl.tensor,
    post_batch: tl.tensor,
    post_channel: tl.tensor,
    batch: tl.tensor,
    rows: tl.tensor,
    length: tl.tensor,
    pieces: tl.tensor,
    steps: tl.tensor,
    HAS_PRE: tl.constexpr,
    HAS_DY: tl.constexpr,
    HAS_POST: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Of one piece of one row: the largest |v|, v = pre x; with ``HAS_DY`` also the largest |g|,
    g = post dy, and the sum of v g; ``out`` (1 or 3, rows, pieces)."""
    pid = tl.program_id(0).to(tl.int64)
    row, piece = pid // pieces, pid % pieces
    c, b = row // batch, row % batch
    x_row, pre_row = x_ptr + b * x_batch + c * x_channel, pre_ptr + b * pre_batch + c * pre_channel
    dy_row = dy_ptr + b * dy_batch + c * dy_channel
    post_row = post_ptr + b * post_batch + c * post_channel
    largest_v = tl.zeros((BLOCK,), tl.float32)
    largest_g = tl.zeros((BLOCK,), tl.float32)
    product = tl.zeros((BLOCK,), tl.float32)
    for step in range(steps):
        t = (piece * steps + step) * BLOCK + tl.arange(0, BLOCK)
        mask = t < length
        v = load_gated(x_row, pre_row, t, mask, HAS_PRE)
        largest_v = tl.maximum(largest_v, tl.abs(v))
        if HAS_DY:
            g = load_gated(dy_row, post_row, t, mask, HAS_POST)
            largest_g = tl.maximum(largest_g, tl.abs(g))
            product += v * g
    total = tl.cast(rows, tl.int64) * pieces
    tl.store(out_ptr + pid, tl.max(largest_v, 0))
    if HAS_DY:
        tl.store(out_ptr + total + pid, tl.max(largest_g, 0))
        tl.store(out_ptr + 2 * total + pid, tl.sum(product, 0))


@triton.jit
def _twiddles(
    coarse_ptr: tl.tensor,
    fine_ptr: tl.tensor,
    first: tl.tensor,
    N1: tl.constexpr,
    COLS: tl.constexpr,
    REPEAT: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """exp(-2 pi i n2 (k1 + shift) / N) of a tile's lines k1 = ``first``, first + 1, ...: from a
    table, or for the long lines from two small ones, a column of one times a row of the other."""
    i, j = tl.arange(0, SIDE)[:, None], tl.arange(0, SIDE)[None, :]
    if REPEAT > 1:
        at = (first + j // COLS) * (SIDE * COLS) + i * COLS + j % COLS
        return tl.load(coarse_ptr + at), tl.load(coarse_ptr + N1 * SIDE * COLS + at)
    coarse_at, fine_at = first * SIDE + i, first * COLS + j
    a, b = tl.load(coarse_ptr + coarse_at), tl.load(coarse_ptr + N1 * SIDE + coarse_at)
    c, d = tl.load(fine_ptr + fine_at), tl.load(fine_ptr + N1 * COLS + fine_at)
    return (a * c - b * d).to(tl.float16), (a * d + b * c).to(tl.float16)


@triton.jit
def _load_line(
    z_ptr: tl.tensor, plane: tl.tensor, at: tl.tensor, w_real: tl.tensor, w_imag: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """Lines times their twiddle factors, float16."""
    real, imag = tl.load(z_ptr + at), tl.load(z_ptr + plane + at)
    return real * w_real - imag * w_imag, real * w_imag + imag * w_real


@triton.jit
def _store_line(
    z_ptr: tl.tensor,
    plane: tl.tensor,
    at: tl.tensor,
    real: tl.tensor,
    imag: tl.tensor,
    w_real: tl.tensor,
    w_imag: tl.tensor,
) -> None:
    """Lines times the conjugates of their twiddle factors, float16."""
    real, imag = real.to(tl.float16), imag.to(tl.float16)
    tl.store(z_ptr + at, real * w_real + imag * w_imag)
    tl.store(z_ptr + plane + at, imag * w_real - real * w_imag)


@triton.jit
def outer_kernel(
    x_ptr: tl.tensor,
    gate_ptr: tl.tensor,
    inverse_ptr: tl.tensor,
    z_ptr: tl.tensor,
    f_ptr: tl.tensor,
    x_batch: tl.tensor,
    x_channel: tl.tensor,
    gate_batch: tl.tensor,
    gate_channel: tl.tensor,
    batch: tl.tensor,
    rows: tl.tensor,
    length: tl.tensor,
    columns: tl.tensor,
    N1: tl.constexpr,
    HAS_GATE: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
) -> None:
    """z[row, k1, n2] = sum_n1 F[k1, n1] v[n1 N2 + n2], v = gate x scaled by ``inverse``."""
    pid = tl.program_id(0).to(tl.int64)
    BLOCKS: tl.constexpr = N1 // BM
    m, column, row = pid % BLOCKS, pid // BLOCKS % columns, pid // BLOCKS // columns
    c, b = row // batch, row % batch
    n2 = column * BN + tl.arange(0, BN)[None, :]
    size = columns * BN
    k1 = m * BM + tl.arange(0, BM)[:, None]
    inverse = tl.load(inverse_ptr + row)
    x_row = x_ptr + b * x_batch + c * x_channel
    gate_row = gate_ptr + b * gate_batch + c * gate_channel
    real = tl.zeros((BM, BN), tl.float32)
    imag = tl.zeros((BM, BN), tl.float32)
    for start in range(0, N1, BK):
        t = (start + tl.arange(0, BK)[:, None]) * size + n2
        mask = t < length
        x = load_gated(x_row, gate_row, t, mask, HAS_GATE)
        x = (x * inverse).to(tl.float16)
        f_at = k1 * N1 + start + tl.arange(0, BK)[None, :]
        real = dot_add(tl.load(f_ptr + f_at), x, real)
        imag = dot_add(tl.load(f_ptr + N1 * N1 + f_at), x, imag)
    z_at = (row * N1 + k1) * size + n2
    tl.store(z_ptr + z_at, real.to(tl.float16))
    tl.store(z_ptr + tl.cast(rows, tl.int64) * N1 * size + z_at, imag.to(tl.float16))


@triton.jit
def outer_inverse_kernel(
    z_ptr: tl.tensor,
    line_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    x_ptr: tl.tensor,
    pre_ptr: tl.tensor,
    skip_ptr: tl.tensor,
    out1_ptr: tl.tensor,
    gate1_ptr: tl.tensor,
    out2_ptr: tl.tensor,
    gate2_ptr: tl.tensor,
    f_ptr: tl.tensor,
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
    batch: tl.tensor,
    rows: tl.tensor,
    length: tl.tensor,
    columns: tl.tensor,
    norm: tl.tensor,
    N1: tl.constexpr,
    HAS_PRE: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_GATE1: tl.constexpr,
    HAS_OUT2: tl.constexpr,
    HAS_GATE2: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
) -> None:
    """out = gate (y + skip v), y[n1 N2 + n2] the real part of sum_k1 conj(F)[k1, n1]
    z[row, k1, n2], with the scales of the lines and ``factor`` of the row taken back."""
    pid = tl.program_id(0).to(tl.int64)
    BLOCKS: tl.constexpr = N1 // BM
    m, column, row = pid % BLOCKS, pid // BLOCKS % columns, pid // BLOCKS // columns
    c, b = row // batch, row % batch
    n2 = column * BN + tl.arange(0, BN)[None, :]
    size = columns * BN
    plane = tl.cast(rows, tl.int64) * N1 * size
    n1 = m * BM + tl.arange(0, BM)[:, None]
    largest = tl.max(tl.load(line_ptr + row * N1 + tl.arange(0, N1)), 0)
    largest, inverse = power_below(largest)
    y = tl.zeros((BM, BN), tl.float32)
    for start in range(0, N1, BK):
        k1 = start + tl.arange(0, BK)[:, None]
        z_at = (row * N1 + k1) * size + n2
        scale = (tl.load(line_ptr + row * N1 + k1) * inverse).to(tl.float16)
        f_at = (start + tl.arange(0, BK)[None, :]) * N1 + n1
        y = dot_add(tl.load(f_ptr + f_at), tl.load(z_ptr + z_at) * scale, y)
        y = dot_add(tl.load(f_ptr + N1 * N1 + f_at), tl.load(z_ptr + plane + z_at) * scale, y)
    y = y * (tl.load(factor_ptr + row) * norm) * largest
    t = n1 * size + n2
    mask = t < length
    if HAS_SKIP:
        x_row = x_ptr + b * x_batch + c * x_channel
        pre_row = pre_ptr + b * pre_batch + c * pre_channel
        y += tl.load(skip_ptr + c) * load_gated(x_row, pre_row, t, mask, HAS_PRE)
    out = y
    if HAS_GATE1:
        at = b * gate1_batch + c * gate1_channel + t
        out = y * tl.load(gate1_ptr + at, mask=mask, other=0.0).to(tl.float32)
    round_store(out1_ptr + b * out1_batch + c * out1_channel + t, out, mask)
    if HAS_OUT2:
        out = y
        if HAS_GATE2:
            at = b * gate2_batch + c * gate2_channel + t
            out = y * tl.load(gate2_ptr + at, mask=mask, other=0.0).to(tl.float32)
        round_store(out2_ptr + b * out2_batch + c * out2_channel + t, out, mask)


@triton.jit
def _normalised(
    real: tl.tensor,
    imag: tl.tensor,
    COLS: tl.constexpr,
    REPEAT: tl.constexpr,
    HALF: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Both divided by a power of two near the largest of their line, and that power by column."""
    # `abs`, not `magnitude`: lines of a tile are one row's, which no NaN has to be kept from
    largest = largest_of_rows(magnitudes(real, imag, HALF), COLS, REPEAT)
    scale, inverse = power_below(largest)
    real, imag = scaled(real, imag, inverse, HALF)
    # a line of zeros must not count among the scales
    return real, imag, tl.where(largest > 0, scale, 0.0)


@triton.jit
def inner_convolve_kernel(
    z_ptr: tl.tensor,
    line_ptr: tl.tensor,
    spectrum_ptr: tl.tensor,
    consts: tl.tensor,
    coarse_ptr: tl.tensor,
    fine_ptr: tl.tensor,
    batch: tl.tensor,
    lines: tl.tensor,
    filter_lines: tl.tensor,
    N1: tl.constexpr,
    COLS: tl.constexpr,
    REPEAT: tl.constexpr,
    HALF: tl.constexpr,
    TILES: tl.constexpr,
    CONJ: tl.constexpr,
) -> None:
    """Each line of z, in place: transform, times the filter's line, inverse; its scale to
    ``line``. ``CONJ`` takes the conjugate of the filter."""
    pid = tl.program_id(0).to(tl.int64)
    i, j = tl.arange(0, SIDE)[:, None], tl.arange(0, SIDE)[None, :]
    n = i * COLS + j % COLS
    size = SIDE * COLS
    m = matrices(consts)
    for tile in range(TILES):
        index = pid * TILES + tile
        b, group = index % batch, index // batch
        c, first = group // (N1 // REPEAT), group % (N1 // REPEAT) * REPEAT
        k1 = first + j // COLS
        line = (c * batch + b) * N1 + k1
        z_at = line * size + n
        h_at = (c * N1 + k1) * size + n
        plane = tl.cast(lines, tl.int64) * size
        w_real, w_imag = _twiddles(coarse_ptr, fine_ptr, first, N1, COLS, REPEAT)
        x_real, x_imag = _load_line(z_ptr, plane, z_at, w_real, w_imag)
        h_plane = tl.cast(filter_lines, tl.int64) * size
        if HALF:
            # ahead of the products: where both meet, the compiler keeps the layout of the first
            h_real, h_imag = load_spectrum(spectrum_ptr, h_plane, h_at, tl.float32, HALF)
        real, imag = transform_complex(x_real, x_imag, m, HALF)
        if not HALF:
            h_real, h_imag = load_spectrum(spectrum_ptr, h_plane, h_at, tl.float32, HALF)
        if CONJ:
            h_imag = -h_imag
        y_real, y_imag, scale = _normalised(
            real * h_real - imag * h_imag, real * h_imag + imag * h_real, COLS, REPEAT, HALF
        )
        y_real, y_imag = invert(y_real, y_imag, m, HALF)
        _store_line(z_ptr, plane, z_at, y_real, y_imag, w_real, w_imag)
        tl.store(line_ptr + line, scale, mask=j % COLS == 0)


@triton.jit
def inner_spectrum_kernel(
    z_ptr: tl.tensor,
    past_ptr: tl.tensor,
    consts: tl.tensor,
    coarse_ptr: tl.tensor,
    fine_ptr: tl.tensor,
    lines: tl.tensor,
    N1: tl.constexpr,
    COLS: tl.constexpr,
    REPEAT: tl.constexpr,
    HALF: tl.constexpr,
    HAS_REVERSE: tl.constexpr,
) -> None:
    """Each line of z, in place: its transform, plus the conjugate of that of ``past``; with
    ``HALF`` in the first plane alone."""
    i, j = tl.arange(0, SIDE)[:, None], tl.arange(0, SIDE)[None, :]
    size = SIDE * COLS
    plane = tl.cast(lines, tl.int64) * size
    first = tl.program_id(0).to(tl.int64) * REPEAT
    line = first + j // COLS
    at = line * size + i * COLS + j % COLS
    m = matrices(consts)
    w_real, w_imag = _twiddles(coarse_ptr, fine_ptr, first % N1, N1, COLS, REPEAT)
    x_real, x_imag = _load_line(z_ptr, plane, at, w_real, w_imag)
    real, imag = transform_complex(x_real, x_imag, m, HALF)
    if HAS_REVERSE:
        x_real, x_imag = _load_line(past_ptr, plane, at, w_real, w_imag)
        r_real, r_imag = transform_complex(x_real, x_imag, m, HALF)
        real, imag = real + r_real, imag - r_imag
    store_spectrum(z_ptr, plane, at, real, imag, None, HALF)


@triton.jit
def inner_correlate_kernel(
    v_ptr: tl.tensor,
    g_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    z_ptr: tl.tensor,
    line_ptr: tl.tensor,
    past_ptr: tl.tensor,
    past_line_ptr: tl.tensor,
    consts: tl.tensor,
    coarse_ptr: tl.tensor,
    fine_ptr: tl.tensor,
    batch: tl.tensor,
    channels: tl.tensor,
    N1: tl.constexpr,
    COLS: tl.constexpr,
    REPEAT: tl.constexpr,
    HALF: tl.constexpr,
    HAS_REVERSE: tl.constexpr,
) -> None:
    """z[c, k1] = inverse of sum_b weight conj(V) G of the lines of v and g, and in ``past`` the
    inverse of its conjugate; the scale of each line beside it."""
    pid = tl.program_id(0).to(tl.int64)
    i, j = tl.arange(0, SIDE)[:, None], tl.arange(0, SIDE)[None, :]
    n = i * COLS + j % COLS
    size = SIDE * COLS
    c, first = pid // (N1 // REPEAT), pid % (N1 // REPEAT) * REPEAT
    k1 = first + j // COLS
    plane = tl.cast(channels, tl.int64) * N1 * size
    m = matrices(consts)
    WIDTH: tl.constexpr = SIDE // 2 if HALF else SIDE
    sum_real = tl.zeros((SIDE, WIDTH), tl.float32)
    sum_imag = tl.zeros((SIDE, WIDTH), tl.float32)
    for b in range(batch):
        w_real, w_imag = _twiddles(coarse_ptr, fine_ptr, first, N1, COLS, REPEAT)
        at = ((c * batch + b) * N1 + k1) * size + n
        x_real, x_imag = _load_line(v_ptr, batch * plane, at, w_real, w_imag)
        v_real, v_imag = transform_complex(x_real, x_imag, m, HALF)
        # half the registers while the other transform runs
        v_real, v_imag = v_real.to(tl.float16), v_imag.to(tl.float16)
        x_real, x_imag = _load_line(g_ptr, batch * plane, at, w_real, w_imag)
        g_real, g_imag = transform_complex(x_real, x_imag, m, HALF)
        weight = tl.load(weight_ptr + c * batch + b)
        g_real, g_imag = g_real * weight, g_imag * weight
        sum_real += v_real * g_real + v_imag * g_imag
        sum_imag += v_real * g_imag - v_imag * g_real
    real, imag, scale = _normalised(sum_real, sum_imag, COLS, REPEAT, HALF)
    line = c * N1 + k1
    at = line * size + n
    w_real, w_imag = _twiddles(coarse_ptr, fine_ptr, first, N1, COLS, REPEAT)
    y_real, y_imag = invert(real, imag, m, HALF)
    _store_line(z_ptr, plane, at, y_real, y_imag, w_real, w_imag)
    tl.store(line_ptr + line, scale, mask=j % COLS == 0)
    if HAS_REVERSE:
        y_real, y_imag = invert(real, -imag, m, HALF)
        _store_line(past_ptr, plane, at, y_real, y_imag, w_real, w_imag)
        tl.store(past_line_ptr + line, scale, mask=j % COLS == 0)
