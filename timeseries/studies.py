"""``compare`` and ``backtest``: several fits and tests, one table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import polars as pl
import yaml
from jsonargparse import ArgumentParser
from matplotlib import colormaps
from matplotlib.figure import Figure

from core.jobs.errors import DataError, UsageError
from core.jobs.studies import Trial, logged_table, rows_of, run_study
from core.jobs.usage import one_line
from timeseries.data import calendar
from timeseries.data.forecasts import ForecastWindows
from timeseries.data.protocol import check_length
from timeseries.data.series import Series

_BARS = ("mse", "mae")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}; see {self.prog} --help")


def compare(arguments: Sequence[str]) -> None:
    """Fit and test every config with every seed and horizon; one table."""
    parser = Parser(
        prog="timeseries compare",
        allow_abbrev=False,
        description="Fit and test several configs on the same data; one table, one figure. "
        "A config without a trainer section is tested as it is. Run again, it goes on behind the "
        "last finished row. Further keys (--data.init_args.path FILE) go to every fit and test.",
    )
    parser.add_argument("--configs", nargs="+", required=True, help="one YAML file a model")
    parser.add_argument("--overlay", help="YAML file laid over every config: data and protocol")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--horizons", nargs="+", type=int, help="default: each config's own")
    parser.add_argument("--out", default="compare.csv", help="the table; holds finished rows")
    given, rest = parser.parse_known_args(list(arguments))
    trials = [
        Trial(
            {"model": Path(config).stem, **_horizon_label(horizon), "seed": seed},
            (*_settings(config, given.overlay), *_horizon(horizon), *_seed(seed), *rest),
            trains(Path(config)),
        )
        for horizon in given.horizons or [None]
        for config in given.configs
        for seed in (given.seeds if trains(Path(config)) else given.seeds[:1])
    ]
    table = run_study("timeseries", "compare", trials, Path(given.out), comparison_figure)
    print_table(summary(table, [k for k in ("horizon", "model") if k in table.columns]))


def backtest(arguments: Sequence[str]) -> None:
    """Rolling origin: the same config, trained and tested on spans that move forward."""
    parser = Parser(
        prog="timeseries backtest",
        allow_abbrev=False,
        description="Rolling-origin backtest: fold k trains on all rows before its validation "
        "span, validates on the span before its test span and tests there; the last test span ends "
        "with the last stamp of all series. Borders are stamps, the same for all series: one takes "
        "part in the folds that it has room for. Run again, it goes on behind the last finished "
        "fold. Further keys go to every fit and test.",
    )
    parser.add_argument("--config", required=True, help="YAML file of one model")
    parser.add_argument("--folds", type=int, default=3, help="test spans; default: %(default)s")
    parser.add_argument(
        "--span", type=int, help="rows of a test span, at least the horizon; default: the horizon"
    )
    out = "the table; holds finished rows; default: %(default)s"
    parser.add_argument("--out", default="backtest.csv", help=out)
    given, rest = parser.parse_known_args(list(arguments))
    data = data_module(given.config, rest)
    if data.path is None:
        raise UsageError("backtest needs --data.init_args.path, a table of series")
    span = given.span or data.protocol.horizon
    train, skip = trains(Path(given.config)), "--data.init_args.policies.short=skip"
    trials = []
    for number, fold in enumerate(folds(data, data.path, given.folds, span), start=1):
        keys = [f"--data.init_args.protocol.{key}={stamp}" for key, stamp in fold.borders.items()]
        labels: dict[str, str | int] = {
            "model": Path(given.config).stem,
            "fold": number,
            "test_end": fold.borders["test_end"],
            "series": fold.tested,
            "not_tested": fold.late + fold.over,
        }
        trials.append(Trial(labels, ("--config", given.config, *rest, *keys, skip), train))
    # the table may hold another model's folds, or those of another number of them
    table = run_study(
        "timeseries",
        "backtest",
        trials,
        Path(given.out),
        lambda table: backtest_figure(rows_of(table, trials)),
        lambda table: backtest_by_horizon(rows_of(table, trials)),
    )
    table = rows_of(table, trials)
    shown = ("fold", "test_end", "series", "not_tested", *_BARS, "mase", "mse_seasonal_naive")
    print_table(table.select(shown))


def trains(config: Path) -> bool:
    """Whether a config has a trainer section: what has none is used as it is built."""
    return "trainer" in _sections(config)


def _sections(config: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(config.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"config {config} cannot be read: {str(error).splitlines()[0]}") from error
    return settings if isinstance(settings, dict) else {}


def _settings(config: str, overlay: str | None) -> tuple[str, ...]:
    return ("--config", config, *(("--config", overlay) if overlay else ()))


def _horizon(horizon: int | None) -> tuple[str, ...]:
    return () if horizon is None else (f"--data.init_args.protocol.horizon={horizon}",)


def _horizon_label(horizon: int | None) -> dict[str, int]:
    return {} if horizon is None else {"horizon": horizon}


def _seed(seed: int) -> tuple[str, str]:
    return ("--seed_everything", str(seed))


class Fold(NamedTuple):
    """Borders of a protocol, as text; how many series are tested, and how many begin too ``late``
    to train on them or are ``over`` before the test."""

    borders: dict[str, str]
    tested: int
    late: int
    over: int


def folds(data: ForecastWindows, path: Path, count: int, span: int) -> list[Fold]:
    """Borders of a rolling origin, ``span`` steps apart; the last test ends with the last stamp of
    all series. A warning names what a fold leaves out. Raises UsageError if there is no room."""
    protocol, skip = data.protocol, data.policies.short == "skip"
    series = check_length(data.all_series(path), protocol, path, skip)
    last = max(series, key=lambda one: (one.stamps[-1], len(one)))
    found, said = [], []
    for fold in range(1, count + 1):
        ends = [_border(last, 1 - (count - fold + k) * span) for k in (2, 1, 0)]
        cut = replace(protocol, train_end=ends[0], val_end=ends[1], test_end=ends[2])
        borders = dict(zip(("train_end", "val_end", "test_end"), ends, strict=True))
        ready = [one for one in series if cut.trains(one)]
        tested = [one for one in ready if cut.origins(one, "test")]
        some = any(cut.origins(one, "val") for one in ready)
        if span < protocol.horizon or not tested or not some:
            raise UsageError(
                f"{count} folds of {span} rows with a horizon of {protocol.horizon} do not fit "
                f"into {max(map(len, series))} rows; change --folds or --span"
            )
        late = [one.name for one in series if not cut.trains(one)]
        over = [one.name for one in ready if not cut.origins(one, "test")]
        found.append(Fold(borders, len(tested), len(late), len(over)))
        for left, why in ((late, "begin too late to train on"), (over, "have ended by then")):
            if left:
                said.append(
                    f"{path}: fold {fold}, tested from {borders['val_end']}, leaves out "
                    f"{len(left)} of {len(series)} series that {why}, first {left[0]!r}"
                )
    sys.stderr.writelines(f"warning: {line}\n" for line in said)
    return found


def _border(series: Series, rows: int) -> str:
    """The stamp so many ``rows`` behind the last; where there is none, as many steps."""
    row, step = len(series) - 1 + rows, series.frequency
    if 0 <= row < len(series):  # closed gaps have fewer rows than steps
        stamp = series.stamps[row]
    elif step is None:
        stamp = series.stamps[-1] + rows
    else:
        stamp = calendar.grid(series.stamps[-1], step, rows, rows + 1)[0]
    return f"stamp {stamp}" if step is None else str(stamp.item())


def data_module(config: str, rest: Sequence[str]) -> ForecastWindows:
    """What the data section of a config and further arguments describe."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("-c", "--config", action="config")
    parser.add_subclass_arguments(ForecastWindows, "data")
    section = _sections(Path(config)).get("data")
    if section is None:
        raise UsageError(f"{config}: has no data section")
    keys = [word for word in _joined(rest) if word.startswith("--data")]
    words = [f"--data={yaml.safe_dump(section)}", *keys]
    try:
        options = parser.parse_args(words)
    except argparse.ArgumentError as error:
        reason = one_line(str(error), words, parser.get_defaults().keys())
        raise UsageError(f"{config}: {reason}") from error
    return parser.instantiate(options).data


def _joined(words: Sequence[str]) -> list[str]:
    """``--key value`` as ``--key=value``."""
    joined: list[str] = []
    for word in words:
        if word.startswith("--") or not joined:
            joined.append(word)
        else:
            joined[-1] += f"={word}"
    return joined


def summary(table: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """Mean over seeds, and the standard deviation of the MSE, best first within a horizon."""
    means = [pl.col(k).mean() for k in (*_BARS, "mase", "mse_seasonal_naive", "seconds")]
    spread = pl.col("mse").std().alias("mse_std")
    found = table.group_by(by, maintain_order=True).agg(*means, spread, pl.len().alias("seeds"))
    order = [name for name in by if name != "model"]
    return found.sort(*order, "mse")


def print_table(table: pl.DataFrame) -> None:
    with pl.Config(
        tbl_rows=-1,
        tbl_cols=-1,
        tbl_width_chars=200,
        tbl_hide_column_data_types=True,
        tbl_hide_dataframe_shape=True,
    ):
        sys.stdout.write(f"{table}\n")


def comparison_figure(table: pl.DataFrame) -> Figure:
    """MSE of every model, a group of bars a horizon, the seasonal naive forecast's as a line, which
    also stands for a model that gives the same forecasts."""
    if table.is_empty():
        raise DataError("the table has no rows")
    if "horizon" not in table.columns:
        table = table.with_columns(pl.lit("").alias("horizon"))
    found = summary(table, ["horizon", "model"])
    horizons = found["horizon"].unique(maintain_order=True).to_list()
    models = found["model"].unique(maintain_order=True).to_list()
    models = [m for m in models if not _is_naive(found.filter(pl.col("model") == m))] or models
    width = max(6, 3.5 + len(horizons) * len(models) * 0.4)  # 2.5 of it for the names
    figure = Figure(figsize=(width, max(4, 1 + len(models) * 0.2)), layout="constrained")
    axes = figure.subplots()
    width, tab20 = 0.8 / len(models), colormaps["tab20"]
    for number, model in enumerate(models):
        part = found.filter(pl.col("model") == model)
        at = [horizons.index(h) + (number + 0.5) * width - 0.4 for h in part["horizon"]]
        spread = part["mse_std"].fill_null(0)
        color = tab20(number) if len(models) > 10 else None  # there are 10 usual colours
        axes.bar(at, part["mse"], width * 0.9, yerr=spread, label=model, color=color)
    for place, horizon in enumerate(horizons):
        naive = found.filter(pl.col("horizon") == horizon)["mse_seasonal_naive"][0]
        label = "seasonal naive" if place == 0 else None
        axes.plot([place - 0.4, place + 0.4], [naive, naive], color="black", ls="--", label=label)
    axes.set_xticks(np.arange(len(horizons)), [str(h) for h in horizons])
    axes.set(xlabel="horizon", ylabel="mean squared error, standardised")
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _is_naive(model: pl.DataFrame) -> bool:
    return bool(np.allclose(model["mse"], model["mse_seasonal_naive"], rtol=1e-5))


def backtest_figure(table: pl.DataFrame) -> Figure:
    """MSE by fold beside the seasonal naive forecast's."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    table = table.sort("fold")
    for key, label in (("mse", table["model"][0]), ("mse_seasonal_naive", "seasonal naive")):
        axes.plot(table["fold"], table[key], marker="o", label=label)
    axes.set(xlabel="fold", ylabel="mean squared error, standardised")
    axes.set_xticks(table["fold"].to_list())
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def backtest_by_horizon(table: pl.DataFrame) -> dict[str, Figure | pl.DataFrame]:
    """``tables/backtest_by_horizon.csv`` and a figure: the errors of all folds by step, beside the
    seasonal naive forecast's. Means over windows, as if all folds were one test; ``wql`` is a mean
    of the folds' own. What the tests have logged is read, also of folds that an earlier command
    tested."""
    parts = []
    for fold, run in table.sort("fold").select("fold", "run_id").iter_rows():
        part = logged_table(run, "tables/test_by_horizon.csv")
        if part is None or "windows" not in part.columns:
            sys.stderr.write(
                f"warning: fold {fold} is not in the errors by horizon: {run} has none\n"
            )
            continue
        parts.append(part.with_columns(pl.lit(fold).alias("fold")))
    if not parts:
        return {}
    rows = pl.concat(parts, how="diagonal_relaxed")
    kinds = [name for name in rows.columns if name not in ("step", "windows", "fold")]
    known = [pl.col("windows").filter(pl.col(kind).is_not_null()).sum() for kind in kinds]
    means = [
        (pl.col(kind) * pl.col("windows")).sum() / windows
        for kind, windows in zip(kinds, known, strict=True)
    ]
    by_step = rows.group_by("step", maintain_order=True).agg(
        pl.len().alias("folds"), pl.col("windows").sum(), *means
    )
    return {
        "tables/backtest_by_horizon.csv": by_step,
        "plots/backtest_by_horizon.png": _by_horizon_figure(by_step, rows, table["model"][0]),
    }


def _by_horizon_figure(by_step: pl.DataFrame, rows: pl.DataFrame, model: str) -> Figure:
    """MSE by step of the horizon, the folds' own as thin lines."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for number, (_, fold) in enumerate(rows.group_by("fold", maintain_order=True)):
        label = None if number else "one fold"
        axes.plot(fold["step"], fold["mse"], color="C0", alpha=0.35, lw=1, label=label)
    axes.plot(by_step["step"], by_step["mse"], color="C0", lw=2, label=f"{model}, all folds")
    naive = by_step["mse_seasonal_naive"]
    axes.plot(by_step["step"], naive, color="black", ls="--", label="seasonal naive, all folds")
    axes.set(xlabel="step of the horizon", ylabel="mean squared error, standardised")
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside upper right", ncols=3, fontsize=8)
    return figure
