"""The two rules by which an op's result is judged against a float64 reference."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

RMS_LIMIT = {
    torch.bfloat16: 5e-3,
    torch.float16: 5e-3,
    torch.float32: 1e-5,
    torch.float64: 1e-12,
}


def assert_close_to_reference(
    name: str,
    got: Tensor,
    reference64: Tensor,
    plain: Tensor,
    dtype: torch.dtype,
    gradient: bool = False,
) -> None:
    """Checks ``got`` against ``reference64`` (the definition in float64), in two ways.

    The root-mean-square error, divided by the root-mean-square of the reference, stays below the
    limit of ``dtype``. The largest error is at most twice (three times for gradients) that of
    ``plain``, a plain PyTorch version computed in ``dtype``. ``dtype`` is the precision of the
    computation under test: a float32 gradient of a bf16 computation is judged as bf16.
    """
    assert got.shape == reference64.shape, (
        f"{name}: shape {tuple(got.shape)}, reference {tuple(reference64.shape)}"
    )
    assert torch.isfinite(got).all(), f"{name}: not finite"
    if got.numel() == 0:
        return
    reference64 = reference64.detach().double()
    error = got.detach().double().sub_(reference64).abs_()
    plain_error = plain.detach().double().sub_(reference64).abs_()

    scale = reference64.square().mean().sqrt().item()
    rms = error.square().mean().sqrt().item()
    assert rms <= RMS_LIMIT[dtype] * scale, (
        f"{name}: rms error ratio {rms / max(scale, 1e-300):.2e}, limit {RMS_LIMIT[dtype]:.0e}"
    )
    largest, plain_largest = error.max().item(), plain_error.max().item()
    assert largest <= (3 if gradient else 2) * plain_largest, (
        f"{name}: largest error {largest:.2e}, plain PyTorch in {dtype} has {plain_largest:.2e}"
    )


def assert_all_close_to_reference(
    got: Mapping[str, Tensor],
    reference64: Mapping[str, Tensor],
    plain: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> None:
    """`assert_close_to_reference` of each by its name; gradients are named "gradient ..."."""
    for name, tensor in got.items():
        gradient = name.startswith("gradient")
        assert_close_to_reference(name, tensor, reference64[name], plain[name], dtype, gradient)
