"""The data module of anomaly scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.jobs.data import Record
from core.jobs.errors import DataError, UsageError
from timeseries.data.covariates import Covariates
from timeseries.data.injection import INJECTED, Injection, inject
from timeseries.data.layout import AUTO, Roles
from timeseries.data.masks import Masks
from timeseries.data.protocol import Tiling
from timeseries.data.series import Policies, Series
from timeseries.data.tiled import KEEP, TiledSeries, TileRecords


class AnomalyWindows(TiledSeries):
    """Series in windows whose every stamp gets a score.

    Training and validation spans should be without anomalies, or nearly: the first teaches what is
    usual, the errors on the second say what error is unusual.

    Args:
        path: the CSV, TSV or Parquet table to train and test on.
        predict_path: what ``predict`` reads; without it, ``path``.
        time: column of stamps; null numbers the rows of each series. ``auto`` takes ``ds`` or
            ``date``.
        series: column that names the series of a row (long table); null for one series whose
            channels are columns (wide table). ``auto`` takes ``unique_id`` where there is one.
        targets: the channels; null takes ``y`` of a long table, all columns of a wide one.
        labels: column of 1 for an anomalous row, 0 for another, empty where nobody knows; used by
            ``test`` only.
        inject: anomalies to put into the test span, instead of labels; ``test`` only.
        frequency: step of the stamps such as ``1h``; null infers it.
        tiling: windows, borders and scale.
        masks: what training hides.
        policies: what becomes of duplicates and other flaws. Gaps and empty values are kept, and
            get no score, unless it says otherwise.
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
        labels: str | None = None,
        inject: Injection | None = None,
        frequency: str | None = None,
        tiling: Tiling = Tiling(),  # noqa: B008  # read only
        masks: Masks = Masks(),  # noqa: B008  # read only
        policies: Policies = KEEP,
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        roles = Roles(time, series, targets)
        whole = (roles, frequency, tiling, masks, policies, batch_size, num_workers)
        super().__init__(path, predict_path, *whole)
        self.labels, self.inject = labels, inject
        self._tested: tuple[list[Series], list[NDArray[np.int64]]] | None = None

    def beside(self, path: Path) -> Covariates:
        """The labels of the table to test on."""
        has = self.labels is not None and path == self.path
        return Covariates(observed=(str(self.labels),)) if has else Covariates()

    def _read(self, path: Path) -> list[Series]:
        if self.inject is not None:
            self.inject.check()
            if self.labels is not None:
                raise UsageError("data.labels and data.inject are both given; leave one out")
        if self.labels is not None and {"previous", "linear"} & set(vars(self.policies).values()):
            raise UsageError(
                "data.policies: previous and linear would fill in data.labels too; give keep"
            )
        found = super()._read(path)
        for one in found:
            known = one.observed[~np.isnan(one.observed)]
            if not np.isin(known, (0, 1)).all():
                wrong = known[~np.isin(known, (0, 1))][0]
                raise DataError(
                    f"{path}: series {one.name!r}: column {self.labels!r} holds {wrong:g}; labels "
                    "are 0, 1 or empty"
                )
        return found

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of what the numbers 1 and more in ``tested`` mean; none without labels."""
        if self.inject is not None:
            return INJECTED
        return () if self.labels is None else ("labelled",)

    def tested(self) -> tuple[list[Series], list[NDArray[np.int64]]]:
        """The series as the test sees them, and the kind of each row (time,): 0 for none, -1 where
        nobody knows."""
        if self._tested is None:
            assert self.path is not None
            assert self.fitted is not None
            series = list(self.series(self.path))
            kinds = [np.full(len(one), -1) for one in series]
            if self.inject is not None:
                for i, one in enumerate(series):
                    span, std = self.tiling.spans(one)["test"], self.fitted.scale(one).std
                    series[i], kinds[i] = inject(one, span, std, self.inject, i)
            elif self.labels is not None:
                kinds = [np.nan_to_num(one.observed[:, 0], nan=-1).astype(int) for one in series]
            self._tested = (series, kinds)
        return self._tested

    def records(self, split: str) -> TileRecords:
        assert self.path is not None
        series = self.tested()[0] if split == "test" else self.series(self.path)
        return TileRecords(self.tiled(series, split), self.tiling.length)

    def predict_records(self) -> Sequence[Record]:
        return TileRecords(self.tiled(self.predicted()[1], None), self.tiling.length)
