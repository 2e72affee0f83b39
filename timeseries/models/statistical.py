"""Classical forecasts by the library statsforecast, behind the interface of forecasters."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
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


class StatisticalForecaster(nn.Module):
    """Fits one of statsforecast's models to the look-back of each window and channel.

    There is nothing to train: use it with ``test`` and ``predict``. ``season`` is in steps.
    ``auto_ets`` (Hyndman and Khandakar 2008) and ``auto_theta`` (Fiorucci et al. 2016) are kept to
    additive forms: the zero of standardised values means nothing, so neither do ratios to it.
    ``auto_arima`` has the library's defaults (Hyndman and Khandakar 2008).

    Where a fit fails, or its forecast is not finite, the library's seasonal naive forecast takes
    its place; ``failures`` counts these. A season longer than the look-back is naive with season 1.

    ``processes`` above 1 fit that many rows at a time, in processes that start with the first
    forecast and take seconds to.

    ``cache`` names a folder that keeps every fit (joblib's ``Memory``: pickles of 4 to 10 kB each,
    so let nobody else write there). A fit depends on the look-back alone: other horizons, and a
    call that was stopped, go on with what is there.

    Raises ValueError for a size below 1, an unknown method, and a folder that cannot be made.
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
        self.horizon, self.processes = horizon, processes
        self.failures = 0

    @torch.no_grad()
    def forward(self, past: Tensor, past_time: Tensor, future_time: Tensor) -> Tensor:
        """(batch, horizon, channels) from ``past`` (batch, lookback, channels)."""
        rows = past.transpose(1, 2).flatten(0, 1).double().cpu().contiguous().numpy()
        found = torch.from_numpy(np.stack(list(self._forecasts(rows)))).to(past)
        return found.unflatten(0, (-1, past.shape[2])).transpose(1, 2)

    def _forecasts(self, rows: Row) -> Iterator[Row]:
        """(horizon,) of each row of ``rows`` (rows, lookback), in their order."""
        jobs: Sequence[Callable[[], Row]]
        jobs = [partial(_forecast, self.fit, self.model, row, self.horizon) for row in rows]
        if self.processes > 1:
            jobs = [_pool(self.processes).submit(job).result for job in jobs]
        for job, row in zip(jobs, rows, strict=True):
            try:
                with np.errstate(**_QUIET):
                    mean = job()
            except BrokenExecutor:  # a process was killed: no fault of the fit
                raise
            except Exception:  # the library raises whatever its arithmetic does
                mean = np.array([np.nan])
            if not np.isfinite(mean).all():
                self.failures += 1
                mean = self.naive.forecast(y=row, h=self.horizon)["mean"]
            yield mean


def _fit(model: Any, row: Row) -> Any:
    """The library's ``model`` fitted to ``row`` (lookback,); ``model`` itself stays as it is."""
    return model.new().fit(row)


def _kept(folder: str) -> Callable[[Any, Row], Any]:
    """``_fit``, whose results stay in ``folder``, another one for each version of the library."""
    import statsforecast
    from joblib import Memory

    place = Path(folder) / f"statsforecast-{statsforecast.__version__}"
    try:
        return Memory(place, compress=3, verbose=0).cache(_fit)
    except OSError as error:
        raise ValueError(f"cache {folder}: {error}; name a folder to write to") from None


def _forecast(fit: Callable[[Any, Row], Any], model: Any, row: Row, horizon: int) -> Row:
    """(horizon,) after ``row`` (lookback,)."""
    mean: Row = fit(model, row).predict(h=horizon)["mean"]
    return mean


@cache
def _pool(processes: int) -> ProcessPoolExecutor:
    # not forked: a fork of a process with threads or a GPU's context may hang
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, spawn, partial(np.seterr, **_QUIET))
