"""Positions in attention on Bach's chorales: relative by skewing, rotary, sinusoidal, none.

Aaren too: attention without positions whose query is learned.

    python benchmarks/timeseries/chorale_positions.py --out chorale_positions.json

The same model (two layers of attention and MLP, width 64, 4 heads), data (music21's corpus, split
by whole chorale with one seed), optimiser and number of epochs for all; seeds change the weights
and the order of batches. No choice is made by the test split: it is scored once, after the last
epoch. Every model also reads the gap to the event before and the phase of beat and bar, as the
shipped config does. Written: nats an event (``loss``), of its type (``nll_type``) and a gap given
the type (``nll_time``), accuracy, beside the baselines; seconds of training on one core.
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

import lightning as L
import torch
from torch import Tensor, nn

from core.backbone import MLP, Backbone
from core.jobs.optim import Optimisation
from core.mixers import Aaren, Attention, RelativeAttention
from timeseries.data.chorales import ChoraleSequences
from timeseries.models import EventModel
from timeseries.tasks import EventModelling

DIM, HEADS, LAYERS, DISTANCE = 64, 4, 2, 256
DEFAULT = ["relative", "rotary", "sinusoidal", "none"]

ATTENTION: dict[str, Callable[[int], nn.Module]] = {
    "relative": lambda dim: RelativeAttention(dim, heads=HEADS, max_distance=DISTANCE),
    "rotary": lambda dim: Attention(dim, heads=HEADS),
    "sinusoidal": lambda dim: Attention(dim, heads=HEADS, rotary_base=None),
    "none": lambda dim: Attention(dim, heads=HEADS, rotary_base=None),
    "aaren": lambda dim: Aaren(dim, heads=HEADS),
}


class Sinusoidal(nn.Module):
    """Adds sines and cosines of the place in the row (Vaswani et al. 2017)."""

    def forward(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0]
        place = torch.arange(x.shape[1], device=x.device)[:, None]
        rate = 10_000.0 ** (-torch.arange(0, DIM, 2, device=x.device) / DIM)
        return x + torch.cat([(place * rate).sin(), (place * rate).cos()], -1), *inputs[1:]


def fit(positions: str, seed: int, epochs: int, data: ChoraleSequences) -> dict[str, Any]:
    L.seed_everything(seed, verbose=False)
    blocks = {"attention": ATTENTION[positions], "mlp": MLP}
    backbone = Backbone(DIM, blocks, ["attention mlp"] * LAYERS, dropout=0.1)
    if positions == "sinusoidal":
        backbone.register_forward_pre_hook(Sinusoidal())
    types = data.model_facts()["types"]
    model = EventModel(backbone, types=types, periods=[1, 4])
    task = EventModelling(model, Optimisation(lr=2e-3))
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    start = time.perf_counter()
    trainer.fit(task, datamodule=data)
    seconds = time.perf_counter() - start
    (metrics,) = trainer.test(task, datamodule=data, verbose=False)
    named = {key.removeprefix("test/"): value for key, value in metrics.items()}
    return {
        "positions": positions,
        "seed": seed,
        "parameters": sum(p.numel() for p in task.parameters()),
        "seconds": round(seconds, 1),
        **{key: round(value, 4) for key, value in named.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--positions", nargs="+", choices=ATTENTION, default=DEFAULT)
    given = parser.parse_args()
    import music21

    torch.set_num_threads(1)
    data = ChoraleSequences(batch_size=8, length=512)
    rows = []
    for seed in given.seeds:
        for positions in given.positions:
            rows.append(fit(positions, seed, given.epochs, data))
            print(rows[-1], flush=True)
    kinds = ("loss", "nll_type", "nll_time", "accuracy", "seconds")
    summary = {
        positions: {
            f"{kind}_{name}": round(of([r[kind] for r in rows if r["positions"] == positions]), 4)
            for kind in kinds
            for name, of in (("mean", statistics.fmean), ("std", statistics.stdev))
        }
        for positions in given.positions
        if len(given.seeds) > 1
    }
    result = {
        "command": shlex.join(
            ["python", "benchmarks/timeseries/chorale_positions.py", *sys.argv[1:]]
        ),
        "device": f"{platform.machine()}, 1 thread of {os.cpu_count()} cores, shared",
        "versions": {"torch": torch.__version__, "music21": music21.__version__},
        "epochs": given.epochs,
        "chorales": {split: len(data.sequences(split)) for split in ("train", "val", "test")},
        "summary": summary,
        "rows": rows,
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
