"""Tokens a second of HyenaDNA by length to a million bases, with the kernels and without.

    python benchmarks/genomics/throughput.py --out throughput.json
    python benchmarks/genomics/throughput.py --out throughput.json --device cpu --lengths 512 \\
        --width 32 --layers 2

The published large model's shape (width 256, 8 layers), bf16 autocast: the forward pass without
gradients, and a training step with AdamW. One sequence at a time and, with ``--tokens``, as many of
the shorter ones as make a batch of so many tokens. Once as it runs (``auto``) and once with
LONGSPAN_OPS=reference, same weights and tokens. Where a training step does not fit, it recomputes
each block; a length that still does not fit is reported as such. With matplotlib, a figure of
tokens a second by length beside the report; ``--draw`` makes it of a report that is there:

    python benchmarks/genomics/throughput.py --out throughput.json --draw throughput.png
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels.draw import COLOURS
from benchmarks.kernels.measuring import ops
from benchmarks.kernels.reports import environment, size, write_report
from core.jobs.optim import adamw
from core.objectives import next_token_targets, token_loss
from genomics.models.hyenadna import HyenaDNA

WARMUP, STEPS, SECONDS = 2, 5, 0.3
ROUNDS = 3  # in turn, of what waits for a host that is not always as fast
HOST_BOUND = 2**18  # tokens of a batch, fewer than which may
OPS = ("auto", "reference")


def median_seconds(step: Callable[[], Any], device: str) -> float:
    for _ in range(WARMUP):
        step()
    times: list[float] = []
    while len(times) < STEPS or sum(times) < SECONDS:
        started = _clock(device)
        step()
        times.append(_clock(device) - started)
    return statistics.median(times)


def _clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def build(length: int, recompute: bool, args: argparse.Namespace) -> HyenaDNA:
    torch.manual_seed(0)
    model = HyenaDNA(
        args.width, args.layers, length, embed_dropout=0.0, checkpoint_blocks=recompute
    )
    return model.to(args.device)


def forward(length: int, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    model = build(length, False, args).eval()
    x = torch.randint(7, 11, (batch, length), device=args.device)

    def step() -> None:
        with torch.no_grad(), torch.autocast(args.device, torch.bfloat16):
            model(x)

    return {"tokens_per_second": x.numel() / median_seconds(step, args.device)}


def training(length: int, batch: int, recompute: bool, args: argparse.Namespace) -> dict[str, Any]:
    model = build(length, recompute, args)
    optimizer = adamw(model, lr=1e-4, weight_decay=0.1, warmup=0.1, steps=10)["optimizer"]
    x = torch.randint(7, 11, (batch, length), device=args.device)
    targets = next_token_targets(x)
    losses = []

    def step() -> None:
        with torch.autocast(args.device, torch.bfloat16):
            logits = model(x)
        loss = token_loss(logits, targets)
        del logits
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())

    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = median_seconds(step, args.device)
    cuda = args.device == "cuda"
    return {
        "tokens_per_second": x.numel() / seconds,
        "recompute": recompute,
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20 if cuda else None,
        "first_loss": losses[0].item(),
    }


def fitting(measure: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """What ``measure`` returns, or None if memory does not suffice."""
    try:
        return measure()
    except torch.OutOfMemoryError:
        pass
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return None


def row(length: int, batch: int, choice: str, args: argparse.Namespace) -> dict[str, Any]:
    with ops(choice):
        passed = fitting(lambda: forward(length, batch, args))
        trained = fitting(lambda: training(length, batch, False, args))
        if trained is None:
            trained = fitting(lambda: training(length, batch, True, args))
    case = {"length": length, "batch": batch, "ops": choice}
    return {**case, "forward": passed, "training": trained}


def rounds(length: int, batch: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each choice, measured in turn: of the rounds the median, of each pass by itself."""
    found: dict[str, list[dict[str, Any]]] = {choice: [] for choice in OPS}
    for _ in range(ROUNDS if length * batch < HOST_BOUND else 1):
        for choice in OPS:
            found[choice].append(row(length, batch, choice, args))
    return [
        {**rows[0], **{what: _middle([r[what] for r in rows]) for what in ("forward", "training")}}
        for rows in found.values()
    ]


def _middle(measured: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    """That of the median speed; None if one did not fit."""
    fit = sorted((m for m in measured if m), key=lambda m: float(m["tokens_per_second"]))
    return fit[len(fit) // 2] if len(fit) == len(measured) else None


def speedups(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tokens a second of ``auto`` over those of ``reference``, None where one does not fit."""
    found = {(r["length"], r["batch"], r["ops"]): r for r in rows}
    result = []
    for length, batch in dict.fromkeys((r["length"], r["batch"]) for r in rows):
        line: dict[str, Any] = {"length": length, "batch": batch}
        for what in ("forward", "training"):
            fast, slow = (found.get((length, batch, choice), {}).get(what) for choice in OPS)
            both = fast and slow
            line[what] = fast["tokens_per_second"] / slow["tokens_per_second"] if both else None
        result.append(line)
    return result


STYLES = [(colour, style) for style in ("o-", "o--") for colour in COLOURS[: len(OPS)]]


def lines_of(report: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Names and rows of the lines of the figure: single sequences, then whole batches."""
    names = {"auto": "with the kernels", "reference": "on the reference ops"}
    single = [r for r in report["rows"] if r["batch"] == 1]
    whole = [r for r in report["rows"] if r["batch"] * r["length"] == report["tokens"]]
    whole.sort(key=lambda r: int(r["length"]))
    kinds = [("", single), (f", batches of {report['tokens'] or 0:,} tokens", whole)]
    return [
        (f"{names[choice]}{batches}", [r for r in rows if r["ops"] == choice])
        for batches, rows in kinds
        for choice in OPS
        if rows
    ]


def draw(report: dict[str, Any], target: Path) -> None:
    """Tokens a second by length, forward and training, with the kernels and without."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import StrMethodFormatter

    figure, axes = plt.subplots(1, 2, figsize=(9, 4.6), layout="constrained", sharey=True)
    for axis, what in zip(axes, ("forward", "training"), strict=True):
        for (label, rows), (colour, style) in zip(lines_of(report), STYLES, strict=False):
            fit = [r for r in rows if r[what]]
            x, y = [r["length"] for r in fit], [r[what]["tokens_per_second"] for r in fit]
            axis.loglog(x, y, style, color=colour, label=label)
            again = [(a, b) for r, a, b in zip(fit, x, y, strict=True) if r[what].get("recompute")]
            if again:
                label = f"{label}, blocks recomputed"
                axis.plot(*zip(*again, strict=True), "o", mfc="white", color=colour, label=label)
        axis.set_xscale("log", base=2)
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axis.set_xlabel("length (bases)")
        axis.set_title(what)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("tokens a second")
    handles, names = axes[1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    size = f"width {report['width']}, {report['layers']} layers"
    figure.suptitle(
        f"HyenaDNA, {size}, on {report['device']}, torch {report['torch']}", fontsize=11
    )
    figure.savefig(target, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a JSON file")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    lengths = [2**k for k in range(10, 21, 2)]
    parser.add_argument("--lengths", type=int, nargs="+", default=lengths)
    text = "measure batches of so many tokens too, of the lengths that divide it"
    parser.add_argument("--tokens", type=size, help=text)
    parser.add_argument("--draw", type=Path, help="measure nothing; draw the report of --out here")
    args = parser.parse_args()
    if args.draw:
        draw(json.loads(args.out.read_text()), args.draw)
        return
    report: dict[str, Any] = {
        **environment(args.device),
        "command": " ".join(["python", *sys.argv]),
        "width": args.width,
        "layers": args.layers,
        "tokens": args.tokens,
        "protocol": f"bf16 autocast, median of at least {STEPS} steps and {SECONDS:g} s, after "
        f"{WARMUP}; below {HOST_BOUND:,} tokens the median of {ROUNDS} such rounds in turn",
        "rows": [],
    }
    cases = [(length, 1) for length in args.lengths]
    if args.tokens:
        shorter = [n for n in args.lengths if n < args.tokens and args.tokens % n == 0]
        cases += [(n, args.tokens // n) for n in shorter]
    for length, batch in cases:
        for measured in rounds(length, batch, args):
            report["rows"].append(measured)
            print(measured, flush=True)
        report["auto_over_reference"] = speedups(report["rows"])
        write_report(args.out, report)
    for line in report["auto_over_reference"]:
        print(line)
    if importlib.util.find_spec("matplotlib"):
        draw(report, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
