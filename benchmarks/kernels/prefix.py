"""Prefix attention, the recurrence of Aaren, beside what PyTorch offers for it.

    python benchmarks/kernels/prefix.py --out results/
    python benchmarks/kernels/prefix.py --out results/ --device cpu

bf16 values, float32 scores, 65,536 positions of 16 heads of 64, at lengths from 1,024 to 65,536:
ours, its chunked reference, PyTorch's associative scan over (m, u, w) as the paper has it, and two
cumulative sums, which is what a user writes first: one shift for the whole row, so that scores of a
wide range underflow where ours do not. No peer has this kernel. Prints a table and writes
prefix_attention.json and, with matplotlib, prefix_attention.png. Errors are those at 512 positions,
where the softmax over every prefix in float64 is at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.kernels.measuring import (
    Check,
    Contestant,
    Function,
    Tensors,
    floor_ms,
    jobs,
    taking_part,
)
from benchmarks.kernels.reports import OURS, Job, run_whole
from core.ops.prefix_attention import prefix_attention

KERNEL = "prefix_attention"
HEAD_DIM = 64
CHECKED = 512  # positions of the comparison with float64
TOKENS, HEADS = 65_536, 16
LENGTHS = (1_024, 4_096, 16_384, 65_536)
SMALL_TOKENS, SMALL_HEADS, SMALL_LENGTHS = 256, 2, (64, 256)  # on a CPU
PEERS: dict[str, str] = {}


def ours(tensors: Tensors) -> Function:
    def compute(scores: Tensor, values: Tensor) -> Tensor:
        return prefix_attention(scores, values)[0]

    return compute


def cumulative_sums(tensors: Tensors) -> Function:
    def compute(scores: Tensor, values: Tensor) -> Tensor:
        weights = (scores - scores.amax(1, keepdim=True)).exp()[..., None]
        result = (weights * values).cumsum(1) / weights.cumsum(1)
        return result.to(values.dtype)

    return compute


def associative_scan(tensors: Tensors) -> Function:
    """(m, u, w) o (m', u', w'), the operator of Feng et al. 2024, section 3.2."""
    from torch._higher_order_ops.associative_scan import associative_scan as scan

    Triple = tuple[Tensor, Tensor, Tensor]

    def combine(a: Triple, b: Triple) -> Triple:
        m = torch.maximum(a[0], b[0])
        old, new = (a[0] - m).exp(), (b[0] - m).exp()
        return m, old * a[1] + new * b[1], old * a[2] + new * b[2]

    def compute(scores: Tensor, values: Tensor) -> Tensor:
        m = scores[..., None]
        start = m, torch.ones_like(m), values.float()
        # it compiles anew for each length, with and without gradients; eight is dynamo's limit
        with torch._dynamo.config.patch(recompile_limit=64):
            _, u, w = scan(combine, start, 1, combine_mode="generic")
        return (w / u).to(values.dtype)

    return compute


CONTESTANTS = [
    Contestant(OURS, ours),
    Contestant("longspan reference ops", ours, ops="reference", longest=16_384),
    Contestant("torch, cumulative sums", cumulative_sums),
    Contestant("torch, associative scan", associative_scan),
]


def inputs(batch: int, length: int, heads: int, device: str) -> tuple[dict[str, Tensor], Tensor]:
    """Fresh random tensors of prefix_attention by name, and a gradient of the output."""

    def draw() -> Tensor:
        return torch.randn(batch, length, heads, HEAD_DIM, device=device).bfloat16()

    scores = torch.randn(batch, length, heads, device=device)
    return {"scores": scores, "values": draw()}, draw()


def softmax_over_prefixes(scores: Tensor, values: Tensor) -> Tensor:
    """The definition: row t of a softmax over all positions, those after t hidden."""
    length = scores.shape[1]
    later = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu(1)
    rows = scores.transpose(1, 2)[:, :, None].masked_fill(later, -torch.inf)
    return torch.einsum("bhts,bshp->bthp", rows.softmax(-1), values)


def check_of(length: int, heads: int, device: str) -> Check:
    """On a short problem of the same heads."""
    return Check(softmax_over_prefixes, *inputs(1, length, heads, device))


def forward_bytes(tokens: int, heads: int) -> int:
    """Values read and the output written in bf16, scores read in float32."""
    return tokens * heads * (2 * 2 * HEAD_DIM + 4)


def backward_bytes(tokens: int, heads: int) -> int:
    """dy, scores and values read, a gradient written for each of the last two."""
    return tokens * heads * (2 * 3 * HEAD_DIM + 2 * 4)


def rows(
    lengths: Sequence[int], tokens: int, heads: int, contestants: list[Contestant], device: str
) -> Iterator[Job]:
    torch.manual_seed(0)
    check = check_of(min(CHECKED, tokens), heads, device)
    for length in lengths:
        batch = max(1, tokens // length)
        forward = forward_bytes(batch * length, heads)
        both = forward + backward_bytes(batch * length, heads)
        floors = floor_ms(forward, device), floor_ms(both, device)
        case = {"length": length, "batch": batch, "heads": heads, "width": HEAD_DIM}
        drawn = inputs(batch, length, heads, device)
        yield from jobs(case, floors, contestants, drawn, check, KERNEL)


def work(device: str) -> Iterator[Job]:
    """Every length of the table; small ones on a CPU."""
    chosen = taking_part(CONTESTANTS, device)
    if device == "cuda":
        return rows(LENGTHS, TOKENS, HEADS, chosen, device)
    return rows(SMALL_LENGTHS, SMALL_TOKENS, SMALL_HEADS, chosen, device)


def main() -> None:
    run_whole(__doc__, KERNEL, work, PEERS)


if __name__ == "__main__":
    main()
