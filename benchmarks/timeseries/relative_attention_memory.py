"""Memory of relative attention: skewing against gathering an embedding for each pair.

    python benchmarks/timeseries/relative_attention_memory.py --out relative_attention_memory.json

One layer (width 128, 4 heads, a distance for every pair), batch 1, float32: forward, then backward
of the sum. Each case runs in a process of its own; `peak_mb` is the highest resident memory of the
process, from the kernel, less that before the layer is called; `seconds` is the median of three
further passes. The largest difference between the two outputs is written beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from core.mixers import RelativeAttention

DIM, HEADS, PASSES = 128, 4, 3


class Gathered(RelativeAttention):
    """The same layer with e[j - i] put beside every pair (Shaw et al. 2018)."""

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, sequences: object) -> Tensor:
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        place = torch.arange(query.shape[2])
        distance = place - place[:, None]
        each = distance.clamp(-self.max_distance, 0) + self.max_distance
        pairs = self.relative[:, each]  # (heads, queries, keys, head_dim)
        relative = torch.einsum("bhid,hijd->bhij", query, pairs)
        scores = (query @ key.transpose(-1, -2) + relative) / self.head_dim**0.5
        weights = scores.masked_fill(distance > 0, -torch.inf).softmax(-1)
        return (weights @ value).transpose(1, 2)


def measure(form: str, length: int) -> dict[str, float | int | str]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    kind = {"skewed": RelativeAttention, "gathered": Gathered}[form]
    layer = kind(DIM, heads=HEADS, max_distance=length)
    small = torch.randn(1, 8, DIM)
    layer(small).sum().backward()  # what the libraries allocate once is not the layer's
    x = torch.randn(1, length, DIM, requires_grad=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    layer(x).sum().backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    seconds = []
    for _ in range(PASSES):
        start = time.perf_counter()
        layer(x).sum().backward()
        seconds.append(time.perf_counter() - start)
    return {
        "form": form,
        "length": length,
        "peak_mb": round(peak / 1024, 1),
        "seconds": round(statistics.median(seconds), 4),
    }


def difference(length: int) -> float:
    torch.manual_seed(0)
    skewed = RelativeAttention(DIM, heads=HEADS, max_distance=length)
    gathered = Gathered(DIM, heads=HEADS, max_distance=length)
    gathered.load_state_dict(skewed.state_dict())
    x = torch.randn(1, length, DIM)
    with torch.no_grad():
        return float((skewed(x) - gathered(x)).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one[0], int(given.one[1]))))
        return
    rows = []
    for length in given.lengths:
        for form in ("skewed", "gathered"):
            words = [sys.executable, __file__, "--one", form, str(length)]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout))
            print(rows[-1], flush=True)
    result = {
        "command": "python benchmarks/timeseries/relative_attention_memory.py",
        "device": f"{platform.machine()}, 1 thread of {os.cpu_count()} cores, shared",
        "versions": {"torch": torch.__version__},
        "layer": {"dim": DIM, "heads": HEADS, "batch": 1, "dtype": "float32"},
        "largest_difference_512": difference(512),
        "rows": rows,
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
