"""What counts as a number, whoever made it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from core.arguments import check_integers, check_positive, check_share, check_tensors
from core.masked_attention import attend
from core.patterns import Full


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_integers(value: object) -> None:
    check_integers("here", value=value)


@pytest.mark.parametrize("value", [True, np.bool_(True), 3.0, torch.tensor(3), "3", None])
def test_what_is_no_integer(value: object) -> None:
    with pytest.raises(ValueError, match=r"^here: value must be an integer of at least 1, got"):
        check_integers("here", value=value)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5)])
def test_numbers(value: object) -> None:
    check_positive("here", value=value)
    check_share("here", value=value)


@pytest.mark.parametrize("value", [True, float("nan"), torch.tensor(0.5), "0.5", None])
def test_what_is_no_number(value: object) -> None:
    with pytest.raises(ValueError, match=r"^here: value must be positive, got"):
        check_positive("here", value=value)
    with pytest.raises(ValueError, match=r"^here: value must lie in \[0, 1\), got"):
        check_share("here", value=value)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_tensors_without_rows_of_one_length() -> None:
    rows = [torch.ones(3, 8), torch.ones(2, 8)]
    for layout in (torch.strided, torch.jagged):
        nested = torch.nested.nested_tensor(rows, layout=layout)
        with pytest.raises(ValueError, match=r"^here: x must be dense, got a nested tensor$"):
            check_tensors("here", {"x": nested})


class Twice(torch.nn.Module):
    """Attention behind as many tokens as there are."""

    def forward(self, x: Tensor) -> Tensor:
        keys = torch.cat([x, x], 1)
        return attend(x, keys, keys, pattern=Full(), causal=True, seen=x.shape[1])


def test_lengths_that_export_traces_are_integers() -> None:
    x = torch.randn(1, 9, 2, 4)
    length = torch.export.Dim("length", min=2, max=64)
    exported = torch.export.export(Twice(), (x,), dynamic_shapes=({1: length},), strict=False)
    for other in (x, torch.randn(1, 17, 2, 4)):
        torch.testing.assert_close(exported.module()(other), Twice()(other))
