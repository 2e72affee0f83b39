"""Transforms of a tile of 64 x 64 numbers as products with matrices on tensor cores (README.md).

A tile holds one sequence of 4,096 numbers or ``REPEAT`` shorter ones side by side. ``consts``
is what `plan.tile_constants` makes, ``COLS`` = 64 / ``REPEAT``. Spectra are float16, real and
imaginary parts in two planes of 64 x 64.

With ``HALF`` a spectrum is that of the lower half of the frequencies: real and imaginary parts of
64 x 32, and in memory and as an operand one plane of 64 x 64 where their columns alternate. Those
are neighbours in one thread's registers, so that `paired` and `unpaired` move nothing.
"""

# Triton's decorators carry no types.
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl

from core.ops.tiles import INTERPRET

SIDE = tl.constexpr(64)
INFINITY = tl.constexpr(0x7F800000)  # float32's, as an integer


@triton.jit
def dot(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """float16 times float16, summed in float32."""
    if INTERPRET:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b)


@triton.jit
def dot_add(a: tl.tensor, b: tl.tensor, c: tl.tensor) -> tl.tensor:
    if INTERPRET:
        return c + tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, c)


@triton.jit
def round_store(pointer: tl.tensor, x: tl.tensor, mask: tl.tensor) -> None:
    """Stores float32 as the type of ``pointer``, to nearest."""
    if INTERPRET and pointer.dtype.element_ty == tl.bfloat16:
        # the interpreter's cast cuts the last 16 bits off
        x = (x.to(tl.int32, bitcast=True) + 0x8000).to(tl.float32, bitcast=True)
    tl.store(pointer, x.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def power_below(largest: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The power of two p <= largest < 2p, and 1 / p; within float32's range, 1 for zero."""
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 0xFF
    exponent = tl.where(exponent == 0, 127, tl.minimum(exponent, 253))
    power = (exponent << 23).to(tl.float32, bitcast=True)
    return power, ((254 - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def largest_of_rows(x: tl.tensor, COLS: tl.constexpr, REPEAT: tl.constexpr) -> tl.tensor:
    """(1, 64): for each column the largest of ``x`` >= 0 in all columns of its sequence."""
    columns = tl.max(x, 0)
    if REPEAT == 1:
        columns = tl.broadcast_to(tl.max(columns, 0)[None], (SIDE,))
    elif REPEAT < SIDE:
        groups = tl.max(tl.reshape(columns, (REPEAT, COLS)), 1)
        columns = tl.reshape(tl.broadcast_to(groups[:, None], (REPEAT, COLS)), (SIDE,))
    return columns[None, :]


@triton.jit
def magnitude(x: tl.tensor, REPEAT: tl.constexpr) -> tl.tensor:
    """|x| for `largest_of_rows`; where sequences share a tile, its bits as an integer, as `tl.max`
    of floats passes over NaN."""
    size = tl.abs(x)
    if REPEAT > 1:
        size = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return size


@triton.jit
def scale_of_rows(largest: tl.tensor, REPEAT: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """`power_below` of the largest `magnitude`; where sequences share a tile, the power is NaN for
    one with an infinity or NaN."""
    power, inverse = power_below(largest)
    if REPEAT > 1:
        power = tl.where(largest < INFINITY, power, float("nan"))
    return power, inverse


@triton.jit
def contain(x: tl.tensor, scale: tl.tensor, REPEAT: tl.constexpr) -> tl.tensor:
    """Where sequences share a tile, zeros for those whose scale is NaN: F2 holds zeros between
    sequences, and 0 times NaN is NaN. The scale makes NaN of their own results."""
    if REPEAT > 1:
        x = tl.where(scale == scale, x, 0.0)
    return x


@triton.jit
def paired(real: tl.tensor, imag: tl.tensor) -> tl.tensor:
    """The columns of two (64, 32) in turn, (64, 64)."""
    return tl.reshape(tl.join(real, imag), (SIDE, SIDE))


@triton.jit
def unpaired(x: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The inverse of `paired`."""
    return tl.split(tl.reshape(x, (SIDE, SIDE // 2, 2)))


@triton.jit
def magnitudes(real: tl.tensor, imag: tl.tensor, HALF: tl.constexpr) -> tl.tensor:
    """The larger of |real| and |imag| of a spectrum, (64, 64); with ``HALF`` each by itself."""
    return tl.abs(paired(real, imag)) if HALF else tl.maximum(tl.abs(real), tl.abs(imag))


@triton.jit
def scaled(
    real: tl.tensor, imag: tl.tensor, factor: tl.tensor, HALF: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """A spectrum times the ``factor`` (1, 64) of each sequence."""
    if HALF:
        real, imag = unpaired(paired(real, imag) * factor)
    else:
        real, imag = real * factor, imag * factor
    return real, imag


@triton.jit
def load_spectrum(
    pointer: tl.tensor,
    plane: tl.tensor,
    at: tl.tensor,
    DTYPE: tl.constexpr,
    HALF: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The spectrum whose first plane lies at ``at`` (64, 64), the second one ``plane`` behind."""
    if HALF:
        real, imag = unpaired(tl.load(pointer + at).to(DTYPE))
    else:
        real = tl.load(pointer + at).to(DTYPE)
        imag = tl.load(pointer + plane + at).to(DTYPE)
    return real, imag


@triton.jit
def store_spectrum(
    pointer: tl.tensor,
    plane: tl.tensor,
    at: tl.tensor,
    real: tl.tensor,
    imag: tl.tensor,
    mask: tl.tensor,
    HALF: tl.constexpr,
) -> None:
    """Where `load_spectrum` finds it, as the type of ``pointer``."""
    if HALF:
        round_store(pointer + at, paired(real, imag), mask)
    else:
        round_store(pointer + at, real, mask)
        round_store(pointer + plane + at, imag, mask)


@triton.jit
def square(pointer: tl.tensor) -> tl.tensor:
    i, j = tl.arange(0, SIDE)[:, None], tl.arange(0, SIDE)[None, :]
    return tl.load(pointer + i * SIDE + j)


@triton.jit
def matrices(consts: tl.tensor) -> tuple[tl.tensor, ...]:
    """F1, F2 and the twiddle factors, each as its real and its imaginary part; of a band, for F2
    what multiplies a real and what multiplies an imaginary part (`plan._lowest`)."""
    step = SIDE * SIDE
    return (
        square(consts),
        square(consts + step),
        square(consts + 2 * step),
        square(consts + 3 * step),
        square(consts + 4 * step),
        square(consts + 5 * step),
    )


@triton.jit
def _finish_transform(
    x_real: tl.tensor, x_imag: tl.tensor, m: tl.tuple, HALF: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """(x T) F2, T elementwise."""
    _f1_real, _f1_imag, f_real, f_imag, t_real, t_imag = m
    x_real, x_imag = x_real.to(tl.float16), x_imag.to(tl.float16)
    real = x_real * t_real - x_imag * t_imag
    imag = x_real * t_imag + x_imag * t_real
    if HALF:
        y_real, y_imag = unpaired(dot_add(imag, f_imag, dot(real, f_real)))
    else:
        y_real = dot_add(-imag, f_imag, dot(real, f_real))
        y_imag = dot_add(imag, f_real, dot(real, f_imag))
    return y_real, y_imag


@triton.jit
def transform(x: tl.tensor, m: tl.tuple, HALF: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Spectrum of a real float16 tile, float32."""
    return _finish_transform(dot(m[0], x), dot(m[1], x), m, HALF)


@triton.jit
def transform_complex(
    x_real: tl.tensor, x_imag: tl.tensor, m: tl.tuple, HALF: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Spectrum of a complex float16 tile, float32."""
    real = dot_add(m[1], -x_imag, dot(m[0], x_real))
    imag = dot_add(m[1], x_real, dot(m[0], x_imag))
    return _finish_transform(real, imag, m, HALF)


@triton.jit
def _start_inverse(
    x_real: tl.tensor, x_imag: tl.tensor, m: tl.tuple, HALF: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """(x conj(F2)) conj(T), T elementwise, in float16."""
    _f1_real, _f1_imag, f_real, f_imag, t_real, t_imag = m
    x_real, x_imag = x_real.to(tl.float16), x_imag.to(tl.float16)
    if HALF:
        x = paired(x_real, x_imag)
        real, imag = dot(x, tl.trans(f_real)), dot(x, tl.trans(f_imag))
    else:
        real = dot_add(x_imag, f_imag, dot(x_real, f_real))
        imag = dot_add(-x_real, f_imag, dot(x_imag, f_real))
    real, imag = real.to(tl.float16), imag.to(tl.float16)
    return real * t_real + imag * t_imag, imag * t_real - real * t_imag


@triton.jit
def invert_real(x_real: tl.tensor, x_imag: tl.tensor, m: tl.tuple, HALF: tl.constexpr) -> tl.tensor:
    """Real part of the inverse transform, not scaled; float32."""
    real, imag = _start_inverse(x_real, x_imag, m, HALF)
    return dot_add(tl.trans(m[1]), imag, dot(tl.trans(m[0]), real))


@triton.jit
def invert(
    x_real: tl.tensor, x_imag: tl.tensor, m: tl.tuple, HALF: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Inverse transform, not scaled; float32."""
    real, imag = _start_inverse(x_real, x_imag, m, HALF)
    f_real, f_imag = tl.trans(m[0]), tl.trans(m[1])
    y_real = dot_add(f_imag, imag, dot(f_real, real))
    return y_real, dot_add(f_imag, -real, dot(f_real, imag))


@triton.jit
def load_gated(
    x_row: tl.tensor,
    gate_row: tl.tensor,
    t: tl.tensor,
    mask: tl.tensor,
    HAS_GATE: tl.constexpr,
) -> tl.tensor:
    """gate * x in float32 at positions ``t`` of a row, zero outside ``mask``."""
    x = tl.load(x_row + t, mask=mask, other=0.0).to(tl.float32)
    if HAS_GATE:
        x *= tl.load(gate_row + t, mask=mask, other=0.0).to(tl.float32)
    return x
