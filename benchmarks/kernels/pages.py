"""Writes the tables of the pages from the committed reports, so that nobody copies a number.

python benchmarks/kernels/pages.py    # README.md here, in docs and in genomics, between marks
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import marks
from benchmarks.kernels import splits
from benchmarks.kernels.notes import Shape, note_lengths
from benchmarks.kernels.reports import BANDWIDTH, OURS, PRODUCTS
from benchmarks.marks import lines

HERE = Path(__file__).parent
GENOMICS = "../../genomics/results/throughput"  # seen from the reports here
Row = dict[str, Any]
Report = dict[str, Any]


def cases(report: Report, **where: object) -> list[tuple[Row, dict[str, Row]]]:
    """Each case that is ``where`` and its rows by contestant, without failed ones."""
    found: dict[str, tuple[Row, dict[str, Row]]] = {}
    for row in report["rows"]:
        if all(row["case"].get(name) == value for name, value in where.items()):
            _, rows = found.setdefault(json.dumps(row["case"]), (row["case"], {}))
            rows[row["contestant"]] = row
    return list(found.values())


def ms(row: Row | None, *columns: str) -> str:
    """Times and the peak of a contestant; what was not measured is left out."""
    values = [row[name] for name in columns] if row else []
    shown = (
        f"{x:,.0f}" if name == "peak_mib" or x >= 100 else f"{x:.3g}"
        for name, x in zip(columns, values, strict=False)
        if x is not None
    )
    return ", ".join(shown)


def floors(row: Row, name: str) -> str:
    return f"{row[f'{name}_ms'] / row[f'{name}_floor_ms']:.1f}"


def beside(rows: dict[str, Row], name: str) -> tuple[Row, str]:
    """The better of torch.fft (T) and FlashFFTConv (F) in a column."""
    peers = {"T": rows["torch.fft"], "F": rows.get("FlashFFTConv")}
    there = {mark: row for mark, row in peers.items() if row and row[name] is not None}
    mark = min(there, key=lambda mark: there[mark][name])
    return there[mark], mark


def ratios(rows: dict[str, Row], name: str) -> str:
    """Our time, the peer's, and how many times ours that is."""
    us, (peer, mark) = rows[OURS], beside(rows, f"{name}_ms")
    ratio = peer[f"{name}_ms"] / us[f"{name}_ms"]
    return f"{ms(us, f'{name}_ms')}, {ms(peer, f'{name}_ms')} {mark}, {ratio:.2f}"


def peaks(rows: dict[str, Row]) -> str:
    peer, mark = beside(rows, "peak_mib")
    return f"{ms(rows[OURS], 'peak_mib')}, {ms(peer, 'peak_mib')} {mark}"


def conv(report: Report, gated: bool) -> str:
    head = ["length", "batch x channels", "forward: ours, peer, ratio", "x floor"]
    head += ["with backward: ours, peer, ratio", "x floor", "peak: ours, peer"]
    head += ["results alone", "error: ours, FlashFFTConv"]
    body = []
    for case, rows in cases(report, gated=gated):
        us, length = rows[OURS], case["length"]
        cells = [f"{length:,}", f"{case['batch']} x {case['channels']}"]
        for name in ("forward", "both"):
            cells += [ratios(rows, name), floors(us, name)]
        results = 2 * case["batch"] * length * (4 if gated else 2) + 4 * length
        errors = (
            f"{100 * max(rows[name]['errors'].values()):#.2g} %"
            for name in (OURS, "FlashFFTConv")
            if name in rows and rows[name]["errors"]
        )
        cells += [peaks(rows), f"{case['channels'] * results / 2**20:,.0f}", ", ".join(errors)]
        body.append(cells)
    return lines(head, body)


def extra(report: Report) -> str:
    head = ["length", "batch x channels", "taps", "forward: ours, peer, ratio"]
    head += ["with backward: ours, peer, ratio", "peak: ours, peer"]
    body = []
    for case, rows in cases(report, band=1.0, dtype=None):
        taps = f"{case['taps']:,}" if case["taps"] != case["length"] else "as long"
        if case["history"]:
            taps += f", behind {case['history']:,}"
        times = [ratios(rows, name) for name in ("forward", "both")]
        sizes = [f"{case['length']:,}", f"{case['batch']} x {case['channels']}", taps]
        body.append([*sizes, *times, peaks(rows)])
    return lines(head, body)


def dtypes(report: Report) -> str:
    head = ["dtype", "length", "batch x channels", "forward: ours, torch.fft, ratio"]
    head += ["with backward: ours, torch.fft, ratio", "peak: ours, torch.fft", "error"]
    body = []
    for dtype in ("float16", "float32"):
        for case, rows in cases(report, dtype=dtype):
            us, peer = rows[OURS], rows["torch.fft"]
            cells = [dtype, f"{case['length']:,}", f"{case['batch']} x {case['channels']}"]
            cells += [
                f"{ms(us, name)}, {ms(peer, name)}, {peer[name] / us[name]:.2f}"
                for name in ("forward_ms", "both_ms")
            ]
            error = f"{max(us['errors'].values()):.1e}"
            body.append([*cells, f"{ms(us, 'peak_mib')}, {ms(peer, 'peak_mib')}", error])
    return lines(head, body)


def throughput(report: Report, whole: bool) -> str:
    """HyenaDNA by length, one sequence at a time or in ``whole`` batches."""
    head = ["bases", "forward, thousand tokens/s", "reference ops", "ratio"]
    head += ["training step", "reference ops", "ratio"]
    if whole:
        head.insert(1, "sequences")
    found = {(r["length"], r["batch"], r["ops"]): r for r in report["rows"]}
    body = []
    for length, batch in dict.fromkeys((length, batch) for length, batch, _ in found):
        if (batch > 1) != whole:
            continue
        cells = [f"{length:,}", *([f"{batch}"] if whole else [])]
        for what in ("forward", "training"):
            ours, plain = (
                found[length, batch, ops][what]["tokens_per_second"]
                for ops in ("auto", "reference")
            )
            cells += [f"{ours / 1e3:,.0f}", f"{plain / 1e3:,.0f}", f"{ours / plain:.2f}"]
        body.append(cells)
    return lines(head, body)


def bands(report: Report) -> str:
    head = ["length", "batch x channels", "band", "forward: band, all, ratio"]
    head += ["with backward: band, all, ratio", "peak: band, all"]
    body = []
    for band in (0.5, 0.25):
        for case, rows in cases(report, band=band):
            part, whole = rows[OURS], rows["longspan without band"]
            cells = [f"{case['length']:,}", f"{case['batch']} x {case['channels']}", f"{band}"]
            for name in ("forward_ms", "both_ms"):
                ratio = whole[name] / part[name]
                cells.append(f"{ms(part, name)}, {ms(whole, name)}, {ratio:.2f}")
            body.append([*cells, f"{ms(part, 'peak_mib')}, {ms(whole, 'peak_mib')}"])
    return lines(head, body)


def ssd(report: Report) -> str:
    head = ["heads x width, state", "B, C", "length", "ours: forward", "x floor", "with backward"]
    head += ["x floor", "peak", "fla simple GLA: forward", "mamba_ssm", "mLSTM"]
    body = []
    for case, rows in cases(report):
        us = rows[OURS]
        body.append(
            [
                f"{case['heads']} x {case['width']}, {case['state']}",
                "each head" if case["groups"] == case["heads"] else "shared",
                f"{case['length']:,}",
                *(x for n in ("forward", "both") for x in (ms(us, f"{n}_ms"), floors(us, n))),
                ms(us, "peak_mib"),
                ms(rows.get("fla simple GLA"), "forward_ms"),
                *(
                    ms(rows.get(name), "forward_ms", "both_ms", "peak_mib")
                    for name in ("mamba_ssm SSD", "mlstm_kernels")
                ),
            ]
        )
    return lines(head, body)


def prefix(report: Report) -> str:
    peers = ["torch, cumulative sums", "torch, associative scan", "longspan reference ops"]
    head = ["length", "ours: forward", "x floor", "with backward", "x floor", "peak"]
    head += [name.removeprefix("torch, ").removeprefix("longspan ") for name in peers]
    body = []
    for case, rows in cases(report):
        us = rows[OURS]
        body.append(
            [
                f"{case['length']:,}",
                *(x for n in ("forward", "both") for x in (ms(us, f"{n}_ms"), floors(us, n))),
                ms(us, "peak_mib"),
                *(
                    ms(rows.get(name), "forward_ms", "both_ms", "peak_mib") or "not measured"
                    for name in peers
                ),
            ]
        )
    return lines(head, body)


def encoders(report: Report) -> str:
    """Tokens a second of each model, and how many times LongformerModel's on sorted notes."""
    timed = [row for row in report["encoders"] if "gradient" in row]
    found = {(row["model"], row["arrangement"], row["gradient"]): row for row in timed}
    head = ["model", "batches", "tokens/s", "x Longformer, sorted", "peak GiB"]
    head += ["with gradient, tokens/s", "x Longformer, sorted", "peak GiB"]
    body = []
    for model, arrangement in dict.fromkeys((row["model"], row["arrangement"]) for row in timed):
        cells = [model, arrangement]
        for gradient in (False, True):
            row = found[model, arrangement, gradient]
            peer = found["LongformerModel", "padded, sorted by length", gradient]
            if "seconds" not in row:
                cells += ["does not fit", "", ""]
                continue
            speed, other = row["tokens_per_second"], peer.get("tokens_per_second")
            memory = row["peak_bytes"]
            cells += [
                f"{speed:,.0f}",
                f"{speed / other:.1f}" if other else "",
                "" if memory is None else f"{memory / 2**30:.2f}",
            ]
        body.append(cells)
    return lines(head, body)


def pairs_of(row: Row, shape: Shape) -> int:
    """How many pairs of a query and a key its pattern lets see each other, a head."""
    length = row["length"]
    if "packed notes" in row["operation"]:
        side = shape.side
        # all pairs, less those further apart than the window and without the first token
        far = (max(0, n - 1 - side) for n in note_lengths(shape))
        notes = sum(n * n for n in note_lengths(shape))
        return notes - sum(k * (k + 1) - 2 * k for k in far)
    window = min(512, length) if "window 512" in row["operation"] else length
    return row["batch"] * (length * window - window * (window - 1) // 2)


def attention_floors_ms(row: Row, shape: Shape) -> tuple[float, float]:
    """Forward; forward and backward: the slower of every byte moved once and every product.

    Two products a visible pair forward, five backward; q, k, v and their gradients, y and dy in
    bf16. 16 heads of 64, the packed notes' ``shape.heads``.
    """
    heads = shape.heads if "packed notes" in row["operation"] else 16
    tensor = 2 * row["batch"] * row["length"] * heads * 64
    product = 2 * 64 * heads * pairs_of(row, shape)
    forward = max(4 * tensor / BANDWIDTH, 2 * product / PRODUCTS)
    both = max(11 * tensor / BANDWIDTH, 7 * product / PRODUCTS)
    return 1e3 * forward, 1e3 * both


def operations(report: Report) -> str:
    shape = Shape(**report["shape"])
    head = ["operation", "batch x length", "forward, ms", "x floor"]
    head += ["forward and backward, ms", "x floor", "peak MiB"]
    body = []
    for row in report["operations"]:
        cells = [row["operation"], f"{row['batch']} x {row['length']:,}"]
        measured = row["forward_ms"], row["both_ms"]
        for time, floor in zip(measured, attention_floors_ms(row, shape), strict=True):
            cells += [f"{time:.2f}", "" if row["peak_bytes"] is None else f"{time / floor:.1f}"]
        held = row["peak_bytes"]
        body.append([*cells, "" if held is None else f"{held / 2**20:,.0f}"])
    return lines(head, body)


def varlen_tables(report: Report) -> str:
    (apart,) = (row for row in report["encoders"] if "gradient" not in row)
    return "\n\n".join(
        [
            f"{report['device']}, torch {report['torch']}, transformers {report['transformers']}; "
            f"{report['shape']['notes']} notes, {report['tokens']:,} tokens. "
            f"{report['protocol']}.",
            encoders(report),
            f"Packed and padded outputs differ by {apart['packed_minus_padded_rms_ratio']:.1e} of "
            "their root mean square.",
            operations(report),
        ]
    )


# page -> mark -> report and what is made of it
PAGES: Mapping[Path, Mapping[str, tuple[str, Callable[[Report], str]]]] = {
    HERE / "README.md": {
        "conv": ("fft_conv", functools.partial(conv, gated=False)),
        "gated conv": ("fft_conv", functools.partial(conv, gated=True)),
        "device time": ("by_kernel", splits.beside),
        "extra conv": ("fft_conv_extra", extra),
        "dtypes": ("fft_conv_extra", dtypes),
        "bands": ("fft_conv_extra", bands),
        "ssd": ("ssd", ssd),
        "prefix": ("prefix_attention", prefix),
        "encoders": ("varlen", encoders),
    },
    HERE.parents[1] / "docs/attention.md": {"varlen": ("varlen", varlen_tables)},
    HERE.parents[1] / "docs/kernels.md": {
        "three passes": ("by_kernel", functools.partial(splits.convolution, one_pass=False)),
        "one pass": ("by_kernel", functools.partial(splits.convolution, one_pass=True)),
        "ssd by kernel": ("by_kernel", functools.partial(splits.by_pass, op="ssd")),
        "prefix by kernel": (
            "by_kernel",
            functools.partial(splits.by_pass, op="prefix_attention"),
        ),
    },
    HERE.parent / "genomics/README.md": {
        "single": (GENOMICS, functools.partial(throughput, whole=False)),
        "batches": (GENOMICS, functools.partial(throughput, whole=True)),
    },
}


def filled(page: Path) -> str:
    """The page with its tables made anew."""
    reports = HERE / "results"
    made = {
        mark: make(json.loads((reports / f"{name}.json").read_text()))
        for mark, (name, make) in PAGES[page].items()
    }
    return marks.filled(page, made)


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    for page in PAGES:
        page.write_text(filled(page))


if __name__ == "__main__":
    main()
