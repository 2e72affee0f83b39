"""Squash, Smooth and learned transforms of long convolutions, on handwritten digits pixel by pixel.

    PYTHONPATH=. python benchmarks/core/long_conv_smoothing.py --out long_conv_smoothing.json

scikit-learn's digits (1,797 images of 8 x 8) as sequences of 64 values. The file keeps the writers
together, so it is split in its order, and nobody who wrote for training wrote most of the test:
the first 60 % train, the next 20 % validate, the last 20 % test. Every arm has the same two blocks
of a two-sided long convolution and an MLP, the same steps and, within a seed, the same weights at
first and the same batches; butterfly arms add coefficients. The weights after the last step are
scored; nothing is chosen by any score. ``roughness`` is the root mean square of the difference of
neighbouring taps over that of taps, as used, of all filters: sqrt(2) for white noise.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sklearn
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from core.backbone import MLP, Backbone
from core.jobs.optim import adamw
from core.mixers import ButterflyConv, LongConv

DIM, LAYERS, BATCH, LR = 32, 2, 32, 1e-2
SQUASH, SMOOTH = 3e-3, 7
BOTH = {"squash": SQUASH, "smooth": SMOOTH}

# What differs from squash 0, smooth 1
ARMS: dict[str, tuple[type[LongConv], dict[str, Any]]] = {
    "none": (LongConv, {}),
    "squash 0.003": (LongConv, {"squash": SQUASH}),
    "squash 0.03": (LongConv, {"squash": 10 * SQUASH}),
    "smooth 3": (LongConv, {"smooth": 3}),
    "smooth 7": (LongConv, {"smooth": SMOOTH}),
    "both": (LongConv, BOTH),
    "learned transforms": (ButterflyConv, {}),
    "learned transforms, both": (ButterflyConv, BOTH),
}


class Classifier(nn.Module):
    """Pixels (batch, 64) -> logits (batch, 10), averaged over the sequence."""

    def __init__(self, mixer: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Linear(1, DIM)
        blocks = {"conv": mixer, "mlp": MLP}
        self.backbone = Backbone(DIM, blocks, ["conv mlp"] * LAYERS, dropout=0.1)
        self.head = nn.Linear(DIM, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.backbone(self.embedding(pixels[..., None])).mean(1))


def splits() -> dict[str, tuple[Tensor, Tensor]]:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images).float() / 8 - 1, torch.from_numpy(labels).long()
    first, second = int(0.6 * len(x)), int(0.8 * len(x))
    parts = {"train": slice(first), "val": slice(first, second), "test": slice(second, None)}
    return {name: (x[part], y[part]) for name, part in parts.items()}


def roughness(model: nn.Module) -> float:
    taps = torch.cat(
        [m.filter(64).flatten(0, 1) for m in model.modules() if isinstance(m, LongConv)]
    )
    return (taps.diff().square().mean() / taps.square().mean()).sqrt().item()


def fit(arm: str, seed: int, steps: int, data: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Any]:
    kind, options = ARMS[arm]
    settings = {"max_length": 64, "squash": 0.0, **options}
    torch.manual_seed(seed)
    model = Classifier(lambda dim: kind(dim, causal=False, **settings))
    made = adamw(model, lr=LR, weight_decay=0.05, warmup=0.05, steps=steps)
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    x, y = data["train"]
    order = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    for _ in range(steps):
        pick = torch.randint(len(x), (BATCH,), generator=order)
        loss = F.cross_entropy(model(x[pick]), y[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    row = {"arm": arm, "seed": seed, "parameters": sum(p.numel() for p in model.parameters())}
    row["seconds"] = round(time.perf_counter() - start, 1)
    model.eval()
    with torch.no_grad():
        for name, (inputs, labels) in data.items():
            logits = model(inputs)
            row[f"{name}_loss"] = round(F.cross_entropy(logits, labels).item(), 4)
            right = (logits.argmax(-1) == labels).double().mean().item()
            row[f"{name}_accuracy"] = round(right, 4)
        row["roughness"] = round(roughness(model), 3)
    return row


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of each arm's scores over the seeds."""
    scores = [key for key in rows[0] if key not in ("arm", "seed", "parameters")]
    return {
        arm: {
            f"{score}_{name}": round(of([r[score] for r in rows if r["arm"] == arm]), 4)
            for score in scores
            for name, of in (("mean", statistics.fmean), ("std", statistics.stdev))
        }
        for arm in dict.fromkeys(r["arm"] for r in rows)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    data, rows = splits(), []
    for seed in given.seeds:
        for arm in given.arms:
            rows.append(fit(arm, seed, given.steps, data))
            print(rows[-1], flush=True)
    result = {
        "command": shlex.join(["python", "benchmarks/core/long_conv_smoothing.py", *sys.argv[1:]]),
        "device": f"{platform.machine()}, 1 thread of {os.cpu_count()} cores, shared",
        "versions": {"torch": torch.__version__, "scikit-learn": sklearn.__version__},
        "steps": given.steps,
        "sequences": {name: len(labels) for name, (_, labels) in data.items()},
        "summary": summary(rows) if len(given.seeds) > 1 else {},
        "rows": rows,
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
