"""Where the device's time of a call goes: each kernel of it, and all of them without the host.

    python benchmarks/kernels/by_kernel.py --out results/

Long convolution without gates, beside the official FlashFFTConv if that is importable; state space
duality; prefix attention; all as their own benchmarks have them. ``kernels`` of a row: by PyTorch's
profiler, how often a call launches each kernel and how many ms these launches take together. Times
are those of a CUDA graph of the call, replayed: what a program gets that captures its step. They
are left out where the graph takes less than its kernels, which then were launched beside the
stream that was captured. Needs a GPU. Writes by_kernel.json and, with matplotlib, by_kernel.png.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels import conv, conv_extra, prefix, recurrences
from benchmarks.kernels.measuring import (
    Contestant,
    Tensors,
    floor_ms,
    free,
    median_ms,
    ops,
    passes,
    recorded,
    taking_part,
)
from benchmarks.kernels.reports import OURS, Job, Row, Split, run_whole

KERNEL = "by_kernel"
PEERS = conv.PEERS
CALLS = 10  # that the profiler looks at
LEAST = 0.8  # of the kernels' time, that a graph of all of them takes
WARM = 3  # calls before a capture and before the profiler looks
SHORT = (256, 512)  # of conv_extra, beside all lengths of conv
SSD_LENGTH = 16_384
PREFIX_LENGTHS = (4_096, 65_536)


def short_name(name: str) -> str:
    """``convolve`` of a Triton kernel; a C++ function without namespaces and templates."""
    name = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    return re.split(r"[<(]", name)[0].split("::")[-1].strip().removesuffix("_kernel")


def split_of(events: Iterable[tuple[str, int, float]], calls: int) -> Split:
    """By kernel, the most time first: launches and ms of a call, from the name, launches and
    microseconds of ``calls`` calls. Kernels of one short name are one entry."""
    found: Split = {}
    for name, launches, microseconds in events:
        before = found.get(short_name(name), (0.0, 0.0))
        more = launches / calls, microseconds / 1e3 / calls
        found[short_name(name)] = before[0] + more[0], before[1] + more[1]
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def profiled(function: Callable[[], Any]) -> Split:
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    for _ in range(WARM):
        function()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        for _ in range(CALLS):
            function()
        torch.cuda.synchronize()
    seen = [e for e in profiler.key_averages() if e.device_type == DeviceType.CUDA]
    return split_of(((e.key, e.count, e.self_device_time_total) for e in seen), CALLS)


def replayed_ms(function: Callable[[], Any]) -> float:
    """Median time of a CUDA graph of one call."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(WARM):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return median_ms(graph.replay, "cuda")


def captured_ms(split: Split, replayed: float) -> float:
    """``replayed``, if that is the time of all kernels of ``split``; ValueError if not."""
    needed = sum(ms for _, ms in split.values())
    if replayed < LEAST * needed:
        raise ValueError(
            f"not captured: the graph takes {replayed:.3f} ms, and its kernels {needed:.3f}"
        )
    return replayed


def measure(row: Row, contestant: Contestant, tensors: Tensors, dy: Tensor) -> Row:
    """Fills ``row``: of each pass the split and the time, as far as each goes."""
    with ops(contestant.ops):
        forward, both = passes(contestant.prepare(tensors), tensors, dy)
        for name, field, call in (
            ("forward", "forward_ms", forward),
            ("forward and backward", "both_ms", both),
        ):
            with recorded(row, name):
                row.kernels[name] = profiled(call)
                setattr(row, field, captured_ms(row.kernels[name], replayed_ms(call)))
    free()
    return row


def convolutions(device: str) -> Iterator[Job]:
    whole = [case for case in conv_extra.CASES if case.whole and case.length in SHORT]
    short = {case.length: (case.batch, case.channels) for case in whole}
    named = [c for c in conv.CONTESTANTS if c.name == OURS or c.module]
    chosen = taking_part(named, device)
    for length, (batch, channels) in {**short, **conv.SHAPES}.items():
        torch.manual_seed(length)
        tensors, dy = conv.inputs(batch, channels, length, False, device)
        forward = conv.forward_bytes(batch, channels, length)
        both = forward + conv.backward_bytes(batch, channels, length)
        case = {"op": "fft_conv", "length": length, "batch": batch, "channels": channels}
        for contestant in chosen:
            yield job(case, (forward, both), contestant, tensors, dy)


def recurrent(device: str) -> Iterator[Job]:
    batch = recurrences.TOKENS // SSD_LENGTH
    for sizes in (recurrences.MAMBA2, recurrences.SHARED, recurrences.MLSTM):
        torch.manual_seed(sizes.groups)
        tensors, dy = recurrences.inputs(batch, SSD_LENGTH, sizes, device)
        forward = sizes.forward_bytes(recurrences.TOKENS)
        both = forward + sizes.backward_bytes(recurrences.TOKENS)
        case = {"op": "ssd", **sizes.case(batch, SSD_LENGTH)}
        yield job(case, (forward, both), recurrences.CONTESTANTS[0], tensors, dy)
    for length in PREFIX_LENGTHS:
        torch.manual_seed(0)
        batch = prefix.TOKENS // length
        tensors, dy = prefix.inputs(batch, length, prefix.HEADS, device)
        forward = prefix.forward_bytes(prefix.TOKENS, prefix.HEADS)
        both = forward + prefix.backward_bytes(prefix.TOKENS, prefix.HEADS)
        sizes_of = {"length": length, "batch": batch, "heads": prefix.HEADS}
        case = {"op": "prefix_attention", **sizes_of, "width": prefix.HEAD_DIM}
        yield job(case, (forward, both), prefix.CONTESTANTS[0], tensors, dy)


def job(
    case: dict[str, Any],
    nbytes: tuple[int, int],
    contestant: Contestant,
    tensors: Tensors,
    dy: Tensor,
) -> Job:
    forward, both = (floor_ms(n, dy.device.type) for n in nbytes)
    row = Row(KERNEL, contestant.name, case, forward, both)
    return row, functools.partial(measure, row, contestant, tensors, dy)


def work(device: str) -> Iterator[Job]:
    """Every case; none on a CPU, whose calls no profiler takes apart into kernels."""
    if device != "cuda":
        print("left out: by_kernel (needs a GPU)")
        return
    yield from convolutions(device)
    yield from recurrent(device)


def main() -> None:
    run_whole(__doc__, KERNEL, work, PEERS)


if __name__ == "__main__":
    main()
