"""Long convolution off the main table: other lengths, short filters, pieces, part of the band.

    python benchmarks/kernels/conv_extra.py --out results/
    python benchmarks/kernels/conv_extra.py --out results/ --device cpu

Lengths that are short, 4,194,304, or no powers of two; 128 taps over 65,536 positions; a second
piece of 65,536 behind a history as long; half and a quarter of the frequencies; float16 and
float32, which are torch.fft's transforms with Triton steps between them. No gates, bf16 in and out
but for those, float32 filters. In the rows of a band torch.fft and "longspan without band" keep
every frequency: another operation of the same size, and what the option is to save time against.
FlashFFTConv takes powers of two and whole filters. Prints a table and writes fft_conv_extra.json;
protocol as in conv.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.kernels import conv
from benchmarks.kernels.measuring import (
    Contestant,
    Function,
    Tensors,
    floor_ms,
    jobs,
    taking_part,
)
from benchmarks.kernels.reports import OURS, Job, run_whole
from core.ops.fft_conv import fft_conv, fft_conv_reference

KERNEL = "fft_conv_extra"
LONGEST_PEER = 2**21  # FlashFFTConv's longest transform is twice that


@dataclass(frozen=True)
class Case:
    """``taps`` of the filter, ``past`` positions of history, the share of the ``band``; everything
    but the filter is of ``dtype``."""

    batch: int
    channels: int
    length: int
    taps: int
    past: int = 0
    band: float = 1.0
    dtype: torch.dtype = torch.bfloat16

    @property
    def named(self) -> dict[str, int | float | str]:
        """Where it names no dtype, it is bfloat16."""
        named = str(self.dtype).removeprefix("torch.")
        return {
            "length": self.length,
            "batch": self.batch,
            "channels": self.channels,
            "taps": self.taps,
            "history": self.past,
            "band": self.band,
            **({} if self.dtype == torch.bfloat16 else {"dtype": named}),
        }

    @property
    def whole(self) -> bool:
        return self.taps == self.length and not self.past and self.band == 1

    def bytes(self) -> tuple[int, int]:
        """Forward; forward and backward. The history is read like u and has a gradient like it."""
        rows = self.batch * self.channels * self.dtype.itemsize
        forward = rows * (2 * self.length + self.past) + self.channels * self.taps * 4
        backward = rows * (3 * self.length + 2 * self.past) + self.channels * self.taps * 8
        return forward, forward + backward


def whole(batch: int, channels: int, length: int) -> Case:
    return Case(batch, channels, length, length)


CASES = [
    whole(64, 768, 256),
    whole(64, 768, 512),
    whole(64, 768, 1_000),
    whole(4, 768, 50_000),
    whole(1, 256, 1_000_000),
    whole(1, 64, 4_194_304),
    Case(4, 768, 65_536, 128),
    Case(4, 768, 65_536, 65_536, past=65_535),
    *(
        Case(batch, channels, length, length, band=band)
        for batch, channels, length in (
            (64, 768, 1_024),
            (16, 768, 4_096),
            (16, 768, 16_384),
            (1, 256, 1_048_576),
        )
        for band in (1.0, 0.5, 0.25)
    ),
    *(
        Case(batch, channels, length, length, dtype=dtype)
        for dtype in (torch.float16, torch.float32)
        for batch, channels, length in ((64, 768, 1_024), (16, 768, 16_384), (2, 384, 262_144))
    ),
]
SMALL = [
    whole(2, 4, 50),
    Case(2, 4, 64, 8),
    Case(2, 4, 64, 64, past=63),
    Case(2, 4, 64, 64, 0, 0.5),
    Case(2, 4, 64, 64, dtype=torch.float16),
    Case(2, 4, 64, 64, dtype=torch.float32),
]


def with_history(convolve: Function) -> Function:
    """``convolve(u, k)`` of all that was fed, without the outputs of the positions before."""

    def compute(u: Tensor, k: Tensor, history: Tensor) -> Tensor:
        result: Tensor = convolve(torch.cat([history, u], 2), k)[..., history.shape[-1] :]
        return result

    return compute


def contestants(case: Case) -> list[Contestant]:
    """Those that serve ``case``, under the names of the main table."""

    def ours(tensors: Tensors) -> Function:
        return lambda **inputs: fft_conv(**inputs, band=case.band)

    def torch_fft(tensors: Tensors) -> Function:
        convolve = conv.torch_fft(tensors)
        return with_history(convolve) if case.past else convolve

    other = "" if case.band == 1 else "all frequencies"
    chosen = [
        Contestant(OURS, ours),
        Contestant("longspan reference ops", ours, ops="reference"),
        Contestant("torch.fft", torch_fft, other=other),
    ]
    if case.band < 1:
        chosen.append(Contestant(f"{OURS} without band", conv.ours, other=other))
    power = case.length & (case.length - 1) == 0
    built = case.dtype == torch.bfloat16  # what it is beside in the main table
    if case.whole and built and power and 128 <= case.length <= LONGEST_PEER:
        chosen += [c for c in conv.CONTESTANTS if c.module == "flashfftconv"]
    return chosen


def definition(case: Case) -> Function:
    if case.past:
        return with_history(fft_conv_reference)
    return lambda u, k: fft_conv_reference(u, k, band=case.band)


def inputs(case: Case, device: str) -> tuple[dict[str, Tensor], Tensor]:
    """Fresh random tensors of fft_conv by name, and a gradient of the output."""

    def draw(length: int) -> Tensor:
        return torch.randn(case.batch, case.channels, length, device=device).to(case.dtype)

    k = torch.randn(case.channels, case.taps, device=device) / case.taps**0.5
    tensors = {"u": draw(case.length), "k": k}
    if case.past:
        tensors["history"] = draw(case.past)
    return tensors, draw(case.length)


def rows(cases: Sequence[Case], device: str) -> Iterator[Job]:
    for case in cases:
        torch.manual_seed(case.length)
        tensors, dy = inputs(case, device)
        check = conv.check_of(tensors, dy, definition(case))
        forward, both = (floor_ms(nbytes, device) for nbytes in case.bytes())
        chosen = taking_part(contestants(case), device)
        yield from jobs(case.named, (forward, both), chosen, (tensors, dy), check, KERNEL)


def work(device: str) -> Iterator[Job]:
    """Every case; small ones on a CPU."""
    return rows(CASES if device == "cuda" else SMALL, device)


def main() -> None:
    run_whole(__doc__, KERNEL, work, conv.PEERS)


if __name__ == "__main__":
    main()
