"""Classical forecasts by the library statsforecast, behind the interface of forecasters."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from timeseries.models.sizes import check_sizes

Row = NDArray[np.float64]
_QUIET: Any = {"invalid": "ignore"}  # the test for seasons divides 0 by 0 on a constant look-back
_NAIVE = "has no forecast for a look-back; where so, the seasonal naive forecast counts as its own"


class StatisticalForecaster(nn.Module):
    """Fits one of statsforecast's models to the look-back of each window and channel.

    There is nothing to train: use it with ``test`` and ``predict``. ``season`` is in steps.
    ``auto_ets`` (Hyndman and Khandakar 2008) and ``auto_theta`` (Fiorucci et al. 2016) are kept to
    additive forms: the zero of standardised values means nothing, so neither do ratios to it.
    ``auto_arima`` has the library's defaults (Hyndman and Khandakar 2008).

    Where a fit fails, or its forecast is not finite, the library's seasonal naive forecast takes
    its place: a warning says so once, ``failures`` counts these. A season longer than the look-back
    is naive with season 1.

    ``processes`` above 1 fit that many rows at a time, in processes that start with the first
    forecast and take seconds to. They end with this one, however it ends.

    ``cache`` names a folder that keeps every fit (joblib's ``Memory``: pickles of 4 to 10 kB each,
    so let nobody else write there). A fit depends on the look-back alone: other horizons, and a
    call that was stopped, go on with what is there. Other versions of the library fit anew.

    Raises ValueError for a size below 1, an unknown method, and a folder that cannot be written to.
    """

    def __init__(
        self,
        method: Literal["seasonal_naive", "auto_ets", "auto_arima", "auto_theta"],
        lookback: int = 0,
        horizon: int = 0,
        season: int = 0,
        processes: int = 1,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        check_sizes(lookback=lookback, horizon=horizon, season=season, processes=processes)
        from statsforecast.models import AutoARIMA, AutoETS, AutoTheta, SeasonalNaive

        self.naive = SeasonalNaive(season if season <= lookback else 1)
        models: dict[str, Any] = {
            "seasonal_naive": self.naive,
            "auto_ets": AutoETS(season, model="AZZ"),
            "auto_arima": AutoARIMA(season_length=season),
            "auto_theta": AutoTheta(season, decomposition_type="additive"),
        }
        if method not in models:
            raise ValueError(f"method is {method!r}; give one of {', '.join(models)}")
        self.model = models[method]
        self.fit = _fit if cache is None else _kept(cache)
        self.method, self.horizon, self.processes = method, horizon, processes
        self.failures = 0

    @torch.no_grad()
    def forward(self, past: Tensor, past_time: Tensor, future_time: Tensor) -> Tensor:
        """(batch, horizon, channels) from ``past`` (batch, lookback, channels)."""
        rows = past.transpose(1, 2).flatten(0, 1).double().cpu().contiguous().numpy()
        found = torch.from_numpy(np.stack(list(self._forecasts(rows)))).to(past)
        return found.unflatten(0, (-1, past.shape[2])).transpose(1, 2)

    def _forecasts(self, rows: Row) -> Iterator[Row]:
        """(horizon,) of each row of ``rows`` (rows, lookback), in their order."""
        forecast = partial(_forecast, self.fit, self.model, self.horizon)
        try:
            found = _pool(self.processes).map if self.processes > 1 else map
            for mean, row in zip(found(forecast, rows), rows, strict=True):
                if not np.isfinite(mean).all():
                    if not self.failures:
                        warnings.warn(f"{self.method} {_NAIVE}", stacklevel=2)
                    self.failures += 1
                    mean = self.naive.forecast(y=row, h=self.horizon)["mean"]
                yield mean
        except BrokenExecutor:  # a process was killed: no fault of the fit
            _pool.cache_clear()  # a broken pool stays broken
            raise


class _Failed(Exception):
    """The library did not fit a row or forecast from it."""


@contextmanager
def _by_the_library() -> Iterator[None]:
    """Raises _Failed for whatever the library raises, which is what its arithmetic does; what keeps
    the fits raises errors of its own."""
    try:
        yield
    except Exception as error:
        raise _Failed from error


def _fit(model: Any, row: Row) -> Any:
    """The library's ``model`` fitted to ``row`` (lookback,); ``model`` itself stays as it is."""
    with _by_the_library():
        return model.new().fit(row)


def _kept(folder: str) -> Callable[[Any, Row], Any]:
    """``_fit``, whose results stay in ``folder``, another one for each version of the library."""
    import statsforecast
    from joblib import Memory

    # resolved: a process of the pool may start in another folder
    place = Path(folder).resolve() / f"statsforecast-{statsforecast.__version__}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=place).close()  # joblib would only warn, at every fit
        return Memory(place, compress=3, verbose=0).cache(_fit)
    except OSError as error:
        raise ValueError(f"cache {folder}: {error}; name a folder to write to") from None


def _forecast(fit: Callable[[Any, Row], Any], model: Any, horizon: int, row: Row) -> Row:
    """(horizon,) after ``row`` (lookback,); a NaN where the library fails."""
    try:
        with np.errstate(**_QUIET):
            fitted = fit(model, row)
            with _by_the_library():
                mean: Row = fitted.predict(h=horizon)["mean"]
                return mean
    except _Failed:
        return np.array([np.nan])


@cache
def _pool(processes: int) -> ProcessPoolExecutor:
    # not forked: a fork of a process with threads or a GPU's context may hang
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, spawn, _begin)


def _begin() -> None:
    """What a process of the pool does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed tells nobody; the pool's processes would wait for it for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
