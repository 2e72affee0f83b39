"""Prefix attention: softmax by brute force, the recurrence, documents, Triton interpreted."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from largest_tensor import LargestTensor
from prefix_attention_cases import draw, plain, run, softmax_of_prefixes
from ssd_cases import fill_empty_with_nan
from tolerances import assert_all_close_to_reference

from core.ops.prefix_attention import (
    PrefixState,
    prefix_attention,
    prefix_attention_step,
    reference,
)
from core.sequences import Sequences

LENGTHS = [1, 7, 63, 64, 65, 130]


def close(got, expected, tolerance=1e-12):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def check_against_float64(inputs, plain=plain, **options):
    got = run(prefix_attention, inputs, **options)
    truth = run(reference.prefix_attention_recurrent, inputs, dtype=torch.float64, **options)
    other = plain(inputs, **options)
    assert_all_close_to_reference(got, truth, other, inputs["values"].dtype)


def with_nan_in_padding(inputs, document):
    for name in ("scores", "values"):
        inputs[name][document < 0] = torch.nan
    return inputs


def without_state(inputs):
    return {name: inputs[name] for name in ("scores", "values")}


# ---- the definition


@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_both_forms_equal_softmax_over_each_prefix(length, initial):
    inputs = draw(2, length, 3, 5, seed=length)
    inputs = inputs if initial else without_state(inputs)
    expected = run(softmax_of_prefixes, inputs)
    close(run(prefix_attention, inputs), expected, 1e-11)
    close(run(reference.prefix_attention_recurrent, inputs), expected, 1e-11)


def test_equal_scores_give_the_running_mean():
    values = draw(1, 200, 1, 2)["values"]
    out, state = prefix_attention(torch.full((1, 200, 1), 3.0, dtype=torch.float64), values)
    count = torch.arange(1, 201, dtype=torch.float64)[:, None]
    close(out[0, :, 0], values[0, :, 0].cumsum(0) / count)
    close((state.m.item(), state.u.item()), (3.0, 200.0))


def check_extremes(dtype=torch.float64, tolerance=1e-12):
    """Scores of +-1e4 in any order: no overflow, no prefix without weight."""
    for seed in range(3):
        inputs = without_state(draw(2, 150, 2, 3, seed=seed, dtype=dtype))
        signs = inputs["scores"].sign()
        inputs["scores"] += 1e4 * signs
        if seed == 1:
            inputs["scores"] = inputs["scores"].sort(1).values
        if seed == 2:
            inputs["scores"] = inputs["scores"].sort(1, descending=True).values
        got = run(prefix_attention, inputs)
        truth = run(softmax_of_prefixes, inputs, dtype=torch.float64)
        for name, tensor in got.items():
            close(tensor.double(), truth[name], tolerance)


def test_extreme_scores():
    check_extremes()
    check_extremes(torch.float32, 2e-5)


def test_hidden_positions_are_as_if_absent():
    inputs = without_state(draw(1, 90, 1, 3))
    hidden = torch.zeros(90, dtype=torch.bool)
    hidden[[0, 1, 40, 64, 89]] = True
    inputs["scores"][:, hidden] = -torch.inf
    got = run(prefix_attention, inputs)
    rest = {name: tensor[:, ~hidden] for name, tensor in inputs.items()}
    expected, state = prefix_attention(**rest)
    close(got["output"][:, ~hidden], expected)
    assert (got["output"][:, :2] == 0).all()
    assert (got["gradient of values"][:, hidden] == 0).all()
    assert torch.isfinite(got["gradient of scores"]).all()
    close(got["mean"], state.w / state.u[..., None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_precision_on_the_cpu(dtype):
    inputs = draw(2, 130, 4, 8, dtype=dtype)
    check_against_float64(inputs, plain=partial(run, softmax_of_prefixes))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_steep_scores_in_half_precision(dtype):
    """Where one weight is nearly all, the gradient of a score is a small difference."""
    inputs = draw(2, 130, 4, 8, dtype=dtype, scale=30.0)
    check_against_float64(inputs, plain=partial(run, softmax_of_prefixes))


def test_no_tensor_grows_with_the_square_of_the_length():
    largest = []
    for length in (2000, 4000):
        inputs = without_state(draw(1, length, 1, 8, dtype=torch.float32))
        segments = torch.zeros(1, length, dtype=torch.int32)
        m, u, w = reference.empty_state(inputs["values"])
        with LargestTensor() as seen:
            out, *_ = reference.prefix_attention_chunked(*inputs.values(), m, u, w, segments)
            reference.prefix_attention_chunked_backward(
                out, u, w, *inputs.values(), m, u, w, segments
            )
        largest.append(seen.memory)
    assert largest == [4 * 16_000, 4 * 32_000]  # values in float32


# ---- a sequence in parts


def test_pieces_and_steps_equal_the_whole():
    inputs = draw(2, 150, 2, 3)
    first = PrefixState(inputs.pop("m"), inputs.pop("u"), inputs.pop("w"))
    whole, final = prefix_attention(**inputs, initial_state=first)
    for cuts in ((0, 1, 64, 77, 77, 150), range(151)):
        state, pieces = first, []
        for start, stop in pairwise(cuts):
            part = {name: tensor[:, start:stop] for name, tensor in inputs.items()}
            if stop == start + 1:
                y, state = prefix_attention_step(*(t[:, 0] for t in part.values()), state)
                y = y[:, None]
            else:
                y, state = prefix_attention(**part, initial_state=state)
            pieces.append(y)
        close(torch.cat(pieces, 1), whole)
        close(state, final)


def test_gradients_through_pieces_equal_those_of_the_whole():
    """No gradient goes through m, and none is missing."""
    inputs = draw(2, 100, 2, 3, scale=5.0)
    expected = run(prefix_attention, inputs)

    def in_pieces(scores, values, initial_state):
        one, state = prefix_attention(scores[:, :37], values[:, :37], initial_state=initial_state)
        two, state = prefix_attention(scores[:, 37:], values[:, 37:], initial_state=state)
        return torch.cat([one, two], 1), state

    close(run(in_pieces, inputs), expected, 1e-11)


def check_documents(dtype=torch.float64, tolerance=1e-11):
    lengths = [[70, 1, 64], [3, 130], [], [135]]
    document = Sequences.packed(lengths, 140).document
    document[1] = document[1].roll(4)  # padding on both sides: no document starts at position 0
    inputs = with_nan_in_padding(draw(4, 140, 2, 3, dtype=dtype), document)
    got = run(prefix_attention, inputs, document=document)
    expected = run(
        reference.prefix_attention_recurrent, inputs, document=document, dtype=torch.float64
    )
    for name, tensor in got.items():
        close(tensor.double(), expected[name], tolerance)
    for name in ("output", "gradient of scores", "gradient of values"):
        assert (got[name][document < 0] == 0).all(), name

    state = PrefixState(inputs["m"], inputs["u"], inputs["w"])
    for row, parts in enumerate(lengths):
        start = 4 if row == 1 else 0
        for size in parts:
            here = slice(start, start + size)
            alone = {name: inputs[name][row : row + 1, here].double() for name in list(inputs)[:2]}
            initial = (
                PrefixState(*(t[row : row + 1].double() for t in state)) if not start else None
            )
            y, _ = softmax_of_prefixes(**alone, initial_state=initial)
            close(got["output"][row, here].double(), y[0], tolerance)
            start += size


def test_documents_and_padding_equal_each_document_alone():
    check_documents()


# ---- as an operator of PyTorch


def test_gradcheck():
    inputs = draw(2, 67, 2, 2)
    m = inputs.pop("m")
    document = torch.tensor([[0] * 30 + [1] * 37, [-1] * 3 + [0] * 60 + [-1] * 4])

    def function(scores, values, u, w):
        out, state = prefix_attention(
            scores, values, initial_state=PrefixState(m, u, w), document=document
        )
        return out, state.u.log() + state.m, state.w / state.u[..., None]

    leaves = tuple(tensor.requires_grad_() for tensor in inputs.values())
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


# opcheck looks at .grad of tensors that hold none, and hides the warning only where it is no error
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("packed", [False, True])
def test_opcheck(packed):
    check_opcheck(packed)


def check_opcheck(packed):
    inputs = draw(1, 5, 2, 3, dtype=torch.float32)
    leaves = [t.requires_grad_(name != "m") for name, t in inputs.items()]
    segments = torch.tensor([[0, 0, 1, 1, -2]], dtype=torch.int32) if packed else None
    torch.library.opcheck(torch.ops.longspan.prefix_attention.default, (*leaves, segments))


def test_compiles_as_one_graph():
    inputs = draw(1, 70, 2, 3)
    document = Sequences.packed([[40, 20]], 70).document

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(scores, values, initial_state, document):
        return prefix_attention(scores, values, initial_state=initial_state, document=document)

    close(
        run(compiled, inputs, document=document), run(prefix_attention, inputs, document=document)
    )


def test_autocast_rounds_values_and_keeps_scores():
    inputs = without_state(draw(1, 70, 2, 8, dtype=torch.float32))
    inputs["scores"] = inputs["scores"].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y, state = prefix_attention(**inputs)
    expected = prefix_attention(inputs["scores"].float(), inputs["values"].bfloat16())
    torch.testing.assert_close((y, state), expected, rtol=0, atol=0)
    assert y.dtype == torch.bfloat16
    assert state.u.dtype == torch.float32


def test_empty_batch_and_empty_length():
    assert prefix_attention(**without_state(draw(0, 5, 2, 3)))[0].shape == (0, 5, 2, 3)
    inputs = draw(2, 0, 2, 3)
    state = PrefixState(inputs.pop("m"), inputs.pop("u"), inputs.pop("w"))
    y, final = prefix_attention(**inputs, initial_state=state)
    assert y.shape == (2, 0, 2, 3)
    close(final, state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.zeros(1, 5, 6)}, r"values must be .* got torch.float32 of shape \(1, 5"),
        ({"scores": torch.zeros(1, 5, 3)}, r"scores must be .* of shape \(1, 5, 2\)"),
        ({"scores": torch.zeros(1, 5, 2).bfloat16()}, "scores must be torch.float32"),
        ({"m": torch.zeros(2, 2)}, "m of initial_state must be"),
        ({"u": torch.zeros(1, 2).double()}, "u of initial_state must be torch.float32"),
        ({"w": torch.zeros(1, 2, 4)}, "w of initial_state must be"),
        ({"document": torch.zeros(1, 5)}, "document must be an integer"),
        ({"document": torch.zeros(1, 6, dtype=torch.long)}, "document must be an integer"),
        # a mask is not a description of documents
        ({"document": torch.ones(1, 5).bool()}, "document must be an integer .* got torch.bool"),
        ({"document": torch.zeros(1, 5) + 0j}, "document must be an integer .* torch.complex64"),
        ({"document": [[0] * 5]}, "document must be a tensor, got list"),
        ({"values": None}, "values must be a tensor, got NoneType"),
        ({"scores": [1.0]}, "scores must be a tensor, got list"),
        ({"m": None}, "m of initial_state must be a tensor, got NoneType"),
        ({"values": torch.zeros(1, 5, 2, 3).to(torch.float8_e4m3fn)}, "values must be floating"),
        ({"scores": torch.zeros(1, 5, 2, device="meta")}, "scores must .* on cpu, got .* on meta"),
    ],
)
def test_refuses_what_does_not_fit(change, message):
    inputs = {**draw(1, 5, 2, 3, dtype=torch.float32), **change}
    inputs["initial_state"] = PrefixState(inputs.pop("m"), inputs.pop("u"), inputs.pop("w"))
    with pytest.raises(ValueError, match=f"^prefix_attention: {message}") as caught:
        prefix_attention(**inputs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("state", [3, (torch.zeros(1, 2), torch.zeros(1, 2)), torch.zeros(3, 1, 2)])
def test_refuses_what_is_no_state(state):
    inputs = without_state(draw(1, 5, 2, 3, dtype=torch.float32))
    with pytest.raises(ValueError, match=r"initial_state must be a PrefixState \(m, u, w\), got"):
        prefix_attention(**inputs, initial_state=state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.zeros(1, 1)}, r"scores must be .* of shape \(1, 2\)"),
        ({"values": torch.zeros(1, 2)}, r"values must be floating point \(batch, heads, head_dim"),
        ({"values": torch.zeros(1, 2, 4)}, r"w of state must be .* of shape \(1, 2, 4\)"),
        ({"state": None}, "state must be a PrefixState"),
    ],
)
def test_step_refuses_what_does_not_fit(change, message):
    state = PrefixState(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2, 3))
    inputs = {"scores": torch.zeros(1, 2), "values": torch.zeros(1, 2, 3), "state": state}
    with pytest.raises(ValueError, match=f"^prefix_attention_step: {message}"):
        prefix_attention_step(**{**inputs, **change})


# ---- the Triton kernels, interpreted; bfloat16, which the interpreter truncates, on the GPU only


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("length", [1, 7, 65, 130])
def test_triton(length, dtype, interpreted_triton, monkeypatch):
    fill_empty_with_nan(monkeypatch)
    batch = 32 if length < 10 else 2  # the largest of a few errors would be luck
    inputs = draw(batch, length, 2, 10, dtype=dtype, seed=length)
    check_against_float64(without_state(inputs) if length == 7 else inputs)


def test_triton_steep_scores(interpreted_triton):
    check_against_float64(draw(4, 130, 2, 10, dtype=torch.float16, scale=30.0))


def test_triton_documents_and_padding(interpreted_triton, monkeypatch):
    fill_empty_with_nan(monkeypatch)
    check_documents(torch.float32, 1e-5)


def test_triton_extreme_scores(interpreted_triton):
    check_extremes(torch.float32, 2e-5)


def test_triton_reads_strided_rows(interpreted_triton):
    values = torch.randn(1, 70, 3 * 16)[..., 16:32].unflatten(-1, (2, 8))
    scores = torch.randn(1, 2, 70).transpose(1, 2)
    got = prefix_attention(scores, values)
    expected = prefix_attention(scores.contiguous(), values.contiguous())
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_triton_reads_documents_in_any_order_of_memory(interpreted_triton):
    scores, values = torch.randn(2, 75, 2), torch.randn(2, 75, 2, 8)
    document = Sequences.packed([[30, 40], [70]], 75).document
    got = prefix_attention(scores, values, document=document.T.contiguous().T)
    torch.testing.assert_close(got, prefix_attention(scores, values, document=document))


# opcheck looks at .grad of tensors that hold none, and hides the warning only where it is no error
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_triton_opcheck(interpreted_triton):
    check_opcheck(packed=True)
