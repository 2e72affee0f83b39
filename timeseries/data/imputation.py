"""The data module of imputation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from core.jobs.data import Record, SkipRecord
from core.jobs.errors import DataError
from timeseries.data.layout import AUTO, Roles
from timeseries.data.masks import Kind, Masks
from timeseries.data.protocol import Tiling
from timeseries.data.series import Policies, Series
from timeseries.data.tiled import KEEP, Part, TiledSeries, TileRecords


class ImputationWindows(TiledSeries):
    """Series with missing values, in windows that see both sides of them.

    Values that are missing in the file are no targets; training hides others in each window anew,
    validation and test always the same ones, each value in all windows that see it. The scale is
    that of the training span and travels with the checkpoint.

    Args:
        path: the CSV, TSV or Parquet table to train and test on.
        predict_path: what ``predict`` reads; without it, ``path``.
        time: column of stamps; null numbers the rows of each series. ``auto`` takes ``ds`` or
            ``date``.
        series: column that names the series of a row (long table); null for one series whose
            channels are columns (wide table). ``auto`` takes ``unique_id`` where there is one.
        targets: the channels; null takes ``y`` of a long table, all columns of a wide one.
        frequency: step of the stamps such as ``1h``; null infers it.
        tiling: windows, borders and scale.
        masks: what is hidden.
        policies: what becomes of duplicates and other flaws. Gaps and empty values are kept unless
            it says otherwise.
        fill: what ``predict`` gives: the values that are ``missing`` in the file, or those that the
            ``test`` hides, beside the actual ones.
        batch_size: windows in a batch.
        num_workers: processes that make them.
    """

    def __init__(
        self,
        path: str | None = None,
        predict_path: str | None = None,
        time: str | None = AUTO,
        series: str | None = AUTO,
        targets: list[str] | None = None,
        frequency: str | None = None,
        tiling: Tiling = Tiling(),  # noqa: B008  # read only
        masks: Masks = Masks(),  # noqa: B008  # read only
        policies: Policies = KEEP,
        fill: Literal["missing", "test"] = "missing",
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        roles = Roles(time, series, targets)
        whole = (roles, frequency, tiling, masks, policies, batch_size, num_workers)
        super().__init__(path, predict_path, *whole)
        self.fill = fill

    def records(self, split: str) -> TileRecords:
        """Windows of a split for each kind of mask. Raises DataError if nothing is hidden in it."""
        assert self.path is not None
        return TileRecords(
            self._masked(self.path, self.series(self.path), split), self.tiling.length
        )

    def _masked(self, path: Path, series: Sequence[Series], split: str) -> list[Part]:
        parts: list[Part] = []
        for kind in self.masks.kinds:
            hidden = [self.hidden(one, i, split, kind) for i, one in enumerate(series)]
            if not any(mask.any() for mask in hidden):
                raise DataError(
                    f"{path}: no value of the {split} span is hidden as {kind}; give a "
                    "longer span, or another data.masks.rate or seed"
                )
            parts += self.tiled(series, split, hidden, kind)
        return parts

    def hidden(self, one: Series, number: int, split: str, kind: Kind) -> NDArray[np.bool_]:
        """(time, channels) of a whole series: what ``split`` hides of it, none of it missing."""
        start, end = self.tiling.spans(one)[split]
        key = [self.masks.seed, ("val", "test").index(split), self.masks.kinds.index(kind), number]
        mask = np.full(one.values.shape, False)
        shape = (end - start, len(one.channels))
        mask[start:end] = self.masks.draw(kind, shape, np.random.default_rng(key))
        return mask & ~np.isnan(one.values)

    def predict_records(self) -> Sequence[Record]:
        path, series = self.predicted()
        if self.fill == "test":
            parts = self._masked(path, series, "test")
        else:
            parts = self.tiled(series, None)
        wanted = [replace(part, tiles=_asked(part)) for part in parts]
        records = TileRecords(wanted, self.tiling.length)
        if not len(records):
            raise DataError(f"{path}: no value is missing; there is nothing to fill in")
        return records

    def encode(self, record: Record) -> dict[str, Any]:
        example = super().encode(record)
        example["asked"] = example["hidden"] if "hidden" in record else ~example["known"]
        if not (example["asked"] & example["own"][:, None]).any():
            raise SkipRecord("no value is missing; there is nothing to fill in")
        return example

    def collate(self, examples: list[Any]) -> dict[str, Any]:
        """Of records to predict also ``asked`` (batch, time, channels): what is to be filled in."""
        batch = super().collate(examples)
        if "asked" in examples[0]:
            batch["asked"] = np.stack([e["asked"] for e in examples])
        return batch


def _asked(part: Part) -> list[Any]:
    """Windows among whose own rows there is something to fill in."""
    values = part.series.values
    if part.hidden is not None:
        return [tile for tile in part.tiles if part.hidden[tile.first : tile.end].any()]
    return [tile for tile in part.tiles if np.isnan(values[tile.first : tile.end]).any()]
