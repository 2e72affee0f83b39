"""What a kernel benchmark leaves behind: rows, tables, reports, and the loop that makes them.

A report is written after each row, so that a run that is cut off keeps what it has and another goes
on from it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels.draw import draw_if_possible

OURS = "longspan"
WARMUP_MS, REPEAT_MS, LEAST_REPEATS = 25, 100, 5
Split = dict[str, tuple[float, float]]  # kernel -> launches and ms of a call
BANDWIDTH = 3.0e12  # bytes a second: a copy on one H100 (bytes read plus written) reaches 3.02e12
PRODUCTS = 6.87e14  # operations a second of a large bf16 product on one H100


@dataclass
class Row:
    """One contestant on one case. Times in ms, floors in ms, peak in MiB above the inputs.

    Floors and the peak are None on a CPU.
    ``errors``: root mean square of the error over that of the float64 reference, by tensor; the
    output under ``y``, gradients under the name of their input. ``failures`` by what was tried.
    ``other``: what the contestant computes, where that is another operation of the same size.
    ``kernels``: the device's time by kernel, of the passes that were taken apart.
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
    other: str = ""
    kernels: dict[str, Split] = field(default_factory=dict)


Job = tuple[Row, Callable[[], Row]]  # what will be measured, and the measurement that fills it


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device``: cpu, or cuda where there is a GPU, which is then the default."""

    def device(name: str) -> str:
        if name not in ("cpu", "cuda"):
            raise argparse.ArgumentTypeError(f"{name!r} is neither cpu nor cuda")
        if name == "cuda" and not torch.cuda.is_available():
            raise argparse.ArgumentTypeError("there is no GPU here; --device cpu tries small sizes")
        return name

    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=device, default=default, help="cpu or cuda")


def kernel_parser(description: str | None) -> argparse.ArgumentParser:
    """What every kernel benchmark takes: ``--out``, ``--device`` and ``--resume``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    add_device(parser)
    parser.add_argument("--resume", action="store_true", help="keep the rows of --out")
    return parser


def run_whole(
    description: str | None,
    kernel: str,
    work: Callable[[str], Iterator[Job]],
    peers: Mapping[str, str],
) -> None:
    """The command of a benchmark without options of its own: ``work(device)``, all of it."""
    args = kernel_parser(description).parse_args()
    run(work(args.device), args.out, kernel, args.device, peers, resume=args.resume)


def size(text: str) -> int:
    """A positive number from a command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def installed(module: str) -> bool:
    """Whether ``module``, a top-level one, can be found. Imports nothing."""
    return importlib.util.find_spec(module) is not None


def reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


class Clock:
    """Seconds since the start and, if there is one, until the deadline."""

    def __init__(self, deadline: float | None = None) -> None:
        self.started, self.deadline = time.monotonic(), deadline

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    @property
    def over(self) -> bool:
        return self.deadline is not None and self.elapsed >= self.deadline


def run(
    work: Iterator[Job],
    out: Path,
    kernel: str,
    device: str,
    peers: Mapping[str, str],
    clock: Clock | None = None,
    resume: bool = False,
) -> bool:
    """Measures row after row; leaves a report, a figure and, on the screen, a table.

    Nothing is begun once the ``clock`` is over; False then, else True. ``resume`` keeps the rows of
    the report in ``out`` and measures what they lack. Stops with exit code 1 once a contestant
    leaves the GPU unusable; what was measured is kept.
    """
    out.mkdir(parents=True, exist_ok=True)
    target, clock = out / f"{kernel}.json", clock or Clock()
    done = kept_rows(target, device) if resume else []
    kept, broken, whole = {_identity(row) for row in done}, None, True
    for row, work_on in work:
        if _identity(row) in kept:
            continue
        if clock.over:
            print(f"{kernel}: out of time after {clock.elapsed:.0f} s; --resume goes on from here")
            whole = False
            break
        done.append(work_on())
        line = "\n".join(table([row]).splitlines()[2:])
        print(f"{clock.elapsed:5.0f} s {kernel} {line}", flush=True)
        write_report(target, report(kernel, device, in_order(done), peers))
        if broken := _device_fails():
            break
    if not done:
        return whole
    print(table(in_order(done)))
    if broken:
        raise SystemExit(f"error: {done[-1].contestant} left the GPU unusable: {broken}")
    draw_if_possible(target, target.with_suffix(".png"))
    return whole


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Rows of a case side by side, cases as they came first; slow peers are measured last."""
    place = {key: i for i, key in reversed(list(enumerate(_key(row) for row in rows)))}
    return sorted(rows, key=lambda row: place[_key(row)])


def _identity(row: Row) -> tuple[str, str]:
    return row.contestant, _key(row)


def kept_rows(path: Path, device: str) -> list[Row]:
    """The rows of a report of this device and these versions; none if there is no report."""
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text())
        rows = [Row(**row) for row in content["rows"]]
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"error: {path} is no report to go on from ({error}); move it") from error
    here = environment(device)
    changed = [name for name in here if content.get(name) != here[name]]
    if changed:
        before, now = content.get(changed[0]), here[changed[0]]
        raise SystemExit(
            f"error: {path} was measured with {changed[0]} {before}, here is {now}; choose another "
            "--out or leave --resume out"
        )
    return rows


def _device_fails() -> str | None:
    """Why the GPU takes no more work (after an illegal access, say), or None if it does."""
    if not torch.cuda.is_available():
        return None
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda").item()
    except RuntimeError as error:
        return reason(error)
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
        **environment(device),
        "peers": {name: peer_version(m, name) for m, name in peers.items() if installed(m)},
        "command": " ".join(["python", *sys.argv]),
        "protocol": (
            f"medians within {REPEAT_MS} ms and at least {LEAST_REPEATS} calls after warming up"
            "; forward without gradients"
            + (
                f"; second-level cache cleared between calls of less than {REPEAT_MS} ms, "
                f"{LEAST_REPEATS} calls of longer ones by the host's clock; peak memory of forward "
                "and backward above the inputs; floor: every input read and every result written "
                f"once, at {BANDWIDTH / 1e12:.1f} TB/s"
                if cuda
                else ""
            )
        ),
        "rows": [asdict(row) for row in rows],
    }


def environment(device: str) -> dict[str, str | None]:
    """Device and versions: what has to be equal for times to stand side by side."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
    }


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def peer_version(module: str, package: str) -> str:
    """Of the distribution; of a module without one, its own, or a digest of its source files."""
    if known := version(package):
        return known
    found = importlib.util.find_spec(module)
    folders = list(found.submodule_search_locations or []) if found else []
    files = sorted(path for folder in folders for path in Path(folder).rglob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
    own = getattr(sys.modules.get(module), "__version__", None)
    return f"{own or 'source build'}, sha256 of its Python files {digest}"


def write_report(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all, so that a run that is cut short keeps its last rows."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def table(rows: Sequence[Row]) -> str:
    """Markdown: times, how far above the floor, how much slower than ours, peak, worst errors."""
    head = [
        *(names := list(dict.fromkeys(name for row in rows for name in row.case))),
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
            *(_cell(row.case.get(name, "")) for name in names),
            f"{row.contestant} ({row.other})" if row.other else row.contestant,
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
