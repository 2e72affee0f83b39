"""Every kernel beside every peer that is importable, in one process.

    python benchmarks/kernels/all.py --out results/
    python benchmarks/kernels/all.py --out results/ --only recurrences prefix --deadline 300
    python benchmarks/kernels/all.py --out results/ --resume        # what a stopped run lacks
    python benchmarks/kernels/all.py --out results/ --device cpu    # small sizes, ours and torch

Parts, in this order: conv (long convolution), recurrences (ssd, with simple GLA and mLSTM), prefix
(prefix attention), extra (convolution: other lengths, short filters, pieces, bands, other types),
by_kernel (where the device's time goes; needs a GPU), varlen (packed and padded encoders; needs
transformers). Each prints its table with floor, ratio and peak memory,
and leaves a JSON with device and versions and a figure of time against length in --out. The JSON
is written after each row. Nothing new is begun --deadline seconds after the start; what runs then
ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import torch

from benchmarks.kernels import by_kernel, conv, conv_extra, prefix, recurrences
from benchmarks.kernels.reports import Clock, installed, kernel_parser, run
from benchmarks.kernels.tuning import compiled_at_once

PARTS: Mapping[str, tuple[ModuleType, Mapping[str, str]]] = {
    "conv": (conv, conv.PEERS),
    "recurrences": (recurrences, recurrences.PEERS),
    "prefix": (prefix, prefix.PEERS),
    "extra": (conv_extra, conv.PEERS),
    "by_kernel": (by_kernel, by_kernel.PEERS),
}
NAMES = [*PARTS, "varlen"]


def measure_varlen(out: Path, device: str, resume: bool) -> None:
    """Its report is of another form and written when encoders, then operations are done."""
    target = out / "varlen.json"
    if resume and target.exists():
        return
    if not installed("transformers"):
        print("left out: varlen (needs the package transformers)")
        return
    from benchmarks.kernels import varlen

    varlen.measure(target, torch.device(device), small=device != "cuda")


def measure_parts(
    names: Sequence[str],
    out: Path,
    device: str,
    clock: Clock,
    resume: bool,
    varlen: Callable[[Path, str, bool], None] = measure_varlen,
) -> bool:
    """Each part after the other; whether all were finished before the clock was over."""
    whole = True
    for name in names:
        if clock.over:
            print(f"{name}: not begun, {clock.elapsed:.0f} s are over")
            whole = False
            continue
        begun = clock.elapsed
        print(f"{begun:5.0f} s {name} begins", flush=True)
        if name == "varlen":
            varlen(out, device, resume)
        else:
            module, peers = PARTS[name]
            rows = module.work(device)
            whole &= run(rows, out, module.KERNEL, device, peers, clock, resume)
        print(f"{clock.elapsed:5.0f} s {name} took {clock.elapsed - begun:.0f} s", flush=True)
    return whole


def main() -> None:
    parser = kernel_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="these parts")
    parser.add_argument("--deadline", type=float, help="seconds; begin nothing after them")
    parser.add_argument(
        "--tune-serially",
        action="store_true",
        help="leave compiling to Triton's tuner, a configuration after the other",
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    clock = Clock(args.deadline)
    chosen = [name for name in NAMES if name in args.only]
    with compiled_at_once(args.device == "cuda" and not args.tune_serially):
        whole = measure_parts(chosen, args.out, args.device, clock, args.resume)
    print(f"{clock.elapsed:5.0f} s {'all done' if whole else 'stopped at the deadline'}")


if __name__ == "__main__":
    main()
