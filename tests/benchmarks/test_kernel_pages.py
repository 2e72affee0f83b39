"""The pages show what the committed reports hold, and the floors of attention are what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.kernels import conv, pages, splits
from benchmarks.kernels.notes import SMALL, Shape, note_lengths
from core.patterns import Full, GlobalTokens, Pattern, SlidingWindow, Tokens, block_table, visible
from core.sequences import Sequences

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_committed_reports(page: Path) -> None:
    assert page.read_text() == pages.filled(page), "run python benchmarks/kernels/pages.py"


def test_distances_of_the_convolution_are_those_of_its_report() -> None:
    report = json.loads((ROOT / "benchmarks/kernels/results/fft_conv.json").read_text())
    rows = [rows["longspan"] for _, rows in pages.cases(report, gated=False)]
    text = (ROOT / "docs/kernels.md").read_text()
    for title, name in (("forward", "forward"), ("with backward", "both")):
        cells = " | ".join(pages.floors(row, name) for row in rows)
        assert f"| {title}, measured | {cells} |" in text


def test_kernels_alone_are_those_of_their_report() -> None:
    report = json.loads((ROOT / "benchmarks/kernels/results/by_kernel.json").read_text())
    rows = splits.rows_of(report, "fft_conv")
    rows = [row for row in rows if row["case"]["length"] in conv.SHAPES]
    text = (ROOT / "docs/kernels.md").read_text()
    for title, passes, floor in (
        ("forward", "forward", "forward_floor_ms"),
        ("with backward", splits.BOTH, "both_floor_ms"),
    ):
        cells = " | ".join(f"{splits.total(row, passes) / row[floor]:.1f}" for row in rows)
        assert f"| {title}, kernels alone | {cells} |" in text


def bytes_of(length: int, batch: int) -> tuple[float, float]:
    """What a position of a channel moves, by the tables of docs/kernels.md: forward, and forward
    and backward; the second number of a pair a channel, shared by the batch."""
    if length <= 4096:
        spectrum = 4 + 4  # filter: taps, its spectrum
        forward = (2 + 2, spectrum + 4)  # convolve: u, y, spectrum
        backward = (2 + 2 + 2 + 2, spectrum + 4 + 4)  # convolve: dy, du; correlate: u, dy, dk
    else:
        filters = 4 + 4 + 4 + 4 + 4  # row_stats, outer, inner_spectrum
        outer, inner, inverse = 2 + 4, 4 + 4, 4 + 2
        forward = (2 + outer + inner + inverse, filters + 4)
        correlate = 4 + 4  # columns of u and of dy
        backward = (2 * 2 + 2 * outer + correlate + inner + inverse, 4 + 4 + 4 + filters + 4)
    first, second = (each + shared / batch for each, shared in (forward, backward))
    return first, first + second


def test_counted_bytes_of_the_convolution_are_those_of_its_kernels() -> None:
    report = json.loads((ROOT / "benchmarks/kernels/results/fft_conv.json").read_text())
    rows = [rows["longspan"] for _, rows in pages.cases(report, gated=False)]
    text = (ROOT / "docs/kernels.md").read_text()
    for i, (title, name) in enumerate((("forward", "forward"), ("with backward", "both"))):
        cells = []
        for row in rows:
            batch, channels, length = (row["case"][n] for n in ("batch", "channels", "length"))
            moved = batch * channels * length * bytes_of(length, batch)[i]
            cells.append(f"{1e3 * moved / pages.BANDWIDTH / row[f'{name}_floor_ms']:.1f}")
        assert f"| {title}, counted | {' | '.join(cells)} |" in text


@pytest.mark.parametrize("length", conv.SHAPES)
def test_work_of_each_kernel_adds_up_to_that_of_a_call(length: int) -> None:
    batch, channels = conv.SHAPES[length]
    work = splits.convolution_work(batch, channels, length)
    both = batch * channels * length * bytes_of(length, batch)[1]
    assert sum(moved for moved, _ in work.values()) == both


def test_products_of_a_tile() -> None:
    """12 products of 64 x 64 x 64 each way through a tile, a transform and a half more a filter."""
    work = splits.convolution_work(1, 1, 4096)
    product = 2 * 64**3
    assert work["convolve"][1] == 2 * 12 * product
    assert work["correlate"][1] == (12 + 6) * product
    assert work["filter"][1] == 2 * 6 * product
    lines = splits.convolution_work(1, 1, 16 * 4096)
    assert lines["inner_convolve"][1] == 2 * 16 * (16 * product)
    # a product with F1, real in and complex out: two real ones of 16 x 16 by 4,096 columns
    assert lines["outer"][1] == (3 + 2) * 2 * (2 * 16 * 16 * 4096)


def test_blocks_that_the_packed_notes_touch() -> None:
    lengths = note_lengths(Shape())
    row = Sequences.packed([lengths], sum(lengths))
    tokens = Tokens.of(sum(lengths), row)
    pattern = SlidingWindow(Shape().side + 1) | GlobalTokens(1)
    touched, covered = block_table(pattern, False, tokens, tokens, 128)
    text = (ROOT / "docs/attention.md").read_text()
    assert (
        f"keeps {int(touched.sum()):,} of {touched.numel():,} pairs of blocks, "
        f"{int(covered.sum()):,} of them"
    ) in text.replace("\n", " ")
    operation = {"operation": "ours, packed notes", "batch": 1, "length": sum(lengths)}
    more = int(touched.sum()) * 128**2 / pages.pairs_of(operation, Shape())
    assert f"hold {more:.1f} times the pairs" in (ROOT / "docs/kernels.md").read_text()


@pytest.mark.parametrize("length", [100, 700])
@pytest.mark.parametrize(
    ("name", "pattern"),
    [("SDPA, causal", Full()), ("ours, causal window 512", SlidingWindow(512))],
)
def test_pairs_of_causal_attention(length: int, name: str, pattern: Pattern) -> None:
    tokens = Tokens.of(length, None)
    row = {"operation": name, "batch": 3, "length": length}
    assert pages.pairs_of(row, SMALL) == 3 * int(visible(pattern, True, tokens, tokens).sum())


def test_pairs_of_packed_notes() -> None:
    lengths = note_lengths(SMALL)
    total = sum(lengths)
    tokens = Tokens.of(total, Sequences.packed([lengths], total))
    pattern = SlidingWindow(SMALL.side + 1) | GlobalTokens(1)
    row = {"operation": "ours, packed notes", "batch": 1, "length": total}
    assert pages.pairs_of(row, SMALL) == int(visible(pattern, False, tokens, tokens).sum())


def test_floor_of_attention_is_the_slower_of_bytes_and_products() -> None:
    row = {"operation": "SDPA, causal", "batch": 1, "length": 65_536}
    forward, both = pages.attention_floors_ms(row, SMALL)
    pairs = 65_536 * 65_537 / 2
    assert forward == pytest.approx(1e3 * 16 * pairs * 64 * 2 * 2 / 687e12)
    assert both == pytest.approx(3.5 * forward)
    row["length"] = 16
    moved = 4 * 16 * 16 * 64 * torch.bfloat16.itemsize
    assert pages.attention_floors_ms(row, SMALL)[0] == pytest.approx(1e3 * moved / 3e12)
