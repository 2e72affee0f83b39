"""Tables of series written by hand, shared by the tests of their reader."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from core.jobs.errors import DataError
from timeseries.data.layout import Roles
from timeseries.data.series import Series, read_series

LONG = "unique_id,ds,y\n"
ROLES = [field.name for field in fields(Roles)]


def read(folder: Path, text: str, name: str = "x.csv", **options: Any) -> list[Series]:
    """``options`` are those of ``read_series`` and the roles of columns."""
    (folder / name).write_text(text)
    roles = {key: options.pop(key) for key in ROLES if key in options}
    return read_series(folder / name, Roles(**roles), **options)


def refused(folder: Path, text: str, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        read(folder, text, **options)
    message = str(error.value)
    assert message.startswith(f"{folder / 'x.csv'}")
    assert "\n" not in message
    return message.removeprefix(f"{folder / 'x.csv'}").lstrip(": ")


def rows(*cells: str) -> str:
    """Of one series, each "stamp,value"."""
    return LONG + "".join(f"a,{cell}\n" for cell in cells)


def days(*names: int) -> list[datetime]:
    return [datetime(2024, 1, day) for day in names]
