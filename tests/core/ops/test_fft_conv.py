"""The gated long convolution on the CPU: torch.fft version, and Triton in its interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fft_conv_cases import OPTIONS, Case, check, check_band, every_option
from tolerances import RMS_LIMIT
from torch import Tensor

from core.ops.fft_conv import fft_conv, fft_conv_history, fft_conv_reference, spectral

LENGTHS = [1, 7, 63, 64, 65, 130]
HALF = [torch.bfloat16, torch.float16]


def brute_force(
    u: Tensor,
    k: Tensor,
    skip: Tensor | None = None,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    reverse_k: Tensor | None = None,
    circular: bool = False,
) -> Tensor:
    """The sums of the docstring, position by position."""
    length = u.shape[-1]
    v = u if pre_gate is None else u * pre_gate
    y = torch.zeros_like(v)
    for t in range(length):
        for s in range(k.shape[1]):
            if t - s >= 0 or circular:
                y[..., t] += k[:, s] * v[..., (t - s) % length]
        if reverse_k is not None:
            for s in range(min(reverse_k.shape[1], length - t)):
                y[..., t] += reverse_k[:, s] * v[..., t + s]
        if skip is not None:
            y[..., t] += skip * v[..., t]
    return y if post_gate is None else y * post_gate


def fitted(case: Case, length: int) -> Case:
    """The case at another length, its filters no longer than that."""
    taps = None if case.taps is None else min(case.taps, length)
    reverse = None if case.reverse_taps is None else min(case.reverse_taps, length)
    return replace(case, length=length, taps=taps, reverse_taps=reverse)


@pytest.mark.parametrize("case", OPTIONS, ids=str)
@pytest.mark.parametrize("length", [1, 2, 7, 20])
def test_sums_of_the_definition(case: Case, length: int) -> None:
    case = fitted(case, length)
    tensors = case.inputs(torch.float64)
    expected = brute_force(**tensors, circular=case.circular)
    for function in (fft_conv, fft_conv_reference):
        torch.testing.assert_close(function(**tensors, circular=case.circular), expected)


@pytest.mark.parametrize("case", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64], ids=str)
@pytest.mark.usefixtures("nan_filled")
def test_gradients_and_precision(case: Case, dtype: torch.dtype) -> None:
    for length in (1, 7, 65, 257):
        # enough values that the largest error is not a matter of luck
        check(replace(fitted(case, length), channels=max(8, 4000 // length)), dtype, seed=length)


def test_half_precision_is_rounded_once() -> None:
    """What happens between input and output is float32, products with gates included."""
    case = Case(length=50, skip=True, pre_gate=True, post_gate=True)
    tensors = case.inputs(torch.bfloat16)
    wide = {name: x.float() for name, x in tensors.items()}
    assert torch.equal(fft_conv(**tensors), fft_conv(**wide).bfloat16())


@pytest.mark.parametrize("length", [1024, 1009, 8192])
def test_long(length: int) -> None:
    check(Case(length=length, skip=True, pre_gate=True, post_gate=True), torch.float32)
    check(Case(length=length, taps=100, reverse_taps=length), torch.float32)


@pytest.mark.parametrize("case", OPTIONS, ids=str)
def test_gradcheck(case: Case) -> None:
    case = replace(fitted(case, 5), batch=2, channels=2)
    tensors = {name: x.requires_grad_() for name, x in case.inputs(torch.float64).items()}

    def function(*values: Tensor) -> Tensor:
        return fft_conv(**dict(zip(tensors, values, strict=True)), circular=case.circular)

    assert torch.autograd.gradcheck(function, tuple(tensors.values()))


def test_only_the_wanted_gradients() -> None:
    """Any subset of the inputs may be frozen."""
    case = Case(length=20, skip=True, pre_gate=True, post_gate=True, reverse_taps=20)
    tensors = case.inputs(torch.float64)
    dy = torch.randn_like(tensors["u"])
    y = fft_conv_reference(**{k: v.requires_grad_() for k, v in tensors.items()})
    expected = dict(zip(tensors, torch.autograd.grad(y, list(tensors.values()), dy), strict=True))
    for name in tensors:
        leaves = {k: v.detach().requires_grad_(k == name) for k, v in tensors.items()}
        fft_conv(**leaves).backward(dy)
        torch.testing.assert_close(leaves[name].grad, expected[name])
        assert all(v.grad is None for k, v in leaves.items() if k != name)


@pytest.mark.parametrize("case", OPTIONS[4:], ids=str)
def test_chunks_of_channels(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two channels, the last one smaller."""
    n = spectral.transform_length(case.length, case.length, 0, case.circular)
    monkeypatch.setattr(spectral, "CPU_CHUNK", 2 * case.batch * n)
    check(replace(case, channels=5), torch.float64)


def test_strided_inputs() -> None:
    """Transposed, sliced and expanded tensors give what contiguous ones do."""
    u = torch.randn(2, 30, 4, dtype=torch.float64).transpose(1, 2).requires_grad_()
    k = torch.randn(30, 4, dtype=torch.float64).T.requires_grad_()
    gates = torch.randn(2, 8, 30, dtype=torch.float64, requires_grad=True)
    leaves = (u, k, gates)

    def loss(function: object) -> Tensor:
        assert callable(function)
        pre_gate, post_gate = gates.split(4, dim=1)
        return function(u, k, pre_gate=pre_gate, post_gate=post_gate).sum()

    for got, expected in zip(
        torch.autograd.grad(loss(fft_conv), leaves),
        torch.autograd.grad(loss(fft_conv_reference), leaves),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("taps", [1, 6, 33])
def test_pieces_with_history_equal_the_whole(taps: int) -> None:
    """Values and gradients, with pieces shorter and longer than the filter."""
    case = Case(length=33, taps=taps, skip=True, pre_gate=True, post_gate=True)
    tensors = {name: x.requires_grad_() for name, x in case.inputs(torch.float64).items()}
    whole = fft_conv(**tensors)

    history, pieces = None, []
    for start, stop in ((0, 1), (1, 4), (4, 24), (24, 33)):
        cut = {name: tensors[name][..., start:stop] for name in ("u", "pre_gate", "post_gate")}
        # a piece cannot reach further back than the sequence does
        k = tensors["k"][
            :, : stop if history is None else min(taps, history.shape[-1] + stop - start)
        ]
        pieces.append(fft_conv(**cut, k=k, skip=tensors["skip"], history=history))
        history = fft_conv_history(cut["u"], taps, pre_gate=cut["pre_gate"], history=history)
        assert history.shape[-1] == min(taps - 1, stop)
    together = torch.cat(pieces, 2)
    torch.testing.assert_close(together, whole)
    dy = torch.randn_like(whole)
    leaves = list(tensors.values())
    got, expected = (torch.autograd.grad(y, leaves, dy) for y in (together, whole))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("length", "band", "size"), [(300, 0.5, 512), (300, 0.25, 512), (5, 0.5, 256), (5, 0.25, 512)]
)
def test_a_band_of_frequencies_as_a_matrix(length: int, band: float, size: int) -> None:
    """Spectra as sums over the grid (k + 1/4) / ``size``, and no others kept."""
    taps = min(40, length)
    tensors = Case(length=length, taps=taps, reverse_taps=length).inputs(torch.float64)
    grid = torch.arange(size, dtype=torch.float64)
    waves = torch.exp(-2j * torch.pi * (grid[:, None] + 0.25) * grid / size)
    ahead = tensors["k"].to(waves.dtype) @ waves[:, :taps].T
    behind = tensors["reverse_k"].to(waves.dtype) @ waves[:, :length].T.conj()
    spectrum = tensors["u"].to(waves.dtype) @ waves[:, :length].T
    low = (grid < band * size / 2) | (grid >= size * (1 - band / 2))
    expected = ((spectrum * (ahead + behind) * low) @ waves[:, :length].conj()).real / size
    for function in (fft_conv, fft_conv_reference):
        torch.testing.assert_close(function(**tensors, band=band), expected)


@pytest.mark.parametrize("length", [5, 64, 300])
def test_gradients_of_a_band(length: int) -> None:
    case = Case(length=length, reverse_taps=length, skip=True, pre_gate=True, post_gate=True)
    tensors = {name: x.requires_grad_() for name, x in case.inputs(torch.float64).items()}
    dy = torch.randn_like(tensors["u"])
    got, expected = (
        torch.autograd.grad(function(**tensors, band=0.5), list(tensors.values()), dy)
        for function in (fft_conv, fft_conv_reference)
    )
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("band", [0.5, 0.25])
@pytest.mark.parametrize("length", [300, 4096, 70_000])
@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64], ids=str)
def test_precision_of_a_band(dtype: torch.dtype, length: int, band: float) -> None:
    check_band(every_option(length), band, dtype)


def test_only_inputs_are_kept() -> None:
    case = Case(batch=3, channels=4, length=100, pre_gate=True, post_gate=True)
    tensors = {name: x.requires_grad_() for name, x in case.inputs(torch.float32).items()}
    kept: list[int] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x.data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        fft_conv(**tensors)
    assert set(kept) <= {x.data_ptr() for x in tensors.values()}


def test_empty_batch() -> None:
    k = torch.randn(3, 5, requires_grad=True)
    u = torch.randn(0, 3, 5, requires_grad=True)
    y = fft_conv(u, k)
    y.sum().backward()
    assert y.shape == (0, 3, 5)
    assert k.grad is not None
    assert not k.grad.any()


# opcheck looks at .grad of tensors that hold none, and hides the warning only where it is no error
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("case", [OPTIONS[4], OPTIONS[5], OPTIONS[8]], ids=str)
def test_registration(case: Case) -> None:
    tensors = fitted(case, 12).inputs(torch.float32)
    reverse = tensors.get("reverse_k")
    h = tensors["k"] if reverse is None else torch.cat([reverse, tensors["k"]], 1)
    zero = 0 if reverse is None else reverse.shape[1] - 1
    arguments = [tensors["u"], h, *(tensors[x] for x in ("skip", "pre_gate", "post_gate"))]
    arguments = [x.requires_grad_() for x in arguments]
    torch.library.opcheck(torch.ops.longspan.fft_conv, (*arguments, zero, case.circular, 1.0))
    detached = [x.detach() for x in arguments]
    torch.library.opcheck(
        torch.ops.longspan.fft_conv_backward,
        (
            torch.randn(2, 3, 12),
            *detached,
            zero,
            case.circular,
            1.0,
            [True, True, False, True, True],
        ),
    )


def test_compile() -> None:
    case = Case(length=33, skip=True, pre_gate=True, reverse_taps=33)
    leaves = {name: x.requires_grad_() for name, x in case.inputs(torch.float32).items()}
    compiled = torch.compile(fft_conv, fullgraph=True, backend="aot_eager")
    for function in (fft_conv, compiled):
        gradients = torch.autograd.grad(function(**leaves).square().sum(), list(leaves.values()))
        if function is fft_conv:
            expected = gradients
    for got, value in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, value)


def test_autocast() -> None:
    """bf16 activations and float32 parameters; the sums stay in float32."""
    case = Case(length=100, skip=True, pre_gate=True, post_gate=True)
    tensors = {name: x.requires_grad_() for name, x in case.inputs(torch.bfloat16).items()}
    plainly = fft_conv(**tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = fft_conv(**tensors)
        mixed = fft_conv(tensors["u"].float(), tensors["k"], pre_gate=tensors["pre_gate"])
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, plainly)
    assert mixed.dtype == torch.float32
    y.sum().backward()
    assert tensors["k"].grad is not None
    assert tensors["k"].grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.ones(3, 9)}, r"k must be \(3, taps\) with 1 to 8 taps .* got \(3, 9\)"),
        ({"k": torch.ones(2, 8)}, r"k must be \(3, taps\)"),
        ({"k": torch.ones(3, 8, dtype=torch.complex64)}, "k must be floating point .*complex64"),
        ({"u": torch.ones(2, 3, 8, dtype=torch.int64)}, r"u must be floating point .*int64"),
        ({"u": torch.ones(3, 8)}, r"u must be floating point \(batch, channels, length"),
        ({"u": torch.ones(2, 3, 0)}, r"length >= 1\), got \(2, 3, 0\)"),
        ({"skip": torch.ones(1)}, r"skip must be \(3,\), got \(1,\)"),
        ({"pre_gate": torch.ones(1, 3, 8)}, r"pre_gate must be \(2, 3, 8\), got \(1, 3, 8\)"),
        ({"post_gate": torch.ones(3, 8)}, r"post_gate must be \(2, 3, 8\), got \(3, 8\)"),
        ({"reverse_k": torch.ones(3, 9)}, r"reverse_k must be \(3, taps\) with 1 to 8 taps"),
        ({"reverse_k": torch.ones(3, 8), "circular": True}, "reverse_k is not defined"),
        ({"history": torch.ones(2, 3, 4), "circular": True}, "history is for causal filters"),
        ({"band": 0.3}, "band must be 1, 1/2 or 1/4, .* got 0.3"),
        ({"band": torch.tensor(0.5)}, r"band must be 1, 1/2 or 1/4, .* got tensor\(0.5"),
        ({"band": torch.ones(2)}, "band must be 1, 1/2 or 1/4, .* got tensor"),
        ({"band": True}, "band must be 1, 1/2 or 1/4, .* got True"),
        ({"band": 0.5, "circular": True}, "and 1 with circular or history"),
        ({"circular": "yes"}, "circular must be True or False, got 'yes'"),
        ({"circular": None}, "circular must be True or False, got None"),
        ({"history": torch.ones(2, 4, 4)}, r"history must be \(2, 3, past\), got \(2, 4, 4\)"),
        ({"history": torch.ones(2, 3, 4), "k": torch.ones(3, 13)}, "with 1 to 12 taps"),
        ({"skip": torch.ones(3, device="meta")}, "skip must be floating point on cpu, .* on meta"),
        ({"u": None}, "u must be a tensor, got NoneType"),
        ({"k": None}, "k must be a tensor, got NoneType"),
        ({"skip": 1.0}, "skip must be a tensor, got float"),
        ({"u": torch.ones(2, 3, 8).to_sparse()}, "u must be dense, got torch.sparse_coo"),
        ({"skip": torch.ones(3).to_sparse()}, "skip must be dense, got torch.sparse_coo"),
    ],
)
def test_wrong_arguments(change: dict[str, object], message: str) -> None:
    arguments = {"u": torch.ones(2, 3, 8), "k": torch.ones(3, 8), **change}
    with pytest.raises(ValueError, match=message):
        fft_conv(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": None}, "u must be a tensor, got NoneType"),
        ({"u": torch.ones(3, 8)}, r"u must be floating point \(batch, channels, length"),
        ({"u": torch.ones(2, 3, 8, dtype=torch.int64)}, "u must be floating point .*int64"),
        ({"taps": 0}, "taps must be an integer of at least 1, got 0"),
        ({"taps": -5}, "taps must be an integer of at least 1, got -5"),
        ({"taps": 2.0}, "taps must be an integer of at least 1, got 2.0"),
        ({"pre_gate": torch.ones(8)}, r"pre_gate must be \(2, 3, 8\), got \(8,\)"),
        ({"pre_gate": torch.ones(2, 3, 8, dtype=torch.int64)}, "pre_gate must be floating .*int64"),
        ({"history": torch.ones(2, 4, 4)}, r"history must be \(2, 3, past\), got \(2, 4, 4\)"),
        ({"history": torch.ones(2, 3, 4, device="meta")}, "history must be .* on cpu, .* on meta"),
        ({"history": [1.0]}, "history must be a tensor, got list"),
    ],
)
def test_wrong_arguments_of_history(change: dict[str, object], message: str) -> None:
    arguments = {"u": torch.ones(2, 3, 8), "taps": 4, **change}
    with pytest.raises(ValueError, match=f"fft_conv_history: {message}"):
        fft_conv_history(**arguments)


def test_fast_length() -> None:
    """Even and 5-smooth above 16, never beyond the next power of two, the cheapest such length."""

    def smooth(n: int) -> bool:
        for prime in (2, 3, 5):
            while n % prime == 0:
                n //= prime
        return n == 1

    def cost(n: int) -> float:
        return n if n & (n - 1) == 0 else 1.3 * n

    for least in [*range(17, 1200), 8191, 8200, 65537, 1000001]:
        power = 1 << (least - 1).bit_length()
        allowed = [n for n in range(least, power + 1) if n % 2 == 0 and smooth(n)]
        assert cost(spectral.fast_length(least)) == min(map(cost, allowed)), least
    assert [spectral.fast_length(n) for n in (1, 2, 3, 15)] == [1, 2, 4, 16]


@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
@pytest.mark.parametrize("case", OPTIONS, ids=str)
@pytest.mark.usefixtures("interpreted_triton", "nan_filled")
def test_triton(case: Case, dtype: torch.dtype) -> None:
    check(replace(case, channels=16), dtype)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.usefixtures("interpreted_triton", "nan_filled")
def test_triton_at_any_length(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of several pieces, chunks of a few channels."""
    from core.ops.fft_conv import kernel

    monkeypatch.setattr(kernel, "BLOCK", 64)
    monkeypatch.setattr(spectral, "CPU_CHUNK", 4 * 2 * length)
    check(Case(length=length, skip=True, pre_gate=True, post_gate=True), torch.bfloat16)
    check(Case(batch=1, length=length, reverse_taps=length), torch.float16)
    check(Case(channels=7, length=length, circular=True, skip=True), torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.usefixtures("interpreted_triton")
def test_strided_inputs_in_triton(dtype: torch.dtype) -> None:
    for tensor in (torch.randn(2, 30, 12).transpose(1, 2), torch.randn(2, 12, 30)):
        u, pre_gate, post_gate = tensor.to(dtype).split(4, dim=1)
        post_gate = post_gate.contiguous()
        u = u.flip(0)  # strides of its own
        k, skip = torch.randn(30, 4).T, torch.randn(4, 2)[:, 1]
        got = fft_conv(u, k, skip=skip, pre_gate=pre_gate, post_gate=post_gate)
        wide = [x.double() for x in (u, k, skip, pre_gate, post_gate)]
        expected = fft_conv_reference(*wide[:2], skip=wide[2], pre_gate=wide[3], post_gate=wide[4])
        assert (got - expected).norm() <= RMS_LIMIT[dtype] * expected.norm()
