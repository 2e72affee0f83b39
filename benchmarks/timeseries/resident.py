"""Peak memory of cases, each in a process of its own; what the scripts that measure it share."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

Measure = Callable[[str, int], dict[str, Any]]


def highest_resident() -> float:
    """MiB: the highest resident memory of this process so far, from the kernel."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(
    script: str,
    doc: str | None,
    measure: Measure,
    names: Sequence[str],
    lengths: Sequence[int],
    facts: Callable[[], dict[str, Any]],
) -> None:
    """Command line of ``benchmarks/timeseries/SCRIPT``: ``measure`` of each length and name in a
    process of its own, one row each, written to ``--out`` with ``facts``."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(lengths))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one[0], int(given.one[1]))))
        return
    if given.out is None:
        parser.error("--out FILE is needed")
    path = f"benchmarks/timeseries/{script}"
    rows = []
    for length in given.lengths:
        for name in names:
            words = [sys.executable, path, "--one", name, str(length)]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout))
            print(rows[-1], flush=True)
    result = {
        "command": shlex.join(["python", path, *sys.argv[1:]]),
        "device": f"{platform.machine()}, 1 thread of {os.cpu_count()} cores, shared",
        "versions": {"torch": torch.__version__},
        **facts(),
        "rows": rows,
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
