"""The arithmetic of the kernel benchmarks: floors, ratios, errors, and what a run leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.kernels import conv, measuring, recurrences
from benchmarks.kernels.measuring import Contestant, Function, Row, Tensors

ROOT = Path(__file__).parents[2]

# Published with the table of peers: length, batch, channels, floor of the forward pass in ms.
FLOORS = [
    (1_024, 64, 768, 0.068),
    (4_096, 16, 768, 0.071),
    (16_384, 16, 768, 0.285),
    (65_536, 4, 768, 0.336),
    (262_144, 2, 384, 0.403),
    (1_048_576, 1, 256, 0.716),
    (2_097_152, 1, 128, 0.716),
]


@pytest.mark.parametrize(("length", "batch", "channels", "expected"), FLOORS)
def test_floor_of_the_forward_pass(length: int, batch: int, channels: int, expected: float) -> None:
    floor = measuring.floor_ms(conv.forward_bytes(batch, channels, length), "cuda")
    assert floor == pytest.approx(expected, abs=5e-4)
    assert conv.SHAPES[length] == (batch, channels)


@pytest.mark.parametrize("gated", [False, True])
def test_floors_count_each_tensor_once(gated: bool) -> None:
    tensors, dy = conv.inputs(2, 3, 64, gated, "cpu")
    read = sum(x.nbytes for x in tensors.values())
    gates = 2 if gated else 0
    assert conv.forward_bytes(2, 3, 64, gates) == read + dy.nbytes
    # the backward pass reads the same and dy, and writes a gradient as large as each input
    assert conv.backward_bytes(2, 3, 64, gates) == 2 * read + dy.nbytes


def test_no_floor_on_a_cpu() -> None:
    assert measuring.floor_ms(1, "cpu") is None


def test_error_ratio_is_that_of_root_mean_squares() -> None:
    got, reference = torch.tensor([3.0, 2.0]), torch.tensor([3.0, 1.0]).double()
    assert measuring.error_ratio(got, reference) == pytest.approx(0.1**0.5)


def rows() -> list[Row]:
    case = {"length": 1024, "gated": False}
    ours = Row("fft_conv", "longspan", case, 0.1, 0.2, 0.2, 0.5, 10.0, {"y": 1e-3, "u": 2e-3})
    peer = Row("fft_conv", "peer", case, 0.1, 0.2, 0.6, None, None, {}, {"errors": "OOM: 9 GiB"})
    return [ours, peer]


def test_table_has_ratios_to_the_floor_and_to_ours() -> None:
    lines = measuring.table(rows()).splitlines()
    assert lines[2] == (
        "| 1,024 | no | longspan | 0.2 | 2.0 | 1.00 | 0.5 | 2.5 | 1.00 | 10 | 1.0e-03 | 2.0e-03 |"
    )
    assert lines[3] == "| 1,024 | no | peer | 0.6 | 6.0 | 3.00 | fails |  |  |  |  |  |"
    assert lines[-1] == '- peer, {"length": 1024, "gated": false}, errors: OOM: 9 GiB'


def test_a_contestant_that_fails_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "REPEAT_MS", 1)

    def gives_up(tensors: Tensors) -> Function:
        def compute(u: Tensor, k: Tensor) -> Tensor:
            if u.requires_grad:
                raise torch.OutOfMemoryError("tried to allocate\nmuch")
            return u

        return compute

    tensors, dy = conv.inputs(1, 2, 16, False, "cpu")
    row = Row("fft_conv", "peer", {}, None, None)
    check = conv.Check(tensors, dy)
    measuring.measure(row, Contestant("peer", gives_up), tensors, dy, check)
    assert row.forward_ms is not None
    assert row.both_ms is None
    reason = "OutOfMemoryError: tried to allocate"
    assert row.failures == {"errors": reason, "forward and backward": reason}


def test_numbers_that_are_not_finite_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "REPEAT_MS", 1)
    tensors, dy = conv.inputs(1, 2, 16, False, "cpu")
    row = Row("fft_conv", "peer", {}, None, None)
    broken = Contestant("peer", lambda _: lambda u, k: u * k / 0, unlike=("k",))
    measuring.measure(row, broken, tensors, dy, conv.Check(tensors, dy))
    assert row.errors == {}
    assert row.failures == {"errors": "not finite: u, y"}


def test_ops_are_forced_while_a_contestant_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "REPEAT_MS", 1)
    monkeypatch.delenv(measuring.VARIABLE, raising=False)
    seen = set()

    def prepare(tensors: Tensors) -> Function:
        def compute(u: Tensor, k: Tensor) -> Tensor:
            seen.add(os.environ[measuring.VARIABLE])
            return u * k

        return compute

    tensors, dy = conv.inputs(1, 2, 16, False, "cpu")
    contestant = Contestant("reference", prepare, ops="reference")
    measuring.measure(Row("", "", {}, None, None), contestant, tensors, dy, lambda f: {})
    assert seen == {"reference"}
    assert measuring.VARIABLE not in os.environ


@pytest.mark.parametrize("gated", [False, True])
def test_errors_of_the_contestants_are_those_of_bf16(gated: bool) -> None:
    tensors, dy = conv.inputs(2, 3, 50, gated, "cpu")
    check = conv.Check(tensors, dy)
    for prepare in (conv.ours, conv.torch_fft):
        errors = check(prepare(tensors))
        assert set(errors) == {"y", *tensors}
        assert all(error < 5e-3 for error in errors.values())
        assert errors["y"] > 1e-4  # rounding to bf16 is seen
    wrong = check(lambda **t: conv.ours(t)(**t) + t["u"])
    assert wrong["y"] > 0.5


@pytest.mark.parametrize("groups", [1, 4])
def test_bytes_of_ssd_count_each_tensor_once(groups: int) -> None:
    tensors, dy = recurrences.inputs(2, 32, 4, groups, "cpu")
    read = sum(x.nbytes for x in tensors.values())
    assert recurrences.forward_bytes(64, 4, groups) == read + dy.nbytes
    assert recurrences.backward_bytes(64, 4, groups) == 2 * read + dy.nbytes


def test_errors_of_ssd_are_those_of_bf16() -> None:
    check = recurrences.Check(2, 1, 70, "cpu")
    errors = check(recurrences.ours(check.tensors))
    assert set(errors) == {"y", *check.tensors}
    assert all(error < 5e-3 for error in errors.values())
    assert check(lambda **t: 1.1 * recurrences.ours(t)(**t))["y"] == pytest.approx(0.1, rel=0.02)


def test_command_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/kernels/conv.py", "--out", str(tmp_path)]
    command += ["--device", "cpu", "--lengths", "64", "--gates", "none"]
    environment = {**os.environ, "PYTHONPATH": "."}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    assert "left out: FlashFFTConv" in done.stdout
    report = json.loads((tmp_path / "fft_conv.json").read_text())
    assert report["torch"] == torch.__version__
    assert report["command"].startswith("python benchmarks/kernels/conv.py --out")
    assert [row["contestant"] for row in report["rows"]] == [
        "longspan",
        "longspan reference ops",
        "torch.fft",
    ]
    for row in report["rows"]:
        assert set(row) == set(Row.__dataclass_fields__)
        assert row["forward_ms"] > 0
        assert row["both_ms"] > 0
        assert row["failures"] == {}
    assert (tmp_path / "fft_conv.png").read_bytes().startswith(b"\x89PNG")
