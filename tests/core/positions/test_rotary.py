"""Rotary positions against complex rotation in float64 and against transformers' Llama."""

from __future__ import annotations

import cmath

import pytest
import torch

from core.positions import Rotary


def test_pairs_turn_as_complex_numbers() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    position = torch.tensor([[0, 1, 2, 0, 1], [7, 8, 900, 1_048_575, 16_777_217]])
    out = Rotary(8, base=500.0)(x, position)
    for row in range(2):
        for t in range(5):
            for i in range(4):
                turn = cmath.exp(1j * int(position[row, t]) * 500.0 ** (-2 * i / 8))
                for head in range(3):
                    pair = complex(x[row, t, head, i], x[row, t, head, i + 4]) * turn
                    got = complex(out[row, t, head, i], out[row, t, head, i + 4])
                    assert abs(got - pair) < 1e-8


def test_products_depend_on_the_distance_only() -> None:
    torch.manual_seed(0)
    rotary = Rotary(16)
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)

    def product(query: int, key: int) -> float:
        turned = rotary(q, torch.tensor([[query]])) * rotary(k, torch.tensor([[key]]))
        return float(turned.sum())

    assert product(9, 4) == pytest.approx(product(1_000_005, 1_000_000), abs=1e-8)
    assert product(9, 4) != pytest.approx(product(9, 5), abs=1e-3)


def test_far_positions_keep_float32_accuracy() -> None:
    x = torch.randn(1, 1, 1, 64, dtype=torch.float64)
    position = torch.tensor([[1_000_003]])
    exact, single = Rotary(64)(x, position), Rotary(64)(x.float(), position)
    assert single.dtype == torch.float32
    assert float((exact - single).abs().max()) < 1e-6


def test_half_precision_is_rounded_once() -> None:
    x = torch.randn(1, 9, 2, 16).bfloat16()
    position = torch.arange(9)[None]
    assert torch.equal(Rotary(16)(x, position), Rotary(16)(x.float(), position).bfloat16())


def test_equals_llama() -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = llama.LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )
    x = torch.randn(2, 11, 4, 16)
    position = torch.arange(11)[None] + torch.tensor([[0], [100]])
    cos, sin = llama.LlamaRotaryEmbedding(config)(x, position)
    expected, _ = llama.apply_rotary_pos_emb(x, x, cos, sin, unsqueeze_dim=2)
    torch.testing.assert_close(Rotary(16, 5000.0)(x, position), expected, atol=3e-5, rtol=0)


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="head_dim must be even"):
        Rotary(7)
    with pytest.raises(ValueError, match="base must be positive"):
        Rotary(8, 0.0)
    with pytest.raises(ValueError, match=r"x must be \(batch, length, heads, 8\)"):
        Rotary(8)(torch.zeros(1, 2, 8), torch.zeros(1, 2))
