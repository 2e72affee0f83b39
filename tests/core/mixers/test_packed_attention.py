"""Packed rows through FlexAttention, as far as a machine without a GPU can follow them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import core.masked_attention
from core.masked_attention import attend
from core.patterns import GlobalTokens, RandomBlocks, SlidingWindow
from core.sequences import Sequences

BIGBIRD = SlidingWindow(60) | GlobalTokens(3) | RandomBlocks(64, 2)


@pytest.fixture
def flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention whatever the device, its graphs run as they are captured."""
    torch._dynamo.reset()
    graphs = torch.compile(core.masked_attention._flex_blocks, fullgraph=True, backend="aot_eager")
    monkeypatch.setattr(core.masked_attention, "_takes_flex", lambda query, dropout: True)
    monkeypatch.setattr(core.masked_attention, "_compiled_flex", lambda: graphs)
    monkeypatch.setattr(core.masked_attention, "_MASKS", type(core.masked_attention._MASKS)())


def row(number: int) -> Sequences:
    """A row of some documents; another number gives other documents and another length."""
    generator = torch.Generator().manual_seed(number)
    lengths = torch.randint(1, 250, (3 + number % 5,), generator=generator).tolist()
    return Sequences.packed([[129, *lengths]], 129 + sum(lengths))


def inputs(length: int) -> list[Tensor]:
    torch.manual_seed(length)
    return list(torch.randn(3, 1, length, 2, 16))


@pytest.mark.usefixtures("flex")
@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::DeprecationWarning:torch")
def test_twenty_packed_lengths_make_two_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = torch._dynamo.utils.counters["stats"]
    before, lengths = stats["unique_graphs"], set()
    with torch.no_grad():
        for number in range(20):
            sequences = row(number)
            heads = inputs(sequences.document.shape[1])
            lengths.add(heads[0].shape[1])
            out = attend(*heads, pattern=BIGBIRD, causal=False, sequences=sequences)
            with monkeypatch.context() as patch:
                patch.setattr(core.masked_attention, "_takes_flex", lambda query, dropout: False)
                other = attend(*heads, pattern=BIGBIRD, causal=False, sequences=sequences)
            torch.testing.assert_close(out, other, atol=2e-6, rtol=1e-5)
    assert len(lengths) == 20
    assert stats["unique_graphs"] - before <= 2  # one for the first length, one for any
    assert len(core.masked_attention._MASKS) == core.masked_attention._MASKS_KEPT


@pytest.mark.usefixtures("flex")
@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::DeprecationWarning:torch")
def test_layers_share_a_mask_and_a_row_of_whole_blocks_is_not_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = []
    make = core.masked_attention.flex_mask

    def counted(*args: Any) -> Any:
        made.append(make(*args))
        return made[-1]

    monkeypatch.setattr(core.masked_attention, "flex_mask", counted)
    sequences = Sequences.padded([300, 20, 511], 511).one_row(128).sequences
    assert sequences.document.shape == (1, 896)
    padded: list[int] = []
    pad = torch.nn.functional.pad

    def watched(x: Tensor, *args: Any, **options: Any) -> Tensor:
        padded.append(x.ndim)
        return pad(x, *args, **options)

    monkeypatch.setattr(core.masked_attention.F, "pad", watched)
    with torch.no_grad():
        for _ in range(3):
            attend(*inputs(896), pattern=BIGBIRD, causal=True, sequences=sequences)
    assert len(made) == 1
    assert 4 not in padded  # heads are (batch, length, heads, head_dim)
