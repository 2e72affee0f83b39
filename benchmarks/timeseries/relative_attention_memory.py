"""Memory of relative attention: skewing against gathering an embedding for each pair.

    python benchmarks/timeseries/relative_attention_memory.py --out relative_attention_memory.json

One layer (width 128, 4 heads, a distance for every pair), batch 1, float32: forward, then backward
of the sum. Each case runs in a process of its own; `peak_mb` is the highest resident memory of the
process, from the kernel, less that before the layer is called; `seconds` is the median of three
further passes. The largest difference between the two outputs is written beside them.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.timeseries.resident import highest_resident, report
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
    before = highest_resident()
    layer(x).sum().backward()
    peak = highest_resident() - before
    seconds = []
    for _ in range(PASSES):
        start = time.perf_counter()
        layer(x).sum().backward()
        seconds.append(time.perf_counter() - start)
    return {
        "form": form,
        "length": length,
        "peak_mb": round(peak, 1),
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


def facts() -> dict[str, Any]:
    layer = {"dim": DIM, "heads": HEADS, "batch": 1, "dtype": "float32"}
    return {"layer": layer, "largest_difference_512": difference(512)}


if __name__ == "__main__":
    script, lengths = "relative_attention_memory.py", (512, 1024, 2048)
    report(script, __doc__, measure, ("skewed", "gathered"), lengths, facts)
