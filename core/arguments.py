"""Arguments that do not fit, refused in one line before anything is computed: who refuses which
argument, what it has to be, what came."""

from __future__ import annotations

import numbers
import reprlib
from collections.abc import Mapping
from typing import TypeGuard

import torch
from torch import Tensor

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
KINDS = {FLOATS: "floating point", INTEGERS: "an integer tensor"}
Dtypes = tuple[torch.dtype, ...]


def check_integers(where: str, least: int | None = 1, **given: object) -> None:
    """ValueError unless each is a whole number (a boolean is none) of at least ``least``."""
    bound = "" if least is None else f" of at least {least}"
    for name, value in given.items():
        # a length is a torch.SymInt where torch.export traces it
        whole = isinstance(value, (numbers.Integral, torch.SymInt)) and not isinstance(value, bool)
        if not whole or (least is not None and value < least):  # type: ignore[operator]
            raise ValueError(
                f"{where}: {name} must be an integer{bound}, got {reprlib.repr(value)}"
            )


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a real number, NumPy's among them; a boolean and a tensor are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_positive(where: str, **given: object) -> None:
    """ValueError unless each is a number above zero."""
    for name, value in given.items():
        if not is_number(value) or not value > 0:
            raise ValueError(f"{where}: {name} must be positive, got {reprlib.repr(value)}")


def check_share(where: str, **given: object) -> None:
    """ValueError unless each is a number in [0, 1)."""
    for name, value in given.items():
        if not is_number(value) or not 0 <= value < 1:
            raise ValueError(f"{where}: {name} must lie in [0, 1), got {reprlib.repr(value)}")


def check_flags(where: str, **given: object) -> None:
    """ValueError unless each is a boolean: a "no" would count as True."""
    for name, value in given.items():
        if not isinstance(value, bool):
            raise ValueError(f"{where}: {name} must be True or False, got {reprlib.repr(value)}")


def check_choice(where: str, choices: tuple[str, ...], **given: object) -> None:
    """ValueError unless each is one of ``choices``."""
    for name, value in given.items():
        if value not in choices:
            raise ValueError(
                f"{where}: {name} must be one of {', '.join(choices)}, got {reprlib.repr(value)}"
            )


def check_tensors(
    where: str, given: Mapping[str, object], optional: Mapping[str, object] | None = None
) -> None:
    """ValueError unless each is a dense tensor; the ``optional`` ones may be None."""
    there = {name: x for name, x in (optional or {}).items() if x is not None}
    for name, x in {**given, **there}.items():
        if not isinstance(x, Tensor):
            raise ValueError(f"{where}: {name} must be a tensor, got {type(x).__name__}")
        if x.is_nested or x.layout != torch.strided:
            kind = "a nested tensor" if x.is_nested else x.layout
            raise ValueError(f"{where}: {name} must be dense, got {kind}")


def check_kind(where: str, name: str, x: Tensor, dimensions: str, dtypes: Dtypes = FLOATS) -> None:
    """ValueError unless ``x`` is of ``dtypes``, a key of KINDS, in as many dimensions as named."""
    if x.ndim != dimensions.count(",") + 1 or x.dtype not in dtypes:
        raise ValueError(
            f"{where}: {name} must be {KINDS[dtypes]} ({dimensions}), got {x.dtype} of shape "
            f"{tuple(x.shape)}"
        )


def check_fit(
    where: str,
    device: torch.device,
    expected: Mapping[str, tuple[Tensor | None, tuple[int, ...], Dtypes]],
) -> None:
    """ValueError unless each that is not None has its shape and one of its dtypes on ``device``."""
    for name, (x, shape, dtypes) in expected.items():
        if x is None or (x.dtype in dtypes and x.shape == shape and x.device == device):
            continue
        raise ValueError(
            f"{where}: {name} must be {KINDS.get(dtypes, dtypes[0])} of shape {shape} on "
            f"{device}, got {x.dtype} of shape {tuple(x.shape)} on {x.device}"
        )
