"""Long convolution beside torch.fft and the official FlashFFTConv, if that is importable.

    python benchmarks/kernels/conv.py --out results/
    python benchmarks/kernels/conv.py --out results/ --device cpu --lengths 256 1024

Causal, bf16 in and out, float32 filter as long as the sequence; plain, and with both gates. Prints
a table and writes fft_conv.json and, with matplotlib, fft_conv.png. Peers that are importable are
measured; one that fails or runs out of memory is recorded as such. Other lengths, short filters,
pieces and bands: conv_extra.py.
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
from benchmarks.kernels.reports import OURS, Job, kernel_parser, run, size
from core.ops.fft_conv import fft_conv, fft_conv_reference

KERNEL = "fft_conv"
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
SMALL = 2, 8  # off the table and on a CPU
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


def check_of(tensors: Tensors, dy: Tensor, definition: Function = fft_conv_reference) -> Check:
    """On some channels, the first and the last among them."""
    batch, channels, length = dy.shape
    count = max(2, min(channels, CHECKED // (batch * length)))
    some = torch.linspace(0, channels - 1, count, device=dy.device).long()
    return Check(definition, tensors, dy, lambda x: x.index_select(x.ndim - 2, some))


def rows(
    shapes: dict[int, tuple[int, int]],
    contestants: list[Contestant],
    gates: Sequence[bool],
    device: str,
) -> Iterator[Job]:
    for length, (batch, channels) in shapes.items():
        for gated in gates:
            torch.manual_seed(length)
            tensors, dy = inputs(batch, channels, length, gated, device)
            check = check_of(tensors, dy)
            forward = forward_bytes(batch, channels, length, 2 * gated)
            both = forward + backward_bytes(batch, channels, length, 2 * gated)
            floors = floor_ms(forward, device), floor_ms(both, device)
            case = {"length": length, "batch": batch, "channels": channels, "gated": gated}
            yield from jobs(case, floors, contestants, (tensors, dy), check, KERNEL)


def work(device: str) -> Iterator[Job]:
    """The whole table; on a CPU two small lengths."""
    shapes = SHAPES if device == "cuda" else dict.fromkeys((64, 256), SMALL)
    return rows(shapes, taking_part(CONTESTANTS, device), [False, True], device)


def main() -> None:
    parser = kernel_parser(__doc__)
    parser.add_argument("--lengths", type=size, nargs="+", default=list(SHAPES))
    parser.add_argument("--batch", type=size, help="instead of the table's")
    parser.add_argument("--channels", type=size, help="instead of the table's")
    names = [contestant.name for contestant in CONTESTANTS]
    parser.add_argument("--contestants", nargs="+", choices=names, default=names)
    parser.add_argument("--gates", nargs="+", choices=["none", "both"], default=["none", "both"])
    args = parser.parse_args()
    table_of_shapes = SHAPES if args.device == "cuda" else {}
    shapes = {
        length: (args.batch or batch, args.channels or channels)
        for length in args.lengths
        for batch, channels in [table_of_shapes.get(length, SMALL)]
    }
    chosen = taking_part([c for c in CONTESTANTS if c.name in args.contestants], args.device)
    measured = rows(shapes, chosen, [g == "both" for g in args.gates], args.device)
    run(measured, args.out, KERNEL, args.device, PEERS, resume=args.resume)


if __name__ == "__main__":
    main()
