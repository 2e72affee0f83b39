"""Runs Triton kernels without a GPU, in Triton's interpreter."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

# Triton reads this when a kernel is decorated, so it is set before anything imports Triton.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def interpreted_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ops on CPU tensors run their Triton version in the interpreter; skips where it is off."""
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton compiles for the GPU in this process")
    monkeypatch.setenv("LONGSPAN_OPS", "triton")


@pytest.fixture
def nan_filled() -> Iterator[None]:
    """Fresh memory holds NaN, so that what a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
