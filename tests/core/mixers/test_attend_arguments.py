"""What does not fit ``attend`` is refused in one line, before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from core.masked_attention import attend
from core.patterns import SlidingWindow
from core.sequences import Sequences


def tensors(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


Q = (2, 9, 4, 6)


@pytest.mark.parametrize(
    ("key", "value", "options", "message"),
    [
        (tensors(2, 9, 6), tensors(*Q), {}, r"key must be floating point .*shape \(2, 9, 6\)"),
        (tensors(*Q, dtype=torch.int32), tensors(*Q), {}, "key must be .* got torch.int32"),
        (tensors(*Q, dtype=torch.bfloat16), tensors(*Q), {}, "key is torch.bfloat16 on cpu, query"),
        (tensors(*Q), tensors(*Q, device="meta"), {}, "value is torch.float32 on meta, query"),
        (tensors(2, 8, 4, 6), tensors(*Q), {}, r"key must be \(2, 9, kv_heads, 6\)"),
        (tensors(2, 9, 3, 6), tensors(*Q), {}, r"key .* kv_heads dividing 4, got \(2, 9, 3, 6\)"),
        (tensors(2, 9, 4, 5), tensors(*Q), {}, r"key must be \(2, 9, kv_heads, 6\)"),
        (tensors(*Q), tensors(2, 9, 2, 6), {}, r"value must have the shape of key, \(2, 9, 4, 6\)"),
        (None, tensors(*Q), {}, "key must be a tensor, got NoneType"),
        (tensors(*Q), [0.0], {}, "value must be a tensor, got list"),
        (
            tensors(2, 9, 4, 0),
            tensors(*Q),
            {},
            r"key must have heads of some width, got \(2, 9, 4,",
        ),
        (tensors(*Q), tensors(*Q), {"pattern": "window"}, "pattern must be one of core.patterns"),
        (tensors(*Q), tensors(*Q), {"pattern": None}, "pattern must be .* got None"),
        (
            tensors(*Q),
            tensors(*Q),
            {"sequences": [9, 9]},
            "sequences must be .*Sequences, got list",
        ),
        (tensors(*Q), tensors(*Q), {"seen": -1}, "seen must be an integer of at least 0, got -1"),
        (tensors(*Q), tensors(*Q), {"seen": 0.5}, "seen must be an integer of at least 0, got 0.5"),
        (
            tensors(*Q),
            tensors(*Q),
            {"seen": 2, "sequences": Sequences.padded([3, 9], 9)},
            "seen=2 must be 0 with sequences",
        ),
        (tensors(*Q), tensors(*Q), {"seen": 7}, r"key must be \(2, 11, kv_heads, 6\)"),
        (tensors(*Q), tensors(*Q), {"causal": "no"}, "causal must be True or False, got 'no'"),
        (tensors(*Q), tensors(*Q), {"dropout": 1.5}, "dropout must lie in"),
        (tensors(*Q), tensors(*Q), {"dropout": None}, "dropout must lie in"),
        (
            tensors(*Q),
            tensors(*Q),
            {"sequences": Sequences.padded([3], 9)},
            r"sequences describe \(1, 9\) on cpu, query is \(2, 9, 4, 6\) on cpu",
        ),
        (
            tensors(*Q),
            tensors(*Q),
            {"sequences": Sequences(torch.zeros(2, 9, dtype=torch.int32, device="meta"))},
            r"sequences describe \(2, 9\) on meta, query is \(2, 9, 4, 6\) on cpu",
        ),
    ],
)
def test_what_does_not_fit_is_named_before_anything_runs(
    key: Any, value: Any, options: dict[str, Any], message: str
) -> None:
    options = {"pattern": SlidingWindow(3), "causal": True, **options}
    with pytest.raises(ValueError, match=f"^attend: {message}") as caught:
        attend(tensors(*Q), key, value, **options)
    assert "\n" not in str(caught.value)
