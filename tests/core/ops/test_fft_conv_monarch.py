"""The convolution by matrix products (`core.ops.fft_conv.monarch`), in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from fft_conv_cases import Case, check, check_band, check_spoiled_rows
from tolerances import RMS_LIMIT
from torch import Tensor

from core.ops.fft_conv import fft_conv, fft_conv_reference

pytest.importorskip("triton")

from core.ops.fft_conv import long, monarch, short
from core.ops.fft_conv.plan import TILE, WINDOW_TAPS, Windows, outer_constants, plan, tile_of

BF16 = torch.bfloat16
ALL = Case(skip=True, pre_gate=True, post_gate=True)


@pytest.fixture(autouse=True)
def triton(interpreted_triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here, at small sizes too."""
    monkeypatch.setattr(monarch, "WORTH_THREE_PASSES", 1)


def ratio(got: Tensor, expected: Tensor) -> float:
    error = (got.double() - expected).square().mean()
    return (error / expected.double().square().mean()).sqrt().item()


# ---- how a sequence is laid out


@pytest.mark.parametrize("length", [1, 64, 65, 4096, 4097, 20_000, 65_536, 2**20 + 1, 2**22])
@pytest.mark.parametrize("share", [0.0, 0.01, 1.0])
def test_every_lag_lies_within_a_transform(length: int, share: float) -> None:
    taps = max(1, round(share * length))
    how = plan(length, taps, taps // 3)
    if isinstance(how, Windows):
        assert how.tile.size * how.tile.repeat == TILE
        assert how.count * how.hop >= length
        if how.count > 1:  # all inputs of a window's outputs, both ways in time
            assert how.lead + how.behind + how.hop == how.tile.size
            assert how.lead + how.behind == taps - 1 <= WINDOW_TAPS
        else:
            assert how.tile.size >= length
    else:
        assert length <= how.n1 * how.n2 < 2 * max(length, 8192)
        assert how.tile == tile_of(how.n2)
        assert how.tile.size * how.tile.repeat == TILE
        assert how.n1 % how.tile.repeat == 0


def test_twiddle_factors_of_long_lines() -> None:
    """The product of the two tables is the factor of n2 = 64 i + j."""
    outer = outer_constants(32, 4096, torch.device("cpu"))
    coarse, fine = (torch.complex(*x.double()) for x in (outer.coarse, outer.fine))
    k, n = torch.arange(32.0, dtype=torch.float64), torch.arange(4096.0, dtype=torch.float64)
    angle = -2 * torch.pi * (k[:, None] + 0.25) * n / (32 * 4096)
    got = (coarse[:, :, None] * fine[:, None, :]).flatten(1)
    torch.testing.assert_close(got, torch.polar(torch.ones_like(angle), angle), rtol=0, atol=1e-6)


def test_what_it_takes() -> None:
    """Of few long sequences the launches take longest, so they stay with torch.fft."""
    u = torch.empty(1, 8, 8192, dtype=BF16)
    assert monarch.fits(u, 8192, circular=False)
    assert not monarch.fits(u, 8192, circular=True)
    assert not monarch.fits(u.half(), 8192, circular=False)
    assert not monarch.fits(torch.empty(1, 1, 2**22 + 1, dtype=BF16), 9, circular=False)
    assert not monarch.fits(u[:0], 8192, circular=False)
    monarch.WORTH_THREE_PASSES = 2**23
    assert not monarch.fits(u, 8192, circular=False)
    assert monarch.fits(u, 100, circular=False)


def test_bfloat16_is_computed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.fft would pass every test below just as well."""
    spies = [Mock(wraps=monarch.forward), Mock(wraps=monarch.backward)]
    for name, spy in zip(("forward", "backward"), spies, strict=True):
        monkeypatch.setattr(monarch, name, spy)
    for length in (64, 5000):
        u = torch.randn(1, 1, length).to(BF16).requires_grad_()
        fft_conv(u, torch.randn(1, length)).sum().backward()
    assert [spy.call_count for spy in spies] == [2, 2]


@pytest.mark.parametrize("length", [300, 5000])
def test_a_band_takes_the_kernels_with_the_filter_it_leaves(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spies = [Mock(wraps=monarch.forward), Mock(wraps=monarch.backward)]
    for name, spy in zip(("forward", "backward"), spies, strict=True):
        monkeypatch.setattr(monarch, name, spy)
    for band in (0.5, 0.25):
        check_band(length, band, BF16)
    assert [spy.call_count for spy in spies] == [2, 2]


# ---- against the definition in float64


@pytest.mark.parametrize("length", [1, 64, 100, 1000, 4096])
@pytest.mark.usefixtures("nan_filled")
def test_one_window(length: int) -> None:
    check(replace(ALL, length=length, channels=5, batch=3), BF16)


@pytest.mark.usefixtures("nan_filled")
def test_one_window_both_ways() -> None:
    check(replace(ALL, length=700, reverse_taps=700, taps=300), BF16)


@pytest.mark.usefixtures("nan_filled")
def test_overlapping_windows() -> None:
    check(replace(ALL, length=9000, taps=700, reverse_taps=500, channels=1), BF16)
    check(Case(length=5000, taps=1, channels=2), BF16)


@pytest.mark.usefixtures("nan_filled")
def test_three_passes() -> None:
    check(Case(length=5000, channels=1), BF16)
    check(replace(ALL, length=6001, reverse_taps=6001, channels=1), BF16)


@pytest.mark.usefixtures("nan_filled")
def test_lines_that_fill_a_tile_and_chunks_of_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long, "CHUNK", 65_536)
    check(Case(length=40_000, channels=2, batch=1), BF16)


@pytest.mark.parametrize("length", [200, 5000])
def test_any_magnitude(length: int) -> None:
    """Rows, channels and filters of very different sizes keep their precision."""
    case = Case(length=length, channels=3, batch=2)
    tensors = case.inputs(BF16)
    sizes = torch.tensor([1e-25, 1.0, 1e25]).to(BF16)
    u = tensors["u"] * sizes[:, None]
    u[1] *= 1e-9
    k = tensors["k"] * torch.tensor([1e20, 1e-20, 1e-8])[:, None]
    y = fft_conv(u, k)
    expected = fft_conv_reference(u.double(), k.double())
    for b in range(2):
        for c in range(3):
            assert ratio(y[b, c], expected[b, c]) <= RMS_LIMIT[BF16], (b, c)


@pytest.mark.parametrize("length", [300, 5000])
def test_zero_rows_and_a_unit_filter(length: int) -> None:
    u = torch.randn(2, 2, length).to(BF16)
    u[0] = 0
    k = torch.zeros(2, length)
    k[:, 0] = 1
    y = fft_conv(u, k)
    assert not y[0].any()
    assert ratio(y[1], u[1].double()) <= RMS_LIMIT[BF16]
    assert not fft_conv(u, torch.zeros_like(k)).any()


def test_rows_of_one_tile_do_not_touch_each_other() -> None:
    u, k = torch.randn(3, 2, 500).to(BF16), torch.randn(2, 500)
    once = fft_conv(u, k)
    u[0] *= 1e20
    assert torch.equal(fft_conv(u, k)[1:], once[1:])


def test_a_line_of_zeros_does_not_hide_the_others() -> None:
    """An impulse leaves some columns empty; scales of lines must not come from those."""
    u = torch.zeros(1, 1, 5000, dtype=BF16)
    u[..., 17] = 1e-12
    k = torch.randn(1, 5000)
    assert ratio(fft_conv(u, k), fft_conv_reference(u.double(), k.double())) <= RMS_LIMIT[BF16]


@pytest.mark.parametrize("length", [300, 5000])
def test_filters_cut_from_longer_ones(length: int) -> None:
    """Rows of the filter that do not follow each other in memory, as the first piece takes them."""
    u, long_k = torch.randn(1, 2, length).to(BF16), torch.randn(2, length + 50)
    k = long_k[:, : length - 7].requires_grad_()
    y = fft_conv(u, k)
    (gradient,) = torch.autograd.grad(y, k, u)
    whole = k.detach().double().requires_grad_()
    z = fft_conv_reference(u.double(), whole)
    assert ratio(y.detach(), z.detach()) <= RMS_LIMIT[BF16]
    assert ratio(gradient, torch.autograd.grad(z, whole, u.double())[0]) <= RMS_LIMIT[BF16]


@pytest.mark.parametrize("length", [90, 5000])
def test_only_the_wanted_gradients(length: int) -> None:
    case = replace(ALL, length=length, channels=1, reverse_taps=length)
    tensors = case.inputs(BF16)
    dy = torch.randn_like(tensors["u"])
    leaves = {name: x.double().requires_grad_() for name, x in tensors.items()}
    y = fft_conv_reference(**leaves)
    expected = dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), dy), strict=True))
    for name in tensors if length == 90 else ("u", "post_gate"):
        some = {k: v.detach().requires_grad_(k == name) for k, v in tensors.items()}
        fft_conv(**some).backward(dy)
        grad = some[name].grad
        assert grad is not None
        assert ratio(grad, expected[name]) <= RMS_LIMIT[BF16]


@pytest.mark.parametrize("length", [90, 5000])
def test_strided_inputs(length: int) -> None:
    """A mixer's slices, a skip that is a column or one number for all, a loss that is a sum."""
    u, pre_gate = torch.randn(1, length, 4).to(BF16).transpose(1, 2).split(2, dim=1)
    k = torch.randn(length, 2).T / length**0.5
    for skip in (torch.randn(2, 3)[:, 1], torch.randn(1).expand(2)):
        tensors = {"u": u, "k": k, "skip": skip, "pre_gate": pre_gate}
        results = []
        for function, dtype in ((fft_conv, None), (fft_conv_reference, torch.float64)):
            leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in tensors.values()]
            y = function(**dict(zip(tensors, leaves, strict=True)))
            results.append([y, *torch.autograd.grad(y.sum(), leaves)])
        for got, expected in zip(*results, strict=True):
            assert ratio(got, expected) <= RMS_LIMIT[BF16]


def test_many_windows_share_a_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program takes several tiles of a channel, the last one in part."""
    monkeypatch.setattr(short, "MANY", 1)
    check(Case(batch=70, channels=2, length=600), BF16)


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("sums", [1, 4])
def test_a_filters_gradient_over_many_tiles(sums: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one program, or as the sum of two programs' spectra."""
    monkeypatch.setattr(short, "SUMS", sums)
    for length in (200, 4000):
        batch = 3 if length > 2048 else 40
        check(replace(ALL, batch=batch, channels=2, length=length, reverse_taps=length), BF16)


# ---- a number that is not finite

warned = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # by NumPy, in the interpreter


@warned
@pytest.mark.parametrize(
    ("case", "history"),
    [
        pytest.param(Case(3, 5, 50, reverse_taps=50), 0, id="64 a tile"),
        pytest.param(Case(3, 3, 300, taps=299), 0, id="8 a tile"),
        pytest.param(Case(3, 3, 2000, reverse_taps=999), 0, id="2 a tile"),
        pytest.param(Case(3, 3, 200, taps=350), 200, id="history"),
        pytest.param(Case(2, 2, 4096), 0, id="one a tile"),
    ],
)
def test_a_spoiled_row_spoils_no_other(case: Case, history: int) -> None:
    case = replace(case, skip=True, pre_gate=True, post_gate=True)
    check_spoiled_rows(case, history=history)


@warned
def test_a_spoiled_row_without_gates() -> None:
    check_spoiled_rows(Case(3, 3, 100))


@warned
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(2, 2, 5000, taps=100, reverse_taps=50), id="windows"),
        pytest.param(Case(2, 2, 5000, reverse_taps=5000), id="three passes"),
    ],
)
def test_a_spoiled_long_row_spoils_no_other(case: Case) -> None:
    case = replace(case, skip=True, pre_gate=True, post_gate=True)
    check_spoiled_rows(case, spoiled=("u", "k", "dy"))


@warned
@pytest.mark.parametrize("length", [100, 5000])
def test_a_gate_that_overflows_spoils_no_other_row(length: int) -> None:
    """The product of two finite numbers; NaN with its sign bit set; a sample of nothing but it."""
    tensors = Case(4, 1, length, pre_gate=True).inputs(BF16)
    clean = fft_conv(**tensors)
    tensors["u"][0, 0, 7] = tensors["pre_gate"][0, 0, 7] = 1e30
    tensors["u"].view(torch.int16)[1, 0, 7] = -64  # the bits of that NaN
    tensors["u"][2] = torch.inf
    y = fft_conv(**tensors)
    assert not y[:3].isfinite().all(2).any()
    assert torch.equal(y[3], clean[3])
