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


def kernels(*files: Path) -> set[str]:
    source = "".join(file.read_text() for file in files)
    return set(re.findall(r"^def (\w+_kernel)\(", source, re.MULTILINE))


def compiled(op: str) -> dict[str, set[str]]:
    """The kernels that calls of the op launched, by type."""
    # In a process of its own: elsewhere kernels are decorated for the interpreter. The root first:
    # beside a script in tests/, tests/core would stand for the package.
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "compile_kernels.py"), op],
        env={**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    parts = (part.split() for part in done.stdout.split("torch.")[1:])
    return {dtype: set(names) for dtype, *names in parts}


def test_convolutions_compile_for_hopper() -> None:
    folder = ROOT / "core" / "ops" / "fft_conv"
    around_fft = kernels(folder / "kernel.py")
    products = kernels(folder / "short_kernel.py", folder / "long_kernel.py")
    assert compiled("fft_conv") == {
        "bfloat16": products,
        "float16": around_fft,
        "float32": around_fft,
    }


@pytest.mark.parametrize("op", ["prefix_attention", "ssd"])
def test_recurrences_compile_for_hopper(op: str) -> None:
    every = kernels(*(ROOT / "core" / "ops" / op).glob("kernel_*.py"))
    assert compiled(op) == dict.fromkeys(("float32", "bfloat16", "float16"), every)
