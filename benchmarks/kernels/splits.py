"""What is made of `by_kernel`'s report: tables of docs/kernels.md and of the README here.

Beside the measured time of a convolution's kernel stands what its bytes take at BANDWIDTH and its
products at PRODUCTS; both are counted here, for powers of two without gates, by the tables of
docs/kernels.md.
"""

from __future__ import annotations

from typing import Any

from benchmarks.kernels.draw import title
from benchmarks.kernels.reports import BANDWIDTH, OURS, PRODUCTS
from benchmarks.marks import lines

ONE_PASS = 4_096  # positions of the longest sequence that a tile holds
BOTH = "forward and backward"
Row = dict[str, Any]
Report = dict[str, Any]
Work = tuple[float, float]  # bytes and operations


def convolution_work(batch: int, channels: int, length: int) -> dict[str, Work]:
    """Of each kernel of one forward and one backward pass together."""
    numbers, taps = batch * channels * length, channels * length
    # operations a number of a product with a matrix of 64 rows, of which a tile has 64 columns
    product = 2 * 64
    if length <= ONE_PASS:
        return {
            "convolve": (8 * numbers + 8 * taps, 2 * 12 * product * numbers),
            "correlate": (4 * numbers + 4 * taps, product * (12 * numbers + 6 * taps)),
            "filter": (16 * taps, 2 * 6 * product * taps),
        }
    outer = 4 * max(16, length // ONE_PASS)  # two real products with F1
    return {
        "inner_convolve": (16 * numbers + 8 * taps, 2 * 16 * product * numbers),
        "inner_correlate": (8 * numbers + 4 * taps, product * (16 * numbers + 8 * taps)),
        "outer": (18 * numbers + 16 * taps, outer * (3 * numbers + 2 * taps)),
        "outer_inverse": (12 * numbers + 8 * taps, outer * (2 * numbers + taps)),
        "row_stats": (6 * numbers + 8 * taps, 0),
        "inner_spectrum": (16 * taps, 2 * 8 * product * taps),
    }


def milliseconds(work: Work) -> Work:
    return 1e3 * work[0] / BANDWIDTH, 1e3 * work[1] / PRODUCTS


def digits(ms: float) -> str:
    """Three of them."""
    return f"{ms:#.3g}".rstrip(".")


def rows_of(report: Report, op: str, contestant: str = OURS) -> list[Row]:
    found = [row for row in report["rows"] if row["contestant"] == contestant]
    return [row for row in found if row["case"]["op"] == op]


def total(row: Row, name: str = BOTH) -> float:
    """ms of all kernels of a pass."""
    return float(sum(ms for _, ms in row["kernels"][name].values()))


def _named(row: Row) -> str:
    case = row["case"]
    return f"{case['batch']} x {case['channels']} x {case['length']:,}"


def convolution(report: Report, one_pass: bool) -> str:
    """Each kernel's ms (its bytes' ms, its products' ms), a column a shape."""
    rows = [r for r in rows_of(report, "fft_conv") if (r["case"]["length"] <= ONE_PASS) == one_pass]
    sizes = [(r["case"]["batch"], r["case"]["channels"], r["case"]["length"]) for r in rows]
    counted = [convolution_work(*size) for size in sizes]
    body = []
    for kernel in counted[0]:
        cells = [f"`{kernel}`"]
        for row, work in zip(rows, counted, strict=True):
            launches, ms = row["kernels"][BOTH][kernel]
            moved, multiplied = milliseconds(work[kernel])
            cells.append(f"{digits(ms)} ({moved:.2f}, {multiplied:.2f}) in {launches:g}")
        body.append(cells)
    sums = [[milliseconds(w) for w in work.values()] for work in counted]
    alone = [
        f"{digits(total(row))} ({sum(b for b, _ in work):.2f}, {sum(p for _, p in work):.2f})"
        for row, work in zip(rows, sums, strict=True)
    ]
    body.append(["all, with PyTorch's small ones", *alone])
    return lines(["batch x channels x length", *(_named(row) for row in rows)], body)


def beside(report: Report) -> str:
    """Device time of ours and of FlashFFTConv's kernels, and ours replayed as a graph."""
    peers = {r["case"]["length"]: r for r in rows_of(report, "fft_conv", "FlashFFTConv")}
    head = ["length", "batch x channels", "forward: ours, FlashFFTConv, ratio", "a graph of ours"]
    head += ["with backward: ours, FlashFFTConv, ratio", "a graph of ours"]
    body = []
    for row in rows_of(report, "fft_conv"):
        case = row["case"]
        cells = [f"{case['length']:,}", f"{case['batch']} x {case['channels']}"]
        for name, field in (("forward", "forward_ms"), (BOTH, "both_ms")):
            ours, peer = total(row, name), total(peers[case["length"]], name)
            cells += [f"{digits(ours)}, {digits(peer)}, {peer / ours:.2f}", digits(row[field])]
        body.append(cells)
    return lines(head, body)


def by_pass(report: Report, op: str) -> str:
    """Each kernel's ms, forward and with backward, a column a case; launches where not one."""
    rows = rows_of(report, op)
    kernels = dict.fromkeys(kernel for row in rows for kernel in row["kernels"][BOTH])
    body = []
    for kernel in kernels:
        cells = [f"`{kernel}`"]
        for row in rows:
            for name in ("forward", BOTH):
                launches, ms = row["kernels"][name].get(kernel, (0, 0.0))
                times = "" if launches in (0, 1) else f" in {launches:g}"
                cells.append(f"{ms:.2g}{times}" if launches else "")
        body.append(cells)
    sums = [f"{total(row, name):.3g}" for row in rows for name in ("forward", BOTH)]
    head = [f"{title(row)}: {name}" for row in rows for name in ("forward", "with backward")]
    return lines(["", *head], [*body, ["all", *sums]])
