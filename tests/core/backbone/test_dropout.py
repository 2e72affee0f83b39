"""Dropout against PyTorch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from core.backbone import Dropout


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.7, 1.0])
def test_output_and_gradient_are_pytorchs_for_a_seed(
    rate: float, dtype: torch.dtype, transposed: bool, training: bool
) -> None:
    x, weight = torch.randn(2, 30, 40, 50).to(dtype)
    results = []
    for kind in (Dropout, nn.Dropout):
        torch.manual_seed(0)
        leaf = x.clone().requires_grad_()
        y = kind(rate).train(training)(leaf.transpose(1, 2) if transposed else leaf)
        (y * weight.reshape(y.shape)).sum().backward()
        results.append((y, leaf.grad))
    assert_close(*results)


def test_holds_a_byte_a_number_for_the_backward_pass() -> None:
    held = []

    def keep(x: Tensor) -> Tensor:
        held.append(x.untyped_storage().nbytes())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        Dropout(0.3)(torch.randn(1000, requires_grad=True))
    assert sum(held) == 1000


def test_second_derivatives_are_pytorchs() -> None:
    x = torch.randn(40, dtype=torch.float64, requires_grad=True)
    results = []
    for kind in (Dropout, nn.Dropout):
        torch.manual_seed(0)
        (first,) = torch.autograd.grad((kind(0.3)(x) ** 3).sum(), x, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), x))
    assert_close(*results)


def test_gradients_of_each_sample_are_pytorchs() -> None:
    x = torch.randn(4, 30)
    results = []
    for kind in (Dropout, nn.Dropout):
        torch.manual_seed(0)
        gradient = torch.func.grad(lambda row, drop: (drop(row) ** 3).sum())
        each = torch.func.vmap(gradient, in_dims=(0, None), randomness="different")
        results.append(each(x, kind(0.3)))
    assert_close(*results)


def test_what_nothing_flows_back_to() -> None:
    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> None:
            return None

    x = torch.randn(5, requires_grad=True)
    Stop.apply(Dropout(0.3)(x)).sum().backward()
    assert x.grad is None or not x.grad.any()
