"""Which version of an op runs."""

from __future__ import annotations

import os

import torch
from torch import Tensor

VARIABLE = "LONGSPAN_OPS"
CHOICES = ("auto", "reference", "triton")


def use_triton(tensor: Tensor) -> bool:
    """True if the Triton version runs for ``tensor``.

    ``auto`` takes Triton for CUDA tensors; ``LONGSPAN_OPS=reference`` or ``triton`` forces one
    (``triton`` on CPU tensors needs ``TRITON_INTERPRET=1``). Raises ValueError for other values.
    """
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in CHOICES:
        raise ValueError(f"{VARIABLE}={choice!r}: choose one of {', '.join(CHOICES)}")
    if choice == "auto":
        return tensor.is_cuda
    return choice == "triton"


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """What ``torch.autocast`` casts ``tensor`` to; None outside of it, and float64 stays."""
    kind = tensor.device.type
    if tensor.dtype == torch.float64 or kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)
