"""What the kernel benchmarks share: floors, times, peak memory, errors, tables and reports.

A contestant is a function of named tensors that returns one tensor. Each is measured on the same
inputs in one process; one that fails is recorded with its reason and the run goes on.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.draw import draw_if_possible
from core.ops.dispatch import VARIABLE

BANDWIDTH = 3.0e12  # bytes a second: a copy on one H100 (bytes read plus written) reaches 3.02e12
WARMUP_MS, REPEAT_MS, LEAST_REPEATS = 50, 200, 5
OURS = "longspan"

Tensors = Mapping[str, Tensor]
Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Contestant:
    """``prepare(tensors)`` builds what is built once a shape and returns the function to measure.

    ``ops`` is the value of LONGSPAN_OPS while it runs. ``module`` is what has to be importable for
    a peer to take part; it then needs a GPU. Gradients named in ``unlike`` are of something else
    and not compared.
    """

    name: str
    prepare: Callable[[Tensors], Function]
    ops: str = "auto"
    module: str | None = None
    unlike: tuple[str, ...] = ()


@dataclass
class Row:
    """One contestant on one case. Times in ms, floors in ms, peak in MiB above the inputs.

    Floors and the peak are None on a CPU.
    ``errors``: root mean square of the error over that of the float64 reference, by tensor; the
    output under ``y``, gradients under the name of their input. ``failures`` by what was tried.
    """

    kernel: str
    contestant: str
    case: dict[str, Any]
    forward_floor_ms: float | None
    both_floor_ms: float | None
    forward_ms: float | None = None
    both_ms: float | None = None
    peak_mib: float | None = None
    errors: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def floor_ms(nbytes: int, device: str) -> float | None:
    """Milliseconds that moving ``nbytes`` takes on the GPU; None on a CPU."""
    return 1e3 * nbytes / BANDWIDTH if device == "cuda" else None


def installed(module: str) -> bool:
    """Whether ``module``, a top-level one, can be found. Imports nothing."""
    return importlib.util.find_spec(module) is not None


def taking_part(contestants: Sequence[Contestant], device: str) -> list[Contestant]:
    """Ours always; peers that are importable, on a GPU. Prints who is left out."""
    here = [
        c for c in contestants if c.module is None or (device == "cuda" and installed(c.module))
    ]
    for left_out in contestants:
        if left_out not in here:
            print(f"left out: {left_out.name} (needs the package {left_out.module} and a GPU)")
    return here


@contextlib.contextmanager
def ops(choice: str) -> Iterator[None]:
    """LONGSPAN_OPS is ``choice`` inside and what it was outside."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = choice
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def median_ms(function: Callable[[], Any], device: str) -> float:
    """Median time of a call, after warming up, within a fixed budget of time."""
    function()  # compiles
    if device != "cuda":
        times: list[float] = []
        until = time.perf_counter() + REPEAT_MS / 1e3
        while time.perf_counter() < until or len(times) < LEAST_REPEATS:
            started = time.perf_counter()
            function()
            times.append(1e3 * (time.perf_counter() - started))
        return statistics.median(times)
    from triton.testing import do_bench

    torch.cuda.synchronize()
    started = time.perf_counter()
    function()
    torch.cuda.synchronize()
    repeat = max(REPEAT_MS, LEAST_REPEATS * 1e3 * (time.perf_counter() - started))
    return float(do_bench(function, warmup=WARMUP_MS, rep=int(repeat), return_mode="median"))


def peak_mib(function: Callable[[], Any], device: str) -> float | None:
    """Most memory that a call holds on the GPU above what was held before it; None on a CPU."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = function()
    torch.cuda.synchronize()
    del result
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def error_ratio(got: Tensor, reference: Tensor) -> float:
    """Root mean square of the error over that of ``reference`` (float64)."""
    error = (got.double() - reference).square().mean().sqrt()
    return (error / reference.square().mean().sqrt()).item()


def differentiate(function: Function, tensors: Tensors, dy: Tensor) -> dict[str, Tensor]:
    """The output under ``y`` and the gradient of each tensor under its name."""
    leaves = {name: x.detach().requires_grad_() for name, x in tensors.items()}
    y = function(**leaves)
    gradients = torch.autograd.grad(y, list(leaves.values()), dy)
    return {"y": y.detach(), **dict(zip(leaves, gradients, strict=True))}


def measure(
    row: Row,
    contestant: Contestant,
    tensors: Tensors,
    dy: Tensor,
    check: Callable[[Function], dict[str, float]],
) -> Row:
    """Fills ``row``: errors by ``check``, then the times and the peak, as far as each goes."""
    with ops(contestant.ops):
        try:
            compute = contestant.prepare(tensors)
        except Exception as error:
            row.failures["prepare"] = _reason(error)
            return row
        leaves = {name: x.detach().requires_grad_() for name, x in tensors.items()}

        def forward() -> Tensor:
            with torch.no_grad():
                return compute(**tensors)

        def both() -> Sequence[Tensor]:
            return torch.autograd.grad(compute(**leaves), list(leaves.values()), dy)

        with _recorded(row, "errors"):
            errors = {k: e for k, e in check(compute).items() if k not in contestant.unlike}
            row.errors = {k: e for k, e in errors.items() if math.isfinite(e)}
            if wrong := sorted(set(errors) - set(row.errors)):
                row.failures["errors"] = f"not finite: {', '.join(wrong)}"
        with _recorded(row, "forward"):
            row.forward_ms = median_ms(forward, dy.device.type)
        with _recorded(row, "forward and backward"):
            row.both_ms = median_ms(both, dy.device.type)
            row.peak_mib = peak_mib(both, dy.device.type)
    return row


@contextlib.contextmanager
def _recorded(row: Row, step: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        row.failures[step] = _reason(error)
    gc.collect()  # frames of an error hold tensors
    with contextlib.suppress(RuntimeError):  # a GPU left unusable is seen by the loop over rows
        torch.cuda.empty_cache()


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


def run(rows: Iterator[Row], out: Path, device: str, peers: Mapping[str, str]) -> None:
    """Measures row after row; leaves a report, a figure and, on the screen, a table.

    Stops with exit code 1 once a contestant leaves the GPU unusable; what was measured is kept.
    """
    out.mkdir(parents=True, exist_ok=True)
    done: list[Row] = []
    broken = None
    for row in rows:
        done.append(row)
        print("\n".join(table([row]).splitlines()[2:]), flush=True)
        target = out / f"{row.kernel}.json"
        write_report(target, report(row.kernel, device, done, peers))
        if broken := _device_fails():
            break
    print(table(done))
    if broken:
        raise SystemExit(f"error: {done[-1].contestant} left the GPU unusable: {broken}")
    draw_if_possible(target, target.with_suffix(".png"))


def _device_fails() -> str | None:
    """Why the GPU takes no more work (after an illegal access, say), or None if it does."""
    if not torch.cuda.is_available():
        return None
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda").item()
    except RuntimeError as error:
        return _reason(error)
    return None


def report(
    kernel: str, device: str, rows: Sequence[Row], peers: Mapping[str, str]
) -> dict[str, Any]:
    """Rows with device, versions and protocol, as JSON takes them.

    ``peers``: module -> the distribution that it comes in.
    """
    cuda = device == "cuda"
    return {
        "kernel": kernel,
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "peers": {name: _version(name) for module, name in peers.items() if installed(module)},
        "command": " ".join(["python", *sys.argv]),
        "protocol": (
            f"medians within {REPEAT_MS} ms and at least {LEAST_REPEATS} calls after warming up"
            "; forward without gradients"
            + (
                "; second-level cache cleared between calls; peak memory of forward and backward "
                "above the inputs; floor: every input read and every result written once, at "
                f"{BANDWIDTH / 1e12:.1f} TB/s"
                if cuda
                else ""
            )
        ),
        "rows": [asdict(row) for row in rows],
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def write_report(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all, so that a run that is cut short keeps its last rows."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def table(rows: Sequence[Row]) -> str:
    """Markdown: times, how far above the floor, how much slower than ours, peak, worst errors."""
    head = [
        *(rows[0].case if rows else []),
        "contestant",
        "forward ms",
        "x floor",
        "x ours",
        "with backward ms",
        "x floor",
        "x ours",
        "peak MiB",
        "error y",
        "worst gradient",
    ]
    ours = {_key(row): row for row in rows if row.contestant == OURS}
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        best = ours.get(_key(row))
        gradients = [value for name, value in row.errors.items() if name != "y"]
        cells = [
            *(_cell(x) for x in row.case.values()),
            row.contestant,
            *_times(row.forward_ms, row.forward_floor_ms, best.forward_ms if best else None),
            *_times(row.both_ms, row.both_floor_ms, best.both_ms if best else None),
            "" if row.peak_mib is None else f"{row.peak_mib:,.0f}",
            f"{row.errors['y']:.1e}" if "y" in row.errors else "",
            f"{max(gradients):.1e}" if gradients else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    failures = [
        f"- {row.contestant}, {json.dumps(row.case)}, {step}: {reason}"
        for row in rows
        for step, reason in row.failures.items()
    ]
    return "\n".join([*lines, *([""] if failures else []), *failures])


def _key(row: Row) -> str:
    return json.dumps(row.case)


def _cell(x: object) -> str:
    if isinstance(x, bool):
        return "yes" if x else "no"
    return f"{x:,}" if isinstance(x, int) else str(x)


def _times(ms: float | None, floor: float | None, ours: float | None) -> list[str]:
    if ms is None:
        return ["fails", "", ""]
    ratios = (
        "" if least is None else f"{ms / least:{digits}}"
        for least, digits in ((floor, ".1f"), (ours, ".2f"))
    )
    return [f"{ms:.3g}", *ratios]
