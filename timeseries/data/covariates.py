"""Covariates: columns beside the targets, named by what is known when."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.jobs.errors import DataError

Value = float | str


@dataclass(frozen=True)
class Covariates:
    """Columns: ``known`` for the future too, ``observed`` up to the present, ``static`` for the
    whole of a series."""

    known: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()
    static: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        return [*self.known, *self.observed, *self.static]

    def __bool__(self) -> bool:
        return bool(self.known or self.observed or self.static)

    def __str__(self) -> str:
        kinds = [f"{kind} {', '.join(names)}" for kind, names in vars(self).items() if names]
        return "; ".join(kinds) or "none"


@dataclass
class StaticColumn:
    """A static column as features: a number standardised by ``mean`` and ``std`` over series, or
    one feature for each of the ``categories`` of a text."""

    mean: float = 0.0
    std: float = 1.0
    categories: tuple[str, ...] = ()

    @classmethod
    def fit(cls, values: Sequence[Value]) -> StaticColumn:
        """From one value a series."""
        if any(isinstance(value, str) for value in values):
            return cls(categories=tuple(sorted({str(value) for value in values})))
        numbers = np.array(values, np.float64)
        constant = numbers.max() == numbers.min()
        return cls(float(numbers.mean()), 1.0 if constant else float(numbers.std()))

    @property
    def width(self) -> int:
        return len(self.categories) or 1

    def encode(self, value: Value) -> list[float]:
        if self.categories:
            return [float(value == category) for category in self.categories]
        return [(float(value) - self.mean) / self.std]


@dataclass
class FittedCovariates:
    """What training settles about covariates: ``mean`` and ``std`` (known + observed,) over the
    training spans of all series together, so that levels still tell series apart; the ``encoding``
    of each static column, and the ``static`` values of each series. A series keeps those: what
    changes with time is no static column."""

    columns: Covariates = Covariates()
    mean: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    std: NDArray[np.float64] = field(default_factory=lambda: np.ones(0))
    encoding: list[StaticColumn] = field(default_factory=list)
    static: dict[str, tuple[Value, ...]] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Features beside those of the calendar."""
        return len(self.mean) + sum(column.width for column in self.encoding)

    def scaled(self, values: NDArray[np.float64], first: int = 0) -> NDArray[np.float32]:
        """``values`` (..., columns), the first of which has the number ``first``, standardised."""
        these = slice(first, first + values.shape[-1])
        return ((values - self.mean[these]) / self.std[these]).astype(np.float32)

    def constant(self, name: str) -> NDArray[np.float32]:
        """Static features (features,) of a series of training."""
        values = zip(self.encoding, self.static[name], strict=True) if self.encoding else ()
        encoded = [number for column, value in values for number in column.encode(value)]
        return np.array(encoded, np.float32)

    def check(self, where: object, columns: Covariates, static: dict[str, Any]) -> None:
        """Raises DataError for other columns than training had, and for a series of training whose
        ``static`` values were others there."""
        if columns != self.columns:
            raise DataError(
                f"{where}: the covariates are {columns}; the model was trained on {self.columns}"
            )
        for name, values in static.items():
            for column, value, before in zip(
                self.columns.static, values, self.static.get(name, values), strict=True
            ):
                if not _same(value, before):
                    raise DataError(
                        f"{where}: static column {column!r} of series {name!r} is {value!r}; the "
                        f"model was trained with {before!r}; what changes is no static column"
                    )

    def plain(self) -> dict[str, Any]:
        return {
            "columns": {kind: list(names) for kind, names in vars(self.columns).items()},
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "encoding": [{**vars(c), "categories": list(c.categories)} for c in self.encoding],
            "static": {name: list(values) for name, values in self.static.items()},
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> FittedCovariates:
        return cls(
            Covariates(**{kind: tuple(names) for kind, names in plain["columns"].items()}),
            np.array(plain["mean"]),
            np.array(plain["std"]),
            [StaticColumn(c["mean"], c["std"], tuple(c["categories"])) for c in plain["encoding"]],
            {name: tuple(values) for name, values in plain["static"].items()},
        )


def _same(value: Value, other: Value) -> bool:
    """Whether a file whose other cells are text would hold one where another holds the other."""
    if isinstance(value, str) == isinstance(other, str):
        return value == other
    try:
        return float(value) == float(other)
    except ValueError:
        return False


def static_columns(statics: Sequence[tuple[Value, ...]]) -> list[StaticColumn]:
    """The encoding of each column, from the values of every series."""
    return [StaticColumn.fit(values) for values in zip(*statics, strict=True)]


def moments(
    parts: Iterable[NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation (columns,) over the rows of all ``parts``, each (rows, columns)
    and not empty, one after the other (Chan et al. 1979). A constant column has the deviation 1."""
    count, mean, square = 0, np.zeros(0), np.zeros(0)
    low, high = np.zeros(0), np.zeros(0)
    for part in parts:
        here = part.mean(0)
        around = np.square(part - here).sum(0)
        if not count:
            count, mean, square = len(part), here, around
            low, high = part.min(0), part.max(0)
            continue
        total, away = count + len(part), here - mean
        mean = mean + away * len(part) / total
        square = square + around + np.square(away) * count * len(part) / total
        low, high = np.minimum(low, part.min(0)), np.maximum(high, part.max(0))
        count = total
    constant = low == high  # rounding gives a constant column a deviation as well
    return mean, np.where(constant, 1.0, np.sqrt(square / max(count, 1)))
