"""Variable length: one encoder on padded batches, sorted ones and packed ones, beside Longformer.

    python benchmarks/kernels/varlen.py --out varlen.json
    python benchmarks/kernels/varlen.py --small --out small.json   # seconds, on a CPU too

64 notes of log-normal length (median 600, 99th percentile 8,000, cut at 4,096), the base shape of
12 layers, width 768, 12 heads, 256 tokens a side and the first token global. Ours and
transformers' LongformerModel run the same notes in one process, in turn, without dropout, under
bf16 autocast; a pass is all notes. Single operations stand beside them (varlen_operations.py).
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from benchmarks.kernels.draw import draw_if_possible
from benchmarks.kernels.measuring import peak_bytes, wait
from benchmarks.kernels.notes import SMALL, Shape, by_count, by_tokens, note_lengths
from benchmarks.kernels.pages import varlen_tables
from benchmarks.kernels.reports import add_device, environment, write_report
from benchmarks.kernels.varlen_operations import Rows, operations
from core.backbone import MLP, Backbone
from core.mixers.attention import Attention
from core.patterns import GlobalTokens, SlidingWindow
from core.sequences import Sequences

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
                    "peak_bytes": peak_bytes(work, device.type),
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
            wait(device.type)
            started = time.perf_counter()
            try:
                work()
            except torch.OutOfMemoryError:
                taken[i] = None
                torch.cuda.empty_cache()
                continue
            wait(device.type)
            if turn >= 2:
                times.append(time.perf_counter() - started)
    return taken


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
    print(varlen_tables(report))
    draw_if_possible(out, out.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the report, JSON")
    add_device(parser)
    parser.add_argument("--small", action="store_true", help="a shape that a CPU runs in seconds")
    parser.add_argument("--compile", action="store_true", help="also with compile_blocks")
    args = parser.parse_args()
    measure(args.out, torch.device(args.device), args.small, args.compile)


if __name__ == "__main__":
    main()
