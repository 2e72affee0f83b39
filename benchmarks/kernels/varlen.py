"""Variable length: one encoder on padded batches, sorted ones and packed ones, beside Longformer.

    python benchmarks/kernels/varlen.py measure --out varlen.json
    python benchmarks/kernels/varlen.py fill varlen.json docs/attention.md
    python benchmarks/kernels/varlen.py measure --small --out small.json   # seconds, on a CPU too

64 notes of log-normal length (median 600, 99th percentile 8,000, cut at 4,096), the base shape of
12 layers, width 768, 12 heads, 256 tokens a side and the first token global. Ours and
transformers' LongformerModel run the same notes in one process, in turn, without dropout, under
bf16 autocast; a pass is all notes. Single operations stand beside them.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import core.masked_attention
from benchmarks.kernels.draw import draw_if_possible
from benchmarks.kernels.reports import environment, write_report
from core.backbone import MLP, Backbone
from core.masked_attention import attend
from core.mixers.attention import Attention
from core.patterns import Full, GlobalTokens, Pattern, SlidingWindow
from core.sequences import Sequences

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Shape:
    notes: int = 64
    median: int = 600
    percentile99: int = 8_000
    cut: int = 4_096
    seed: int = 0
    batch: int = 8  # notes
    tokens: int = 32_768  # in a packed batch filled by tokens: as many as 8 padded long notes
    layers: int = 12
    dim: int = 768
    heads: int = 12
    side: int = 256  # tokens that a window sees on each side
    vocabulary: int = 50_265
    repeats: int = 7
    operations: tuple[tuple[int, int], ...] = ((4, 4_096), (1, 16_384), (1, 65_536))


SMALL = Shape(
    notes=12,
    median=60,
    percentile99=800,
    cut=256,
    batch=4,
    tokens=1_024,
    layers=2,
    dim=64,
    heads=4,
    side=16,
    vocabulary=100,
    repeats=2,
    operations=((2, 256),),
)


def note_lengths(shape: Shape) -> list[int]:
    """Log-normal lengths by median and 99th percentile, cut; 67,624 tokens for the base shape."""
    sigma = math.log(shape.percentile99 / shape.median) / 2.326
    normal = torch.randn(shape.notes, generator=torch.Generator().manual_seed(shape.seed))
    return (shape.median * torch.exp(sigma * normal)).long().clamp(1, shape.cut).tolist()


def by_count(lengths: list[int], size: int) -> list[list[int]]:
    return [lengths[i : i + size] for i in range(0, len(lengths), size)]


def by_tokens(lengths: list[int], most: int) -> list[list[int]]:
    """Neighbouring notes of at most ``most`` tokens together."""
    batches: list[list[int]] = [[]]
    for length in lengths:
        if batches[-1] and sum(batches[-1]) + length > most:
            batches.append([])
        batches[-1].append(length)
    return batches


Batch = tuple[Tensor, Sequences]


def collate(batches: list[list[int]], shape: Shape, device: torch.device) -> list[Batch]:
    """Padded to the longest note of each batch; on the device before any clock starts."""
    made = []
    generator = torch.Generator().manual_seed(shape.seed)
    for lengths in batches:
        sequences = Sequences.padded(lengths, max(lengths))
        tokens = torch.randint(
            3, shape.vocabulary, (len(lengths), max(lengths)), generator=generator
        )
        tokens = torch.where(sequences.real, tokens, 1)
        made.append((tokens.to(device), sequences.to(device)))
    return made


class Encoder(nn.Module):
    """Token and position embeddings under a backbone with Longformer's pattern."""

    def __init__(self, shape: Shape, *, padding_free: bool, compile_blocks: bool = False) -> None:
        super().__init__()
        pattern = SlidingWindow(shape.side + 1) | GlobalTokens(1)

        def attention(dim: int) -> Attention:
            return Attention(
                dim,
                causal=False,
                heads=shape.heads,
                rotary_base=None,
                pattern=pattern,
                bias=True,
            )

        def mlp(dim: int) -> MLP:
            return MLP(dim, approximate="none")

        self.token = nn.Embedding(shape.vocabulary, shape.dim)
        self.position = nn.Embedding(shape.cut, shape.dim)
        self.backbone = Backbone(
            shape.dim,
            {"attention": attention, "mlp": mlp},
            f"(attention mlp)*{shape.layers}",
            padding_free=padding_free,
            compile_blocks=compile_blocks,
        )

    def forward(self, tokens: Tensor, sequences: Sequences) -> Tensor:
        place = torch.arange(tokens.shape[1], device=tokens.device)
        return self.backbone(self.token(tokens) + self.position(place), sequences=sequences)


class Longformer(nn.Module):
    """transformers' model of the same shape, its first token global."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        config = transformers.LongformerConfig(
            attention_window=2 * shape.side,
            vocab_size=shape.vocabulary,
            hidden_size=shape.dim,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=4 * shape.dim,
            max_position_embeddings=shape.cut + 2,
            pad_token_id=1,
        )
        self.model = transformers.LongformerModel(config, add_pooling_layer=False)

    def forward(self, tokens: Tensor, sequences: Sequences) -> Tensor:
        first = torch.zeros_like(tokens)
        first[:, 0] = 1
        return self.model(
            tokens, attention_mask=sequences.real.long(), global_attention_mask=first
        ).last_hidden_state


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def one_pass(model: nn.Module, batches: list[Batch], gradient: bool) -> None:
    for tokens, sequences in batches:
        with (
            torch.set_grad_enabled(gradient),
            torch.autocast(tokens.device.type, torch.bfloat16),
        ):
            hidden = model(tokens, sequences)
        if gradient:
            hidden.float().square().mean().backward()
            model.zero_grad(set_to_none=True)


def encoders(shape: Shape, device: torch.device, compiled: bool) -> Rows:
    """Tokens a second and peak memory of each model on each arrangement of the notes."""
    lengths = note_lengths(shape)
    filed = collate(by_count(lengths, shape.batch), shape, device)
    ordered = collate(by_count(sorted(lengths), shape.batch), shape, device)
    filled = collate(by_tokens(lengths, shape.tokens), shape, device)
    torch.manual_seed(shape.seed)
    longformer = Longformer(shape).to(device).eval()
    packed = Encoder(shape, padding_free=True).to(device).eval()
    padded = Encoder(shape, padding_free=False).to(device).eval()
    padded.load_state_dict(packed.state_dict())
    variants: list[tuple[str, str, nn.Module, list[Batch]]] = [
        ("LongformerModel", "padded, file order", longformer, filed),
        ("LongformerModel", "padded, sorted by length", longformer, ordered),
        ("ours", "padded, file order", padded, filed),
        ("ours", "padded, sorted by length", padded, ordered),
        ("ours", "packed, file order", packed, filed),
        ("ours", "packed by tokens", packed, filled),
    ]
    if compiled:
        fused = Encoder(shape, padding_free=True, compile_blocks=True).to(device).eval()
        fused.load_state_dict(packed.state_dict())
        variants.append(("ours, compiled blocks", "packed by tokens", fused, filled))
    rows = []
    for gradient in (False, True):
        passes = [functools.partial(one_pass, m, batches, gradient) for *_, m, batches in variants]
        taken = in_turn(passes, shape.repeats, device)
        for work, times, (name, arrangement, _, batches) in zip(
            passes, taken, variants, strict=True
        ):
            row: dict[str, Any] = {
                "model": name,
                "arrangement": arrangement,
                "gradient": gradient,
                "batches": len(batches),
                "places": sum(tokens.numel() for tokens, _ in batches),
            }
            if times is not None:
                middle = statistics.median(times)
                row |= {
                    "seconds": middle,
                    "fastest": min(times),
                    "slowest": max(times),
                    "tokens_per_second": sum(lengths) / middle,
                    "peak_bytes": peak(work, device),
                }
            rows.append(row)
            print(row, flush=True)
    return [*rows, difference(packed, padded, filed)]


def in_turn(
    passes: list[functools.partial[None]], repeats: int, device: torch.device
) -> list[list[float] | None]:
    """Seconds of ``repeats`` passes of each after two to warm up; None for what does not fit."""
    taken: list[list[float] | None] = [[] for _ in passes]
    for turn in range(repeats + 2):  # the first two compile and fill caches
        for i, work in enumerate(passes):
            times = taken[i]
            if times is None:
                continue
            wait(device)
            started = time.perf_counter()
            try:
                work()
            except torch.OutOfMemoryError:
                taken[i] = None
                torch.cuda.empty_cache()
                continue
            wait(device)
            if turn >= 2:
                times.append(time.perf_counter() - started)
    return taken


def peak(work: Callable[[], None], device: torch.device) -> int | None:
    """Most bytes allocated above what all models hold while nothing runs."""
    if device.type != "cuda":
        return None
    wait(device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    wait(device)
    return torch.cuda.max_memory_allocated() - before


@torch.no_grad()
def difference(packed: nn.Module, padded: nn.Module, batches: list[Batch]) -> dict[str, Any]:
    """Root mean square of packed minus padded output over that of the padded, on real tokens."""
    apart = whole = torch.zeros((), dtype=torch.float64)
    for tokens, sequences in batches:
        with torch.autocast(tokens.device.type, torch.bfloat16):
            one, other = (m(tokens, sequences)[sequences.real].double() for m in (packed, padded))
        apart = apart + (one - other).square().sum().cpu()
        whole = whole + other.square().sum().cpu()
    return {"model": "ours", "packed_minus_padded_rms_ratio": float((apart / whole).sqrt())}


def milliseconds(
    work: Callable[[], Any], device: torch.device, repeats: int, waited: bool = False
) -> float:
    """Median time of a call.

    do_bench queues its calls without waiting. Where the host is the slower one, as when it makes a
    mask of many small kernels, the GPU ends one call while the host prepares the next, and the time
    is the host's period, whatever the GPU does in it. ``waited`` lets nothing overlap.
    """
    if device.type == "cuda" and not waited:
        from triton.testing import do_bench

        return float(do_bench(work, return_mode="median"))
    times = []
    for _ in range(repeats + 1):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times[1:])


def operations(shape: Shape, device: torch.device) -> Rows:
    """16 heads of size 64 in bf16: PyTorch's own beside ours, then the packed row of all notes."""
    rows = []
    for batch, length in shape.operations:
        for name, work, inputs in candidates(batch, length, device):
            rows.append(timed(name, work, inputs, shape) | {"batch": batch, "length": length})
            print(rows[-1], flush=True)
    lengths = note_lengths(shape)
    total = sum(lengths)
    pattern = SlidingWindow(shape.side + 1) | GlobalTokens(1)
    row = Sequences.packed([lengths], total).to(device)
    inputs = heads(1, total, shape.heads, device)

    def packed() -> Tensor:
        return attend(*inputs, pattern=pattern, causal=False, sequences=row)

    def fresh() -> Tensor:
        core.masked_attention._MASKS.clear()
        return packed()

    for name, work, waited in (
        ("ours, packed notes", packed, False),
        ("ours, packed notes, host clock", packed, True),
        ("ours, packed notes, mask built anew, host clock", fresh, True),
    ):
        rows.append(timed(name, work, inputs, shape, waited) | {"batch": 1, "length": total})
        print(rows[-1], flush=True)
    return rows


def heads(batch: int, length: int, number: int, device: torch.device) -> list[Tensor]:
    return [
        torch.randn(
            batch, length, number, 64, device=device, dtype=torch.bfloat16, requires_grad=True
        )
        for _ in "qkv"
    ]


def candidates(
    batch: int, length: int, device: torch.device
) -> Iterator[tuple[str, Callable[[], Tensor], list[Tensor]]]:
    inputs = heads(batch, length, 16, device)
    first = [x.detach().transpose(1, 2).contiguous().requires_grad_() for x in inputs]

    def ours(pattern: Pattern) -> Callable[[], Tensor]:
        return lambda: attend(*inputs, pattern=pattern, causal=True)

    yield "SDPA, causal", lambda: F.scaled_dot_product_attention(*first, is_causal=True), first
    yield "ours, causal", ours(Full()), inputs
    if device.type == "cuda":  # no backward elsewhere

        def window(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q >= k) & (q - k < 512)

        # Compiled, or it would hold length^2 integers.
        make = torch.compile(create_block_mask, dynamic=False)
        mask = make(window, None, None, length, length, device="cuda")
        flex = torch.compile(flex_attention, dynamic=False)
        yield "FlexAttention, causal window 512", lambda: flex(*first, block_mask=mask), first
    yield "ours, causal window 512", ours(SlidingWindow(512)), inputs


def timed(
    name: str,
    work: Callable[[], Tensor],
    inputs: list[Tensor],
    shape: Shape,
    waited: bool = False,
) -> dict[str, Any]:
    device = inputs[0].device
    weight = torch.randn_like(work())

    def forward() -> None:
        with torch.no_grad():
            work()

    def both() -> None:
        torch.autograd.grad(work(), inputs, weight)

    return {
        "operation": name,
        "forward_ms": milliseconds(forward, device, shape.repeats, waited),
        "both_ms": milliseconds(both, device, shape.repeats, waited),
        "peak_bytes": peak(both, device),
    }


def measure(out: Path, device: torch.device, small: bool = False, compiled: bool = False) -> None:
    """Writes the report to ``out`` and a figure beside it."""
    shape = SMALL if small else Shape()
    lengths = note_lengths(shape)
    report = {
        **environment(device.type),
        "transformers": transformers.__version__,
        "command": " ".join(["python", *sys.argv]),
        "protocol": (
            "A pass is all notes; models in turn, median of the passes after two; host clock "
            "around a synchronised pass; bf16 autocast, no dropout, tokens on the device; "
            "peak memory above that of the idle models; "
            "gradient: forward, mean square, backward; operations: triton do_bench medians, those "
            "marked host clock synchronised before and after each call"
        ),
        "shape": asdict(shape),
        "tokens": sum(lengths),
        "longest": max(lengths),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    report["operations"] = []
    report["encoders"] = encoders(shape, device, compiled)
    write_report(out, report)  # a stopped run keeps this part
    report["operations"] = operations(shape, device)
    write_report(out, report)
    draw_if_possible(out, out.with_suffix(".png"))


BEGIN, END = "<!-- varlen: begin -->", "<!-- varlen: end -->"


def tables(report: dict[str, Any]) -> str:
    """The report as Markdown."""

    def speed(row: dict[str, Any]) -> str:
        if "seconds" not in row:
            return "does not fit | "
        memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.2f}"
        return f"{row['tokens_per_second']:,.0f} | {memory}"

    timed_rows = [row for row in report["encoders"] if "gradient" in row]
    keys = dict.fromkeys((row["model"], row["arrangement"]) for row in timed_rows)
    found = {(row["model"], row["arrangement"], row["gradient"]): row for row in timed_rows}
    lines = [
        f"{report['device']}, torch {report['torch']}, transformers {report['transformers']}; "
        f"{report['shape']['notes']} notes, {report['tokens']:,} tokens. {report['protocol']}.",
        "",
        "| model | batches | tokens/s | peak GiB | with gradient, tokens/s | peak GiB |",
        "|---|---|---|---|---|---|",
    ]
    for model, arrangement in keys:
        both = (speed(found[model, arrangement, gradient]) for gradient in (False, True))
        lines.append(f"| {model} | {arrangement} | {' | '.join(both)} |")
    (apart,) = (row for row in report["encoders"] if "gradient" not in row)
    ratio = apart["packed_minus_padded_rms_ratio"]
    lines += [
        "",
        f"Packed and padded outputs differ by {ratio:.1e} of their root mean square.",
        "",
        "| operation | batch x length | forward, ms | forward and backward, ms |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['operation']} | {row['batch']} x {row['length']:,} | {row['forward_ms']:.2f} | "
        f"{row['both_ms']:.2f} |"
        for row in report["operations"]
    ]
    return "\n".join(lines)


def fill(args: argparse.Namespace) -> None:
    page = args.page.read_text()
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    made = tables(json.loads(args.report.read_text()))
    args.page.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("measure", help="run and write a JSON report")
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    one.add_argument("--small", action="store_true", help="a shape that a CPU runs in seconds")
    one.add_argument("--compile", action="store_true", help="also with compile_blocks")
    one.set_defaults(run=lambda a: measure(a.out, torch.device(a.device), a.small, a.compile))
    other = commands.add_parser("fill", help="put a report's tables between the marks of a page")
    other.add_argument("report", type=Path)
    other.add_argument("page", type=Path)
    other.set_defaults(run=fill)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
