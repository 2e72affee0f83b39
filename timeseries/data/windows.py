"""Windows of series: batches to train and test on, records to forecast."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from core.jobs.errors import DataError, UsageError
from timeseries.data import calendar
from timeseries.data.covariates import Covariates, FittedCovariates, moments, static_columns
from timeseries.data.protocol import Protocol, Tiling, season_of
from timeseries.data.series import Series


@dataclass(frozen=True)
class Scale:
    """Of one series, each (channels,): ``mean`` and ``std`` over the training span, and
    ``seasonal_error``, the mean absolute error of the seasonal naive forecast one step ahead there,
    which is what MASE divides by (Hyndman and Koehler 2006)."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    seasonal_error: NDArray[np.float64]

    @classmethod
    def fit(cls, values: NDArray[np.float64], season: int, standard: bool) -> Scale:
        """From the training span (time, channels). A constant channel gets the deviation 1. Empty
        values are passed over; each channel has some."""
        channels = values.shape[1]
        mean, std = np.zeros(channels), np.ones(channels)
        if standard:
            # rounding gives a constant channel a deviation as well
            constant = np.nanmax(values, 0) == np.nanmin(values, 0)
            mean, std = np.nanmean(values, 0), np.where(constant, 1.0, np.nanstd(values, 0))
        lag = season if len(values) > season else 1
        error = np.ones(channels)
        if len(values) > 1:
            steps = np.abs(values[lag:] - values[:-lag])
            known = ~np.isnan(steps)
            error = np.where(known, steps, 0).sum(0) / known.sum(0).clip(1)
        return cls(mean, std, np.where(error > 0, error, 1.0))


@dataclass
class Fitted:
    """What training settles about the data and a forecast needs again."""

    channels: tuple[str, ...]
    frequency: str | None
    scales: dict[str, Scale] = field(default_factory=dict)
    covariates: FittedCovariates = field(default_factory=FittedCovariates)
    protocol: dict[str, Any] = field(default_factory=dict)  # what of it a model is built for
    offsets: bool | None = None  # whether the stamps had one from UTC, where that is known

    def plain(self) -> dict[str, Any]:
        """As lists and strings, for a checkpoint or JSON."""
        scales = {n: {k: v.tolist() for k, v in vars(s).items()} for n, s in self.scales.items()}
        plain: dict[str, Any] = {"channels": list(self.channels), "frequency": self.frequency}
        plain |= {"scales": scales, "protocol": self.protocol, "offsets": self.offsets}
        if self.covariates.columns:
            plain["covariates"] = self.covariates.plain()
        return plain

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Fitted:
        scales = {
            name: Scale(**{key: np.array(values) for key, values in scale.items()})
            for name, scale in plain["scales"].items()
        }
        found = cls(tuple(plain["channels"]), plain["frequency"], scales)
        found.protocol = dict(plain.get("protocol", {}))  # older checkpoints have none
        found.offsets = plain.get("offsets")
        if "covariates" in plain:
            found.covariates = FittedCovariates.from_plain(plain["covariates"])
        return found

    def scale(self, series: Series) -> Scale:
        """Raises DataError for a series that was not in training."""
        if series.name not in self.scales:
            raise DataError(
                f"series {series.name!r} was not in training, so its scale is not known; leave it "
                "out, or train on it"
            )
        return self.scales[series.name]

    def check(self, series: Sequence[Series], where: object) -> None:
        """Raises DataError for other columns or another frequency than training had."""
        for one in series:
            if one.channels != self.channels:
                raise DataError(
                    f"{where}: the values are {', '.join(one.channels)}; the model was trained on "
                    f"{', '.join(self.channels)}"
                )
            if one.frequency != self.frequency and len(one) > 1:  # one stamp has no step
                raise DataError(
                    f"{where}: series {one.name!r} has {_steps(one.frequency)}; the model was "
                    f"trained on {_steps(self.frequency)}; bring the table to these"
                )

    def check_protocol(self, protocol: Protocol | Tiling, section: str) -> None:
        """Raises UsageError for a look-back, horizon, length or scale that training had not;
        ``section`` names the protocol's settings."""
        given = _settled(protocol)
        for key, trained in self.protocol.items():
            if given.get(key) != trained:
                raise UsageError(
                    f"{section}.{key} is {given.get(key)}, and the model was trained with "
                    f"{trained}; give that, or train another"
                )


def check_horizon(model: int | None, given: int) -> None:
    """Raises UsageError for another horizon than a model's; None is a model without one."""
    if model is not None and model != given:
        raise UsageError(
            f"the model forecasts {model} steps and data.protocol.horizon is {given}; "
            "give the horizon that it was trained with"
        )


def _settled(protocol: Protocol | Tiling) -> dict[str, Any]:
    names = ("lookback", "horizon", "length", "scale", "season")
    return {key: value for key, value in vars(protocol).items() if key in names}


def _steps(frequency: str | None) -> str:
    return "numbered rows" if frequency is None else f"steps of {frequency}"


def fit(
    series: Sequence[Series], protocol: Protocol | Tiling, columns: Covariates | None = None
) -> Fitted:
    """Scales from the training spans alone, those of the covariates ``columns`` as well."""
    season = season_of(protocol, series[0].frequency)
    fitted = Fitted(series[0].channels, series[0].frequency, protocol=_settled(protocol))
    if columns:
        fitted.covariates = _fit_covariates(series, protocol, columns)
    for one in series:
        start, end = protocol.spans(one)["train"]
        fitted.scales[one.name] = Scale.fit(
            one.values[start:end], season, protocol.scale == "standard"
        )
    return fitted


def _fit_covariates(
    series: Sequence[Series], protocol: Protocol | Tiling, columns: Covariates
) -> FittedCovariates:
    ends = [protocol.spans(one)["train"][1] for one in series]
    mean, std = moments(
        np.hstack([one.known[:end], one.observed[:end]])
        for one, end in zip(series, ends, strict=True)
    )
    statics = [one.static for one in series]
    return FittedCovariates(
        columns, mean, std, static_columns(statics), {one.name: one.static for one in series}
    )


class Windows(Dataset):
    """Every window of one split, made when asked for, a batch at a time. Of series on memory maps
    the rows are read then too; of others those that a window reads are kept, standardised.

    Batches: ``past`` (batch, lookback, channels), ``future`` (batch, horizon, channels),
    standardised; ``past_time``, ``future_time`` (batch, steps, features), of the calendar, then
    covariates: known, observed (in the future 0, which is their mean) and static, the same at each
    step; ``mean``, ``std``, ``seasonal_error`` (batch, channels); ``series`` (batch,), number of
    the series, and ``origin`` (batch,), row of its first forecast step. Validation and test also
    have ``stamps`` (batch, lookback + horizon), microseconds since 1970 or row numbers.
    """

    def __init__(
        self, series: Sequence[Series], fitted: Fitted, protocol: Protocol, split: str
    ) -> None:
        self.lookback, self.horizon = protocol.lookback, protocol.horizon
        self.origins = [protocol.origins(one, split) for one in series]
        counts = [len(origins) for origins in self.origins]
        self.ends = np.cumsum(counts, dtype=np.int64)
        self.starts = self.ends - counts
        self.first = np.array([o.start for o in self.origins], np.int64)
        self.stride = self.origins[0].step  # that of all
        self.fitted, self.timed = fitted, split != "train"
        scales = [fitted.scale(one) for one in series]
        self.scale = {
            key: torch.from_numpy(np.stack([getattr(s, key) for s in scales]).astype(np.float32))
            for key in ("mean", "std", "seasonal_error")
        }
        self.observed = len(fitted.covariates.columns.observed)
        self.static = None
        if fitted.covariates.encoding:
            static = np.stack([fitted.covariates.constant(one.name) for one in series])
            self.static = torch.from_numpy(static)[:, None]
        self.series, self.scales = series, scales
        self.mapped = isinstance(series[0].values, np.memmap)
        if not self.mapped:
            self._keep()

    def _keep(self) -> None:
        """The rows that a window reads, standardised, so that a batch only picks them."""
        read = [
            range(o.start - self.lookback, o[-1] + self.horizon) if o else range(0)
            for o in self.origins
        ]
        self.offset = np.cumsum([0, *map(len, read)])[:-1] - [rows.start for rows in read]
        rows = [self._rows(i, r.start, r.stop) for i, r in enumerate(read)]
        values, stamps, beside = (np.concatenate(parts) for parts in zip(*rows, strict=True))
        self.values = torch.from_numpy(values)
        self.times = torch.from_numpy(self._features(stamps, beside))
        self.stamps = torch.from_numpy(stamps.astype(np.int64)) if self.timed else None

    def _rows(
        self, which: int, start: int, stop: int
    ) -> tuple[NDArray[np.float32], NDArray, NDArray[np.float32]]:
        """Values, stamps and covariates of some rows of a series; all but stamps standardised."""
        one, scale = self.series[which], self.scales[which]
        values = ((one.values[start:stop] - scale.mean) / scale.std).astype(np.float32)
        beside = np.zeros((stop - start, 0), np.float32)
        if len(self.fitted.covariates.mean):
            both = np.hstack([one.known[start:stop], one.observed[start:stop]])
            beside = self.fitted.covariates.scaled(both)
        return values, np.asarray(one.stamps[start:stop]), beside

    def _features(self, stamps: NDArray, beside: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.hstack([calendar.features(stamps, self.fitted.frequency), beside])

    def _picked(self, series: NDArray, origin: NDArray) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values, features and stamps (batch, lookback + horizon, ...) of some windows."""
        if not self.mapped:
            row = torch.from_numpy(self.offset[series] + origin)
            rows = row[:, None] + torch.arange(-self.lookback, self.horizon)
            stamps = None if self.stamps is None else self.stamps[rows]
            return self.values[rows], self.times[rows], stamps
        parts = [
            self._rows(which, row - self.lookback, row + self.horizon)
            for which, row in zip(series.tolist(), origin.tolist(), strict=True)
        ]
        values, stamp, beside = (np.stack(part) for part in zip(*parts, strict=True))
        times = self._features(stamp.reshape(-1), beside.reshape(stamp.size, beside.shape[2]))
        return (
            torch.from_numpy(values),
            torch.from_numpy(times).unflatten(0, stamp.shape),
            torch.from_numpy(stamp.astype(np.int64)) if self.timed else None,
        )

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        index = np.asarray(indices, np.int64)
        series = np.searchsorted(self.ends, index, side="right")
        origin = self.first[series] + self.stride * (index - self.starts[series])
        which = torch.from_numpy(series)
        values, times, stamps = self._picked(series, origin)
        past_time, future_time = times[:, : self.lookback], times[:, self.lookback :]
        if self.observed:
            future_time[..., -self.observed :] = 0
        if self.static is not None:
            static = self.static[which]
            past_time = torch.cat([past_time, static.expand(-1, self.lookback, -1)], 2)
            future_time = torch.cat([future_time, static.expand(-1, self.horizon, -1)], 2)
        return {
            **({} if stamps is None else {"stamps": stamps}),
            "past": values[:, : self.lookback],
            "future": values[:, self.lookback :],
            "past_time": past_time,
            "future_time": future_time,
            **{key: values[which] for key, values in self.scale.items()},
            "series": which,
            "origin": torch.from_numpy(origin),
        }

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        index = range(len(self))[index]
        return {key: value[0] for key, value in self.__getitems__([index]).items()}


class ForecastRecords(Sequence[dict[str, Any]]):
    """The windows to forecast as records: ``id``, ``series``, ``origin`` (the last stamp that is
    known), ``values`` (lookback, channels; fewer where the series begins later) and, where it has
    happened, ``actual``. With such covariates also ``known`` (as many rows and the horizon's,
    columns) and ``observed`` (as many rows, columns). Where gaps were ``closed`` the origin does
    not tell the others: ``stamps`` of these rows, and of as many of the horizon as there are."""

    def __init__(
        self,
        series: Sequence[Series],
        origins: Sequence[range],
        protocol: Protocol,
        closed: bool = False,
    ):
        self.series, self.origins, self.protocol = series, origins, protocol
        self.closed = closed
        self.ends = np.cumsum([len(o) for o in origins]).tolist()

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: Any) -> Any:
        index = range(len(self))[index]
        which = bisect_right(self.ends, index)
        one, origins = self.series[which], self.origins[which]
        row = origins[index - self.ends[which]]
        origin, start = str(one.stamps[row - 1]), max(0, row - self.protocol.lookback)
        record = {
            "id": f"{one.name}@{origin}",
            "series": one.name,
            "origin": origin,
            "values": one.values[start:row],
        }
        if one.known.shape[1]:
            record["known"] = one.known[start : row + self.protocol.horizon]
        if one.observed.shape[1]:
            record["observed"] = one.observed[start:row]
        if self.closed:
            end = row + self.protocol.horizon
            later = one.later[: max(0, end - len(one))]
            record["stamps"] = [*map(str, one.stamps[start:end]), *map(str, later)]
        actual = one.values[row : row + self.protocol.horizon]
        return {**record, "actual": actual} if len(actual) == self.protocol.horizon else record
