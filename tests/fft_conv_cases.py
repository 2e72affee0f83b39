"""Inputs, plain PyTorch version and checks shared by the tests of fft_conv."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from tolerances import RMS_LIMIT, assert_close_to_reference
from torch import Tensor

from core.ops.fft_conv import fft_conv, fft_conv_reference
from core.ops.fft_conv.spectral import fast_length


@dataclass(frozen=True)
class Case:
    """Shape of a problem; ``taps`` and ``reverse_taps`` None stand for the length and for none."""

    batch: int = 2
    channels: int = 3
    length: int = 65
    taps: int | None = None
    reverse_taps: int | None = None
    skip: bool = False
    pre_gate: bool = False
    post_gate: bool = False
    circular: bool = False

    def inputs(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
        """Named tensors of fft_conv; filters and skip in float32 or better."""
        generator = torch.Generator(device).manual_seed(seed)
        wide = torch.promote_types(dtype, torch.float32)

        def draw(*shape: int, kind: torch.dtype = dtype) -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=wide).to(kind)

        like = (self.batch, self.channels, self.length)
        taps = self.length if self.taps is None else self.taps
        tensors = {"u": draw(*like), "k": draw(self.channels, taps, kind=wide) / taps**0.5}
        if self.reverse_taps is not None:
            scale = self.reverse_taps**-0.5
            tensors["reverse_k"] = draw(self.channels, self.reverse_taps, kind=wide) * scale
        if self.skip:
            tensors["skip"] = draw(self.channels, kind=wide)
        if self.pre_gate:
            tensors["pre_gate"] = draw(*like)
        if self.post_gate:
            tensors["post_gate"] = draw(*like)
        return tensors


# Every option, alone and together.
OPTIONS = [
    Case(),
    Case(taps=9, skip=True),
    Case(pre_gate=True),
    Case(post_gate=True, taps=33),
    Case(skip=True, pre_gate=True, post_gate=True),
    Case(reverse_taps=65, pre_gate=True, post_gate=True, skip=True),
    Case(taps=5, reverse_taps=40),
    Case(taps=40, reverse_taps=1),
    Case(circular=True, skip=True, pre_gate=True, post_gate=True),
    Case(circular=True, taps=20),
]


def plain(
    u: Tensor,
    k: Tensor,
    skip: Tensor | None = None,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    reverse_k: Tensor | None = None,
    circular: bool = False,
) -> Tensor:
    """What a user of PyTorch writes: every step in the dtype of u but the FFT, which has none.

    At the op's own length of transform: cuFFT's of 128 has 1.75 times the error of its of 130.
    """
    v = u if pre_gate is None else pre_gate * u
    length, lags = u.shape[-1], max(k.shape[-1], 1 if reverse_k is None else reverse_k.shape[-1])
    period = length if circular else fast_length(length + lags - 1)
    v = torch.nn.functional.pad(v, (0, period - length))
    y = fft_conv_reference(v, k, skip=skip, reverse_k=reverse_k, circular=True)[..., :length]
    return y if post_gate is None else post_gate * y


def values_and_gradients(
    function: object, tensors: dict[str, Tensor], dy: Tensor, circular: bool
) -> dict[str, Tensor]:
    """The output under "y" and the gradient of each tensor under its name."""
    leaves = {name: x.detach().requires_grad_() for name, x in tensors.items()}
    assert callable(function)
    y = function(**leaves, circular=circular)
    gradients = torch.autograd.grad(y, list(leaves.values()), dy.to(y.dtype))
    return {"y": y.detach(), **dict(zip(leaves, gradients, strict=True))}


def check(case: Case, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> None:
    """fft_conv and all its gradients against the definition in float64."""
    tensors = case.inputs(dtype, device, seed)
    dy = case.inputs(dtype, device, seed + 1)["u"]
    got = values_and_gradients(fft_conv, tensors, dy, case.circular)
    expected = values_and_gradients(
        fft_conv_reference, {k: v.double() for k, v in tensors.items()}, dy, case.circular
    )
    if dtype == torch.float64:
        torch.testing.assert_close(got, expected)
        return
    simple = values_and_gradients(plain, tensors, dy, case.circular)
    if dtype == torch.bfloat16:
        # PyTorch's gradient of a filter in bfloat16 is in bfloat16; ours is kept in float32
        for name in {"k", "reverse_k"} & simple.keys():
            simple[name] = simple[name].to(dtype)
    for name, value in got.items():
        assert value.dtype == (tensors["u"] if name == "y" else tensors[name]).dtype, name
        assert_close_to_reference(
            name, value, expected[name], simple[name], dtype, gradient=name != "y"
        )


def every_option(length: int, batch: int = 2, channels: int = 3) -> Case:
    """Both directions as long as the sequence, skip and gates."""
    return Case(batch, channels, length, None, length, skip=True, pre_gate=True, post_gate=True)


def check_band(case: Case, band: float, dtype: torch.dtype, device: str = "cpu") -> None:
    """fft_conv of the lowest frequencies and its gradients against the definition in float64."""
    tensors = case.inputs(dtype, device)
    dy = case.inputs(dtype, device, seed=1)["u"]
    wide = {name: x.double() for name, x in tensors.items()}
    got = values_and_gradients(partial(fft_conv, band=band), tensors, dy, circular=False)
    reference = partial(fft_conv_reference, band=band)
    expected = values_and_gradients(reference, wide, dy, circular=False)
    for name, value in got.items():
        assert value.dtype == (tensors["u"] if name == "y" else tensors[name]).dtype, name
        error = (value.double() - expected[name]).norm()
        assert error <= RMS_LIMIT[dtype] * expected[name].norm(), name


def with_history(u: Tensor, k: Tensor, history: Tensor, **options: Tensor) -> Tensor:
    """The definition for a piece of a sequence, of the whole in one."""
    pre_gate, post_gate = options.pop("pre_gate"), options.pop("post_gate")
    v = torch.cat([history, pre_gate * u], 2)
    return post_gate * fft_conv_reference(v, k, **options)[..., history.shape[-1] :]


def spoil(x: Tensor) -> None:
    """Makes one number of the first row infinite and one of the last NaN."""
    rows = x[:, None] if x.ndim == 1 else x.view(-1, x.shape[-1])
    rows[0, rows.shape[1] // 2] = -torch.inf
    rows[-1, rows.shape[1] // 3] = torch.nan


def finite_rows(x: Tensor) -> Tensor:
    """Which rows of (batch, channels, length), (channels, taps) or (channels, 1) are finite."""
    return x.isfinite() if x.ndim == 1 else x.isfinite().all(-1)


def check_spoiled_rows(
    case: Case,
    device: str = "cpu",
    history: int = 0,
    band: float = 1.0,
    spoiled: Sequence[str] | None = None,
) -> None:
    """bfloat16 with two numbers that are not finite in each input in turn (or each of ``spoiled``):
    the rows of outputs and gradients that torch.fft spoils are spoiled, all others bit for bit
    those of clean inputs."""
    tensors = case.inputs(torch.bfloat16, device)
    dy = case.inputs(torch.bfloat16, device, seed=1)["u"]
    function = partial(fft_conv, band=band)
    reference: Callable[..., Tensor] = partial(fft_conv_reference, band=band)
    if history:
        before = replace(case, length=history, taps=1).inputs(torch.bfloat16, device, seed=2)
        tensors["history"] = before["u"]
        reference = with_history
    clean = values_and_gradients(function, tensors, dy, circular=False)
    for name in spoiled or (*tensors, "dy"):
        inputs = {key: x.clone() for key, x in (*tensors.items(), ("dy", dy))}
        spoil(inputs[name])
        wide = {key: x.float().cpu() for key, x in inputs.items()}
        got = values_and_gradients(function, inputs, inputs.pop("dy"), circular=False)
        expected = values_and_gradients(reference, wide, wide.pop("dy"), circular=False)
        for key, value in got.items():
            finite = finite_rows(value)
            assert torch.equal(finite.cpu(), finite_rows(expected[key])), (name, key)
            assert torch.equal(value[finite], clean[key][finite]), (name, key)
