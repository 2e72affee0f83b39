"""Long convolution beside torch.fft and the official FlashFFTConv, if that is importable.

    python benchmarks/kernels/conv.py --out results/
    python benchmarks/kernels/conv.py --out results/ --device cpu --lengths 256 1024

Causal, bf16 in and out, float32 filter as long as the sequence; plain, and with both gates. Prints
a table and writes fft_conv.json and, with matplotlib, fft_conv.png. Peers that are importable are
measured; one that fails or runs out of memory is recorded as such.
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
from core.ops.fft_conv import fft_conv, fft_conv_reference

# length -> batch, channels
SHAPES = {
    1_024: (64, 768),
    4_096: (16, 768),
    16_384: (16, 768),
    65_536: (4, 768),
    262_144: (2, 384),
    1_048_576: (1, 256),
    2_097_152: (1, 128),
}
CHECKED = 2**23  # numbers of u that are compared with float64, which bounds the memory
PEERS = {"flashfftconv": "flashfftconv"}


def ours(tensors: Tensors) -> Function:
    return fft_conv


def torch_fft(tensors: Tensors) -> Function:
    """What a user of PyTorch writes: transforms of twice the length in float32, by autograd."""

    def convolve(
        u: Tensor, k: Tensor, pre_gate: Tensor | None = None, post_gate: Tensor | None = None
    ) -> Tensor:
        length = u.shape[-1]
        v = u.float() if pre_gate is None else u.float() * pre_gate
        spectrum = torch.fft.rfft(v, n=2 * length) * torch.fft.rfft(k, n=2 * length)
        y = torch.fft.irfft(spectrum, n=2 * length)[..., :length]
        result: Tensor = y if post_gate is None else y * post_gate
        return result.to(u.dtype)

    return convolve


def flash_fft_conv(tensors: Tensors) -> Function:
    """The authors' module; its length is that of the transform, twice the sequence's."""
    from flashfftconv import FlashFFTConv

    u = tensors["u"]
    module = FlashFFTConv(2 * u.shape[-1], dtype=u.dtype).to(u.device)

    def convolve(
        u: Tensor, k: Tensor, pre_gate: Tensor | None = None, post_gate: Tensor | None = None
    ) -> Tensor:
        result: Tensor = module(u, k, pregate=pre_gate, postgate=post_gate)
        return result

    return convolve


CONTESTANTS = [
    Contestant(OURS, ours),
    Contestant("longspan reference ops", ours, ops="reference"),
    Contestant("torch.fft", torch_fft),
    Contestant("FlashFFTConv", flash_fft_conv, module="flashfftconv"),
]


def forward_bytes(batch: int, channels: int, length: int, gates: int = 0) -> int:
    """u and the gates read, y written, in bf16; the filter read in float32."""
    return batch * channels * length * 2 * (2 + gates) + channels * length * 4


def backward_bytes(batch: int, channels: int, length: int, gates: int = 0) -> int:
    """dy, u and the gates read and their gradients written, bf16; k and dk in float32."""
    return batch * channels * length * 2 * (3 + 2 * gates) + channels * length * 4 * 2


def inputs(
    batch: int, channels: int, length: int, gated: bool, device: str
) -> tuple[dict[str, Tensor], Tensor]:
    """Fresh random tensors of fft_conv by name, and a gradient of the output."""

    def draw() -> Tensor:
        return torch.randn(batch, channels, length, device=device).bfloat16()

    tensors = {"u": draw(), "k": torch.randn(channels, length, device=device) / length**0.5}
    if gated:
        tensors |= {"pre_gate": draw(), "post_gate": draw()}
    return tensors, draw()


class Check:
    """Errors of a contestant on some channels, first and last among them, against float64."""

    def __init__(self, tensors: Tensors, dy: Tensor) -> None:
        batch, channels, length = dy.shape
        count = max(2, min(channels, CHECKED // (batch * length)))
        self.channels = torch.linspace(0, channels - 1, count, device=dy.device).long()
        self.tensors, self.dy = tensors, dy
        few = {name: self._cut(x).double() for name, x in tensors.items()}
        self.reference = differentiate(fft_conv_reference, few, self._cut(dy).double())

    def _cut(self, x: Tensor) -> Tensor:
        return x.index_select(x.ndim - 2, self.channels)

    def __call__(self, function: Function) -> dict[str, float]:
        got = differentiate(function, self.tensors, self.dy)
        return {name: error_ratio(self._cut(got[name]), x) for name, x in self.reference.items()}


def rows(
    shapes: dict[int, tuple[int, int]],
    contestants: list[Contestant],
    gates: list[bool],
    device: str,
) -> Iterator[Row]:
    for length, (batch, channels) in shapes.items():
        for gated in gates:
            torch.manual_seed(length)
            tensors, dy = inputs(batch, channels, length, gated, device)
            check = Check(tensors, dy)
            forward = forward_bytes(batch, channels, length, 2 * gated)
            both = forward + backward_bytes(batch, channels, length, 2 * gated)
            floors = floor_ms(forward, device), floor_ms(both, device)
            case = {"length": length, "batch": batch, "channels": channels, "gated": gated}
            for contestant in contestants:
                row = Row("fft_conv", contestant.name, case, *floors)
                yield measure(row, contestant, tensors, dy, check)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(SHAPES))
    parser.add_argument("--batch", type=int, help="instead of the table's")
    parser.add_argument("--channels", type=int, help="instead of the table's")
    names = [contestant.name for contestant in CONTESTANTS]
    parser.add_argument("--contestants", nargs="+", choices=names, default=names)
    parser.add_argument("--gates", nargs="+", choices=["none", "both"], default=["none", "both"])
    args = parser.parse_args()
    small = (2, 8)  # off the table and on a CPU
    table_of_shapes = SHAPES if args.device == "cuda" else {}
    shapes = {
        length: (args.batch or batch, args.channels or channels)
        for length in args.lengths
        for batch, channels in [table_of_shapes.get(length, small)]
    }
    chosen = taking_part([c for c in CONTESTANTS if c.name in args.contestants], args.device)
    measured = rows(shapes, chosen, [g == "both" for g in args.gates], args.device)
    run(measured, args.out, args.device, PEERS)


if __name__ == "__main__":
    main()
