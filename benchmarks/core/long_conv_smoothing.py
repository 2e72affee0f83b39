"""Squash, Smooth and learned transforms of long convolutions, as classifiers of short sequences.

    PYTHONPATH=. python benchmarks/core/long_conv_smoothing.py --data digits --out FILE.json

``digits``: scikit-learn's 1,797 handwritten digits, 8 x 8 pixels one after another. Neighbours in
the file may share a writer, so it is split in its order: the first 60 % train, the next 20 %
validate, the last 20 % test. ``vowels``: the sample of spoken vowels, split as the data module does
for the shipped classifiers. Every arm has the same two blocks of a two-sided long convolution and
an MLP, the same steps and, within a seed, the same weights at first and the same batches; arms of
learned transforms add coefficients. The weights after the last step are scored; nothing is chosen
by any score. ``roughness`` is the root mean square of the difference of neighbouring taps over that
of taps, as used, of all filters: sqrt(2) for white noise.
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
from typing import Any, NamedTuple

import sklearn
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from core.backbone import MLP, Backbone
from core.jobs.optim import adamw
from core.mixers import ButterflyConv, LongConv
from core.sequences import Sequences
from timeseries.data.labelled import LabelledSeriesData
from timeseries.data.labelled_tables import SPLITS

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


class Split(NamedTuple):
    """``values`` (series, time, channels) with zeros behind each end, ``lengths``, ``labels``."""

    values: Tensor
    lengths: Tensor
    labels: Tensor

    def pick(self, index: Tensor | slice) -> Split:
        return Split(*(part[index] for part in self))

    def sequences(self) -> Sequences | None:
        time = self.values.shape[1]
        return Sequences.padded(self.lengths, time) if (self.lengths < time).any() else None


class Classifier(nn.Module):
    """Values -> logits (batch, classes), averaged over the real steps."""

    def __init__(self, channels: int, classes: int, mixer: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Linear(channels, DIM)
        blocks = {"conv": mixer, "mlp": MLP}
        self.backbone = Backbone(DIM, blocks, ["conv mlp"] * LAYERS, dropout=0.1)
        self.head = nn.Linear(DIM, classes)

    def forward(self, batch: Split) -> Tensor:
        sequences = batch.sequences()
        features = self.backbone(self.embedding(batch.values), sequences=sequences)
        if sequences is not None:
            features = sequences.zero_padding(features)
        return self.head(features.sum(1) / batch.lengths[:, None])


def digits() -> dict[str, Split]:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images).float() / 8 - 1, torch.from_numpy(labels).long()
    whole = Split(x[..., None], torch.full_like(y, 64), y)
    first, second = int(0.6 * len(x)), int(0.8 * len(x))
    parts = {"train": slice(first), "val": slice(first, second), "test": slice(second, None)}
    return {name: whole.pick(part) for name, part in parts.items()}


def vowels() -> dict[str, Split]:
    data = LabelledSeriesData("timeseries/samples/japanese_vowels.parquet")
    data.setup("fit")
    splits = {}
    for name in SPLITS:
        series = data.split(name)
        values = [torch.from_numpy(data.standardised(one.values)) for one in series]
        lengths = torch.tensor([len(v) for v in values])
        padded = nn.utils.rnn.pad_sequence(values, batch_first=True)
        splits[name] = Split(padded, lengths, torch.tensor(data.numbers(series)))
    return splits


DATA: dict[str, Callable[[], dict[str, Split]]] = {"digits": digits, "vowels": vowels}


def roughness(model: nn.Module) -> float:
    taps = torch.cat(
        [m.filter(64).flatten(0, 1) for m in model.modules() if isinstance(m, LongConv)]
    )
    return (taps.diff().square().mean() / taps.square().mean()).sqrt().item()


def fit(arm: str, seed: int, steps: int, data: dict[str, Split]) -> dict[str, Any]:
    kind, options = ARMS[arm]
    settings = {"max_length": 64, "squash": 0.0, **options}
    train = data["train"]
    torch.manual_seed(seed)
    model = Classifier(
        train.values.shape[-1],
        int(train.labels.max()) + 1,
        lambda dim: kind(dim, causal=False, **settings),
    )
    made = adamw(model, lr=LR, weight_decay=0.05, warmup=0.05, steps=steps)
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    order = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    for _ in range(steps):
        batch = train.pick(torch.randint(len(train.labels), (BATCH,), generator=order))
        loss = F.cross_entropy(model(batch), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    row = {"arm": arm, "seed": seed, "parameters": sum(p.numel() for p in model.parameters())}
    row["seconds"] = round(time.perf_counter() - start, 1)
    model.eval()
    with torch.no_grad():
        for name, split in data.items():
            logits = model(split)
            row[f"{name}_loss"] = round(F.cross_entropy(logits, split.labels).item(), 4)
            right = (logits.argmax(-1) == split.labels).double().mean().item()
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
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    data, rows = DATA[given.data](), []
    for seed in given.seeds:
        for arm in given.arms:
            rows.append(fit(arm, seed, given.steps, data))
            print(rows[-1], flush=True)
    result = {
        "command": shlex.join(["python", "benchmarks/core/long_conv_smoothing.py", *sys.argv[1:]]),
        "device": f"{platform.machine()}, 1 thread of {os.cpu_count()} cores, shared",
        "versions": {"torch": torch.__version__, "scikit-learn": sklearn.__version__},
        "steps": given.steps,
        "sequences": {name: len(split.labels) for name, split in data.items()},
        "summary": summary(rows) if len(given.seeds) > 1 else {},
        "rows": rows,
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
