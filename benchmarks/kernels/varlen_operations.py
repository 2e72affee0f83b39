"""Attention alone: PyTorch's own beside ours, and the packed row of all notes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import core.masked_attention
from benchmarks.kernels.measuring import host_ms, median_ms, peak_bytes
from benchmarks.kernels.notes import Shape, note_lengths
from core.masked_attention import attend
from core.patterns import Full, GlobalTokens, Pattern, SlidingWindow
from core.sequences import Sequences

Rows = list[dict[str, Any]]


def operations(shape: Shape, device: torch.device) -> Rows:
    """16 heads of size 64 in bf16: PyTorch's own beside ours, then the packed row of all notes."""
    rows = []
    for batch, length in shape.operations:
        for name, work, inputs in candidates(batch, length, device):
            rows.append(timed(name, work, inputs) | {"batch": batch, "length": length})
            print(rows[-1], flush=True)
    lengths = note_lengths(shape)
    total = sum(lengths)
    pattern = SlidingWindow(shape.side + 1) | GlobalTokens(1)
    row = Sequences.packed([lengths], total).to(device)
    inputs = heads(1, total, shape.heads, device)

    def packed() -> Tensor:
        return attend(*inputs, pattern=pattern, causal=False, sequences=row)

    def fresh() -> Tensor:
        core.masked_attention._MASKS.clear()
        return packed()

    for name, work, clock in (
        ("ours, packed notes", packed, median_ms),
        ("ours, packed notes, host clock", packed, host_ms),
        ("ours, packed notes, mask built anew, host clock", fresh, host_ms),
    ):
        rows.append(timed(name, work, inputs, clock) | {"batch": 1, "length": total})
        print(rows[-1], flush=True)
    return rows


def heads(batch: int, length: int, number: int, device: torch.device) -> list[Tensor]:
    return [
        torch.randn(
            batch, length, number, 64, device=device, dtype=torch.bfloat16, requires_grad=True
        )
        for _ in "qkv"
    ]


def candidates(
    batch: int, length: int, device: torch.device
) -> Iterator[tuple[str, Callable[[], Tensor], list[Tensor]]]:
    inputs = heads(batch, length, 16, device)
    first = [x.detach().transpose(1, 2).contiguous().requires_grad_() for x in inputs]

    def ours(pattern: Pattern) -> Callable[[], Tensor]:
        return lambda: attend(*inputs, pattern=pattern, causal=True)

    yield "SDPA, causal", lambda: F.scaled_dot_product_attention(*first, is_causal=True), first
    yield "ours, causal", ours(Full()), inputs
    if device.type == "cuda":  # no backward elsewhere

        def window(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q >= k) & (q - k < 512)

        # Compiled, or it would hold length^2 integers.
        make = torch.compile(create_block_mask, dynamic=False)
        mask = make(window, None, None, length, length, device="cuda")
        flex = torch.compile(flex_attention, dynamic=False)
        yield "FlexAttention, causal window 512", lambda: flex(*first, block_mask=mask), first
    yield "ours, causal window 512", ours(SlidingWindow(512)), inputs


def timed(
    name: str,
    work: Callable[[], Tensor],
    inputs: list[Tensor],
    clock: Callable[[Callable[[], object], str], float] = median_ms,
) -> dict[str, Any]:
    device = inputs[0].device.type
    weight = torch.randn_like(work())

    def forward() -> None:
        with torch.no_grad():
            work()

    def both() -> None:
        torch.autograd.grad(work(), inputs, weight)

    return {
        "operation": name,
        "forward_ms": clock(forward, device),
        "both_ms": clock(both, device),
        "peak_bytes": peak_bytes(both, device),
    }
