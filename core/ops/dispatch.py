"""Which version of an op runs, and by which way it is called."""

from __future__ import annotations

import os

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

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


def seen_by_autograd_alone(*tensors: Tensor | None) -> bool:
    """Whether a call of an op may go around PyTorch's dispatcher, which takes longer than to launch
    short kernels does: nothing compiles, traces or maps it, and no tensor is of a class of its own
    or a negation that is still to be computed (``z.conj().imag``).
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or any(
            type(x) not in (Tensor, torch.nn.Parameter) or x.is_neg()
            for x in tensors
            if x is not None
        )
    )


def refuse_tangents(op: str, *tensors: Tensor | None) -> None:
    """NotImplementedError under forward-mode differentiation, where PyTorch would drop what the
    ``tensors`` of an operator carry, and give zeros without a word."""
    if torch.compiler.is_compiling():
        return
    for x in tensors:
        if x is not None and unpack_dual(x).tangent is not None:
            raise NotImplementedError(
                f"{op}: differentiates backward only; of torch.func.jvp and dual tensors take the "
                "reference"
            )


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """What ``torch.autocast`` casts ``tensor`` to; None outside of it, and float64 stays."""
    kind = tensor.device.type
    if tensor.dtype == torch.float64 or kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)
