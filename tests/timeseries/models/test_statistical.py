"""statsforecast's models behind the interface, against the library's own command on a table."""

from __future__ import annotations

import errno
import math
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from statsforecast import StatsForecast
from statsforecast.models import AutoARIMA, AutoETS, AutoTheta, SeasonalNaive
from torch import Tensor

from core.jobs.errors import UsageError
from timeseries.models import statistical
from timeseries.models.statistical import StatisticalForecaster
from timeseries.tasks import Forecasting

ROOT = Path(__file__).parents[3]
LOOKBACK, HORIZON, CHANNELS, SEASON = 36, 7, 2, 6
LIBRARY = {
    "seasonal_naive": SeasonalNaive(SEASON),
    "auto_ets": AutoETS(SEASON, model="AZZ"),
    "auto_arima": AutoARIMA(season_length=SEASON),
    "auto_theta": AutoTheta(SEASON, decomposition_type="additive"),
}


def windows(lookback: int = LOOKBACK, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Seasons that grow with the level, above 0: what a multiplicative model fits best."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.arange(lookback)[None, :, None]
    level = torch.rand(batch, 1, CHANNELS, generator=generator) + 1 + 0.1 * steps
    season = 1 + 0.5 * torch.sin(2 * torch.pi * steps / SEASON)
    noise = 1 + 0.02 * torch.randn(batch, lookback, CHANNELS, generator=generator)
    past = level * season * noise
    return past, past[..., :0], past.new_zeros(batch, HORIZON, 0)


def build(method: Any, lookback: int = LOOKBACK, **options: Any) -> StatisticalForecaster:
    sizes = {"lookback": lookback, "horizon": HORIZON, "season": SEASON}
    return StatisticalForecaster(method, **{**sizes, **options})


def by_table(model: Any, past: Tensor) -> Tensor:
    """The library's forecasts of a long table with a series for each window and channel."""
    batch, lookback, channels = past.shape
    table = pd.DataFrame(
        {
            "unique_id": np.repeat(np.arange(batch * channels), lookback),
            "ds": np.tile(np.arange(lookback), batch * channels),
            "y": past.transpose(1, 2).flatten().double().numpy(),
        }
    )
    rows = StatsForecast([model], freq=1).forecast(df=table, h=HORIZON)
    values = torch.tensor(rows.sort_values(["unique_id", "ds"])[model.alias].to_numpy())
    return values.unflatten(0, (batch, channels, HORIZON)).transpose(1, 2)


@pytest.mark.parametrize("method", LIBRARY)
def test_equals_the_library_on_a_table(method: str) -> None:
    model = build(method)
    batch = windows()
    forecast = model(*batch)
    assert forecast.shape == (2, HORIZON, CHANNELS)
    assert forecast.dtype == torch.float32
    assert torch.equal(forecast, by_table(LIBRARY[method], batch[0]).float())
    assert model.failures == 0


@pytest.mark.parametrize("default", [AutoETS(SEASON), AutoTheta(SEASON)], ids=str)
def test_additive_where_the_library_would_multiply(default: Any) -> None:
    """Or the test above would say nothing about it."""
    method = {"AutoETS": "auto_ets", "AutoTheta": "auto_theta"}[default.alias]
    batch = windows()
    assert (build(method)(*batch) - by_table(default, batch[0])).abs().max() > 0.1


def test_a_failing_fit_is_naive_and_counted() -> None:
    batch = windows(lookback=6)  # the library refuses to choose among ETS models on so few values
    model = build("auto_ets", lookback=6)
    with pytest.raises(NotImplementedError, match="tiny datasets"):
        model.model.forecast(y=batch[0][0, :, 0].numpy(), h=HORIZON)
    with pytest.warns(UserWarning, match="auto_ets has no forecast for a look-back"):
        forecast = model(*batch)
    assert torch.equal(forecast, batch[0][:, torch.arange(HORIZON) % SEASON])
    assert model.failures == 2 * CHANNELS
    model(*batch)  # said once
    assert model.failures == 4 * CHANNELS


def test_a_forecast_that_is_not_finite_is_naive(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = windows()
    model = build("auto_theta")
    whole = model(*batch)
    own, broken = model.fit, batch[0][0, -1, 1].item()

    def fit(library: Any, row: Any) -> Any:
        fitted = own(library, row)
        if row[-1] == broken:
            mean = np.where(np.arange(HORIZON) == 3, np.inf, fitted.predict(h=HORIZON)["mean"])
            fitted.predict = lambda h: {"mean": mean}
        return fitted

    monkeypatch.setattr(model, "fit", fit)
    with pytest.warns(UserWarning, match="auto_theta has no forecast"):
        found = model(*batch)
    naive = batch[0][0, -SEASON:, 1][torch.arange(HORIZON) % SEASON]
    assert torch.equal(found[0, :, 1], naive)
    assert torch.equal(found[..., 0], whole[..., 0])
    assert torch.equal(found[1], whole[1])
    assert model.failures == 1


@pytest.mark.parametrize("method", LIBRARY)
def test_other_horizons_share_the_fits_kept(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, and the library's own forecast of the shorter horizon."""
    past, past_time, future_time = windows()
    batch = past.double(), past_time.double(), future_time.double()
    long = build(method, horizon=3 * HORIZON, cache=str(tmp_path))(*batch)
    monkeypatch.setattr(type(LIBRARY[method]), "fit", None)
    model = build(method, cache=str(tmp_path))
    short = model(*batch)
    assert model.failures == 0
    assert torch.allclose(short, long[:, :HORIZON], rtol=0, atol=1e-13)
    monkeypatch.undo()
    assert torch.allclose(short, by_table(LIBRARY[method], batch[0]), rtol=0, atol=1e-13)


def test_what_is_kept_is_not_fitted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    past, *times = windows()
    build("auto_theta", cache=str(tmp_path))(past[:1], *times)
    own, fitted = AutoTheta.fit, []

    def fit(self: AutoTheta, y: Any) -> AutoTheta:
        fitted.append(y)
        return own(self, y)

    monkeypatch.setattr(AutoTheta, "fit", fit)
    found = build("auto_theta", cache=str(tmp_path))(past, *times)
    assert np.array_equal(np.stack(fitted), past[1].T.double().numpy())
    assert torch.equal(found, build("auto_theta")(past, *times))


def test_another_season_has_fits_of_its_own(tmp_path: Path) -> None:
    batch = windows()
    first = build("auto_theta", cache=str(tmp_path))(*batch)
    found = build("auto_theta", cache=str(tmp_path), season=4)(*batch)
    assert torch.equal(found, build("auto_theta", season=4)(*batch))
    assert not torch.equal(found, first)


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match=r"cache .*file: .*; name a folder to write to"):
        build("auto_theta", cache=str(file))


def test_a_cache_that_cannot_be_written_to_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build("auto_theta", cache=str(tmp_path))

    def refused(*args: Any, **options: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", refused)  # root may write wherever the disk lets it
    with pytest.raises(ValueError, match=r"cache .*: .*Read-only file system; name a folder to"):
        build("auto_theta", cache=str(tmp_path))


def test_a_cache_that_goes_away_is_no_failed_fit(tmp_path: Path) -> None:
    """joblib raises, or warns, which is an error here. Neither may make a forecast naive."""
    model = build("auto_theta", cache=str(tmp_path / "fits"))
    shutil.rmtree(tmp_path / "fits")
    (tmp_path / "fits").touch()
    with pytest.raises((OSError, Warning), match="Not a directory"):
        model(*windows())
    assert model.failures == 0


def test_a_damaged_fit_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    batch = windows()
    whole = build("auto_theta", cache=str(tmp_path))(*batch)
    files = sorted(tmp_path.rglob("output.pkl"))
    sizes = [file.stat().st_size for file in files]
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(build("auto_theta", cache=str(tmp_path))(*batch), whole)
    assert caplog.text.count("Exception while loading") == len(files) == 2 * CHANNELS
    assert [file.stat().st_size for file in files] == sizes


def test_a_cache_is_where_the_model_was_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "later").mkdir()
    monkeypatch.chdir(tmp_path)
    model = build("auto_theta", cache="fits")
    monkeypatch.chdir("later")
    model(*windows())
    assert list(tmp_path.glob("fits/**/output.pkl"))
    assert not list(Path.cwd().iterdir())


def test_a_season_longer_than_the_look_back() -> None:
    batch = windows(lookback=5)
    model = build("seasonal_naive", lookback=5)
    assert torch.equal(model(*batch), batch[0][:, -1:].expand(-1, HORIZON, -1))
    assert model.failures == 0


def test_a_constant_look_back_is_forecast_without_a_warning() -> None:
    """With the season's test, which divides by its variance."""
    past = torch.full((1, LOOKBACK, 1), 0.5)
    model = build("auto_theta")
    forecast = model(past, past[..., :0], past.new_zeros(1, HORIZON, 0))
    assert torch.allclose(forecast, torch.tensor(0.5))
    assert model.failures == 0


def test_rows_keep_their_order_in_parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = windows(batch=4)
    with ThreadPoolExecutor(4) as pool:
        monkeypatch.setattr(statistical, "_pool", lambda processes: pool)
        found = build("auto_theta", processes=4)(*batch)
        tiny = build("auto_ets", lookback=6, processes=4)
        with pytest.warns(UserWarning, match="auto_ets has no forecast"):
            tiny(*windows(lookback=6))
    assert torch.equal(found, build("auto_theta")(*batch))
    assert tiny.failures == 2 * CHANNELS


def test_a_killed_process_is_no_failed_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next forecast has a pool that works."""
    pools: list[Killed] = []

    class Killed(ThreadPoolExecutor):
        def __init__(self, processes: int) -> None:
            super().__init__(processes)
            pools.append(self)

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            if self is not pools[0]:
                return super().submit(fn, *args, **kwargs)
            raised: Future = Future()
            raised.set_exception(BrokenExecutor("a process was killed"))
            return raised

    monkeypatch.setattr(statistical, "_pool", cache(Killed))
    model = build("auto_theta", processes=2)
    with pytest.raises(BrokenExecutor):
        model(*windows())
    assert torch.equal(model(*windows()), build("auto_theta")(*windows()))
    assert model.failures == 0
    pools[1].shutdown()


def test_an_interrupted_forecast_leaves_no_fits_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    interrupted = Event()

    def fit(library: Any, row: Any) -> Any:
        begun.append(row)
        if len(begun) == 1:
            raise KeyboardInterrupt
        interrupted.wait()
        return library.new().fit(row)

    model = build("auto_theta", processes=2)
    monkeypatch.setattr(model, "fit", fit)
    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(statistical, "_pool", cache(lambda processes: pool))
        with pytest.raises(KeyboardInterrupt):
            model(*windows(batch=4))
        interrupted.set()
    assert len(begun) <= 2  # of 8: the first, and one that began beside it


_PARENT = """
import os, sys, time
from timeseries.models import statistical

if __name__ == "__main__":
    pool = statistical._pool(2)
    ready = pool.submit(os.getpid)
    busy = [pool.submit(time.sleep, 600) for _ in range(4)]
    if sys.argv[1] == "at work":
        ready.result()
    print("now", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("moment", ["as they start", "at work"])
def test_processes_end_with_a_parent_that_is_killed(moment: str, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, script, moment],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "now\n"
        parent.kill()
        try:
            parent.communicate(timeout=60)  # ends when no process holds the output
        finally:
            with suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)


@pytest.mark.slow
def test_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = windows()
    whole = build("auto_theta")(*batch)
    assert torch.equal(build("auto_theta", processes=2)(*batch), whole)
    assert torch.equal(build("auto_theta", processes=2, cache=str(tmp_path))(*batch), whole)
    with monkeypatch.context() as patched:
        patched.setattr(AutoTheta, "fit", None)
        kept = build("auto_theta", cache=str(tmp_path))
        assert torch.equal(kept(*batch), whole)
    assert kept.failures == 0
    tiny = build("auto_ets", lookback=6, processes=2)
    with pytest.warns(UserWarning, match="auto_ets has no forecast"):
        tiny(*windows(lookback=6))
    assert tiny.failures == 2 * CHANNELS


def test_half_precision_of_the_caller() -> None:
    past, *times = windows()
    half = past.bfloat16()
    forecast = build("auto_theta")(half, *times)
    assert forecast.dtype == torch.bfloat16
    assert torch.equal(forecast, build("auto_theta")(half.float(), *times).bfloat16())


def test_fit_is_refused_in_one_line() -> None:
    model = build("seasonal_naive")
    assert not list(model.parameters())
    assert not model.state_dict()
    task = Forecasting(model, horizon=HORIZON, channels=CHANNELS, season=SEASON)
    with pytest.raises(UsageError, match="StatisticalForecaster has nothing to train; use test"):
        task.configure_optimizers()


@pytest.mark.parametrize("size", ["lookback", "horizon", "season", "processes"])
def test_a_size_below_one_is_named(size: str) -> None:
    with pytest.raises(ValueError, match=f"{size} is 0"):
        build("auto_ets", **{size: 0})


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(ValueError, match="give one of seasonal_naive, auto_ets"):
        build("arima")


def test_seasonal_naive_by_hand() -> None:
    batch = windows()
    forecast = build("seasonal_naive")(*batch)
    for step in range(HORIZON):
        source = LOOKBACK + step - SEASON * math.ceil((step + 1) / SEASON)
        assert torch.equal(forecast[:, step], batch[0][:, source])
