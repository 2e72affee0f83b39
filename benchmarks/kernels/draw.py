"""Draws a kernel benchmark's report: time and peak memory by length.

    python benchmarks/kernels/draw.py results/fft_conv.json --out fft_conv.svg

Works from the JSON alone, on any machine with matplotlib; the file name's ending is the format.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
# Okabe and Ito's colours, told apart by the colour-blind; black is the floor's.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]


def elements(case: dict[str, Any]) -> int:
    """Positions of channels, or of heads, that a case has."""
    sizes = ("length", "batch", "channels", "heads")
    return math.prod(case[name] for name in sizes if name in case)


def variant(case: dict[str, Any]) -> dict[str, Any]:
    """What tells panels apart: the parts of a case that are not drawn along an axis."""
    told = ("gated", "groups", "width", "state", "dtype")
    found = {k: v for k, v in case.items() if k in told}
    if case.get("taps", case["length"]) != case["length"]:
        found["taps"] = case["taps"]
    if case.get("history"):
        found["history"] = case["history"]
    if case.get("band", 1) != 1:
        found["band"] = case["band"]
    return found


def variants(rows: Rows) -> list[dict[str, Any]]:
    """The panels of ``rows``, in their order."""
    found: list[dict[str, Any]] = []
    for row in rows:
        if variant(row["case"]) not in found:
            found.append(variant(row["case"]))
    return found


def label_of(row: dict[str, Any]) -> str:
    """The contestant and, where it is not what the rest compute, what it computes."""
    other = row.get("other")
    return f"{row['contestant']} ({other})" if other else str(row["contestant"])


def series(rows: Rows, name: str, value: Callable[[dict[str, Any]], float | None]) -> Any:
    """Lengths and values of a contestant, in order of length, without those that are missing."""
    points = [(row["case"]["length"], value(row)) for row in rows if label_of(row) == name]
    points = sorted((length, y) for length, y in points if y is not None)
    return [length for length, _ in points], [y for _, y in points]


def _per_element(name: str, factor: float) -> Callable[[dict[str, Any]], float | None]:
    def value(row: dict[str, Any]) -> float | None:
        return None if row[name] is None else factor * row[name] / elements(row["case"])

    return value


def _setting(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name if value else f"not {name}"
    if isinstance(value, str):
        return value
    return f"{name} {value:,}"


def _plain_numbers(axis: Any) -> None:
    """Ticks as 100 and 100,000, where Matplotlib writes 100 and 1e+05, and 7 x 10^0 between."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            shown = super().__call__(x, pos)  # it knows for which ticks there is room
            if not shown:
                return ""
            return f"{x:,.0f}" if x >= 10 else f"{x:g}"

    axis.set_major_formatter(Plain())
    axis.set_minor_formatter(Plain(minor_thresholds=(1, 0.4)))


def draw(report: dict[str, Any], target: Path) -> None:
    """A row of panels for each variant: forward, forward and backward, peak memory."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows: Rows = report["rows"]
    names = list(dict.fromkeys(label_of(row) for row in rows))
    element = "a position of a head" if "heads" in rows[0]["case"] else "a position of a channel"
    time = f"time for {element} (ps)"
    panels = [
        ("forward", time, "forward_ms", "forward_floor_ms", 1e9),
        ("forward and backward", time, "both_ms", "both_floor_ms", 1e9),
    ]
    if any(row["peak_mib"] is not None for row in rows):
        panels.append(("peak memory", f"bytes for {element}", "peak_mib", "", 2.0**20))
    kinds = variants(rows)
    figure, axes = plt.subplots(
        len(kinds),
        len(panels),
        figsize=(4.2 * len(panels), 0.6 + 3.2 * len(kinds)),
        squeeze=False,
        layout="constrained",
    )
    for kind, line in zip(kinds, axes, strict=True):
        chosen = [row for row in rows if variant(row["case"]) == kind]
        for (title, label, value, floor, factor), axis in zip(panels, line, strict=True):
            for i, name in enumerate(names):
                x, y = series(chosen, name, _per_element(value, factor))
                axis.loglog(
                    x, y, "o-", color=COLOURS[i % len(COLOURS)], label=name, base=10, markersize=4
                )
            if floor and chosen[0][floor] is not None:
                x, y = series(chosen, names[0], _per_element(floor, factor))
                axis.loglog(x, y, "k--", label="floor: every byte once", linewidth=1)
            axis.set_xscale("log", base=2)
            _plain_numbers(axis.yaxis)
            axis.set_xlabel("length")
            axis.set_ylabel(label)
            settings = ", ".join(_setting(k, v) for k, v in kind.items())
            axis.set_title(f"{title}\n{settings}" if settings else title, fontsize=10)
            axis.grid(alpha=0.3)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    columns = 2 * len(panels)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    figure.suptitle(f"{report['kernel']} on {report['device']}, torch {report['torch']}")
    figure.savefig(target, dpi=150)
    plt.close(figure)


def draw_varlen(report: dict[str, Any], target: Path) -> None:
    """Operations by length, forward and with backward; tokens a second of the encoders."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (forward, both, speed) = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    names = list(dict.fromkeys(row["operation"] for row in report["operations"]))
    panels = (forward, "forward", "forward_ms"), (both, "forward and backward", "both_ms")
    for axis, title, column in panels:
        for i, name in enumerate(names):
            rows = [row for row in report["operations"] if row["operation"] == name]
            axis.loglog(
                [row["length"] for row in rows],
                [row[column] for row in rows],
                "osD^v"[i % 5] + ("-" if i % 2 == 0 else "--"),
                color=COLOURS[i % len(COLOURS)],
                label=name,
                markersize=5,
            )
        axis.set_xscale("log", base=2)
        _plain_numbers(axis.yaxis)
        axis.set_xlabel("length of a row")
        axis.set_ylabel("time (ms)")
        axis.set_title(f"operations, {title}", fontsize=10)
        axis.grid(alpha=0.3)
    encoders = [row for row in report["encoders"] if "tokens_per_second" in row]
    labels = list(dict.fromkeys(f"{row['model']},\n{row['arrangement']}" for row in encoders))
    for gradient, shift in ((False, -0.2), (True, 0.2)):
        found = {
            f"{row['model']},\n{row['arrangement']}": row["tokens_per_second"]
            for row in encoders
            if row["gradient"] is gradient
        }
        places = [labels.index(name) + shift for name in found]
        name = "with gradient" if gradient else "no gradient"
        speed.barh(
            places, [x / 1e3 for x in found.values()], 0.4, label=name, color=COLOURS[1 - gradient]
        )
    speed.set_yticks(range(len(labels)), labels, fontsize=8)
    speed.invert_yaxis()
    speed.set_xlabel("thousand tokens a second")
    speed.set_title("encoders", fontsize=10)
    speed.legend(frameon=False, fontsize=8)
    handles, texts = forward.get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.suptitle(f"variable length on {report['device']}, torch {report['torch']}")
    figure.savefig(target, dpi=150)
    plt.close(figure)


def title(row: dict[str, Any]) -> str:
    """What tells the cases of an op apart."""
    case = row["case"]
    if case["op"] != "ssd":
        return f"{case['length']:,}"
    shared = "" if case["groups"] > 1 else ", shared B and C"
    return f"{case['heads']} x {case['width']}{shared}"


def draw_splits(report: dict[str, Any], target: Path) -> None:
    """Bars a call, a piece a kernel: how many times the floor of forward and backward it takes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups: dict[str, Rows] = {}
    for row in report["rows"]:
        if row["contestant"] == report["rows"][0]["contestant"]:
            groups.setdefault(row["case"]["op"], []).append(row)
    figure, axes = plt.subplots(
        1,
        len(groups),
        figsize=(13, 4.6),
        squeeze=False,
        layout="constrained",
        gridspec_kw={"width_ratios": [len(rows) + 2 for rows in groups.values()]},
    )
    for (op, rows), axis in zip(groups.items(), axes[0], strict=True):
        bars(axis, rows)
        axis.set_title(op, fontsize=10)
    axes[0, 0].set_ylabel("kernels' time over the floor (dashed)")
    figure.suptitle(f"Forward and backward on {report['device']}, torch {report['torch']}")
    figure.savefig(target, dpi=150)
    plt.close(figure)


def bars(axis: Any, rows: Rows) -> None:
    """A bar a row, its kernels from the slowest up; those of less than half a percent are left."""
    splits = [row["kernels"]["forward and backward"] for row in rows]
    floors = [row["both_floor_ms"] for row in rows]
    heights = {
        kernel: [
            split.get(kernel, (0, 0.0))[1] / floor
            for split, floor in zip(splits, floors, strict=True)
        ]
        for kernel in dict.fromkeys(kernel for split in splits for kernel in split)
    }
    most = sum(map(sum, heights.values()))
    shown = {kernel: h for kernel, h in heights.items() if sum(h) > 0.005 * most}
    names = [title(row).replace(", ", ",\n") for row in rows]
    base = [0.0] * len(rows)
    for i, kernel in enumerate(sorted(shown, key=lambda kernel: -sum(shown[kernel]))):
        hatch = "" if i < len(COLOURS) else "///"
        colour = COLOURS[i % len(COLOURS)]
        axis.bar(names, shown[kernel], bottom=base, color=colour, hatch=hatch, label=kernel)
        base = [b + h for b, h in zip(base, shown[kernel], strict=True)]
    axis.axhline(1, color="black", linestyle="--", linewidth=1)
    axis.tick_params(axis="x", rotation=60)
    handles, labels = axis.get_legend_handles_labels()
    place = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    axis.legend(handles[::-1], labels[::-1], frameon=False, fontsize=8, **place)


def draw_any(report: dict[str, Any], target: Path) -> None:
    """A kernel's report, that of variable length, or that of the kernels of a call."""
    if "operations" in report:
        draw_varlen(report, target)
    elif any(row.get("kernels") for row in report["rows"]):
        draw_splits(report, target)
    else:
        draw(report, target)


def draw_if_possible(source: Path, target: Path) -> None:
    """Draws where matplotlib is; says how to do it elsewhere where it is not."""
    if importlib.util.find_spec("matplotlib") is None:
        print(f"no matplotlib here: python benchmarks/kernels/draw.py {source} --out {target}")
        return
    draw_any(json.loads(source.read_text()), target)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        report = json.loads(args.report.read_text())
    except (OSError, ValueError) as error:
        parser.error(f"{args.report} is no report: {error}")
    draw_any(report, args.out)


if __name__ == "__main__":
    main()
