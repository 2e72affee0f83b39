"""Tokens a second of HyenaDNA by length to a million bases, with the kernels and without.

    python benchmarks/genomics/throughput.py --out throughput.json
    python benchmarks/genomics/throughput.py --out throughput.json --device cpu --lengths 512 \\
        --width 32 --layers 2

The published large model's shape (width 256, 8 layers), batch 1, bf16 autocast: the forward pass
without gradients, and a training step with AdamW. Once as it runs (``auto``) and once with
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
from benchmarks.kernels.reports import environment, write_report
from core.jobs.optim import adamw
from core.objectives import next_token_targets, token_loss
from genomics.models.hyenadna import HyenaDNA

WARMUP, STEPS = 2, 5
OPS = ("auto", "reference")


def median_seconds(step: Callable[[], Any], device: str) -> float:
    times = []
    for _ in range(WARMUP + STEPS):
        started = _clock(device)
        step()
        times.append(_clock(device) - started)
    return statistics.median(times[WARMUP:])


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


def forward(length: int, args: argparse.Namespace) -> dict[str, Any]:
    model = build(length, False, args).eval()
    x = torch.randint(7, 11, (1, length), device=args.device)

    def step() -> None:
        with torch.no_grad(), torch.autocast(args.device, torch.bfloat16):
            model(x)

    return {"tokens_per_second": length / median_seconds(step, args.device)}


def training(length: int, recompute: bool, args: argparse.Namespace) -> dict[str, Any]:
    model = build(length, recompute, args)
    optimizer = adamw(model, lr=1e-4, weight_decay=0.1, warmup=0.1, steps=10)["optimizer"]
    x = torch.randint(7, 11, (1, length), device=args.device)
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
        "tokens_per_second": length / seconds,
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


def row(length: int, choice: str, args: argparse.Namespace) -> dict[str, Any]:
    with ops(choice):
        passed = fitting(lambda: forward(length, args))
        trained = fitting(lambda: training(length, False, args))
        if trained is None:
            trained = fitting(lambda: training(length, True, args))
    return {"length": length, "ops": choice, "forward": passed, "training": trained}


def speedups(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tokens a second of ``auto`` over those of ``reference``, None where one does not fit."""
    found = {(r["length"], r["ops"]): r for r in rows}
    result = []
    for length in dict.fromkeys(r["length"] for r in rows):
        line: dict[str, Any] = {"length": length}
        for what in ("forward", "training"):
            fast, slow = (found.get((length, choice), {}).get(what) for choice in OPS)
            both = fast and slow
            line[what] = fast["tokens_per_second"] / slow["tokens_per_second"] if both else None
        result.append(line)
    return result


def draw(report: dict[str, Any], target: Path) -> None:
    """Tokens a second by length, forward and training, with the kernels and without."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import StrMethodFormatter

    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharey=True)
    names = {"auto": "with the kernels", "reference": "on the reference ops"}
    for axis, what in zip(axes, ("forward", "training"), strict=True):
        for colour, choice in zip(COLOURS, OPS, strict=False):
            found = [r for r in report["rows"] if r["ops"] == choice and r[what]]
            x = [r["length"] for r in found]
            y = [r[what]["tokens_per_second"] for r in found]
            axis.loglog(x, y, "o-", color=colour, label=names[choice])
            again = [
                (a, b) for r, a, b in zip(found, x, y, strict=True) if r[what].get("recompute")
            ]
            label = f"{names[choice]}, blocks recomputed"
            if again:
                axis.plot(*zip(*again, strict=True), "o", mfc="white", color=colour, label=label)
        axis.set_xscale("log", base=2)
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axis.set_xlabel("length (bases)")
        axis.set_title(what)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("tokens a second")
    axes[1].legend(frameon=False, fontsize=8)
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
        "protocol": f"batch 1, bf16 autocast, median of {STEPS} after {WARMUP}",
        "rows": [],
    }
    for length in args.lengths:
        for choice in OPS:
            report["rows"].append(row(length, choice, args))
            print(report["rows"][-1], flush=True)
        report["auto_over_reference"] = speedups(report["rows"])
        write_report(args.out, report)
    for line in report["auto_over_reference"]:
        print(line)
    if importlib.util.find_spec("matplotlib"):
        draw(report, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
