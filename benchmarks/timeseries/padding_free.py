"""The same model on padded rows and on real steps alone (`padding_free`), on a CPU.

    python benchmarks/timeseries/padding_free.py --out padding_free.json

Vowels: the network of `configs/padding_free_classifier.yaml` on the training utterances of 7 to 29
steps. Chorales: that of `configs/chorales.yaml`, with relative attention, and with rotary, on 40
training pieces of up to 512 events; needs music21. A pass is all batches once, with gradient or
without; the two take turns pass by pass. Written for each batch size: places and how many of them
are real, medians of the processor time of a pass, and of the ratio padded over padding-free in a
pair the median, least and most. One thread, float32, no dropout.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from core.backbone import MLP, Backbone
from core.backbone.backbone import BlockKind
from core.mixers import Attention, RelativeAttention
from timeseries.data.chorales import ChoraleSequences
from timeseries.data.labelled import LabelledSeriesData
from timeseries.models import EventModel, MixerClassifier
from timeseries.tasks import EventModelling

VOWELS = "timeseries/samples/japanese_vowels.parquet"
PIECES = 40


def backbone(dim: int, layers: int, attention: BlockKind, padding_free: bool) -> Backbone:
    blocks: dict[str, BlockKind] = {"attention": attention, "mlp": MLP}
    return Backbone(dim, blocks, ["attention mlp"] * layers, padding_free=padding_free)


class Vowels:
    """The data, and what a step of training computes on it."""

    def __init__(self, batch_size: int) -> None:
        self.data = LabelledSeriesData(VOWELS, batch_size=batch_size)
        self.data.setup("fit")
        self.batches = list(self.data.train_dataloader())

    def model(self, padding_free: bool) -> torch.nn.Module:
        layers = backbone(64, 2, partial(Attention, heads=4, causal=False), padding_free)
        return MixerClassifier(layers, **self.data.model_facts())

    def loss(self, model: Any, batch: dict[str, Any]) -> Tensor:
        return F.cross_entropy(model(batch["values"], batch["sequences"]), batch["label"])


class Chorales:
    attention: BlockKind = staticmethod(partial(RelativeAttention, heads=4, max_distance=256))

    def __init__(self, batch_size: int) -> None:
        self.data = ChoraleSequences(batch_size=batch_size, length=512)
        self.data.setup("fit")
        self.batches = list(islice(self.data.train_dataloader(), PIECES // batch_size))

    def model(self, padding_free: bool) -> torch.nn.Module:
        layers = backbone(96, 3, self.attention, padding_free)
        model = EventModel(layers, components=8, periods=[1, 4], **self.data.model_facts())
        return EventModelling(model)

    def loss(self, model: Any, batch: dict[str, Any]) -> Tensor:
        kind, gap, _ = model.nll(batch)
        return kind.sum() + gap.sum()


class RotaryChorales(Chorales):
    attention = staticmethod(partial(Attention, heads=4))


def seconds(task: Vowels | Chorales, model: torch.nn.Module, training: bool) -> float:
    start = time.process_time()
    for batch in task.batches:
        if training:
            model.zero_grad()
            task.loss(model, batch).backward()
        else:
            with torch.inference_mode():
                task.loss(model, batch)
    return time.process_time() - start


def measure(kind: type[Vowels | Chorales], batch_size: int, pairs: int) -> dict[str, Any]:
    torch.manual_seed(0)
    task = kind(batch_size)
    models = {name: task.model(name == "padding_free") for name in ("padded", "padding_free")}
    models["padding_free"].load_state_dict(models["padded"].state_dict())
    real = [batch["sequences"].real for batch in task.batches]
    row: dict[str, Any] = {
        "task": kind.__name__,
        "batch_size": batch_size,
        "batches": len(real),
        "places": sum(r.numel() for r in real),
        "real": sum(int(r.sum()) for r in real),
    }
    with torch.inference_mode():
        losses = [[task.loss(m, b) for b in task.batches] for m in models.values()]
    torch.testing.assert_close(*losses, atol=0, rtol=1e-5)
    for name, training in (("training", True), ("inference", False)):
        times: dict[str, list[float]] = {who: [] for who in models}
        for number in range(pairs + 1):
            order = list(models.items())[:: 1 if number % 2 else -1]
            for who, model in order:
                taken = seconds(task, model, training)
                if number:  # the first pair warms up
                    times[who].append(taken)
        for who, values in times.items():
            row[f"{name}_{who}_ms"] = round(1e3 * statistics.median(values), 2)
        ratios = [a / b for a, b in zip(times["padded"], times["padding_free"], strict=True)]
        found = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
        row[f"{name}_ratio"] = {key: round(value, 3) for key, value in found.items()}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for kind, sizes in ((Vowels, (8, 32, 128)), (RotaryChorales, (8, 20)), (Chorales, (8,))):
        for batch_size in sizes:
            rows.append(measure(kind, batch_size, given.pairs))
            print(rows[-1], flush=True)
    result = {
        "command": f"python benchmarks/timeseries/padding_free.py --pairs {given.pairs}",
        "device": f"{platform.machine()}, 1 thread of {os.cpu_count()} cores, shared",
        "versions": {"torch": torch.__version__},
        "rows": rows,
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
