"""Memory and speed of reading a long Parquet file: one pass into memory maps, then windows.

    python benchmarks/timeseries/streaming_rows.py --rows 1000000 10000000 --out rows.json

Each size is a file of its own, of 1,000 hourly series (`--series`) one after the other (`unique_id`
text, `ds` timestamp, `y` float32), in row groups of a million rows, written to a temporary folder
and deleted. Each step runs in a process of its own: building the cache, then 500 shuffled training
batches of 32 windows (look-back and horizon 96) from the data module's loader. `anonymous_mb` is
the highest RssAnon of /proc/self/status, read every 5 ms, less what it was before the step; pages
of the mapped files are not in it, since the system may drop them. `--in-memory` reads the file
whole instead.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from timeseries.data import streaming
from timeseries.data.forecasts import ForecastWindows
from timeseries.data.protocol import Protocol

BATCH, BATCHES, GROUP = 32, 500, 1_000_000


def write(path: Path, rows: int, series: int) -> None:
    length = rows // series
    names = pa.array([f"series {i}" for i in range(series)])
    first = np.datetime64("1970-01-01", "us")
    schema = pa.schema({"unique_id": pa.string(), "ds": pa.timestamp("us"), "y": pa.float32()})
    rng = np.random.default_rng(0)
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, GROUP):
            row = np.arange(start, min(start + GROUP, rows))
            which, step = np.divmod(row, length)
            ds = first + step * np.timedelta64(1, "h")
            y = (np.sin(2 * np.pi * step / 24) + rng.standard_normal(len(row))).astype(np.float32)
            columns = [names.take(pa.array(which)), pa.array(ds), pa.array(y)]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=GROUP)


def anonymous() -> float:
    """MB of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("the system does not tell RssAnon")


class Peak:
    """The highest ``anonymous`` above what it was, sampled by a thread."""

    def __enter__(self) -> Peak:
        self.before = self.highest = anonymous()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.start = time.perf_counter()
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.005):
            self.highest = max(self.highest, anonymous())

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.start
        self.done.set()
        self.thread.join()

    @property
    def anonymous_mb(self) -> float:
        return round(self.highest - self.before, 1)


def step(path: Path, rows: int, kind: str) -> dict[str, float]:
    """One measurement, in this process."""
    torch.set_num_threads(1)
    streaming.STREAM_ROWS = sys.maxsize if kind.endswith("in-memory") else 1
    data = ForecastWindows(str(path), protocol=Protocol(96, 96), batch_size=BATCH)
    if kind.startswith("build"):
        with Peak() as peak:
            data.series(path)
        return {"anonymous_mb": peak.anonymous_mb, "rows_per_s": round(rows / peak.seconds)}
    with Peak() as peak:
        data.setup("fit")
        ready = time.perf_counter() - peak.start
        batches = iter(data.train_dataloader())
        next(batches)
        start = time.perf_counter()
        for _ in range(BATCHES):
            next(batches)
        seconds = time.perf_counter() - start
    return {
        "anonymous_mb": peak.anonymous_mb,
        "scale_s": round(ready, 2),
        "windows_per_s": round(BATCH * BATCHES / seconds),
    }


def measured(path: Path, rows: int, kind: str, cache: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--step", kind, str(path), str(rows)]
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path), "LONGSPAN_CACHE": str(cache)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    if sys.argv[1:2] == ["--step"]:
        kind, file, count = sys.argv[2:]
        print(json.dumps(step(Path(file), int(count), kind)))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--in-memory", type=int, nargs="*", default=[], help="sizes read whole too")
    parser.add_argument("--series", type=int, default=1000)
    args = parser.parse_args()
    found = []
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            path, cache = folder / "rows.parquet", folder / "cache"
            write(path, rows, args.series)
            one: dict[str, Any] = {"rows": rows, "file_mb": round(path.stat().st_size / 2**20, 1)}
            one["build"] = measured(path, rows, "build", cache)
            size = sum(file.stat().st_size for file in cache.rglob("*"))
            one["cache_mb"] = round(size / 2**20, 1)
            one["windows"] = measured(path, rows, "windows", cache)
            if rows in args.in_memory:
                whole = measured(path, rows, "windows in-memory", cache)
                one["windows, file read whole"] = whole
        found.append(one)
        print(json.dumps(one))
        report = {
            "command": "python "
            + " ".join(["benchmarks/timeseries/streaming_rows.py", *sys.argv[1:]]),
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "pyarrow": pa.__version__,
            "torch": torch.__version__,
            "protocol": str(__doc__).split("\n\n")[2].replace("\n", " "),
            "sizes": found,
        }
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
