"""Prefix attention on a GPU, against the same op in float64."""

from __future__ import annotations

import pytest
import torch
from captured import check_captured
from prefix_attention_cases import draw, plain, run
from ssd_cases import fill_empty_with_nan
from tolerances import RMS_LIMIT, assert_all_close_to_reference
from torch.nn import functional as F

from core.ops.prefix_attention import PrefixState, prefix_attention, prefix_attention_step
from core.sequences import Sequences

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def check(inputs, **options):
    dtype = inputs["values"].dtype
    got = run(prefix_attention, inputs, **options)
    truth = run(prefix_attention, inputs, dtype=torch.float64, **options)
    other = plain(inputs, **options)
    assert_all_close_to_reference(got, truth, other, dtype)


def without_state(inputs):
    return {name: inputs[name] for name in ("scores", "values")}


def rms_ratio(got, truth):
    return ((got.double() - truth).square().mean() / truth.square().mean()).sqrt().item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 7, 63, 64, 65, 130, 1000, 4097])
def test_matches_float64_at_any_length(dtype, length, monkeypatch):
    fill_empty_with_nan(monkeypatch)
    batch = 64 if length < 10 else 16  # the largest of a few errors would be luck
    inputs = draw(batch, length, 4, 64, dtype=dtype, device="cuda", seed=length)
    check(inputs)
    if length > 1:
        check(without_state(inputs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_captured_step(dtype):
    inputs = without_state(draw(2, 5000, 4, 64, dtype=dtype, device="cuda"))
    check_captured(lambda **tensors: prefix_attention(**tensors)[0], inputs)


def test_one_position_alone_is_its_value():
    inputs = without_state(draw(32, 1, 4, 64, dtype=torch.float32, device="cuda"))
    out, state = prefix_attention(**inputs)
    assert torch.equal(out, inputs["values"])
    assert torch.equal(state.m, inputs["scores"][:, 0])
    assert torch.equal(state.u, torch.ones_like(state.u))
    assert torch.equal(state.w, inputs["values"][:, 0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 1), (3, 5), (6, 32), (5, 100), (2, 128)])
def test_matches_float64_at_any_size(dtype, heads, head_dim, monkeypatch):
    fill_empty_with_nan(monkeypatch)
    batch = max(64, 512 // (heads * head_dim))  # the largest of a few errors would be luck
    check(draw(batch, 333, heads, head_dim, dtype=dtype, device="cuda"))


@pytest.mark.parametrize("scale", [0.0, 5.0, 30.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_flat_and_steep_scores(dtype, scale, monkeypatch):
    """From the running mean to the largest score alone."""
    fill_empty_with_nan(monkeypatch)
    check(draw(16, 1000, 4, 64, dtype=dtype, device="cuda", scale=scale))


@pytest.mark.parametrize("order", ["as drawn", "rising", "falling"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_scores(dtype, order):
    inputs = without_state(draw(2, 500, 4, 64, dtype=dtype, device="cuda"))
    inputs["scores"] += 1e4 * inputs["scores"].sign()
    if order != "as drawn":
        inputs["scores"] = inputs["scores"].sort(1, descending=order == "falling").values
    inputs["scores"][:, 5::29] = -torch.inf
    got = run(prefix_attention, inputs)
    truth = run(prefix_attention, inputs, dtype=torch.float64)
    for name, tensor in got.items():
        assert rms_ratio(tensor, truth[name]) < RMS_LIMIT[dtype], name


def test_nothing_seen_is_zero():
    inputs = without_state(draw(2, 300, 4, 64, dtype=torch.float32, device="cuda"))
    inputs["scores"][:, :150] = -torch.inf
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    out, _ = prefix_attention(**leaves)
    grads = torch.autograd.grad(out.sum(), list(leaves.values()))
    assert (out[:, :150] == 0).all()
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert all((grad[:, :150] == 0).all() for grad in grads)


@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_documents_and_padding(dtype, initial, monkeypatch):
    fill_empty_with_nan(monkeypatch)
    inputs = draw(3, 700, 4, 64, dtype=dtype, device="cuda")
    inputs = inputs if initial else without_state(inputs)
    lengths = [[700], [1, 127, 1, 3, 300, 200], [128, 256]]
    document = Sequences.packed(lengths, 700).document.cuda()
    for name in ("scores", "values"):
        inputs[name][document < 0] = torch.nan
    check(inputs, document=document)


def test_padding_in_front_and_between():
    """The state stands still in padding, whatever chunk borders lie in it."""
    inputs = draw(2, 500, 4, 64, dtype=torch.float32, device="cuda")
    document = torch.zeros(2, 500, dtype=torch.int64, device="cuda")
    document[0, :70], document[0, 100:300] = -1, -1
    document[1, 64:128], document[1, 128:] = -1, 1
    got = run(prefix_attention, inputs, document=document)
    truth = run(prefix_attention, inputs, document=document, dtype=torch.float64)
    for name, tensor in got.items():
        assert rms_ratio(tensor, truth[name]) < RMS_LIMIT[torch.float32], name
    assert (got["output"][document < 0] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_with_strides(dtype):
    """Values as a slice of one projection, scores with heads before positions."""
    mixed = torch.randn(2, 300, 3 * 256, device="cuda").to(dtype)
    values = mixed[..., 256:512].unflatten(-1, (4, 64))
    scores = torch.randn(2, 4, 300, device="cuda").transpose(1, 2)
    got = prefix_attention(scores, values)
    expected = prefix_attention(scores.contiguous(), values.contiguous())
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_equals_attention_of_one_query():
    """PyTorch's own attention with the same query at every position."""
    query = torch.randn(4, 64, device="cuda")
    key, values = torch.randn(2, 2, 1000, 4, 64, device="cuda").unbind(0)
    scores = torch.einsum("blhp,hp->blh", key, query) / 8
    rows = query[None, :, None].expand(2, -1, 1000, -1)
    expected = F.scaled_dot_product_attention(
        rows, key.transpose(1, 2), values.transpose(1, 2), is_causal=True
    )
    got, _ = prefix_attention(scores, values)
    torch.testing.assert_close(got, expected.transpose(1, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_seventy_thousand_positions(dtype):
    inputs = draw(1, 70_001, 4, 64, dtype=dtype, device="cuda")
    got = run(prefix_attention, inputs)
    truth = run(prefix_attention, inputs, dtype=torch.float64)
    for name, tensor in got.items():
        assert rms_ratio(tensor, truth[name]) < RMS_LIMIT[dtype], name
        end = (slice(None), slice(-2000, None))
        if name in ("output", "gradient of scores", "gradient of values"):
            assert rms_ratio(tensor[end], truth[name][end]) < RMS_LIMIT[dtype], f"end of {name}"


def test_offsets_past_two_to_the_31():
    length, heads = 2**18 + 70, 128
    generator = torch.Generator("cuda").manual_seed(3)
    values = torch.empty(1, length, heads, 64, dtype=torch.bfloat16, device="cuda")
    values.normal_(generator=generator)
    assert values.numel() > 2**31
    # Scores rise, so that 1000 positions earlier the weights are below exp(-40).
    scores = torch.empty(1, length, heads, device="cuda").normal_(generator=generator)
    scores += 0.05 * torch.arange(length, device="cuda")[:, None]
    leaves = [scores.requires_grad_(), values.requires_grad_()]
    out, state = prefix_attention(*leaves)
    grad = torch.empty_like(out).normal_(generator=generator)
    grads = torch.autograd.grad(out, leaves, grad)

    tail = [tensor.detach()[:, -3000:].double().requires_grad_() for tensor in leaves]
    out_tail, state_tail = prefix_attention(*tail)
    grads_tail = torch.autograd.grad(out_tail, tail, grad[:, -3000:].double())
    limit = RMS_LIMIT[torch.bfloat16]
    assert rms_ratio(out[:, -2000:], out_tail[:, -2000:].detach()) < limit
    for name, got, truth in zip(PrefixState._fields, state, state_tail, strict=True):
        assert rms_ratio(got, truth.detach()) < limit, name
    for name, got, truth in zip(("scores", "values"), grads, grads_tail, strict=True):
        assert rms_ratio(got[:, -2000:], truth[:, -2000:]) < limit, name


def test_pieces_and_steps_on_the_gpu():
    inputs = draw(2, 200, 4, 64, dtype=torch.float32, device="cuda")
    state = PrefixState(inputs.pop("m"), inputs.pop("u"), inputs.pop("w"))
    whole, final = prefix_attention(**inputs, initial_state=state)
    pieces = []
    for start, stop in ((0, 77), (77, 190)):
        part = {name: tensor[:, start:stop] for name, tensor in inputs.items()}
        y, state = prefix_attention(**part, initial_state=state)
        pieces.append(y)
    for t in range(190, 200):
        y, state = prefix_attention_step(*(tensor[:, t] for tensor in inputs.values()), state)
        pieces.append(y[:, None])
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, final, rtol=1e-5, atol=1e-5)


# opcheck looks at .grad of tensors that hold none, and hides the warning only where it is no error
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("packed", [False, True])
def test_opcheck(packed):
    inputs = draw(1, 70, 2, 16, dtype=torch.float32, device="cuda")
    leaves = [tensor.requires_grad_(name != "m") for name, tensor in inputs.items()]
    segments = torch.tensor([[0] * 30 + [1] * 39 + [-2]], dtype=torch.int32, device="cuda")
    torch.library.opcheck(
        torch.ops.longspan.prefix_attention.default, (*leaves, segments if packed else None)
    )


# inductor imports a module of torch 2.11 that still scripts
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_autocast_and_compile():
    inputs = draw(2, 200, 4, 64, dtype=torch.float32, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        y, state = prefix_attention(inputs["scores"], inputs["values"])
    assert y.dtype == torch.bfloat16
    assert state.u.dtype == torch.float32

    def function(scores, values, m, u, w):
        return prefix_attention(scores, values, initial_state=PrefixState(m, u, w))[0]

    leaves = [tensor.requires_grad_(name != "m") for name, tensor in inputs.items()]
    differentiable = [leaf for leaf in leaves if leaf.requires_grad]
    compiled = torch.compile(function, fullgraph=True)
    got = torch.autograd.grad(compiled(*leaves).square().sum(), differentiable)
    expected = torch.autograd.grad(function(*leaves).square().sum(), differentiable)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
