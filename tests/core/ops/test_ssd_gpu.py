"""State space duality on a GPU, against the same op in float64."""

from __future__ import annotations

import pytest
import torch
from captured import check_captured
from ssd_cases import draw, fill_empty_with_nan, plain, run
from tolerances import RMS_LIMIT, assert_all_close_to_reference

from core.ops.ssd import ssd, ssd_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def check(inputs, **options):
    dtype = inputs["x"].dtype
    got = run(ssd, inputs, **options)
    truth = run(ssd, inputs, dtype=torch.float64, **options)
    other = plain(inputs, **options)
    assert_all_close_to_reference(got, truth, other, dtype)


def rms_ratio(got, truth):
    return ((got.double() - truth).square().mean() / truth.square().mean()).sqrt().item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 7, 63, 64, 65, 130, 1000, 4097])
def test_matches_float64_at_any_length(dtype, length, monkeypatch):
    fill_empty_with_nan(monkeypatch)
    batch = 32 if length < 10 else 2  # the largest of a few errors would be luck
    inputs = draw(batch, length, 4, 64, 1, 128, dtype=dtype, device="cuda", seed=length, scale=0.2)
    check(inputs)
    del inputs["initial_state"]
    check(inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("heads", "head_dim", "groups", "state"),
    [(4, 64, 4, 16), (6, 32, 2, 64), (3, 24, 1, 100), (4, 128, 2, 128), (2, 128, 1, 256)],
)
def test_matches_float64_at_any_size(dtype, heads, head_dim, groups, state, monkeypatch):
    fill_empty_with_nan(monkeypatch)
    inputs = draw(3, 333, heads, head_dim, groups, state, dtype=dtype, device="cuda", scale=0.1)
    check(inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_documents_and_padding(dtype, monkeypatch):
    fill_empty_with_nan(monkeypatch)
    inputs = draw(3, 700, 4, 64, 2, 64, dtype=dtype, device="cuda", scale=0.05)
    document = torch.full((3, 700), -1, device="cuda")
    for row, lengths in enumerate([[700], [1, 127, 1, 3, 300, 200], [128, 256]]):
        ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        document[row, : sum(lengths)] = ids.cuda()
    for name in ("x", "log_decay", "B", "C"):
        inputs[name][document < 0] = torch.nan
    check(inputs, document=document)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_captured_step(dtype):
    inputs = draw(2, 700, 4, 64, 2, 64, dtype=dtype, device="cuda", scale=0.1)
    check_captured(lambda **tensors: ssd(**tensors)[0], inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_with_strides(dtype):
    """x, B and C as slices of one projection, as a mixer has them."""
    mixed = torch.randn(2, 300, 4 * 64 + 2 * 32, device="cuda").to(dtype)
    x, B, C = mixed.split([256, 32, 32], dim=-1)
    log_decay = -torch.rand(2, 4, 300, device="cuda").transpose(1, 2)
    views = (
        x.unflatten(-1, (4, 64)),
        log_decay,
        B.unflatten(-1, (1, 32)),
        C.unflatten(-1, (1, 32)),
    )
    for got, expected in zip(ssd(*views), ssd(*(t.contiguous() for t in views)), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("low", [-20.0, -60.0])
def test_strong_decay(dtype, low):
    """The gradient of log_decay is about exp(low): nothing of the diagonal may leak into it."""
    inputs = draw(2, 500, 4, 64, 1, 64, dtype=dtype, device="cuda")
    inputs["log_decay"] = low + inputs["log_decay"]
    if dtype == torch.float16:  # rounds weights below 6e-8 to zero: no gradient for the first state
        del inputs["initial_state"]
    check(inputs)


def test_strong_and_weak_decay_side_by_side():
    inputs = draw(2, 500, 4, 64, 1, 64, dtype=torch.float32, device="cuda", scale=0.01)
    inputs["log_decay"][:, ::17] = -1e4
    inputs["log_decay"][:, 5::29] = -torch.inf
    got = run(ssd, inputs)
    truth = run(ssd, inputs, dtype=torch.float64)
    assert not got.pop("gradient of initial_state").any()  # the first decay forgets it
    for name, tensor in got.items():
        assert rms_ratio(tensor, truth[name]) < RMS_LIMIT[torch.float32], name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_seventy_thousand_tokens_that_hardly_fade(dtype):
    inputs = draw(1, 70_001, 4, 64, 1, 64, dtype=dtype, device="cuda", scale=1e-5)
    got = run(ssd, inputs)
    truth = run(ssd, inputs, dtype=torch.float64)
    for name, tensor in got.items():
        assert rms_ratio(tensor, truth[name]) < RMS_LIMIT[dtype], name
        end = (slice(None), slice(-2000, None))
        if name not in ("final state", "gradient of initial_state"):
            assert rms_ratio(tensor[end], truth[name][end]) < RMS_LIMIT[dtype], f"end of {name}"


def test_offsets_past_two_to_the_31():
    length, heads = 2**18 + 70, 128
    inputs = draw(1, 1, heads, 64, 1, 16, dtype=torch.bfloat16, device="cuda")
    generator = torch.Generator("cuda").manual_seed(3)
    for name in ("x", "B", "C"):
        shape = (1, length, *inputs[name].shape[2:])
        inputs[name] = torch.empty(shape, dtype=torch.bfloat16, device="cuda")
        inputs[name].normal_(generator=generator)
    inputs["log_decay"] = torch.empty(1, length, heads, device="cuda").uniform_(
        -1, -0.5, generator=generator
    )
    del inputs["initial_state"]
    assert inputs["x"].numel() > 2**31
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    y, final = ssd(**leaves)
    grad = torch.empty_like(y).normal_(generator=generator)
    grads = torch.autograd.grad(y, list(leaves.values()), grad)

    # With these decays 1000 tokens earlier or later are forgotten.
    tail = {name: tensor.detach()[:, -3000:].double() for name, tensor in inputs.items()}
    tail = {name: tensor.requires_grad_() for name, tensor in tail.items()}
    y_tail, final_tail = ssd(**tail)
    grads_tail = torch.autograd.grad(y_tail, list(tail.values()), grad[:, -3000:].double())
    limit = RMS_LIMIT[torch.bfloat16]
    assert rms_ratio(y[:, -2000:], y_tail[:, -2000:].detach()) < limit
    assert rms_ratio(final, final_tail.detach()) < limit
    for name, got, truth in zip(tail, grads, grads_tail, strict=True):
        assert rms_ratio(got[:, -2000:], truth[:, -2000:]) < limit, name


def test_pieces_and_steps_on_the_gpu():
    inputs = draw(2, 200, 4, 64, 2, 64, dtype=torch.float32, device="cuda", scale=0.1)
    state = inputs.pop("initial_state")
    whole, final = ssd(**inputs, initial_state=state)
    pieces = []
    for start, stop in ((0, 77), (77, 190)):
        y, state = ssd(**{k: v[:, start:stop] for k, v in inputs.items()}, initial_state=state)
        pieces.append(y)
    for t in range(190, 200):
        y, state = ssd_step(*(tensor[:, t] for tensor in inputs.values()), state)
        pieces.append(y[:, None])
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, final, rtol=1e-4, atol=1e-4)


# inductor imports a module of torch 2.11 that still scripts
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_autocast_and_compile():
    inputs = draw(2, 200, 4, 64, 2, 64, dtype=torch.float32, device="cuda", scale=0.1)
    with torch.autocast("cuda", torch.bfloat16):
        y, final = ssd(**inputs)
    assert y.dtype == torch.bfloat16
    assert final.dtype == torch.float32
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    compiled = torch.compile(ssd, fullgraph=True)
    got = torch.autograd.grad(compiled(**leaves)[0].square().sum(), list(leaves.values()))
    expected = torch.autograd.grad(ssd(**leaves)[0].square().sum(), list(leaves.values()))
    for name, one, other in zip(leaves, got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5, msg=name)
