"""Triton kernels compile for a GPU that is not here: what the interpreter lets pass fails there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[3]

# In a process of its own: elsewhere kernels are decorated for the interpreter.
SCRIPT = r"""
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from core.ops.fft_conv import long_kernel, short_kernel

HALF = {"consts", "z_ptr", "spectrum_ptr", "past_ptr", "f_ptr", "v_ptr", "g_ptr"}
ACTIVATIONS = {"x_ptr", "pre_ptr", "dy_ptr", "post_ptr", "gate_ptr", "out1_ptr", "out2_ptr",
               "gate1_ptr", "gate2_ptr"}

def kind(name):
    if name in HALF:
        return "*fp16"
    if name in ACTIVATIONS:
        return "*bf16"
    return "*fp32" if name.endswith("_ptr") else "fp32" if name == "norm" else "i32"

def compiled(kernel, ones=(), **options):
    # a count of 1 is a constant to Triton, not a tensor
    constants = {**options, **dict.fromkeys(ones, 1)}
    names = [p.name for p in kernel.params]
    signature = {n: "constexpr" if n in constants else kind(n) for n in names}
    source = ASTSource(kernel, signature, {(i,): constants[n] for i, n in enumerate(names)
                                           if n in constants})
    target = GPUTarget("cuda", 90, 32)
    made = triton.compile(source, target=target, options={"num_warps": 4, "num_stages": 1})
    assert made.asm["cubin"], kernel.__name__
    # an operand of 32 columns reached beyond shared memory on an H100 (README.md of fft_conv)
    widths = set(re.findall(r"wgmma[.]mma_async[.\w]*[.]m64n(\d+)k16", made.asm["ptx"]))
    assert all(int(width) >= 64 for width in widths), (kernel.__name__, widths)
    print(kernel.__name__, flush=True)

TILE, SHARED, BAND = ({"COLS": 64 // n, "REPEAT": n, "HALF": half}
                      for n, half in ((1, False), (8, False), (8, True)))
GATES = {"HAS_PRE": True, "HAS_SKIP": True, "HAS_GATE1": True, "HAS_OUT2": True, "HAS_GATE2": True}
COUNTS = ("channels", "rows", "windows", "groups")
compiled(short_kernel.convolve_kernel, COUNTS, **TILE, TILES=2, CONJ=True, WINDOWED=True, **GATES)
compiled(short_kernel.convolve_kernel, (), **SHARED, TILES=1, CONJ=False, WINDOWED=False, **GATES)
for tile in (SHARED, BAND):
    for whole in (True, False):
        compiled(short_kernel.correlate_kernel, COUNTS, **tile, WINDOWED=False, WHOLE=whole,
                 HAS_REVERSE=True, HAS_PRE=True, HAS_POST=True, HAS_SKIP=True)
compiled(short_kernel.convolve_kernel, (), **BAND, TILES=2, CONJ=True, WINDOWED=False, **GATES)
for tile in (TILE, SHARED, BAND):
    compiled(short_kernel.filter_kernel, ("channels",), **tile, HAS_REVERSE=True)
    compiled(short_kernel.filter_gradient_kernel, ("groups", "channels"), **tile, HAS_REVERSE=True)
compiled(long_kernel.row_stats_kernel, ("batch", "rows", "pieces"), HAS_PRE=True, HAS_DY=True,
         HAS_POST=True, BLOCK=2048)
OUTER = {"N1": 16, "BM": 16, "BK": 16, "BN": 128}
compiled(long_kernel.outer_kernel, ("batch", "rows"), HAS_GATE=True, **OUTER)
compiled(long_kernel.outer_inverse_kernel, ("batch", "rows"), **GATES, **OUTER)
for tile in (TILE, {**TILE, "HALF": True}):
    compiled(long_kernel.inner_convolve_kernel, ("batch",), **tile, N1=64, TILES=2, CONJ=True)
    compiled(long_kernel.inner_spectrum_kernel, (), **tile, N1=64, HAS_REVERSE=True)
    compiled(long_kernel.inner_correlate_kernel, ("batch", "channels"), **tile, N1=64,
             HAS_REVERSE=True)
"""


def run(*words: str) -> str:
    # the root first: beside a script in tests/, tests/core would stand for the package
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_convolutions_compile_for_hopper() -> None:
    assert len(run("-c", SCRIPT).split()) == 22


@pytest.mark.parametrize("op", ["prefix_attention", "ssd"])
def test_recurrences_compile_for_hopper(op: str) -> None:
    folder = ROOT / "core" / "ops" / op
    source = "".join(file.read_text() for file in folder.glob("kernel_*.py"))
    kernels = set(re.findall(r"^def (\w+_kernel)\(", source, re.MULTILINE))
    compiled = run(str(ROOT / "tests" / "compile_kernels.py"), op).split("torch.")[1:]
    types, *_ = zip(*(part.split(maxsplit=1) for part in compiled), strict=True)
    assert types == ("float32", "bfloat16", "float16")
    for part in compiled:
        assert set(part.split()[1:]) == kernels
