"""The arithmetic of the kernel benchmarks: floors, ratios, errors, and what a run leaves behind."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from benchmarks.kernels import all as every
from benchmarks.kernels import (
    by_kernel,
    conv,
    conv_extra,
    draw,
    measuring,
    prefix,
    recurrences,
    reports,
    tuning,
    varlen,
)
from benchmarks.kernels.measuring import Contestant, Function, Tensors
from benchmarks.kernels.pages import varlen_tables
from benchmarks.kernels.reports import Clock, Job, Row

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
    lines = reports.table(rows()).splitlines()
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
    check = conv.check_of(tensors, dy)
    measuring.measure(row, Contestant("peer", gives_up), tensors, dy, check)
    assert row.forward_ms is not None
    assert row.both_ms is None
    assert set(row.errors) == {"y"}  # compared all the same, without gradients
    reason = "OutOfMemoryError: tried to allocate"
    assert row.failures == {"errors": reason, "forward and backward": reason}


def test_numbers_that_are_not_finite_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "REPEAT_MS", 1)
    tensors, dy = conv.inputs(1, 2, 16, False, "cpu")
    row = Row("fft_conv", "peer", {}, None, None)
    broken = Contestant("peer", lambda _: lambda u, k: u * k / 0, unlike=("k",))
    measuring.measure(row, broken, tensors, dy, conv.check_of(tensors, dy))
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
    measuring.measure(Row("", "", {}, None, None), contestant, tensors, dy, lambda f, **_: {})
    assert seen == {"reference"}
    assert measuring.VARIABLE not in os.environ


@pytest.mark.parametrize("gated", [False, True])
def test_errors_of_the_contestants_are_those_of_bf16(gated: bool) -> None:
    tensors, dy = conv.inputs(2, 3, 50, gated, "cpu")
    check = conv.check_of(tensors, dy)
    for prepare in (conv.ours, conv.torch_fft):
        errors = check(prepare(tensors))
        assert set(errors) == {"y", *tensors}
        assert all(error < 5e-3 for error in errors.values())
        assert errors["y"] > 1e-4  # rounding to bf16 is seen
    wrong = check(lambda **t: conv.ours(t)(**t) + t["u"])
    assert wrong["y"] > 0.5


@pytest.mark.parametrize("groups", [1, 4])
def test_bytes_of_ssd_count_each_tensor_once(groups: int) -> None:
    sizes = recurrences.Heads(4, 64, 128, groups, ())
    tensors, dy = recurrences.inputs(2, 32, sizes, "cpu")
    read = sum(x.nbytes for x in tensors.values())
    assert sizes.forward_bytes(64) == read + dy.nbytes
    assert sizes.backward_bytes(64) == 2 * read + dy.nbytes


def test_bytes_of_prefix_attention_count_each_tensor_once() -> None:
    tensors, dy = prefix.inputs(2, 32, 4, "cpu")
    read = sum(x.nbytes for x in tensors.values())
    assert prefix.forward_bytes(64, 4) == read + dy.nbytes
    assert prefix.backward_bytes(64, 4) == 2 * read + dy.nbytes


@pytest.mark.parametrize("case", conv_extra.SMALL)
def test_bytes_of_other_convolutions_count_each_tensor_once(case: conv_extra.Case) -> None:
    tensors, dy = conv_extra.inputs(case, "cpu")
    read = sum(x.nbytes for x in tensors.values())
    assert case.bytes() == (read + dy.nbytes, 3 * read + 2 * dy.nbytes)


@pytest.mark.parametrize("case", conv_extra.SMALL)
def test_errors_of_other_convolutions_are_those_of_bf16(case: conv_extra.Case) -> None:
    tensors, dy = conv_extra.inputs(case, "cpu")
    check = conv.check_of(tensors, dy, conv_extra.definition(case))
    for contestant in conv_extra.contestants(case):
        errors = check(contestant.prepare(tensors))
        assert set(errors) == {"y", *tensors}
        if not contestant.other:
            assert all(error < 5e-3 for error in errors.values()), contestant.name
        else:  # every frequency is kept: much of the result belongs to another operation
            assert errors["y"] > 0.1


@pytest.mark.parametrize("length", [256, 1_000, 2_097_152, 4_194_304])
def test_official_kernel_where_its_transform_exists(length: int) -> None:
    names = [c.name for c in conv_extra.contestants(conv_extra.whole(1, 1, length))]
    assert ("FlashFFTConv" in names) == (length in (256, 2_097_152))


@pytest.mark.parametrize("prepare", [c.prepare for c in prefix.CONTESTANTS])
def test_errors_of_prefix_attention_are_those_of_bf16(
    prepare: Callable[[Tensors], Function],
) -> None:
    check = prefix.check_of(70, 2, "cpu")
    errors = check(prepare(check.tensors))
    assert set(errors) == {"y", "scores", "values"}
    assert all(error < 5e-3 for error in errors.values())


def test_errors_of_ssd_are_those_of_bf16() -> None:
    check = recurrences.check_of(recurrences.Heads(2, 64, 128, 1, ()), 70, "cpu")
    errors = check(recurrences.ours(check.tensors))
    assert set(errors) == {"y", *check.tensors}
    assert all(error < 5e-3 for error in errors.values())
    assert check(lambda **t: 1.1 * recurrences.ours(t)(**t))["y"] == pytest.approx(0.1, rel=0.02)


def job(contestant: str, length: int, measured: list[str]) -> Job:
    row = Row("toy", contestant, {"length": length}, None, None)

    def work() -> Row:
        measured.append(f"{contestant} {length}")
        row.forward_ms = float(length)
        return row

    return row, work


def test_a_stopped_run_keeps_its_rows_and_another_goes_on(tmp_path: Path) -> None:
    measured: list[str] = []

    def work() -> list[Job]:
        return [job(name, length, measured) for length in (8, 16) for name in ("longspan", "peer")]

    clock = Clock(60)
    two = iter(work()[:2])

    def until_over() -> Iterator[Job]:
        yield from two
        clock.deadline = 0.0
        yield from work()[2:]

    assert not reports.run(until_over(), tmp_path, "toy", "cpu", {}, clock)
    assert measured == ["longspan 8", "peer 8"]
    assert len(json.loads((tmp_path / "toy.json").read_text())["rows"]) == 2
    assert reports.run(iter(work()), tmp_path, "toy", "cpu", {}, resume=True)
    assert measured == ["longspan 8", "peer 8", "longspan 16", "peer 16"]
    report = json.loads((tmp_path / "toy.json").read_text())
    assert [row["forward_ms"] for row in report["rows"]] == [8, 8, 16, 16]


def test_a_report_of_another_device_is_not_continued(tmp_path: Path) -> None:
    reports.run(iter([job("longspan", 8, [])]), tmp_path, "toy", "cpu", {})
    content = json.loads((tmp_path / "toy.json").read_text())
    (tmp_path / "toy.json").write_text(json.dumps(content | {"torch": "1.0"}))
    with pytest.raises(SystemExit, match=r"was measured with torch 1\.0, here is"):
        reports.run(iter([job("longspan", 8, [])]), tmp_path, "toy", "cpu", {}, resume=True)
    (tmp_path / "toy.json").write_text("{")
    with pytest.raises(SystemExit, match="is no report to go on from"):
        reports.run(iter([job("longspan", 8, [])]), tmp_path, "toy", "cpu", {}, resume=True)


def test_rows_of_a_case_stand_together_however_late_a_peer_was_measured() -> None:
    made = [job(name, n, [])[0] for name in ("longspan", "slow") for n in (8, 16)]
    order = [(row.case["length"], row.contestant) for row in reports.in_order(made)]
    assert order == [(8, "longspan"), (8, "slow"), (16, "longspan"), (16, "slow")]


def test_a_peer_that_refuses_gradients_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "REPEAT_MS", 1)
    asked = []

    def prepare(tensors: Tensors) -> Function:
        def compute(u: Tensor, k: Tensor) -> Tensor:
            asked.append(u.requires_grad)
            return u

        return compute

    tensors, dy = conv.inputs(1, 2, 16, False, "cpu")
    peer = Contestant("peer", prepare, refuses=lambda: "wrong on this device")
    row = Row("", "", {}, None, None)
    measuring.measure(row, peer, tensors, dy, conv.check_of(tensors, dy))
    assert not any(asked)
    assert row.forward_ms is not None
    assert row.errors["y"] > 0
    assert row.failures == {"forward and backward": "wrong on this device"}


def test_other_recurrence_has_its_own_inputs_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "REPEAT_MS", 1)
    seen = []

    def prepare(tensors: Tensors) -> Function:
        def compute(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
            seen.append((q.shape, v.shape, i.shape, f.shape))
            return q * k * v * (i + f)[..., None]

        return compute

    sizes = recurrences.Heads(2, 16, 16, 2, (32,))
    tensors, dy = recurrences.inputs(3, 32, sizes, "cpu")
    peer = Contestant("peer", prepare, other="another", arrange=recurrences.mlstm_inputs)
    row = Row("ssd", "peer", sizes.case(3, 32), None, None)
    measuring.measure(row, peer, tensors, dy, recurrences.check_of(sizes, 8, "cpu"))
    assert set(seen) == {((3, 2, 32, 16), (3, 2, 32, 16), (3, 2, 32), (3, 2, 32))}
    assert row.both_ms is not None
    assert (row.errors, row.failures) == ({}, {})
    assert "| peer (another) |" in reports.table([row])
    assert draw.label_of({"contestant": "peer", "other": row.other}) == "peer (another)"


def test_slow_peers_and_sizes_they_do_not_serve() -> None:
    chosen = [c for c in recurrences.CONTESTANTS if c.name != "longspan reference ops"]
    shapes = [recurrences.Heads(2, 4, 8, 2, (8, 16)), recurrences.Heads(2, 8, 8, 2, (8,))]
    order = [
        (row.contestant, row.case["width"], row.case["length"])
        for row, _ in recurrences.rows(shapes, 16, chosen, "cpu")
    ]
    assert order[-2:] == [("mamba_ssm SSD", 4, 8), ("mamba_ssm SSD", 4, 16)]
    assert [o for o in order if o[0] == "mlstm_kernels"] == [("mlstm_kernels", 8, 8)]
    assert len([o for o in order if o[0] == "longspan"]) == 3


def test_reference_is_left_out_where_it_is_too_slow() -> None:
    contestant = Contestant("slow", conv.ours, longest=64)
    made = [
        list(
            measuring.jobs({"length": n}, (None, None), [contestant], ({}, torch.ones(1)), len, "")
        )
        for n in (64, 65)
    ]
    assert [len(jobs) for jobs in made] == [1, 0]


def test_version_of_a_module_without_a_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lonely_peer").mkdir()
    source = tmp_path / "lonely_peer/__init__.py"
    source.write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = reports.peer_version("lonely_peer", "lonely-peer")
    assert found.startswith("source build, sha256 of its Python files ")
    source.write_text("x = 2\n")
    assert reports.peer_version("lonely_peer", "lonely-peer") != found
    assert reports.peer_version("torch", "torch") == importlib.metadata.version("torch")


def test_host_clock_waits_before_and_after_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(measuring, "wait", lambda device: seen.append("wait"))
    measuring.host_ms(lambda: seen.append("call"), "cuda")
    assert seen == ["call", *["wait", "call", "wait"] * measuring.LEAST_REPEATS]


def test_configurations_are_compiled_before_they_are_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    autotuner = pytest.importorskip("triton.runtime.autotuner")
    compiled = []

    class Kernel:
        def warmup(self, *args: object, **kwargs: object) -> None:
            compiled.append((args, kwargs))

    class Tuner:
        configs = tuple(autotuner.Config({"BLOCK": n}, num_warps=2) for n in (16, 32))
        early_config_prune = perf_model = None
        fn = Kernel()

        def __init__(self) -> None:
            self.nargs = {"x": 5}

    before = autotuner.Autotuner.prune_configs
    with tuning.compiled_at_once():
        kept = autotuner.Autotuner.prune_configs(Tuner(), {"grid": (1,), "warmup": False})
    assert autotuner.Autotuner.prune_configs is before
    assert tuple(kept) == Tuner.configs
    assert [args for args, _ in compiled] == [(5,), (5,)]
    assert [kwargs["BLOCK"] for _, kwargs in compiled] == [16, 32]
    assert all(kw["grid"] == (1,) and "warmup" not in kw for _, kw in compiled)


def test_parts_after_the_deadline_are_not_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[str] = []
    clock = Clock(60)

    def measure_varlen(out: Path, device: str, resume: bool) -> None:
        begun.append("varlen")
        clock.deadline = 0.0

    whole = every.measure_parts(["varlen", "conv"], tmp_path, "cpu", clock, False, measure_varlen)
    assert not whole
    assert begun == ["varlen"]
    assert "conv: not begun" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_all_kernels_by_one_command(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/kernels/all.py", "--out", str(tmp_path)]
    command += ["--device", "cpu", "--only", "prefix", "recurrences", "extra", "by_kernel"]
    command += ["varlen"]
    environment = {**os.environ, "PYTHONPATH": "."}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    assert "all done" in done.stdout
    assert "left out: by_kernel (needs a GPU)" in done.stdout
    report = json.loads((tmp_path / "varlen.json").read_text())
    assert all(row["both_ms"] > 0 for row in report["operations"])
    assert varlen_tables(report) in done.stdout
    assert (tmp_path / "varlen.png").read_bytes().startswith(b"\x89PNG")
    for kernel in ("ssd", "prefix_attention", "fft_conv_extra"):
        report = json.loads((tmp_path / f"{kernel}.json").read_text())
        assert report["rows"]
        assert all(row["both_ms"] > 0 and not row["failures"] for row in report["rows"])
        assert (tmp_path / f"{kernel}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "module", [every, by_kernel, conv, conv_extra, prefix, recurrences, varlen]
)
@pytest.mark.parametrize(
    ("device", "message"),
    [("gpu", "'gpu' is neither cpu nor cuda"), ("cuda", "there is no GPU here; --device cpu")],
)
def test_a_device_that_is_not_there_is_refused(
    module: ModuleType,
    device: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["x.py", "--out", str(tmp_path / "x"), "--device", device])
    with pytest.raises(SystemExit, match="2"):
        module.main()
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (conv, ["--out", "x", "--lengths", "0"], "--lengths: '0' is no positive number"),
        (conv, ["--out", "x", "--batch", "-2"], "--batch: '-2' is no positive number"),
        (draw, ["none.json", "--out", "x.png"], "none.json is no report: "),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    module: ModuleType,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["x.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        module.main()
    assert message in capsys.readouterr().err.splitlines()[-1]


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
