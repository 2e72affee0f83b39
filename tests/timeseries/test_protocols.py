"""The long-horizon benchmark's files under their published protocols, on numbers of our own."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from forked_cli import Server, metrics_of

from core.jobs.errors import UsageError
from timeseries.data.repairs import RepairWarning
from timeseries.studies import data_module

ROOT = Path(__file__).parents[2]
PROTOCOLS = ROOT / "timeseries" / "configs" / "protocols"
CONFIGS = ROOT / "timeseries" / "configs" / "long_horizon"
ETT = ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]
NUMBERS = ["0", "1", "2", "OT"]  # of hundreds
WEATHER = [
    *("p (mbar)", "T (degC)", "Tpot (K)", "Tdew (degC)", "rh (%)", "VPmax (mbar)"),
    *("VPact (mbar)", "VPdef (mbar)", "sh (g/kg)", "H2OC (mmol/mol)", "rho (g/m**3)", "wv (m/s)"),
    *("max. wv (m/s)", "wd (deg)", "rain (mm)", "raining (s)", "SWDR (W/m²)", "PAR (µmol/m²/s)"),
    *("max. PAR (µmol/m²/s)", "Tlog (degC)", "OT"),
]
ILLNESS = [
    *("% WEIGHTED ILI", "%UNWEIGHTED ILI", "AGE 0-4", "AGE 5-24", "ILITOTAL"),
    *("NUM. OF PROVIDERS", "OT"),
]
# file: overlay, channels, first stamp, minutes, rows, frequency
FILES = {
    "ETTh1.csv": ("etth", ETT, "2016-07-01 00:00:00", 60, 17_420, "1h"),
    "ETTm1.csv": ("ettm", ETT, "2016-07-01 00:00:00", 15, 69_680, "15m"),
    "electricity.csv": ("electricity", NUMBERS, "2016-07-01 02:00:00", 60, 26_304, "1h"),
    "traffic.csv": ("traffic", NUMBERS, "2016-07-01 02:00:00", 60, 17_544, "1h"),
    "weather.csv": ("weather", WEATHER, "2020-01-01 00:10:00", 10, 52_696, "10m"),
    "national_illness.csv": ("illness", ILLNESS, "2002-01-01 00:00:00", 7 * 1440, 966, "7d"),
}
GONE = range(20_000, 20_008)  # of the 52,704 stamps of weather.csv
# Windows of train, validation and test as TimesNet (Wu et al. 2023, arXiv 2210.02186) describes the
# data; those of look-back 96 count the origins of a horizon of 0, ILI's those of 24.
PUBLISHED = {
    "ETTh1.csv": ((8_545, 2_881, 2_881), 0),
    "ETTm1.csv": ((34_465, 11_521, 11_521), 0),
    "electricity.csv": ((18_317, 2_633, 5_261), 0),
    "traffic.csv": ((12_185, 1_757, 3_509), 0),
    "weather.csv": ((36_792, 5_271, 10_540), 0),
    "national_illness.csv": ((617, 74, 170), 24),
}


def write(folder: Path, file: str) -> pl.DataFrame:
    _, channels, first, minutes, rows, _ = FILES[file]
    gone = GONE if file == "weather.csv" else range(0)
    start = datetime.fromisoformat(first)
    numbers = [k for k in range(rows + len(gone)) if k not in gone]
    random = np.random.default_rng(0)
    table = pl.DataFrame(
        {
            "date": [str(start + timedelta(minutes=minutes * k)) for k in numbers],
            **{name: random.normal(i, 1 + i, rows).round(2) for i, name in enumerate(channels)},
        }
    )
    table.write_csv(folder / file)
    return table


@pytest.mark.parametrize("file", FILES)
def test_windows_are_as_many_as_published(tmp_path: Path, file: str) -> None:
    overlay, channels, _, _, rows, frequency = FILES[file]
    table = write(tmp_path, file)
    sizes, of = PUBLISHED[file]
    for horizon in (24, 36, 48, 60) if overlay == "illness" else (96, 720):
        keys = ["folder", str(tmp_path), "protocol.horizon", str(horizon)]
        words = [f"--data.init_args.{k}={v}" for k, v in zip(keys[::2], keys[1::2], strict=True)]
        data = data_module(str(PROTOCOLS / f"{overlay}.yaml"), words)
        assert data.path == tmp_path / file
        if file == "weather.csv" and horizon == 96:
            said = "missing stamps: 8, first at row 20001 of 'table'; data.policies.gaps: close"
            with pytest.warns(RepairWarning, match=re.escape(said)):
                data.setup("fit")
        data.setup("fit")
        (one,) = data.series(data.path)
        assert (one.channels, one.frequency, len(one)) == (tuple(channels), frequency, rows)
        assert one.values[-1].tolist() == list(table.row(-1)[1:])
        assert str(one.stamps[-1].item()) == table["date"][-1]
        counts = [len(data.windows(split)) for split in ("train", "val", "test")]
        assert counts == [size + of - horizon for size in sizes]
        # the scale is that of the first rows alone
        end = data.protocol.spans(one)["train"][1]
        assert data.fitted is not None
        first = table[channels].head(end).to_numpy()
        np.testing.assert_allclose(data.fitted.scales["table"].mean, first.mean(0))
        np.testing.assert_allclose(data.fitted.scales["table"].std, first.std(0))


def test_a_longer_look_back_reaches_over_the_borders(tmp_path: Path) -> None:
    """252 batches of 32 windows to train on and 2,785 of the test, as TSMixer's authors count them
    at look-back 512 (granite-tsfm, patch_tsmixer_getting_started)."""
    table = write(tmp_path, "ETTh1.csv")
    words = [f"--data.init_args.folder={tmp_path}", "--data.init_args.protocol.lookback=512"]
    data = data_module(str(PROTOCOLS / "etth.yaml"), words)
    data.setup("fit")
    train, val, test = (data.windows(split) for split in ("train", "val", "test"))
    assert (-(-len(train) // 32), len(val), len(test)) == (252, 2_785, 2_785)
    assert data.fitted is not None
    of = data.fitted.scales["table"]
    for windows, border in ((val, 8_640), (test, 11_520)):
        wanted = table[ETT][border - 512 : border].to_numpy()
        np.testing.assert_allclose(windows[0]["past"], (wanted - of.mean) / of.std, rtol=1e-4)


def test_a_file_shorter_than_published_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "national_illness.csv").head(900).write_csv(tmp_path / "national_illness.csv")
    words = [f"--data.init_args.folder={tmp_path}"]
    data = data_module(str(PROTOCOLS / "illness.yaml"), words)
    with pytest.raises(
        UsageError, match=r"has 900 rows; the borders of data\.protocol are rows 676"
    ):
        data.setup("fit")


def test_business_days_have_a_week_of_five(server: Server) -> None:
    days = pl.date_range(datetime(2020, 1, 6), datetime(2020, 12, 31), eager=True)
    days = days.filter(days.dt.weekday() <= 5)
    y = np.arange(len(days)) % 5 + np.random.default_rng(0).normal(0, 0.1, len(days))
    pl.DataFrame({"ds": days, "y": y}).write_csv(server.folder / "days.csv")
    protocol = {"lookback": 10, "horizon": 10, "scale": "none", "season": 5}
    words = [f"--data.init_args.protocol.{key}={value}" for key, value in protocol.items()]
    words += ["--data.init_args.path=days.csv", "--data.init_args.policies.gaps=close"]
    config = ROOT / "timeseries" / "configs" / "seasonal_naive.yaml"
    code, output = server.run("test", "--config", str(config), *words, "--trainer.logger=false")
    assert code == 0, output
    train, test = int(len(y) * 0.7), int(len(y) * 0.8)
    origins = range(test, len(y) - 9)
    off = [y[at : at + 10] - np.tile(y[at - 5 : at], 2) for at in origins]
    unit = np.abs(y[5:train] - y[: train - 5]).mean()
    found = metrics_of(output)
    for name in ("", "_seasonal_naive"):
        assert float(found[f"test/mse{name}"]) == pytest.approx(np.square(off).mean(), rel=1e-3)
        mase = np.abs(off).mean() / unit
        assert float(found[f"test/mase{name}"]) == pytest.approx(mase, rel=1e-3)


@pytest.mark.parametrize(("config", "more"), [("dlinear", []), ("informer", ["label_length=18"])])
def test_illness_from_a_folder(server: Server, config: str, more: list[str]) -> None:
    (server.folder / "benchmark").mkdir(exist_ok=True)
    write(server.folder / "benchmark", "national_illness.csv")
    words = ["--config", str(CONFIGS / f"{config}.yaml")]
    words += ["--config", str(PROTOCOLS / "illness.yaml"), "--data.init_args.folder", "benchmark"]
    words += [f"--model.init_args.model.init_args.{key}" for key in more]
    if config == "informer":
        small = ("dim=16", "feedforward=16", "heads=2")
        words += [f"--model.init_args.model.init_args.{key}" for key in small]
    few = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]
    few += ["--trainer.limit_val_batches=1"]
    code, output = server.run("fit", *words, *few)
    assert code == 0, output
    folder = output.split("run folder: ")[1].split("\n")[0]
    code, output = server.run("test", "--ckpt_path", folder)
    assert code == 0, output
    assert "test/mse " in output
