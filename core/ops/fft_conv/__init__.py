"""Gated long convolution of any length, with its gradients. Layout (batch, channels, length)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.arguments import FLOATS, check_flags, check_integers, check_tensors, is_number
from core.ops.dispatch import refuse_tangents, seen_by_autograd_alone, use_triton
from core.ops.fft_conv import spectral
from core.ops.fft_conv.reference import band_limited, fft_conv_reference

__all__ = ["fft_conv", "fft_conv_history", "fft_conv_reference"]


def fft_conv(
    u: Tensor,
    k: Tensor,
    *,
    skip: Tensor | None = None,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    reverse_k: Tensor | None = None,
    circular: bool = False,
    history: Tensor | None = None,
    band: float = 1.0,
) -> Tensor:
    """y_t = post_gate_t (sum_s k_s v_{t-s} + sum_s reverse_k_s v_{t+s} + skip v_t), v = pre_gate u.

    u, pre_gate, post_gate: (batch, channels, length); k: (channels, taps); reverse_k: (channels,
    taps of its own); skip: (channels,). At most ``length`` taps. v is zero outside the sequence or,
    with ``circular``, periodic (then no ``reverse_k``). Both filters' taps 0 count at s = 0.

    ``history`` (batch, channels, past) holds the v right before position 0, of a sequence that is
    fed in pieces; taps may then reach ``past`` further. `fft_conv_history` makes that of the next
    piece.

    ``band`` 1/2 or 1/4 keeps that share of the frequencies alone, the lowest: those below ``band``
    / 2 of the sampling rate on the grid (k + 1/4) / N, where N is the least power of two that is
    neither below ``length`` nor below 128 / ``band``. The result is not causal any more. It is
    the convolution with the filter that this leaves, of 2 ``length`` - 1 taps. Where the kernels in
    bfloat16 compute it (README.md), the upper half of the frequencies is skipped; a quarter costs
    what a half does. Elsewhere torch.fft makes that filter, which is kept for the backward pass,
    and every frequency is taken: the option saves no time.

    Computes in float32 (float64 for a float64 ``u``) and returns the dtype of ``u``. Differentiable
    once, backward, in every tensor; only the inputs are kept for the backward pass. Raises
    ValueError naming the argument for shapes, dtypes and devices that do not fit, and
    NotImplementedError under forward-mode differentiation. The operator: Poli et al. 2023,
    "Hyena Hierarchy", arXiv 2302.10866.
    """
    _check(u, k, skip, pre_gate, post_gate, reverse_k, circular, history, band)
    refuse_tangents("fft_conv", u, k, skip, pre_gate, post_gate, reverse_k, history)
    past = 0 if history is None else history.shape[-1]
    if history is not None:
        # positions before the piece: gated already, and their outputs are dropped
        u = torch.cat([history.to(u.dtype), u], 2)
        if pre_gate is not None:
            pre_gate = torch.nn.functional.pad(pre_gate, (past, 0), value=1.0)
        if post_gate is not None:
            post_gate = torch.nn.functional.pad(post_gate, (past, 0))
    dtype = torch.promote_types(u.dtype, torch.float32)
    h, zero = k.to(dtype), 0
    if reverse_k is not None:
        # one filter with negative lags
        reverse = reverse_k.to(dtype)
        h = torch.cat([reverse[:, 1:].flip(1), h[:, :1] + reverse[:, :1], h[:, 1:]], 1)
        zero = reverse.shape[1] - 1
    if skip is not None:
        skip = skip.to(dtype)
    if band < 1 and not _takes_monarch(u, h, circular, band):
        h, zero, band = band_limited(h, zero, u.shape[-1], band), u.shape[-1] - 1, 1.0
    tensors = (u, h, skip, pre_gate, post_gate)
    directly = use_triton(u) and seen_by_autograd_alone(*tensors)
    convolve: Callable[..., Tensor] = _Direct.apply if directly else _fft_conv
    y = convolve(*tensors, zero, circular, band)
    return y[..., past:] if past else y


def fft_conv_history(
    u: Tensor, taps: int, *, pre_gate: Tensor | None = None, history: Tensor | None = None
) -> Tensor:
    """What `fft_conv` of the next piece needs of this one and those before: the last ``taps`` - 1
    values of pre_gate u, or as many as there are, in the dtype of ``u``.

    Shapes as in `fft_conv`; raises ValueError naming the argument for those that do not fit.
    """
    check_tensors("fft_conv_history", {"u": u}, {"pre_gate": pre_gate, "history": history})
    _check_input("fft_conv_history", u)
    check_integers("fft_conv_history", taps=taps)
    if pre_gate is not None:
        if pre_gate.shape != u.shape:
            raise ValueError(
                f"fft_conv_history: pre_gate must be {tuple(u.shape)}, got {tuple(pre_gate.shape)}"
            )
        _check_kind("fft_conv_history", "pre_gate", pre_gate, u)
    if history is not None:
        _check_history("fft_conv_history", history, u)
        _check_kind("fft_conv_history", "history", history, u)
    v = u if pre_gate is None else (pre_gate * u).to(u.dtype)
    if history is not None:
        v = torch.cat([history.to(v.dtype), v], 2)
    return v[..., max(0, v.shape[-1] - taps + 1) :]


def _check(
    u: Tensor,
    k: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    reverse_k: Tensor | None,
    circular: bool,
    history: Tensor | None,
    band: float,
) -> None:
    optional = {
        "reverse_k": reverse_k,
        "skip": skip,
        "pre_gate": pre_gate,
        "post_gate": post_gate,
        "history": history,
    }
    check_tensors("fft_conv", {"u": u, "k": k}, optional)
    _, channels, length = _check_input("fft_conv", u)
    check_flags("fft_conv", circular=circular)
    if circular and reverse_k is not None:
        raise ValueError("fft_conv: reverse_k is not defined for circular=True; drop one of them")
    known = is_number(band) and band in (1.0, 0.5, 0.25)
    if not known or (band < 1 and (circular or history is not None)):
        raise ValueError(
            f"fft_conv: band must be 1, 1/2 or 1/4, and 1 with circular or history, got {band!r}"
        )
    reach = length
    if history is not None:
        if circular or reverse_k is not None:
            raise ValueError("fft_conv: history is for causal filters; drop circular and reverse_k")
        _check_history("fft_conv", history, u)
        reach += history.shape[-1]
    for name, x in (("k", k), ("reverse_k", reverse_k)):
        if x is None:
            continue
        if x.ndim != 2 or x.shape[0] != channels or not 1 <= x.shape[1] <= reach:
            raise ValueError(
                f"fft_conv: {name} must be ({channels}, taps) with 1 to {reach} taps for u of "
                f"{tuple(u.shape)}, got {tuple(x.shape)}"
            )
    for name, x, shape in (
        ("skip", skip, (channels,)),
        ("pre_gate", pre_gate, tuple(u.shape)),
        ("post_gate", post_gate, tuple(u.shape)),
    ):
        if x is not None and tuple(x.shape) != shape:
            raise ValueError(f"fft_conv: {name} must be {shape}, got {tuple(x.shape)}")
    for name, x in {"k": k, **optional}.items():
        if x is not None:
            _check_kind("fft_conv", name, x, u)


def _check_input(op: str, u: Tensor) -> tuple[int, int, int]:
    """Batch, channels and length."""
    if u.ndim != 3 or u.shape[-1] < 1 or u.dtype not in FLOATS:
        raise ValueError(
            f"{op}: u must be floating point (batch, channels, length >= 1), "
            f"got {tuple(u.shape)} {u.dtype}"
        )
    batch, channels, length = u.shape
    return batch, channels, length


def _check_history(op: str, history: Tensor, u: Tensor) -> None:
    if history.ndim != 3 or history.shape[:2] != u.shape[:2]:
        raise ValueError(
            f"{op}: history must be ({u.shape[0]}, {u.shape[1]}, past), got {tuple(history.shape)}"
        )


def _check_kind(op: str, name: str, x: Tensor, u: Tensor) -> None:
    if x.dtype not in FLOATS or x.device != u.device:
        raise ValueError(
            f"{op}: {name} must be floating point on {u.device}, got {x.dtype} on {x.device}"
        )


def _takes_monarch(u: Tensor, h: Tensor, circular: bool, band: float) -> bool:
    if not use_triton(u):
        return False
    from core.ops.fft_conv import monarch

    return monarch.fits(u, h.shape[1], circular, band)


def _steps(u: Tensor) -> spectral.Steps:
    if use_triton(u) and u.dtype != torch.float64:
        from core.ops.fft_conv.kernel import FUSED

        return FUSED
    return spectral.PLAIN


def _convolve(
    u: Tensor,
    h: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    zero: int,
    circular: bool,
    band: float,
) -> Tensor:
    # a band is given to the op for the kernels alone
    if band < 1 or _takes_monarch(u, h, circular, band):
        from core.ops.fft_conv import monarch

        return monarch.forward(u, h, skip, pre_gate, post_gate, zero, band)
    steps = _steps(u)
    return spectral.forward(u, h, skip, pre_gate, post_gate, zero, circular, steps)


_fft_conv = torch.library.custom_op("longspan::fft_conv", _convolve, mutates_args=())


@_fft_conv.register_fake
def _(
    u: Tensor,
    h: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    zero: int,
    circular: bool,
    band: float,
) -> Tensor:
    return u.new_empty(u.shape)


def _gradients(
    dy: Tensor,
    u: Tensor,
    h: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    zero: int,
    circular: bool,
    band: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    # a band is given to the op for the kernels alone
    if band < 1 or _takes_monarch(u, h, circular, band):
        from core.ops.fft_conv import monarch

        return monarch.backward(dy, u, h, skip, pre_gate, post_gate, zero, band, wanted)
    steps = _steps(u)
    return spectral.backward(dy, u, h, skip, pre_gate, post_gate, zero, circular, wanted, steps)


_fft_conv_backward = torch.library.custom_op(
    "longspan::fft_conv_backward", _gradients, mutates_args=()
)


@_fft_conv_backward.register_fake
def _(
    dy: Tensor,
    u: Tensor,
    h: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    zero: int,
    circular: bool,
    band: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return spectral.empty_gradients(u, h, skip, pre_gate, post_gate, wanted)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.zero, ctx.circular, ctx.band = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(
    ctx: Any, dy: Tensor, of: Callable[..., tuple[Tensor, ...]] = _fft_conv_backward
) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:5])
    options = (ctx.zero, ctx.circular, ctx.band)
    gradients = of(dy, *ctx.saved_tensors, *options, wanted)
    some = (g if want else None for g, want in zip(gradients, wanted, strict=True))
    return (*some, None, None, None)


_fft_conv.register_autograd(_differentiate, setup_context=_setup_context)


class _Direct(torch.autograd.Function):
    """The op without PyTorch's dispatcher (`seen_by_autograd_alone`)."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        y = _convolve(*inputs)
        _setup_context(ctx, inputs, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return _differentiate(ctx, dy.resolve_neg(), _gradients)
