"""What the kernel benchmarks share: contestants, floors, times, peak memory and errors.

A contestant is a function of named tensors that returns one tensor. Each is measured on the same
inputs in one process; one that fails is recorded with its reason and the run goes on.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.reports import (
    BANDWIDTH,
    LEAST_REPEATS,
    REPEAT_MS,
    WARMUP_MS,
    Job,
    Row,
    installed,
    reason,
)
from core.ops.dispatch import VARIABLE

Tensors = Mapping[str, Tensor]
Function = Callable[..., Tensor]
Arrange = Callable[[Tensors, Tensor], tuple[Tensors, Tensor]]


@dataclass(frozen=True)
class Contestant:
    """``prepare(tensors)`` builds what is built once a shape and returns the function to measure.

    ``ops`` is the value of LONGSPAN_OPS while it runs. ``module`` is what has to be importable for
    a peer to take part; it then needs a GPU. Gradients named in ``unlike`` are of something else
    and not compared. ``other`` says what it computes where that is not what the rest do: work of
    the same size, whose errors are not compared; ``arrange(tensors, dy)`` makes its own inputs of
    the case's, before any clock starts. Past ``longest`` positions it is left out, being too slow.
    ``refuses()`` is why it takes no gradients here, or None: some say so after minutes of tuning.
    """

    name: str
    prepare: Callable[[Tensors], Function]
    ops: str = "auto"
    module: str | None = None
    unlike: tuple[str, ...] = ()
    other: str = ""
    arrange: Arrange | None = None
    longest: int | None = None
    refuses: Callable[[], str | None] | None = None


def floor_ms(nbytes: int, device: str) -> float | None:
    """Milliseconds that moving ``nbytes`` takes on the GPU; None on a CPU."""
    return 1e3 * nbytes / BANDWIDTH if device == "cuda" else None


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

    if (once := _waited_ms(function, device)) > REPEAT_MS:  # do_bench would call it a dozen times
        more = [_waited_ms(function, device) for _ in range(LEAST_REPEATS - 1)]
        return statistics.median([once, *more])
    repeat = max(REPEAT_MS, LEAST_REPEATS * once)
    return float(do_bench(function, warmup=WARMUP_MS, rep=int(repeat), return_mode="median"))


def host_ms(function: Callable[[], Any], device: str) -> float:
    """Median time of a call by the host's clock, the device idle before and after each.

    do_bench queues its calls without waiting. Where the host is the slower one, as when it makes a
    mask of many small kernels, the GPU ends one call while the host prepares the next, and the time
    is the host's period, whatever the GPU does in it. Here nothing overlaps.
    """
    function()  # compiles
    return statistics.median(_waited_ms(function, device) for _ in range(LEAST_REPEATS))


def wait(device: str) -> None:
    """Until what was queued is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def _waited_ms(function: Callable[[], Any], device: str) -> float:
    wait(device)
    started = time.perf_counter()
    function()
    wait(device)
    return 1e3 * (time.perf_counter() - started)


def peak_bytes(function: Callable[[], Any], device: str) -> int | None:
    """Most memory that a call holds on the GPU above what was held before it; None on a CPU."""
    if device != "cuda":
        return None
    wait(device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = function()
    wait(device)
    del result
    return torch.cuda.max_memory_allocated() - before


def peak_mib(function: Callable[[], Any], device: str) -> float | None:
    """`peak_bytes` in MiB."""
    held = peak_bytes(function, device)
    return None if held is None else held / 2**20


def error_ratio(got: Tensor, reference: Tensor) -> float:
    """Root mean square of the error over that of ``reference`` (float64)."""
    error = (got.double() - reference).square().mean().sqrt()
    return (error / reference.square().mean().sqrt()).item()


class Check:
    """Errors of a contestant against ``definition`` in float64, all of it or the ``cut`` of it."""

    def __init__(
        self,
        definition: Function,
        tensors: Tensors,
        dy: Tensor,
        cut: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        self.tensors, self.dy, self._cut = tensors, dy, cut
        few = {name: cut(x).double() for name, x in tensors.items()}
        self.reference = differentiate(definition, few, cut(dy).double())

    def __call__(self, function: Function, gradients: bool = True) -> dict[str, float]:
        """By tensor; of the output ``y`` alone without ``gradients``."""
        if gradients:
            got = differentiate(function, self.tensors, self.dy)
        else:
            with torch.no_grad():
                got = {"y": function(**self.tensors)}
        return {name: error_ratio(self._cut(x), self.reference[name]) for name, x in got.items()}


def differentiate(function: Function, tensors: Tensors, dy: Tensor) -> dict[str, Tensor]:
    """The output under ``y`` and the gradient of each tensor under its name."""
    leaves = {name: x.detach().requires_grad_() for name, x in tensors.items()}
    y = function(**leaves)
    gradients = torch.autograd.grad(y, list(leaves.values()), dy)
    return {"y": y.detach(), **dict(zip(leaves, gradients, strict=True))}


def passes(
    compute: Function, tensors: Tensors, dy: Tensor
) -> tuple[Callable[[], Tensor], Callable[[], Sequence[Tensor]]]:
    """What is measured: forward without gradients, and forward and backward."""
    leaves = {name: x.detach().requires_grad_() for name, x in tensors.items()}

    def forward() -> Tensor:
        with torch.no_grad():
            return compute(**tensors)

    def both() -> Sequence[Tensor]:
        return torch.autograd.grad(compute(**leaves), list(leaves.values()), dy)

    return forward, both


def measure(
    row: Row,
    contestant: Contestant,
    tensors: Tensors,
    dy: Tensor,
    check: Callable[..., dict[str, float]],
) -> Row:
    """Fills ``row``: errors by ``check``, then the times and the peak, as far as each goes."""
    row.other = contestant.other
    with ops(contestant.ops):
        try:
            if contestant.arrange:
                tensors, dy = contestant.arrange(tensors, dy)
            compute = contestant.prepare(tensors)
            refusal = contestant.refuses() if contestant.refuses else None
        except Exception as error:
            row.failures["prepare"] = reason(error)
            return row
        forward, both = passes(compute, tensors, dy)
        if not contestant.other:
            _compare(row, contestant, compute, check, refusal is None)
        with recorded(row, "forward"):
            row.forward_ms = median_ms(forward, dy.device.type)
        if refusal is not None:
            row.failures["forward and backward"] = refusal
            return row
        with recorded(row, "forward and backward"):
            row.both_ms = median_ms(both, dy.device.type)
            row.peak_mib = peak_mib(both, dy.device.type)
    free()
    return row


def _compare(
    row: Row,
    contestant: Contestant,
    compute: Function,
    check: Callable[..., dict[str, float]],
    gradients: bool,
) -> None:
    """Errors of output and gradients; of the output alone where there are no gradients."""
    found: dict[str, float] | None = None
    if gradients:
        with recorded(row, "errors"):
            found = check(compute)
    if found is None:
        with recorded(row, "error of the output"):
            found = check(compute, gradients=False)
    errors = {k: e for k, e in (found or {}).items() if k not in contestant.unlike}
    row.errors = {k: e for k, e in errors.items() if math.isfinite(e)}
    if wrong := sorted(set(errors) - set(row.errors)):
        row.failures["errors"] = f"not finite: {', '.join(wrong)}"


@contextlib.contextmanager
def recorded(row: Row, step: str) -> Iterator[None]:
    """An error inside is kept in ``row`` under the name of the ``step``."""
    try:
        yield
    except Exception as error:
        row.failures[step] = reason(error)
        free()  # frames of an error hold tensors


def free() -> None:
    """Gives back what nothing holds any more."""
    gc.collect()
    with contextlib.suppress(RuntimeError):  # a GPU left unusable is seen by the loop over rows
        torch.cuda.empty_cache()


def jobs(
    case: dict[str, Any],
    floors: tuple[float | None, float | None],
    contestants: Sequence[Contestant],
    inputs: tuple[Tensors, Tensor],
    check: Callable[..., dict[str, float]],
    kernel: str,
) -> Iterator[Job]:
    """A measurement for each contestant that serves the case."""
    for contestant in contestants:
        if contestant.longest is None or case["length"] <= contestant.longest:
            row = Row(kernel, contestant.name, case, *floors)
            yield row, functools.partial(measure, row, contestant, *inputs, check)
