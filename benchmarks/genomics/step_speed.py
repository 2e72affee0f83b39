"""A training step of HyenaDNA tiny (2 layers, width 128) on the CPU, ours beside the authors' code.

    python benchmarks/genomics/step_speed.py path/to/standalone_hyenadna.py --out step_speed.json

Both in one process, in turn, on the same tokens with the same head: forward, cross-entropy,
backward, AdamW. The median ratio of the pairs is what counts on a noisy machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.genomics.official import load_official, official_model
from core.objectives import next_token_targets, token_loss
from genomics.models.hyenadna import HyenaDNA


class Official(nn.Module):
    """Their backbone under the tied head of their language model."""

    def __init__(self, module: Any, length: int) -> None:
        super().__init__()
        self.inner = official_model(module, 128, 2, length)

    def forward(self, tokens: Tensor) -> Tensor:
        weight = self.inner.backbone.embeddings.word_embeddings.weight
        return self.inner(tokens) @ weight.T


def stepper(model: nn.Module, tokens: Tensor) -> Callable[[], float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    targets = next_token_targets(tokens)

    def step() -> float:
        started = time.perf_counter()
        loss = token_loss(model(tokens), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return time.perf_counter() - started

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("official", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    module = load_official(args.official)
    rows = []
    for length, batch in ((1024, 8), (8192, 1)):
        torch.manual_seed(0)
        tokens = torch.randint(7, 11, (batch, length))
        steps = [
            stepper(HyenaDNA(128, 2, length), tokens),
            stepper(Official(module, length), tokens),
        ]
        for step in steps * 2:
            step()
        pairs = [(steps[0](), steps[1]()) for _ in range(args.pairs)]
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        rows.append(
            {
                "length": length,
                "batch": batch,
                "ours_ms": 1e3 * ours,
                "official_ms": 1e3 * theirs,
                "official_over_ours": statistics.median(b / a for a, b in pairs),
            }
        )
        print(rows[-1], flush=True)
    report = {
        "torch": torch.__version__,
        "threads": args.threads,
        "pairs": args.pairs,
        "protocol": "medians of alternating steps, float32, 2 warm-up steps each",
        "rows": rows,
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
