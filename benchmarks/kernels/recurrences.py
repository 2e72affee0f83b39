"""State space duality, the recurrence of Mamba-2, beside fla, mamba_ssm and mlstm_kernels.

    python benchmarks/kernels/recurrences.py --out results/
    python benchmarks/kernels/recurrences.py --out results/ --device cpu

bf16, 65,536 tokens: 16 heads of 64 and a state of 128, B and C of their own for each head and
shared by all (Mamba-2), and 8 heads of 128 with a state of 128 (mLSTM). fla's simple GLA and
mamba_ssm's chunk scan compute what `ssd` does. The mLSTM has the same products and decays, and
besides input gates, a normaliser and a running maximum: another recurrence of the same size, so its
time stands there and its error does not. Prints a table and writes ssd.json and, with matplotlib,
ssd.png. Peers that are importable are measured; one that fails is recorded as such. Errors are
those at 512 tokens, where the masked product in float64 is at hand.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
from benchmarks.kernels.reports import OURS, Job, kernel_parser, run
from core.ops.ssd import ssd

KERNEL = "ssd"
CHECKED = 512  # tokens of the comparison with float64
TOKENS = 65_536
PEERS = {"fla": "fla-core", "mamba_ssm": "mamba-ssm", "mlstm_kernels": "mlstm-kernels"}


@dataclass(frozen=True)
class Heads:
    """Sizes of a recurrence: ``heads`` of ``width``, which share ``groups`` of B and C."""

    heads: int
    width: int
    state: int
    groups: int
    lengths: tuple[int, ...]

    def case(self, batch: int, length: int) -> dict[str, int]:
        return {
            "length": length,
            "batch": batch,
            "heads": self.heads,
            "width": self.width,
            "state": self.state,
            "groups": self.groups,
        }

    def forward_bytes(self, tokens: int) -> int:
        """x, B, C read and y written in bf16, log-decays read in float32."""
        bf16 = 2 * self.heads * self.width + 2 * self.groups * self.state
        return tokens * (2 * bf16 + 4 * self.heads)

    def backward_bytes(self, tokens: int) -> int:
        """dy and the inputs read, a gradient written for each input."""
        bf16 = 3 * self.heads * self.width + 4 * self.groups * self.state
        return tokens * (2 * bf16 + 8 * self.heads)


MAMBA2 = Heads(16, 64, 128, 16, (2_048, 16_384, 65_536))
SHARED = Heads(16, 64, 128, 1, (2_048, 16_384, 65_536))
MLSTM = Heads(8, 128, 128, 8, (4_096, 16_384, 65_536))
SMALL = [Heads(2, 16, 32, 2, (64, 256)), Heads(2, 16, 32, 1, (64, 256))]  # on a CPU


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


def simple_gla_refuses() -> str | None:
    """fla raises this from its last backward kernel, after minutes of tuning those before it."""
    from fla.ops.common import chunk_o

    hopper = getattr(chunk_o, "IS_NVIDIA_HOPPER", False)
    since, fixed = (getattr(chunk_o, f"TRITON_ABOVE_{v}", False) for v in ("3_4_0", "3_7_1"))
    if not (hopper and since and not fixed) or importlib.util.find_spec("tilelang"):
        return None
    return (
        "fla refuses: Triton >= 3.4.0 and < 3.7.1 on Hopper GPUs produces incorrect results for "
        "gated chunk_bwd_dqkwg"
    )


def mamba_ssm(tensors: Tensors) -> Function:
    """The authors' Triton kernels. Their decay is dt A and their input dt x, so dt is 1 here."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    def compute(x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor) -> Tensor:
        A = log_decays(x.shape[2], x.device)
        y: Tensor = mamba_chunk_scan_combined(x, log_decay / A, A, B, C, chunk_size=256)
        return y

    return compute


def mlstm(tensors: Tensors) -> Function:
    from mlstm_kernels.torch import get_mlstm_kernel

    kernel = get_mlstm_kernel("chunkwise--triton_xl_chunk")

    def compute(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
        h: Tensor = kernel(
            q=q, k=k, v=v, i=i, f=f, chunk_size=128, autocast_kernel_dtype=torch.bfloat16
        )
        return h

    return compute


def mlstm_inputs(tensors: Tensors, dy: Tensor) -> tuple[Tensors, Tensor]:
    """Heads before positions, as its kernels want them; gates before their activations."""
    q, k, v = (tensors[name].transpose(1, 2).contiguous() for name in ("C", "B", "x"))
    i = torch.randn(q.shape[:3], device=q.device)
    f = 3 + torch.randn(q.shape[:3], device=q.device)
    return {"q": q, "k": k, "v": v, "i": i, "f": f}, dy.transpose(1, 2).contiguous()


CONTESTANTS = [
    Contestant(OURS, ours),
    Contestant("longspan reference ops", ours, ops="reference", longest=16_384),
    Contestant("fla simple GLA", simple_gla, module="fla", refuses=simple_gla_refuses),
    Contestant(
        "mlstm_kernels",
        mlstm,
        module="mlstm_kernels",
        other="mLSTM, same size",
        arrange=mlstm_inputs,
    ),
    Contestant("mamba_ssm SSD", mamba_ssm, module="mamba_ssm", unlike=("log_decay",)),
]
SLOW = ("mamba_ssm SSD",)  # tries some 110 configurations; goes last, so that the rest is had


def serves(contestant: Contestant, heads: Heads) -> bool:
    """The mLSTM has no groups and heads as wide as the state; mamba_ssm is tuned once, for 64."""
    if contestant.name == "mlstm_kernels":
        return heads.width == heads.state
    return contestant.name != "mamba_ssm SSD" or heads.width < heads.state


def log_decays(heads: int, device: torch.device | str) -> Tensor:
    """(heads,) between -1 and -0.01; the same at each position, which mamba_ssm's dt of 1 asks."""
    return -torch.logspace(-2, 0, heads, device=device)


def inputs(batch: int, length: int, sizes: Heads, device: str) -> tuple[dict[str, Tensor], Tensor]:
    """Fresh random tensors of ssd by name, and a gradient of the output."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(batch, length, *shape, device=device).bfloat16()

    decay = log_decays(sizes.heads, device).expand(batch, length, sizes.heads).contiguous()
    tensors = {
        "x": draw(sizes.heads, sizes.width),
        "log_decay": decay,
        "B": draw(sizes.groups, sizes.state),
        "C": draw(sizes.groups, sizes.state),
    }
    return tensors, draw(sizes.heads, sizes.width)


def masked_product(x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """y_t = sum over s <= t of exp(a_{s+1} + ... + a_t) (C_t . B_s) x_s (Dao and Gu 2024)."""
    share = x.shape[2] // B.shape[2]
    B, C = B.repeat_interleave(share, 2), C.repeat_interleave(share, 2)
    total = log_decay.cumsum(1).transpose(1, 2)
    decay = (total[..., :, None] - total[..., None, :]).tril().exp().tril()
    return torch.einsum("blhn,bshn,bhls,bshp->blhp", C, B, decay, x)


def check_of(sizes: Heads, length: int, device: str) -> Check:
    """On a short problem of the same heads."""
    return Check(masked_product, *inputs(1, length, sizes, device))


def rows(
    shapes: Sequence[Heads], tokens: int, contestants: list[Contestant], device: str
) -> Iterator[Job]:
    """All contestants case by case, then again for those that take minutes to start."""
    for late in (False, True):
        for sizes in shapes:
            chosen = [c for c in contestants if serves(c, sizes) and (c.name in SLOW) == late]
            if not chosen:
                continue
            torch.manual_seed(sizes.groups)
            check = check_of(sizes, min(CHECKED, tokens), device)
            for length in sizes.lengths:
                batch = max(1, tokens // length)
                forward = sizes.forward_bytes(batch * length)
                both = forward + sizes.backward_bytes(batch * length)
                floors = floor_ms(forward, device), floor_ms(both, device)
                drawn = inputs(batch, length, sizes, device)
                yield from jobs(sizes.case(batch, length), floors, chosen, drawn, check, KERNEL)


def work(device: str, names: Sequence[str] | None = None) -> Iterator[Job]:
    """Every case of the table; small ones on a CPU."""
    cuda = device == "cuda"
    shapes, tokens = ([MAMBA2, MLSTM, SHARED], TOKENS) if cuda else (SMALL, 256)
    chosen = [c for c in CONTESTANTS if names is None or c.name in names]
    return rows(shapes, tokens, taking_part(chosen, device), device)


def main() -> None:
    parser = kernel_parser(__doc__)
    names = [contestant.name for contestant in CONTESTANTS]
    parser.add_argument("--contestants", nargs="+", choices=names, default=names)
    args = parser.parse_args()
    measured = work(args.device, args.contestants)
    run(measured, args.out, KERNEL, args.device, PEERS, resume=args.resume)


if __name__ == "__main__":
    main()
