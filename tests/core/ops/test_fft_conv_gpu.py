"""The gated long convolution on a GPU."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from captured import check_captured
from fft_conv_cases import (
    OPTIONS,
    Case,
    check,
    check_band,
    check_spoiled_rows,
    every_option,
    values_and_gradients,
)
from tolerances import RMS_LIMIT
from torch import Tensor

from core.ops.fft_conv import fft_conv, fft_conv_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def small_sizes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is for large inputs, tested at sizes that float64 can follow."""
    from core.ops.fft_conv import monarch

    monkeypatch.setattr(monarch, "WORTH_THREE_PASSES", 1)


DTYPES = [torch.bfloat16, torch.float16, torch.float32]
LENGTHS = [1, 7, 63, 64, 65, 1000, 4097, 65537]


def at_length(case: Case, length: int) -> Case:
    """The case's filters as the same share of another length."""

    def scaled(taps: int | None) -> int | None:
        return None if taps is None else max(1, taps * length // 65)

    return replace(
        case, length=length, taps=scaled(case.taps), reverse_taps=scaled(case.reverse_taps)
    )


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("nan_filled")
def test_every_length(dtype: torch.dtype, length: int) -> None:
    # enough values that the largest error is not a matter of luck
    channels = max(4, 20_000 // length)
    for case in OPTIONS:
        case = replace(at_length(case, length), batch=3, channels=channels)
        check(case, dtype, "cuda", seed=length)


def test_float64() -> None:
    for case in OPTIONS:
        check(at_length(case, 300), torch.float64, "cuda")


@pytest.mark.parametrize("length", [500, 20000])
def test_strided_inputs(length: int) -> None:
    """Slices of one projection and a transposed filter, as mixers hand them over."""
    projected = torch.randn(2, length, 12, device="cuda").transpose(1, 2)
    k = torch.randn(length, 4, device="cuda").T / length**0.5
    for tensor in (projected, projected.contiguous()):
        for dtype in (torch.bfloat16, torch.float32):
            u, pre_gate, post_gate = tensor.to(dtype).split(4, dim=1)
            got = fft_conv(u, k, pre_gate=pre_gate, post_gate=post_gate)
            wide = [x.double() for x in (u, k, pre_gate, post_gate)]
            expected = fft_conv_reference(*wide[:2], pre_gate=wide[2], post_gate=wide[3])
            assert ratio(got, expected) <= RMS_LIMIT[dtype]


@pytest.mark.parametrize("length", [500, 20000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_negations_that_are_to_be_computed(dtype: torch.dtype, length: int) -> None:
    """Kernels read memory, where the sign is another."""
    turned = torch.randn(3, 64, length, dtype=torch.complex64, device="cuda").conj().imag
    found = []
    for resolved in (False, True):
        given = turned.resolve_neg() if resolved else turned
        assert given.is_neg() is not resolved
        u = given[:1].to(dtype).detach().requires_grad_()
        k = given[1].detach().requires_grad_()
        y = fft_conv(u, k)
        y.backward(given[2:].to(dtype))
        found.append((y, u.grad, k.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # raised inside inductor
@pytest.mark.parametrize("band", [1.0, 0.5])
def test_compile(band: float) -> None:
    case = Case(length=300, skip=True, pre_gate=True, reverse_taps=300)
    inputs = case.inputs(torch.bfloat16, "cuda")
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}
    compiled = torch.compile(fft_conv, fullgraph=True)
    gradients = [
        torch.autograd.grad(
            function(**leaves, band=band).float().square().sum(), list(leaves.values())
        )
        for function in (fft_conv, compiled)
    ]
    for expected, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("length", [300, 5000, 20_000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_captured_step(dtype: torch.dtype, length: int) -> None:
    every = Case(length=length, taps=length, skip=True, pre_gate=True, post_gate=True)
    windowed = replace(every, taps=min(length, 100), reverse_taps=min(length, 100))
    for case in (every, windowed):
        check_captured(fft_conv, case.inputs(dtype, "cuda"))


@pytest.mark.parametrize("band", [0.5, 0.25])
@pytest.mark.parametrize("length", [1, 300, 1000, 2000, 4096, 5000, 20_000, 70_000, 300_000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("nan_filled")
def test_a_band_of_frequencies(length: int, band: float, dtype: torch.dtype) -> None:
    check_band(every_option(length), band, dtype, "cuda")
    check_band(Case(length=length, taps=max(1, length // 3)), band, dtype, "cuda")


@pytest.mark.parametrize("length", [300, 2000, 4096, 5000, 70_000])
def test_a_band_launched_many_times(length: int) -> None:
    """Many tiles a program, and the same numbers at each launch: nothing is read that was not
    written."""
    case = every_option(length, batch=max(2, 400_000 // length), channels=32)
    check_band(case, 0.5, torch.bfloat16, "cuda")
    tensors = case.inputs(torch.bfloat16, "cuda")
    dy = torch.randn_like(tensors["u"])
    function = partial(fft_conv, band=0.5)
    first = values_and_gradients(function, tensors, dy, circular=False)
    for _ in range(30):
        again = values_and_gradients(function, tensors, dy, circular=False)
        assert all(torch.equal(again[name], first[name]) for name in first)


@pytest.mark.parametrize("band", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("length", [50, 300, 2000, 4096, 20_000, 70_000])
def test_a_spoiled_row_spoils_no_other(length: int, band: float) -> None:
    check_spoiled_rows(every_option(length, batch=5, channels=7), "cuda", band=band)


def ratio(got: Tensor, expected: Tensor) -> float:
    error = (got.double() - expected).square().mean()
    return (error / expected.double().square().mean()).sqrt().item()


@pytest.mark.parametrize(
    "shape", [(520, 1030, 4096), (3, 350, 2_100_001)], ids=["many rows", "long rows"]
)
def test_more_than_2_to_the_31_elements(shape: tuple[int, int, int]) -> None:
    """The first and last rows and channels, where a 32-bit offset would wrap."""
    batch, channels, length = shape
    assert batch * channels * length > 2**31
    torch.manual_seed(0)
    u, pre_gate, dy = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    k = torch.randn(channels, length, device="cuda") / length**0.5
    skip = torch.randn(channels, device="cuda")
    leaves = [x.requires_grad_() for x in (u, k, skip, pre_gate)]
    y = fft_conv(u, k, skip=skip, pre_gate=pre_gate)
    gradients = torch.autograd.grad(y, leaves, dy)
    with torch.no_grad():
        for c in (0, channels - 1):
            part = slice(c, c + 1)
            wide = [x[:, part].double() for x in (u, pre_gate, dy)]
            filters = [k[part].double(), skip[part].double()]
            leaves = [x.requires_grad_() for x in (wide[0], *filters, wide[1])]
            with torch.enable_grad():
                z = fft_conv_reference(leaves[0], leaves[1], skip=leaves[2], pre_gate=leaves[3])
            expected = torch.autograd.grad(z, leaves, wide[2])
            assert ratio(y[0, part], z[0]) <= RMS_LIMIT[torch.bfloat16]
            assert ratio(y[-1, part], z[-1]) <= RMS_LIMIT[torch.bfloat16]
            for got, value in zip(gradients, expected, strict=True):
                got = got[part] if got.ndim < 3 else got[:, part]
                assert ratio(got, value) <= RMS_LIMIT[torch.bfloat16]
