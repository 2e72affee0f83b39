"""What one more stamp costs a stream: Aaren's state against the cache of causal attention.

    python benchmarks/timeseries/aaren_memory.py --out aaren_memory.json

One layer (width 128, 4 heads), batch 1, float32, no gradient. Each case runs in its own process:
the state after ``length`` stamps, then ``step`` for 50 more. `state_mb` is what the state holds,
`peak_mb` the highest resident memory of the process less that before there was a state, `ms` the
median and `fastest_ms` the least processor time of a step. Aaren's state is its forward pass's; the
cache is filled at random, since its forward pass grows with the square.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from core.mixers import Aaren, Attention
from core.mixers.attention import AttentionState

DIM, HEADS, STEPS = 128, 4, 50
SIZE = DIM // HEADS
MB = 1024 * 1024


def state_after(mixer: Aaren | Attention, length: int) -> Any:
    if isinstance(mixer, Attention):
        cache = torch.randn(2, 1, length, HEADS, SIZE)
        return AttentionState(cache[0], cache[1], length)
    state = mixer.init_state(1)
    for start in range(0, length, 1024):
        piece = torch.randn(1, min(1024, length - start), DIM)
        _, state = mixer(piece, state=state)
    return state


@torch.no_grad()
def measure(name: str, length: int) -> dict[str, float | int | str]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    mixer = {"aaren": Aaren, "attention": Attention}[name](DIM, heads=HEADS)
    state = state_after(mixer, 2)
    mixer.step(torch.randn(1, DIM), state)  # what the libraries allocate once is not the state's
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    state = state_after(mixer, length)
    seconds = []
    for _ in range(STEPS):
        x = torch.randn(1, DIM)
        start = time.process_time()
        _, state = mixer.step(x, state)
        seconds.append(time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    held = sum(part.nbytes for part in state if isinstance(part, torch.Tensor))
    return {
        "mixer": name,
        "length": length,
        "state_mb": round(held / MB, 4),
        "peak_mb": round(peak / 1024, 1),
        "ms": round(1000 * statistics.median(seconds), 3),
        "fastest_ms": round(1000 * min(seconds), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16_384, 65_536])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one[0], int(given.one[1]))))
        return
    rows = []
    for length in given.lengths:
        for name in ("aaren", "attention"):
            words = [sys.executable, __file__, "--one", name, str(length)]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout))
            print(rows[-1], flush=True)
    result = {
        "command": shlex.join(["python", "benchmarks/timeseries/aaren_memory.py", *sys.argv[1:]]),
        "device": f"{platform.machine()}, 1 thread of {os.cpu_count()} cores, shared",
        "versions": {"torch": torch.__version__},
        "layer": {"dim": DIM, "heads": HEADS, "batch": 1, "dtype": "float32"},
        "steps": STEPS,
        "rows": rows,
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
