"""Tables under names that mean something to a shell."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest

from core.jobs.tables import read_table


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "tsv", "parquet"])
def test_a_name_is_no_pattern(tmp_path: Path, ending: str) -> None:
    """``meters[1].csv`` would match ``meters1.csv``."""
    for name, value in (("meters[1]", "its own"), ("meters1", "another's")):
        path, table = tmp_path / f"{name}.{ending}", pl.DataFrame({"y": [value]})
        if ending == "parquet":
            table.write_parquet(path)
        else:
            opened = gzip.open if ending.endswith("gz") else open
            with opened(path, "wb") as file:
                file.write(f"y\n{value}\n".encode())
    assert read_table(tmp_path / f"meters[1].{ending}", ["y"])["y"].to_list() == ["its own"]
