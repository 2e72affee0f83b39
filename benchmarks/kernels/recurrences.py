"""State space duality, the recurrence of Mamba-2, beside fla's simple GLA and mamba_ssm's kernels.

    python benchmarks/kernels/recurrences.py --out results/
    python benchmarks/kernels/recurrences.py --out results/ --device cpu --lengths 64 256

bf16, 65,536 tokens, 16 heads of 64, state 128; B and C of their own for each head, and shared by
all. Prints a table and writes ssd.json and, with matplotlib, ssd.png. Peers that are importable
are measured; one that fails is recorded as such. Errors are those at 512 tokens, where the masked
product in float64 is at hand.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.kernels.measuring import (
    OURS,
    Contestant,
    Function,
    Row,
    Tensors,
    differentiate,
    error_ratio,
    floor_ms,
    measure,
    run,
    taking_part,
)
from core.ops.ssd import ssd

HEAD_DIM, STATE = 64, 128
CHECKED = 512  # tokens of the comparison with float64
PEERS = {"fla": "fla-core", "mamba_ssm": "mamba-ssm"}


def ours(tensors: Tensors) -> Function:
    def compute(x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return ssd(x, log_decay, B, C)[0]

    return compute


def simple_gla(tensors: Tensors) -> Function:
    """fla's gated linear attention with a number a head as the gate; it has no groups."""
    from fla.ops.simple_gla import chunk_simple_gla

    def compute(x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor) -> Tensor:
        share = x.shape[2] // B.shape[2]
        if share > 1:
            B, C = B.repeat_interleave(share, 2), C.repeat_interleave(share, 2)
        y: Tensor = chunk_simple_gla(q=C, k=B, v=x, g=log_decay, scale=1.0)[0]
        return y

    return compute


def mamba_ssm(tensors: Tensors) -> Function:
    """The authors' Triton kernels. Their decay is dt A and their input dt x, so dt is 1 here."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    def compute(x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor) -> Tensor:
        A = log_decays(x.shape[2], x.device)
        y: Tensor = mamba_chunk_scan_combined(x, log_decay / A, A, B, C, chunk_size=256)
        return y

    return compute


CONTESTANTS = [
    Contestant(OURS, ours),
    Contestant("longspan reference ops", ours, ops="reference"),
    Contestant("fla simple GLA", simple_gla, module="fla"),
    Contestant("mamba_ssm SSD", mamba_ssm, module="mamba_ssm", unlike=("log_decay",)),
]


def log_decays(heads: int, device: torch.device | str) -> Tensor:
    """(heads,) between -1 and -0.01; the same at each position, which mamba_ssm's dt of 1 asks."""
    return -torch.logspace(-2, 0, heads, device=device)


def inputs(
    batch: int, length: int, heads: int, groups: int, device: str
) -> tuple[dict[str, Tensor], Tensor]:
    """Fresh random tensors of ssd by name, and a gradient of the output."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(batch, length, *shape, device=device).bfloat16()

    tensors = {
        "x": draw(heads, HEAD_DIM),
        "log_decay": log_decays(heads, device).expand(batch, length, heads).contiguous(),
        "B": draw(groups, STATE),
        "C": draw(groups, STATE),
    }
    return tensors, draw(heads, HEAD_DIM)


def masked_product(x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """y_t = sum over s <= t of exp(a_{s+1} + ... + a_t) (C_t . B_s) x_s (Dao and Gu 2024)."""
    share = x.shape[2] // B.shape[2]
    B, C = B.repeat_interleave(share, 2), C.repeat_interleave(share, 2)
    total = log_decay.cumsum(1).transpose(1, 2)
    decay = (total[..., :, None] - total[..., None, :]).tril().exp().tril()
    return torch.einsum("blhn,bshn,bhls,bshp->blhp", C, B, decay, x)


class Check:
    """Errors of a contestant on a short problem of the same heads against float64."""

    def __init__(self, heads: int, groups: int, length: int, device: str) -> None:
        self.tensors, self.dy = inputs(1, length, heads, groups, device)
        wide = {name: x.double() for name, x in self.tensors.items()}
        self.reference = differentiate(masked_product, wide, self.dy.double())

    def __call__(self, function: Function) -> dict[str, float]:
        got = differentiate(function, self.tensors, self.dy)
        return {name: error_ratio(got[name], x) for name, x in self.reference.items()}


def forward_bytes(tokens: int, heads: int, groups: int) -> int:
    """x, B, C read and y written in bf16, log-decays read in float32."""
    return tokens * (2 * (2 * heads * HEAD_DIM + 2 * groups * STATE) + 4 * heads)


def backward_bytes(tokens: int, heads: int, groups: int) -> int:
    """dy and the inputs read, a gradient written for each input."""
    return tokens * (2 * (3 * heads * HEAD_DIM + 4 * groups * STATE) + 8 * heads)


def rows(
    lengths: list[int], tokens: int, heads: int, contestants: list[Contestant], device: str
) -> Iterator[Row]:
    for groups in (heads, 1):
        torch.manual_seed(groups)
        check = Check(heads, groups, min(CHECKED, tokens), device)
        for length in lengths:
            batch = max(1, tokens // length)
            tensors, dy = inputs(batch, length, heads, groups, device)
            sizes = batch * length, heads, groups
            forward = forward_bytes(*sizes)
            floors = (
                floor_ms(forward, device),
                floor_ms(forward + backward_bytes(*sizes), device),
            )
            case = {"length": length, "batch": batch, "heads": heads, "groups": groups}
            for contestant in contestants:
                row = Row("ssd", contestant.name, case, *floors)
                yield measure(row, contestant, tensors, dy, check)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2_048, 8_192, 65_536])
    parser.add_argument("--tokens", type=int, help="batch times length; 65536, on a CPU 256")
    parser.add_argument("--heads", type=int, help="16, on a CPU 2")
    names = [contestant.name for contestant in CONTESTANTS]
    parser.add_argument("--contestants", nargs="+", choices=names, default=names)
    args = parser.parse_args()
    tokens, heads = (65_536, 16) if args.device == "cuda" else (256, 2)
    tokens, heads = args.tokens or tokens, args.heads or heads
    chosen = taking_part([c for c in CONTESTANTS if c.name in args.contestants], args.device)
    measured = rows(args.lengths, tokens, heads, chosen, args.device)
    run(measured, args.out, args.device, PEERS)


if __name__ == "__main__":
    main()
