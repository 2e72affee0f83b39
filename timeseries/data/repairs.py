"""What policies changed in a file, said in one line each and kept for the run's record."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray

OFFSETS = {"utc": ("offset", "UTC"), "local": ("offsets", "local")}  # policy -> rule, what was done
_WHAT = {
    "offset": "stamps with an offset",
    "offsets": "stamps with an offset",
    "irregular": "stamps off the grid",
    "unsorted": "stamps that go back",
    "duplicates": "stamps that stand there twice",
    "gaps": "missing stamps",
    "missing": "empty values",
    "known": "empty values of known covariates",
}
_ROWS, _NAMES = 5, 3  # shown of each kind
_said: set[str] = set()


class RepairWarning(UserWarning):
    """Rows of a file are not as they stand there."""


def say_once(line: str, kind: type[Warning] = UserWarning) -> None:
    """A warning that a process gives once, however often a command looks at its data."""
    if line not in _said and getattr(rank_zero_only, "rank", 0) == 0:
        _said.add(line)
        warnings.warn(line, kind, stacklevel=4)


@dataclass
class Repair:
    """``count`` stamps or values that the policy ``how`` changed: ``rows`` of the file, the first
    few, counted from 1; the names of the ``series``; values by column."""

    how: str
    count: int = 0
    rows: list[int] = field(default_factory=list)
    series: dict[str, None] = field(default_factory=dict)
    columns: dict[str, int] = field(default_factory=dict)


class Repairs:
    """The repairs of one file, by the policy that asked for them."""

    def __init__(self) -> None:
        self.found: dict[str, Repair] = {}

    def add(
        self,
        policy: str,
        how: str,
        number: NDArray[np.int64],
        series: Iterable[str],
        columns: dict[str, int] | None = None,
    ) -> None:
        """One change for each ``number`` of a row, or as many as ``columns`` count there."""
        if not len(number):
            return
        repair = self.found.setdefault(policy, Repair(how))
        repair.count += len(number) if columns is None else sum(columns.values())
        first = np.unique(number)[:_ROWS].tolist()
        repair.rows = sorted({*repair.rows, *first})[:_ROWS]
        repair.series.update(dict.fromkeys(series))
        for name, count in (columns or {}).items():
            repair.columns[name] = repair.columns.get(name, 0) + count

    def say(self, path: Path) -> None:
        """A RepairWarning for each policy, once in a process however often the file is read."""
        for policy, repair in self.found.items():
            say_once(f"{path}: {_line(policy, repair)}", RepairWarning)

    def record(self) -> list[dict[str, Any]]:
        """For the run: no name of a series, which may be that of a person."""
        return [
            {"policy": policy, **vars(repair), "series": len(repair.series)}
            for policy, repair in self.found.items()
        ]

    def plain(self) -> list[list[Any]]:
        """As JSON knows it, with all names."""
        return [
            [policy, {**vars(repair), "series": list(repair.series)}]
            for policy, repair in self.found.items()
        ]

    def load(self, plain: Sequence[Sequence[Any]]) -> None:
        for policy, of in plain:
            self.found[policy] = Repair(**{**of, "series": dict.fromkeys(of["series"])})


def _line(policy: str, repair: Repair) -> str:
    columns = [f"{name} {count:,}" for name, count in repair.columns.items()]
    of = f" ({_some(columns, 'columns')})" if columns else ""
    rows = ", ".join(map(str, repair.rows)) + (", ..." if len(repair.rows) == _ROWS else "")
    series = _some([repr(name) for name in repair.series], "series")
    where = f"first at row {rows}" + (f" of {series}" if series else "")
    by = "turned into UTC" if policy == "offset" else f"data.policies.{policy}: {repair.how}"
    return f"{_WHAT[policy]}: {repair.count:,}{of}, {where}; {by}"


def _some(words: Sequence[str], kind: str) -> str:
    more = len(words) - _NAMES
    return ", ".join(words[:_NAMES]) + (f" and {more:,} more {kind}" if more > 0 else "")
