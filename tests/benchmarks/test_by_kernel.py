"""The device's time of a call by kernel: names, sums, what is no measurement, and the figure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.kernels import by_kernel, conv, draw, prefix, recurrences
from benchmarks.kernels.measuring import Contestant, Function, Tensors
from benchmarks.kernels.reports import Row

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("convolve_kernel", "convolve"),
        ("void monarch_conv_cuda_kernel<32, 1, 256>(c10::BFloat16 const*)", "monarch_conv_cuda"),
        (
            "void at::native::(anonymous namespace)::CatArrayBatchedCopy<int, 3>(int)",
            "CatArrayBatchedCopy",
        ),
        ("Memcpy DtoD (Device -> Device)", "Memcpy DtoD"),
    ],
)
def test_names_of_kernels(name: str, short: str) -> None:
    assert by_kernel.short_name(name) == short


def test_split_of_a_call_joins_what_has_one_name() -> None:
    events = [("copy<1>(int)", 10, 100.0), ("convolve_kernel", 20, 4000.0), ("copy<2>", 10, 50.0)]
    split = by_kernel.split_of(events, 10)
    assert list(split.items()) == [("convolve", (2.0, 0.4)), ("copy", (2.0, 0.015))]


def test_a_graph_without_its_kernels_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def replayed(function: Callable[[], object]) -> float:
        function()
        return 2.0

    def profiled(function: Callable[[], object]) -> dict[str, tuple[float, float]]:
        function()
        return {"convolve": (1.0, float(len(asked))), "filter": (1.0, 0.25)}

    def prepare(tensors: Tensors) -> Function:
        def compute(u: Tensor, k: Tensor) -> Tensor:
            asked.append(u.requires_grad)
            return u * k

        return compute

    monkeypatch.setattr(by_kernel, "profiled", profiled)
    monkeypatch.setattr(by_kernel, "replayed_ms", replayed)
    tensors, dy = conv.inputs(1, 2, 16, False, "cpu")
    row = Row(by_kernel.KERNEL, "toy", {}, None, None)
    by_kernel.measure(row, Contestant("toy", prepare), tensors, dy)
    assert asked == [False, False, True, True]
    assert row.kernels["forward"] == {"convolve": (1.0, 1.0), "filter": (1.0, 0.25)}
    assert row.kernels["forward and backward"]["convolve"] == (1.0, 3.0)
    assert (row.forward_ms, row.both_ms) == (2.0, None)
    assert row.failures == {
        "forward and backward": "ValueError: not captured: the graph takes 2.000 ms, and its "
        "kernels 3.250"
    }


def test_a_split_is_drawn_without_its_smallest_kernels(tmp_path: Path) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    report = json.loads((ROOT / "benchmarks/kernels/results/by_kernel.json").read_text())
    draw.draw_any(report, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    kernels = {"large": (1.0, 9.96), "small": (2.0, 0.04)}
    case = {"op": "fft_conv", "length": 64}
    row = {"case": case, "kernels": {"forward and backward": kernels}, "both_floor_ms": 2.0}
    figure, axis = plt.subplots()
    draw.bars(axis, [row])
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["large"]
    assert axis.patches[0].get_height() == pytest.approx(4.98)
    plt.close(figure)


def test_cases_that_are_taken_apart_are_those_of_the_tables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def small(*sizes: object) -> tuple[dict[str, Tensor], Tensor]:
        return {}, torch.empty(0)

    for module in (conv, recurrences, prefix):
        monkeypatch.setattr(module, "inputs", small)
    cases = [row.case for row, _ in by_kernel.convolutions("cpu")]
    assert {c["length"]: (c["batch"], c["channels"]) for c in cases if c["length"] > 512} == (
        conv.SHAPES
    )
    assert [case["length"] for case in cases[:2]] == [256, 512]
    rows = [row for row, _ in by_kernel.recurrent("cpu")]
    assert [row.case["op"] for row in rows] == ["ssd"] * 3 + ["prefix_attention"] * 2
    tokens = {row.case["length"] * row.case["batch"] for row in rows}
    assert tokens == {recurrences.TOKENS}
