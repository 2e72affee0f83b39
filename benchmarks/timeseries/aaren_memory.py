"""What one more stamp costs a stream: Aaren's state against the cache of causal attention.

    python benchmarks/timeseries/aaren_memory.py --out aaren_memory.json

One layer (width 128, 4 heads), batch 1, float32, no gradient. Each case runs in its own process:
the state after ``length`` stamps, then ``step`` for 50 more. `state_mb` is what the state holds,
`peak_mb` the highest resident memory of the process less that before there was a state, `ms` the
median and `fastest_ms` the least processor time of a step. Aaren's state is its forward pass's; the
cache is filled at random, since its forward pass grows with the square.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from benchmarks.timeseries.resident import highest_resident, report
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
    before = highest_resident()
    state = state_after(mixer, length)
    seconds = []
    for _ in range(STEPS):
        x = torch.randn(1, DIM)
        start = time.process_time()
        _, state = mixer.step(x, state)
        seconds.append(time.process_time() - start)
    peak = highest_resident() - before
    held = sum(part.nbytes for part in state if isinstance(part, torch.Tensor))
    return {
        "mixer": name,
        "length": length,
        "state_mb": round(held / MB, 4),
        "peak_mb": round(peak, 1),
        "ms": round(1000 * statistics.median(seconds), 3),
        "fastest_ms": round(1000 * min(seconds), 3),
    }


def facts() -> dict[str, Any]:
    layer = {"dim": DIM, "heads": HEADS, "batch": 1, "dtype": "float32"}
    return {"layer": layer, "steps": STEPS}


if __name__ == "__main__":
    lengths = (1024, 4096, 16_384, 65_536)
    report("aaren_memory.py", __doc__, measure, ("aaren", "attention"), lengths, facts)
