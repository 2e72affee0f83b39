"""State space duality: closed forms, the recurrence in float64, documents, Triton interpreted."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from ssd_cases import draw, fill_empty_with_nan, plain, quadratic, run
from tolerances import assert_all_close_to_reference

from core.ops.ssd import reference, ssd, ssd_step
from core.sequences import Sequences

LENGTHS = [1, 7, 63, 64, 65, 130]


def close(got, expected, tolerance=1e-12):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def check_digits(got, truth):
    """In float32, relative to the size of the whole tensor; what is exactly zero must come so."""
    for name, tensor in got.items():
        error = (tensor.double() - truth[name]).square().mean().sqrt()
        assert error <= 1e-6 * truth[name].square().mean().sqrt(), name


def check_against_float64(inputs, plain=plain, **options):
    got = run(ssd, inputs, **options)
    truth = run(reference.ssd_recurrent, inputs, dtype=torch.float64, **options)
    other = plain(inputs, **options)
    assert_all_close_to_reference(got, truth, other, inputs["x"].dtype)


def with_nan_in_padding(inputs, document):
    for name in ("x", "log_decay", "B", "C"):
        inputs[name][document < 0] = torch.nan
    return inputs


# ---- the definition


def test_recurrence_is_a_geometric_sum():
    length, rate = 50, 0.9
    one = torch.ones(1, length, 1, 1, dtype=torch.float64)
    log_decay = torch.full((1, length, 1), rate, dtype=torch.float64).log()
    power = rate ** torch.arange(1, length + 1, dtype=torch.float64)
    for function in (ssd, reference.ssd_recurrent):
        y, final = function(one, log_decay, one, 2 * one)
        torch.testing.assert_close(y.flatten(), 2 * (1 - power) / (1 - rate))
        torch.testing.assert_close(final.flatten(), (1 - power[-1:]) / (1 - rate))


def test_recurrence_is_the_matrix_of_the_paper():
    """Entry (t, s) of the semiseparable matrix: C_t . B_s times the decays after s up to t."""
    inputs = draw(1, 9, 1, 1, 1, 3)
    del inputs["initial_state"]
    decay, B, C = inputs["log_decay"][0, :, 0].exp(), inputs["B"][0, :, 0], inputs["C"][0, :, 0]
    matrix = torch.zeros(9, 9, dtype=torch.float64)
    for t in range(9):
        for s in range(t + 1):
            matrix[t, s] = (C[t] @ B[s]) * decay[s + 1 : t + 1].prod()
    expected = matrix @ inputs["x"][0, :, 0, 0]
    for function in (ssd, reference.ssd_recurrent):
        torch.testing.assert_close(function(**inputs)[0].flatten(), expected)


@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_chunks_equal_the_recurrence(length, initial):
    inputs = draw(2, length, 4, 3, 2, 5, seed=length)
    if not initial:
        del inputs["initial_state"]
    close(run(ssd, inputs), run(reference.ssd_recurrent, inputs), 1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_precision_on_the_cpu(dtype):
    inputs = draw(2, 130, 4, 8, 2, 16, dtype=dtype)
    check_against_float64(inputs, plain=partial(run, quadratic))


def test_groups_share_b_and_c():
    inputs = draw(2, 70, 6, 3, 2, 5)
    each = dict(inputs)
    for name in ("B", "C"):
        each[name] = inputs[name].repeat_interleave(3, dim=2)
    got, expected = run(ssd, inputs), run(ssd, each)
    for name in ("B", "C"):
        key = f"gradient of {name}"
        expected[key] = expected[key].unflatten(2, (2, 3)).sum(3)
    close(got, expected)


def test_matches_transformers_mamba2():
    """Against the published Mamba-2 mixer, which on a CPU runs in plain PyTorch."""
    modeling = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    from transformers import Mamba2Config

    config = Mamba2Config(
        hidden_size=8, expand=2, num_heads=4, head_dim=4, state_size=6, n_groups=2, chunk_size=16
    )
    torch.manual_seed(0)
    mixer = modeling.Mamba2Mixer(config, layer_idx=0).double().eval()
    mixer.dt_bias.data.uniform_(-1, 1)
    hidden = torch.randn(2, 45, 8, dtype=torch.float64)
    seen = {}
    mixer.norm.register_forward_pre_hook(lambda _, args: seen.update(y=args[0]))
    with torch.no_grad():
        mixer(hidden)
        _, mixed, dt = mixer.in_proj(hidden).split([16, 16 + 2 * 12, 4], dim=-1)
        mixed = torch.nn.functional.silu(mixer.conv1d(mixed.mT)[..., :45].mT)
        x, B, C = mixed.split([16, 12, 12], dim=-1)
        x, B, C = x.unflatten(-1, (4, 4)), B.unflatten(-1, (2, 6)), C.unflatten(-1, (2, 6))
        dt = torch.nn.functional.softplus(dt + mixer.dt_bias)
        y, _ = ssd(x * dt[..., None], -dt * mixer.A_log.exp(), B, C)
        y = (y + mixer.D[:, None] * x).flatten(-2)
    torch.testing.assert_close(seen["y"].double(), y, rtol=1e-5, atol=1e-5)


# ---- a sequence in parts


def test_pieces_equal_the_whole():
    inputs = draw(2, 150, 2, 3, 1, 4)
    state = inputs.pop("initial_state")
    whole, final = ssd(**inputs, initial_state=state)
    pieces = []
    for start, stop in ((0, 1), (1, 64), (64, 77), (77, 77), (77, 150)):
        part = {name: tensor[:, start:stop] for name, tensor in inputs.items()}
        y, state = ssd(**part, initial_state=state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole)
    torch.testing.assert_close(state, final)


def test_steps_equal_the_whole():
    inputs = draw(2, 70, 4, 3, 2, 5)
    state = inputs.pop("initial_state")
    whole, final = ssd(**inputs, initial_state=state)
    for t in range(70):
        y, state = ssd_step(*(tensor[:, t] for tensor in inputs.values()), state)
        torch.testing.assert_close(y, whole[:, t])
    torch.testing.assert_close(state, final)


def test_documents_and_padding_equal_each_document_alone():
    lengths = [[70, 1, 64], [3, 130], [], [135]]
    document = Sequences.packed(lengths, 140).document
    document[1] = document[1].roll(4)  # padding on both sides: no document starts at position 0
    inputs = draw(4, 140, 4, 3, 2, 5)
    initial = inputs["initial_state"].clone()
    got = run(ssd, with_nan_in_padding(inputs, document), document=document)

    grad_seen = torch.zeros(4, 140, dtype=torch.bool)
    for row, parts in enumerate(lengths):
        start = 4 if row == 1 else 0
        for n, size in enumerate(parts):
            here = slice(start, start + size)
            alone = {name: t[row : row + 1, here] for name, t in inputs.items()}
            alone["initial_state"] = initial[row : row + 1] * (start == 0)
            y, final = reference.ssd_recurrent(**alone)
            torch.testing.assert_close(got["output"][row, here], y[0])
            if n == len(parts) - 1:
                torch.testing.assert_close(got["final state"][row], final[0])
            grad_seen[row, here] = True
            start += size
    torch.testing.assert_close(got["final state"][2], initial[2])
    for name in ("output", *(f"gradient of {n}" for n in ("x", "log_decay", "B", "C"))):
        assert torch.isfinite(got[name]).all(), name
        assert (got[name][~grad_seen] == 0).all(), name
    assert (got["gradient of initial_state"][1] == 0).all()


@pytest.mark.parametrize("length", [65, 130])
def test_gradients_of_documents_equal_the_recurrence(length):
    generator = torch.Generator().manual_seed(length)
    document = torch.randint(-1, 4, (3, length), generator=generator).sort(1).values
    document[1] = document[1].flip(0)
    inputs = with_nan_in_padding(draw(3, length, 4, 3, 2, 5), document)
    expected = run(reference.ssd_recurrent, inputs, document=document)
    close(run(ssd, inputs, document=document), expected, 1e-11)


# ---- decays


def strong_and_weak(dtype):
    inputs = draw(2, 140, 2, 3, 1, 4, dtype=dtype, scale=0.01)
    inputs["log_decay"][:, ::17] = -1e4
    inputs["log_decay"][:, 5::29] = -torch.inf
    return inputs


def test_hard_resets_leave_no_trace():
    """A log-decay of minus infinity starts anew, like a document."""
    inputs = strong_and_weak(torch.float64)
    resets = torch.isinf(inputs["log_decay"][:, :, 0])
    document = resets.cumsum(1)
    got = run(ssd, inputs)
    inputs["log_decay"][resets] = 0
    expected = run(ssd, inputs, document=document)
    close(got, expected, 1e-10)


def test_float32_keeps_its_digits_after_a_strong_decay():
    inputs = strong_and_weak(torch.float32)
    check_digits(run(ssd, inputs), run(ssd, inputs, dtype=torch.float64))


def check_strong_decays(low):
    inputs = draw(1, 70, 2, 3, 1, 4, dtype=torch.float32)
    inputs["log_decay"] += low
    got = run(ssd, inputs)["gradient of log_decay"]
    truth = run(ssd, inputs, dtype=torch.float64)["gradient of log_decay"]
    assert truth.abs().max() < 1e-6
    assert (got - truth).abs().max() < 1e-5 * truth.abs().max()


@pytest.mark.parametrize("low", [-20, -60])
def test_gradient_of_strong_decays_is_small_not_noise(low):
    check_strong_decays(low)


# ---- as an operator of PyTorch


def test_gradcheck():
    inputs = {k: v.requires_grad_() for k, v in draw(2, 67, 2, 1, 1, 2).items()}
    document = torch.tensor([[0] * 30 + [1] * 37, [-1] * 3 + [0] * 60 + [-1] * 4])

    def function(x, log_decay, B, C, initial_state):
        return ssd(x, log_decay, B, C, initial_state=initial_state, document=document)

    assert torch.autograd.gradcheck(function, tuple(inputs.values()), fast_mode=True)


# opcheck looks at .grad of tensors that hold none, and hides the warning only where it is no error
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("packed", [False, True])
def test_opcheck(packed):
    inputs = [v.requires_grad_() for v in draw(1, 5, 2, 3, 1, 4, dtype=torch.float32).values()]
    segments = torch.tensor([[0, 0, 1, 1, -2]], dtype=torch.int32) if packed else None
    torch.library.opcheck(torch.ops.longspan.ssd.default, (*inputs, segments))
    torch.library.opcheck(torch.ops.longspan.ssd.default, (*inputs[:4], None, segments))


def test_compiles_as_one_graph():
    inputs = {k: v.requires_grad_() for k, v in draw(1, 70, 2, 3, 1, 4).items()}
    document = Sequences.packed([[40, 20]], 70).document

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(document, **inputs):
        return ssd(**inputs, document=document)

    close(run(compiled, inputs, document=document), run(ssd, inputs, document=document))


def test_autocast_rounds_inputs_and_keeps_decays():
    inputs = draw(1, 70, 2, 8, 1, 8, dtype=torch.float32)
    inputs["log_decay"] = inputs["log_decay"].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y, final = ssd(**inputs)
    inputs["log_decay"] = inputs["log_decay"].float()
    for name in ("x", "B", "C"):
        inputs[name] = inputs[name].bfloat16()
    expected = ssd(**inputs)
    torch.testing.assert_close((y, final), expected, rtol=0, atol=0)
    assert y.dtype == torch.bfloat16
    assert final.dtype == torch.float32


def test_empty_batch_and_empty_length():
    inputs = draw(0, 5, 2, 3, 1, 4)
    assert ssd(**inputs)[0].shape == (0, 5, 2, 3)
    inputs = draw(2, 0, 2, 3, 1, 4)
    y, final = ssd(**inputs)
    assert y.shape == (2, 0, 2, 3)
    torch.testing.assert_close(final, inputs["initial_state"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 5, 6)}, r"x must be .* got torch.float32 of shape \(1, 5, 6\)"),
        ({"B": torch.zeros(1, 5, 3, 4)}, r"B must be .* groups dividing 2 heads"),
        ({"C": torch.zeros(1, 5, 1, 7)}, r"C must be .* of shape \(1, 5, 1, 4\)"),
        ({"log_decay": torch.zeros(1, 5, 2).bfloat16()}, "log_decay must be torch.float32"),
        ({"B": torch.zeros(1, 5, 1, 4).half()}, "B must be torch.float32"),
        ({"initial_state": torch.zeros(2, 2, 3, 4)}, "initial_state must be"),
        ({"document": torch.zeros(1, 5)}, "document must be an integer"),
        ({"document": torch.zeros(1, 6, dtype=torch.long)}, "document must be an integer"),
        # a mask is not a description of documents
        ({"document": torch.ones(1, 5).bool()}, "document must be an integer .* got torch.bool"),
        ({"document": torch.zeros(1, 5) + 0j}, "document must be an integer .* torch.complex64"),
        ({"document": [[0] * 5]}, "document must be a tensor, got list"),
        ({"x": None}, "x must be a tensor, got NoneType"),
        ({"B": [1.0]}, "B must be a tensor, got list"),
        ({"initial_state": 0}, "initial_state must be a tensor, got int"),
        ({"x": torch.zeros(1, 5, 2, 3).to(torch.float8_e4m3fn)}, "x must be floating point"),
        ({"x": torch.zeros(1, 5, 2, 3, device="meta")}, "log_decay .* on meta, got .* on cpu"),
        ({"C": torch.zeros(1, 5, 1, 4, device="meta")}, "C must .* on cpu, got .* on meta"),
    ],
)
def test_refuses_what_does_not_fit(change, message):
    inputs = draw(1, 5, 2, 3, 1, 4, dtype=torch.float32)
    with pytest.raises(ValueError, match=f"^ssd: {message}") as caught:
        ssd(**{**inputs, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 2)}, r"x must be floating point \(batch, heads, head_dim\)"),
        ({"x": torch.zeros(1, 2, 3).long()}, "x must be floating point .* got torch.int64"),
        ({"log_decay": torch.zeros(1, 1)}, r"log_decay must be .* of shape \(1, 2\)"),
        ({"B": torch.zeros(1, 3, 4)}, r"B must be \(batch, groups, state\) with groups dividing 2"),
        ({"C": torch.zeros(1, 1, 5)}, r"C must be .* of shape \(1, 1, 4\)"),
        ({"state": torch.zeros(2, 2, 3, 4)}, r"state must be .* of shape \(1, 2, 3, 4\)"),
        ({"state": None}, "state must be a tensor, got NoneType"),
    ],
)
def test_step_refuses_what_does_not_fit(change, message):
    inputs = {name: x[:, 0] for name, x in draw(1, 5, 2, 3, 1, 4, dtype=torch.float32).items()}
    inputs["state"] = torch.zeros(1, 2, 3, 4)
    del inputs["initial_state"]
    with pytest.raises(ValueError, match=f"^ssd_step: {message}"):
        ssd_step(**{**inputs, **change})


def test_shapes_on_the_meta_device():
    inputs = {name: x.to("meta") for name, x in draw(1, 5, 2, 3, 1, 4).items()}
    y, state = ssd(**inputs)
    assert (y.shape, state.shape, y.device.type) == ((1, 5, 2, 3), (1, 2, 3, 4), "meta")


# ---- the Triton kernels, interpreted; bfloat16, which the interpreter truncates, on the GPU only


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("length", [1, 7, 65, 130])
def test_triton(length, dtype, interpreted_triton, monkeypatch):
    fill_empty_with_nan(monkeypatch)
    batch = 8 if length < 10 else 2  # the largest of a few errors would be luck
    inputs = draw(batch, length, 2, 10, 1, 17, dtype=dtype, seed=length)
    if length == 7:
        del inputs["initial_state"]
    check_against_float64(inputs)


def test_triton_documents_and_padding(interpreted_triton, monkeypatch):
    fill_empty_with_nan(monkeypatch)
    document = Sequences.packed([[1, 70, 64], [64, 3]], 140).document
    inputs = draw(2, 140, 2, 8, 2, 40, dtype=torch.float32)
    check_against_float64(with_nan_in_padding(inputs, document), document=document)
    document[1] = document[1].roll(2)
    inputs = with_nan_in_padding(draw(2, 140, 2, 8, 1, 5, dtype=torch.float32), document)
    got = run(ssd, inputs, document=document)
    expected = run(reference.ssd_recurrent, inputs, dtype=torch.float64, document=document)
    for name, tensor in got.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-4, atol=1e-4)


def test_triton_decays(interpreted_triton):
    check_strong_decays(-20)
    check_strong_decays(-60)
    inputs = strong_and_weak(torch.float32)
    check_digits(run(ssd, inputs), run(ssd, inputs, dtype=torch.float64))


def test_triton_reads_strided_rows(interpreted_triton):
    mixed = torch.randn(1, 70, 2 * 8 + 2 * 4)
    x, B, C = mixed.split([16, 4, 4], dim=-1)
    log_decay = -torch.rand(1, 2, 70).transpose(1, 2)
    views = (x.unflatten(-1, (2, 8)), log_decay, B[:, :, None], C[:, :, None])
    for got, expected in zip(ssd(*views), ssd(*(t.contiguous() for t in views)), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_triton_reads_documents_in_any_order_of_memory(interpreted_triton):
    inputs = draw(2, 75, 2, 8, 1, 4, dtype=torch.float32)
    document = Sequences.packed([[30, 40], [70]], 75).document
    lying = document.T.contiguous().T
    both = (ssd(**inputs, document=order) for order in (lying, document))
    for got, expected in zip(*both, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


# opcheck looks at .grad of tensors that hold none, and hides the warning only where it is no error
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_triton_opcheck(interpreted_triton):
    inputs = [v.requires_grad_() for v in draw(1, 5, 2, 3, 1, 4, dtype=torch.float32).values()]
    torch.library.opcheck(torch.ops.longspan.ssd.default, (*inputs, None))
