"""Compiles Triton kernels for a GPU that is not here: the ops run on CPU tensors as on a GPU, but
each launch only compiles. A script, because elsewhere kernels are decorated for the interpreter; it
names each type and the kernels compiled for it."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

SHARED = 227 * 1024  # bytes of shared memory that a program may have on an H100


class Hopper:
    """As much of a driver as compiling asks for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def only_compile(kernel: Any, grid: Any) -> Any:
    def launch(*arguments: Any, **options: Any) -> None:
        made = kernel.run(*arguments, grid=grid, warmup=True, **options)
        assert made.asm["cubin"], kernel.__name__
        assert made.metadata.shared <= SHARED, f"{kernel.__name__}: {made.metadata.shared} bytes"
        if kernel.fn.__module__.startswith("core.ops.fft_conv"):
            # an operand of 32 columns reached beyond shared memory on an H100 (README.md there)
            widths = set(re.findall(r"wgmma[.]mma_async[.\w]*[.]m64n(\d+)k16", made.asm["ptx"]))
            assert all(int(width) >= 64 for width in widths), (kernel.__name__, widths)
        print(kernel.__name__, flush=True)  # noqa: T201

    return launch


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype, requires_grad=True)


def fft_conv() -> None:
    from core.ops.fft_conv import fft_conv, monarch

    def convolve(
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        *names: str,
        taps: int | None = None,
        band: float = 1.0,
    ) -> None:
        u, k = leaf(*shape, dtype=dtype), leaf(shape[1], taps or shape[2])
        wide = {"skip": shape[1:2], "reverse_k": k.shape}
        options = {
            name: leaf(*wide[name]) if name in wide else leaf(*shape, dtype=dtype) for name in names
        }
        fft_conv(u, k, band=band, **options).float().sum().backward()

    monarch.WORTH_THREE_PASSES = 1  # as for inputs that are large enough
    every = ("skip", "pre_gate", "post_gate", "reverse_k")
    half = torch.bfloat16
    print(half, flush=True)  # noqa: T201
    # sequences that share a tile, fill one, go over windows; in each a count of 1 is a constant
    convolve((3, 2, 60), half, *every)
    convolve((2, 1, 4096), half)
    convolve((2, 3, 5000), half, "skip", taps=100)
    convolve((20, 2, 500), half, *every, band=0.5)
    # three passes, of 16, 32 and 256 lines
    convolve((2, 2, 5000), half, *every)
    convolve((1, 2, 70_000), half)
    convolve((1, 2, 70_000), half, band=0.5)
    convolve((1, 1, 2**20), half)
    for dtype in (torch.float16, torch.float32):
        print(dtype, flush=True)  # noqa: T201
        convolve((3, 2, 60), dtype, *every)


def prefix_attention() -> None:
    from core.ops.prefix_attention import PrefixState, prefix_attention

    for dtype, packed in ((torch.float32, True), (torch.bfloat16, False), (torch.float16, True)):
        print(dtype, flush=True)  # noqa: T201
        scores, values = leaf(2, 200, 4), leaf(2, 200, 4, 16, dtype=dtype)
        document = torch.zeros(2, 200, dtype=torch.int32) if packed else None
        state = PrefixState(leaf(2, 4), leaf(2, 4), leaf(2, 4, 16))
        out, after = prefix_attention(scores, values, initial_state=state, document=document)
        (out.float().sum() + after.w.sum()).backward()


def ssd() -> None:
    from core.ops.ssd import kernel, ssd

    # Head and state of the shipped configs; float16 with narrow heads has a chunk of its own.
    for dtype, head_dim, size, packed in (
        (torch.float32, 16, 16, True),
        (torch.bfloat16, 64, 32, True),
        (torch.float16, 16, 16, False),
    ):
        print(dtype, flush=True)  # noqa: T201
        x, log_decay = leaf(2, 200, 4, head_dim, dtype=dtype), leaf(2, 200, 4)
        B, C = (leaf(2, 200, 2, size, dtype=dtype) for _ in range(2))
        document = torch.zeros(2, 200, dtype=torch.int32) if packed else None
        first = leaf(2, 4, head_dim, size) if packed else None
        kernel._splits = lambda launch: 2  # as where one part would not fill the GPU
        y, after = ssd(x, log_decay, B, C, initial_state=first, document=document)
        (y.float().sum() + after.sum()).backward()


def main(op: str) -> None:
    driver.set_active(Hopper())
    JITFunction.__getitem__ = only_compile
    os.environ["LONGSPAN_OPS"] = "triton"
    {"fft_conv": fft_conv, "prefix_attention": prefix_attention, "ssd": ssd}[op]()


if __name__ == "__main__":
    main(sys.argv[1])
