"""Next-token HyenaDNA on human chromosome 20: bits per base against context length.

    python -m genomics.data.fetch human-chr20                              # 20.fa.gz into the cache
    python benchmarks/genomics/context_length.py prepare 20.fa.gz chr20.npz
    python benchmarks/genomics/context_length.py train chr20.npz --out results/

One model a context length, each on the same number of tokens: the number that the slowest gets
through in ``--seconds``. Split by interval: training on bases 1 to 50,000,000, test on
55,000,001 to the end. Test windows tile that interval and each model reads whole windows of its own
context, so that a base early in a window has little context for every model.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import math
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from core.jobs.optim import adamw
from core.objectives import IGNORE, next_token_targets, token_loss
from genomics.data.tokenizers import FIRST_BASE, NucleotideTokenizer
from genomics.models.baselines import markov_bits_per_base
from genomics.models.hyenadna import HyenaDNA

TRAIN_END, TEST_START = 50_000_000, 55_000_000
TOKENS_PER_STEP = 65_536


def prepare(source: Path, target: Path) -> None:
    with gzip.open(source, "rt") as lines:
        sequence = "".join(line.strip() for line in lines if not line.startswith(">"))
    np.savez_compressed(target, tokens=NucleotideTokenizer().encode(sequence))


def without_n(tokens: np.ndarray, length: int, stride: int) -> np.ndarray:
    """Starts of windows with at most a tenth of N."""
    starts = np.arange(0, len(tokens) - length, stride)
    unknown = np.concatenate([[0], np.cumsum(tokens >= FIRST_BASE + 4)])
    return starts[unknown[starts + length] - unknown[starts] <= length // 10]


def stack(tokens: torch.Tensor, starts: Any, length: int, device: str) -> torch.Tensor:
    return torch.stack([tokens[s : s + length] for s in starts]).to(device).long()


def loss_of(model: HyenaDNA, x: torch.Tensor, bf16: bool) -> torch.Tensor:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        logits = model(x)
    return token_loss(logits, next_token_targets(x, x >= FIRST_BASE + 4))


def build(context: int, args: argparse.Namespace) -> HyenaDNA:
    torch.manual_seed(args.seed)
    model = HyenaDNA(args.width, args.layers, context, taps=args.taps, embed_dropout=0.0)
    return model.to(args.device)


def throughput(context: int, tokens: torch.Tensor, args: argparse.Namespace) -> float:
    """Tokens a second of a training step, after warming up."""
    model = build(context, args)
    batch = max(1, TOKENS_PER_STEP // context)
    x = stack(tokens, np.arange(batch) * context + 1_000_000, context, args.device)
    for step in range(8):
        if step == 3:
            started = clock(args.device)
        loss_of(model, x, args.bf16).backward()
    return 5 * x.numel() / (clock(args.device) - started)


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def train(context: int, steps: int, tokens: torch.Tensor, args: argparse.Namespace) -> HyenaDNA:
    model = build(context, args)
    settings = adamw(
        model, lr=args.lr, weight_decay=0.1, warmup=0.05, steps=steps, betas=(0.9, 0.98)
    )
    optimizer, schedule = settings["optimizer"], settings["lr_scheduler"]["scheduler"]
    starts = without_n(tokens.numpy(), context, 64)
    random = np.random.default_rng(args.seed)
    batch = max(1, TOKENS_PER_STEP // context)
    for step in range(steps):
        x = stack(tokens, random.choice(starts, batch), context, args.device)
        loss = loss_of(model, x, args.bf16)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % max(1, steps // 10) == 0:
            print(f"context {context} step {step + 1}/{steps} bits {loss.item() / math.log(2):.4f}")
    return model


@torch.no_grad()
def evaluate(model: HyenaDNA, context: int, tokens: torch.Tensor, args: argparse.Namespace) -> Any:
    """Bits per base over whole windows, and by position in octaves."""
    model.eval()
    nats = torch.zeros(context, dtype=torch.float64)
    counts = torch.zeros(context, dtype=torch.float64)
    starts = without_n(tokens.numpy(), context, context)[: args.test_tokens // context]
    batch = max(1, TOKENS_PER_STEP // context)
    for i in range(0, len(starts), batch):
        x = stack(tokens, starts[i : i + batch], context, args.device)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=args.bf16):
            logits = model(x)
        targets = next_token_targets(x, x >= FIRST_BASE + 4)
        each = F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
        nats += each.sum(0).double().cpu()
        counts += (targets != IGNORE).sum(0).cpu()
    bits = nats / math.log(2)
    edges = [0, *[2**k for k in range(4, int(math.log2(context)) + 1)]]
    by_position = {
        f"{a}-{b}": float(bits[a:b].sum() / counts[a:b].sum()) for a, b in itertools.pairwise(edges)
    }
    return {
        "bits_per_base": float(bits.sum() / counts.sum()),
        "perplexity": float(2 ** (bits.sum() / counts.sum())),
        "bases": int(counts.sum()),
        "bits_by_position": by_position,
    }


def run(args: argparse.Namespace) -> None:
    tokens = torch.from_numpy(np.load(args.tokens)["tokens"])
    training, test = tokens[:TRAIN_END], tokens[TEST_START:]
    rates = {c: throughput(c, training, args) for c in args.contexts}
    steps = round(args.seconds * min(rates.values()) / TOKENS_PER_STEP)
    args.out.mkdir(parents=True, exist_ok=True)
    cuda = args.device == "cuda"
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda else platform.processor(),
        "torch": torch.__version__,
        "arguments": {k: str(v) for k, v in vars(args).items() if k not in ("tokens", "out")},
        "tokens_trained": steps * TOKENS_PER_STEP,
        "steps": steps,
        "contexts": {},
    }
    for context in args.contexts:
        started = clock(args.device)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        model = train(context, steps, training, args)
        seconds = clock(args.device) - started
        peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else None
        report["contexts"][context] = {
            "training_seconds": seconds,
            "tokens_per_second": steps * TOKENS_PER_STEP / seconds,
            "peak_mib": peak,
            "parameters": sum(p.numel() for p in model.parameters()),
            **evaluate(model, context, test, args),
        }
        state = {f"model.{k}": v.cpu() for k, v in model.state_dict().items()}
        torch.save({"state_dict": state}, args.out / f"chr20_{context}.ckpt")
        (args.out / "context_length.json").write_text(json.dumps(report, indent=1) + "\n")
        print(context, json.dumps(report["contexts"][context]))
    arrays = [training.numpy()], [test.numpy()[: args.test_tokens]]
    report["markov_bits_per_base"] = {k: markov_bits_per_base(*arrays, k) for k in args.markov}
    (args.out / "context_length.json").write_text(json.dumps(report, indent=1) + "\n")
    print(report["markov_bits_per_base"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    prepared = commands.add_parser("prepare")
    prepared.add_argument("source", type=Path)
    prepared.add_argument("target", type=Path)
    trained = commands.add_parser("train")
    trained.add_argument("tokens", type=Path)
    trained.add_argument("--out", type=Path, required=True)
    trained.add_argument("--contexts", type=int, nargs="+", default=[1024, 8192, 65536])
    trained.add_argument("--seconds", type=float, default=120)
    trained.add_argument("--width", type=int, default=256)
    trained.add_argument("--layers", type=int, default=4)
    trained.add_argument("--taps", type=int, default=3, help="of the short filters")
    trained.add_argument("--lr", type=float, default=1e-3)
    trained.add_argument("--seed", type=int, default=0)
    trained.add_argument("--test-tokens", type=int, default=4_194_304)
    trained.add_argument("--markov", type=int, nargs="*", default=[3, 5, 7, 11])
    trained.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    trained.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    if args.command == "prepare":
        prepare(args.source, args.target)
    else:
        run(args)


if __name__ == "__main__":
    main()
