"""The convolution by matrix products (`core.ops.fft_conv.monarch`), in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from fft_conv_cases import (
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

pytest.importorskip("triton")

from core.ops.fft_conv import long, monarch, short
from core.ops.fft_conv.plan import (
    TILE,
    WINDOW_TAPS,
    Windows,
    gain_of,
    outer_constants,
    plan,
    tile_constants,
    tile_of,
)

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


@pytest.mark.parametrize("band", [0.5, 0.25])
@pytest.mark.parametrize("length", [1, 200, 4096, 4097, 20_000, 2**20])
@pytest.mark.parametrize("taps", [1, 200])
def test_a_band_is_of_the_whole_sequence(length: int, band: float, taps: int) -> None:
    """Never of windows, and no tile holds fewer columns than a band has ends."""
    how = plan(length, min(taps, length), 0, band)
    assert how.tile.band == band
    assert how.tile.cols * band >= 2
    if isinstance(how, Windows):
        assert how.count == 1
        assert how.tile.size >= length
    else:
        assert how.n1 * how.n2 >= length


@pytest.mark.parametrize("size", [256, 512, 4096])
def test_kept_columns_of_the_second_matrix(size: int) -> None:
    """Its two planes are what multiplies the real and the imaginary part, columns in pairs."""
    tile = tile_of(size, 0.5)
    first, second = tile_constants(tile, 0.25, torch.device("cpu"))[2:4].double()
    n, low = torch.arange(tile.cols, dtype=torch.float64), tile.cols // 4
    kept = torch.cat([n[-low:], n[:low]])  # the frequencies from -1/4 to 1/4 of a cycle a step
    turns = -2 * torch.pi * n[:, None] * kept / tile.cols
    real, imag = turns.cos(), turns.sin()
    for plane, (even, odd) in ((first, (real, imag)), (second, (-imag, real))):
        block = torch.stack([even, odd], 2).flatten(1) * gain_of(tile.cols)
        expected = torch.block_diag(*[block] * tile.repeat)
        torch.testing.assert_close(plane, expected, rtol=0, atol=3e-4)


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
def test_a_band_takes_the_filter_as_it_is(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the filter that the band leaves, the kernels for all frequencies pass as well."""
    spies = [Mock(wraps=monarch.forward), Mock(wraps=monarch.backward)]
    for name, spy in zip(("forward", "backward"), spies, strict=True):
        monkeypatch.setattr(monarch, name, spy)
    u = torch.randn(1, 1, length).to(BF16).requires_grad_()
    for band in (0.5, 0.25):
        fft_conv(u, torch.randn(1, 100), band=band).sum().backward()
    for spy, before in zip(spies, (1, 2), strict=True):  # u, or dy and u
        assert [call.args[before].shape for call in spy.call_args_list] == [(1, 100)] * 2
        assert [call.args[before + 5] for call in spy.call_args_list] == [0.5, 0.25]


@pytest.mark.parametrize("length", [300, 5000])
def test_a_band_is_a_plane_of_the_spectrum(length: int) -> None:
    """Half of the numbers, and nothing of them outside a quarter."""
    h = torch.randn(2, length)
    for band, kept in ((0.5, 1.0), (0.25, 0.5)):
        how = plan(length, length, 0, band)
        if isinstance(how, Windows):
            spectrum, _ = short._spectrum(h, 0, how.tile)
        else:
            spectrum, _ = long._spectrum(long._filters(h, 0), slice(0, 2), how)
        assert len(spectrum) == 1
        assert spectrum.count_nonzero() == pytest.approx(kept * spectrum.numel(), rel=0.01)


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


@pytest.mark.parametrize("band", [0.5, 0.25])
@pytest.mark.parametrize("length", [1, 100, 300, 1000, 2000, 4096])
@pytest.mark.usefixtures("nan_filled")
def test_a_band_in_one_pass(length: int, band: float) -> None:
    check_band(every_option(length, batch=3, channels=5), band, BF16)
    check_band(Case(length=length), band, BF16)


@pytest.mark.parametrize("band", [0.5, 0.25])
@pytest.mark.usefixtures("nan_filled")
def test_a_band_in_three_passes(band: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long, "CHUNK", 65_536)
    check_band(every_option(5000, batch=1), band, BF16)
    check_band(Case(length=6001, taps=100, reverse_taps=7, channels=1), band, BF16)
    check_band(Case(batch=1, channels=2, length=40_000), band, BF16)


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


@pytest.mark.parametrize("band", [1.0, 0.5, 0.25])
def test_rows_of_one_tile_do_not_touch_each_other(band: float) -> None:
    u, k = torch.randn(3, 2, 500).to(BF16), torch.randn(2, 500)
    once = fft_conv(u, k, band=band)
    u[0] *= 1e20
    assert torch.equal(fft_conv(u, k, band=band)[1:], once[1:])


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


@pytest.mark.parametrize(("length", "band"), [(90, 1.0), (5000, 1.0), (90, 0.5)])
def test_only_the_wanted_gradients(length: int, band: float) -> None:
    case = replace(ALL, length=length, channels=1, reverse_taps=length)
    tensors = case.inputs(BF16)
    dy = torch.randn_like(tensors["u"])
    leaves = {name: x.double().requires_grad_() for name, x in tensors.items()}
    y = fft_conv_reference(**leaves, band=band)
    expected = dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), dy), strict=True))
    for name in tensors if length == 90 else ("u", "post_gate"):
        some = {k: v.detach().requires_grad_(k == name) for k, v in tensors.items()}
        fft_conv(**some, band=band).backward(dy)
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
    check_band(Case(batch=70, channels=2, length=600), 0.5, BF16)


# opcheck looks at .grad of tensors that hold none, and hides the warning only where it is no error
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_band_in_the_registered_op() -> None:
    """Known to the op, its shapes without data and its backward pass, and to a compiled graph."""
    tensors = every_option(60).inputs(BF16)
    h = torch.cat([tensors["reverse_k"], tensors["k"]], 1)
    arguments = [tensors["u"], h, *(tensors[x] for x in ("skip", "pre_gate", "post_gate"))]
    arguments = [x.requires_grad_() for x in arguments]
    torch.library.opcheck(torch.ops.longspan.fft_conv, (*arguments, 59, False, 0.5))
    leaves = {name: x.requires_grad_() for name, x in tensors.items()}
    compiled = torch.compile(fft_conv, fullgraph=True, backend="aot_eager")
    got, expected = (
        torch.autograd.grad(f(**leaves, band=0.5).float().square().sum(), list(leaves.values()))
        for f in (compiled, fft_conv)
    )
    torch.testing.assert_close(got, expected)


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("sums", [1, 4])
def test_a_filters_gradient_over_many_tiles(sums: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one program, or as the sum of two programs' spectra."""
    monkeypatch.setattr(short, "SUMS", sums)
    for length in (200, 4000):
        batch = 3 if length > 2048 else 40
        case = replace(ALL, batch=batch, channels=2, length=length, reverse_taps=length)
        check(case, BF16)
        check_band(case, 0.5, BF16)


@pytest.mark.parametrize("default", [torch.float64, BF16], ids=str)
@pytest.mark.parametrize(("length", "batch"), [(200, 40), (5000, 1)])
def test_no_number_has_the_default_dtype(length: int, batch: int, default: torch.dtype) -> None:
    case = replace(ALL, length=length, batch=batch, channels=2, reverse_taps=length)
    tensors = case.inputs(BF16)
    dy = torch.randn_like(tensors["u"])
    expected = values_and_gradients(fft_conv, tensors, dy, circular=False)
    torch.set_default_dtype(default)
    try:
        got = values_and_gradients(fft_conv, tensors, dy, circular=False)
    finally:
        torch.set_default_dtype(torch.float32)
    for name, value in expected.items():
        assert torch.equal(got[name], value)


# ---- a number that is not finite

warned = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # by NumPy, in the interpreter


@warned
@pytest.mark.parametrize(
    ("case", "history", "band"),
    [
        pytest.param(Case(3, 5, 50, reverse_taps=50), 0, 1.0, id="64 a tile"),
        pytest.param(Case(3, 3, 300, taps=299), 0, 1.0, id="8 a tile"),
        pytest.param(Case(3, 3, 2000, reverse_taps=999), 0, 1.0, id="2 a tile"),
        pytest.param(Case(3, 3, 200, taps=350), 200, 1.0, id="history"),
        pytest.param(Case(2, 2, 4096), 0, 1.0, id="one a tile"),
        pytest.param(Case(3, 5, 50, reverse_taps=50), 0, 0.5, id="a band, 16 a tile"),
        pytest.param(Case(3, 3, 300, reverse_taps=300), 0, 0.25, id="a band, 8 a tile"),
    ],
)
def test_a_spoiled_row_spoils_no_other(case: Case, history: int, band: float) -> None:
    case = replace(case, skip=True, pre_gate=True, post_gate=True)
    check_spoiled_rows(case, history=history, band=band)


@warned
def test_a_spoiled_row_without_gates() -> None:
    check_spoiled_rows(Case(3, 3, 100))


@warned
@pytest.mark.parametrize(
    ("case", "band"),
    [
        pytest.param(Case(2, 2, 5000, taps=100, reverse_taps=50), 1.0, id="windows"),
        pytest.param(Case(2, 2, 5000, reverse_taps=5000), 1.0, id="three passes"),
        pytest.param(Case(2, 2, 5000), 0.5, id="a band, three passes"),
    ],
)
def test_a_spoiled_long_row_spoils_no_other(case: Case, band: float) -> None:
    case = replace(case, skip=True, pre_gate=True, post_gate=True)
    check_spoiled_rows(case, band=band, spoiled=("u", "k", "dy"))


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
