"""One training step of HyenaDNA by length to a million bases: time and peak memory on the GPU.

    python benchmarks/genomics/longest_context.py --out longest_context.json

The published large model's shape (width 256, 8 layers), batch 1, bf16 autocast, AdamW, with and
without recomputing each block. A length that does not fit is reported as such.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from core.jobs.optim import adamw
from core.objectives import next_token_targets, token_loss
from genomics.models.hyenadna import HyenaDNA


def step_of(length: int, width: int, layers: int, recompute: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    torch.cuda.empty_cache()
    model = HyenaDNA(width, layers, length, checkpoint_blocks=recompute).cuda()
    optimizer = adamw(model, lr=1e-4, weight_decay=0.1, warmup=0.1, steps=10)["optimizer"]
    x = torch.randint(7, 11, (1, length), device="cuda")
    targets = next_token_targets(x)
    times = []
    try:
        for _ in range(4):
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
            started = time.perf_counter()
            with torch.autocast("cuda", torch.bfloat16):
                logits = model(x)
            loss = token_loss(logits, targets)
            del logits
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
    except torch.cuda.OutOfMemoryError:
        return {"length": length, "recompute": recompute, "fits": False}
    seconds = min(times[1:])
    return {
        "length": length,
        "recompute": recompute,
        "fits": True,
        "step_ms": 1e3 * seconds,
        "tokens_per_second": length / seconds,
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20,
        "loss": loss.item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    lengths = [2**k for k in range(10, 21)]
    parser.add_argument("--lengths", type=int, nargs="+", default=lengths)
    args = parser.parse_args()
    rows = []
    for length in args.lengths:
        for recompute in (False, True):
            rows.append(step_of(length, args.width, args.layers, recompute))
            print(rows[-1], flush=True)
    report = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "width": args.width,
        "layers": args.layers,
        "protocol": "batch 1, bf16 autocast, fastest of 3 steps after one",
        "rows": rows,
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
