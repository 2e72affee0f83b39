"""``aggregate`` and ``reconcile``: forecasts of a hierarchy of series that add up."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import polars as pl
from hierarchicalforecast.methods import ERM, BottomUp, HReconciler, MinTrace, TopDown
from hierarchicalforecast.utils import is_strictly_hierarchical
from numpy.typing import NDArray

from core.jobs.cli import job
from core.jobs.errors import DataError, UsageError
from core.jobs.files import replacing
from core.jobs.runs import find_checkpoint
from core.jobs.shards import load_predictions
from core.jobs.studies import parent_run
from timeseries.data.forecasts import ForecastWindows
from timeseries.data.hierarchy import ALL, BOTTOM, Hierarchy, read_hierarchy
from timeseries.data.layout import Roles
from timeseries.data.protocol import season_of
from timeseries.data.series import Policies, read_series
from timeseries.studies import Parser, data_module, print_table
from timeseries.tasks.figures import level_figure

METHODS: dict[str, Callable[[], HReconciler]] = {
    "bottom_up": BottomUp,
    "top_down": lambda: TopDown("proportion_averages"),
    "ols": lambda: MinTrace("ols"),
    "wls_struct": lambda: MinTrace("wls_struct"),
    "wls_var": lambda: MinTrace("wls_var"),
    "mint_shrink": lambda: MinTrace("mint_shrink"),
    "erm": lambda: ERM("closed"),
}
BASE, NAIVE = "none", "seasonal_naive"
_DEFAULT = ("bottom_up", "ols", "wls_struct", "mint_shrink")
_LEVELS = (
    "from the top down: total, a column, or columns joined by /; the series themselves come last"
)


def aggregate(arguments: Sequence[str]) -> None:
    """Write the series of all levels of a hierarchy into one long table."""
    parser = Parser(
        prog="timeseries aggregate",
        allow_abbrev=False,
        description="Add up the series of a long table by the columns that place them in a "
        "hierarchy. The table that comes out has the series of all levels, to fit and to forecast.",
    )
    parser.add_argument("--path", required=True, help="long table of the bottom series")
    parser.add_argument("--levels", nargs="+", required=True, help=_LEVELS)
    parser.add_argument("--out", required=True, help=".parquet or .csv")
    parser.add_argument(
        "--series",
        default="unique_id",
        help="column that names a row's series; default: %(default)s",
    )
    parser.add_argument("--time", default="ds", help="column of stamps; default: %(default)s")
    parser.add_argument("--targets", nargs="+", default=["y"], help="columns to add up; default: y")
    parser.add_argument("--frequency", help="step of the stamps; default: inferred")
    without = ("known", "short")  # there are no covariates, and no windows
    rules = {k: v for k, v in get_type_hints(Policies).items() if k not in without}
    for name, kind in rules.items():
        # a sum needs all parts, at the same stamps
        choices = [choice for choice in get_args(kind) if choice not in ("keep", "close")]
        parser.add_argument(f"--policies.{name}", choices=choices, default=getattr(Policies, name))
    given = parser.parse_args(list(arguments))
    out = Path(given.out)
    if out.suffix not in (".parquet", ".csv") or not out.absolute().parent.is_dir():
        raise UsageError(f"{out}: give a .parquet or .csv file in a folder that exists")
    if out.resolve() == Path(given.path).resolve():
        raise UsageError(f"{out}: is the input itself; give another --out")
    hierarchy = read_hierarchy(Path(given.path), given.levels, given.series)
    policies = Policies(**{name: vars(given)[f"policies.{name}"] for name in rules})
    roles = Roles(given.time, given.series, given.targets)
    bottom = read_series(Path(given.path), roles, policies, given.frequency)
    values = hierarchy.aggregated(bottom)
    names, stamps = hierarchy.names, bottom[0].stamps
    columns = {given.series: np.repeat(names, len(stamps)), given.time: np.tile(stamps, len(names))}
    columns |= {t: values[..., i].ravel() for i, t in enumerate(given.targets)}
    table = pl.DataFrame(columns)
    with replacing(out) as part:
        if out.suffix == ".csv":
            table.write_csv(part)
        else:
            table.write_parquet(part)
    counts = ", ".join(f"{len(members)} of {level}" for level, members in hierarchy.levels.items())
    sys.stdout.write(f"aggregate done: {len(names)} series in {out} ({counts})\n")


def reconcile(arguments: Sequence[str]) -> None:
    """Forecast every level and make the forecasts add up."""
    parser = Parser(
        prog="timeseries reconcile",
        allow_abbrev=False,
        description="Forecast the series of all levels of a hierarchy and reconcile the forecasts, "
        "by the library hierarchicalforecast. Further keys (--data.init_args.predict_path FILE) go "
        "to the predictions. Killed and run again, it keeps the forecasts that it has.",
    )
    parser.add_argument("--ckpt_path", help="run folder of a fit on the series of all levels")
    parser.add_argument("--config", help="YAML file, for a model that is not trained")
    parser.add_argument("--hierarchy", required=True, help="table that aggregate read")
    parser.add_argument("--levels", nargs="+", required=True, help=_LEVELS)
    parser.add_argument(
        "--series",
        default="unique_id",
        help="column of --hierarchy that names a row's series; default: %(default)s",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=_DEFAULT,
        help=f"how; default: {' '.join(_DEFAULT)}",
    )
    parser.add_argument(
        "--origins",
        choices=("test", "end"),
        default="test",
        help="forecasts of the test span, with errors, or from the end of each series; default: "
        "%(default)s",
    )
    parser.add_argument("--out", required=True, help="folder of rows and errors")
    given, rest = parser.parse_known_args(list(arguments))
    hierarchy = read_hierarchy(Path(given.hierarchy), given.levels, given.series)
    methods = list(dict.fromkeys(given.methods))
    if "top_down" in methods:
        _check_tree(hierarchy)
    config, selection = _selection(given.config, given.ckpt_path)
    data = data_module(config, rest)
    if data.path is None:
        raise UsageError("reconcile needs data.path, the table of all levels")
    hierarchy.check(data.series(data.path), data.path)
    if data.predict_path is not None:
        hierarchy.check(data.all_series(data.predict_path), data.predict_path)
    params = {"levels": " ".join(given.levels), "methods": " ".join(methods), "model": selection[1]}
    with parent_run("timeseries", "reconcile", params) as log:
        _reconcile(hierarchy, methods, given.origins, [*selection, *rest], Path(given.out), log)


def _selection(config: str | None, checkpoint: str | None) -> tuple[str, list[str]]:
    """The config that describes the data, and the keys that name the model."""
    if config is not None:
        also = [] if checkpoint is None else ["--ckpt_path", checkpoint]
        return config, ["--config", config, *also]
    if checkpoint is None:
        raise UsageError("give --ckpt_path RUN, or --config FILE of a model that is not trained")
    _, folder = find_checkpoint(Path(checkpoint))
    if folder is None:
        raise UsageError(f"{checkpoint}: is in no run folder; give --config too")
    return str(folder.config_file), ["--ckpt_path", checkpoint]


def _check_tree(hierarchy: Hierarchy) -> None:
    """Raises UsageError for a hierarchy that shares from the top do not fit."""
    levels = list(hierarchy.levels.values())
    if len(levels[0]) > 1 or not is_strictly_hierarchical(hierarchy.summing, hierarchy.places):
        raise UsageError(
            "top_down needs one series at the top, and each series within one of the level above; "
            "leave it out of --methods"
        )


@dataclass(frozen=True)
class Forecasts:
    """``rows`` of predictions, ordered by channel, series of the hierarchy, origin and step;
    ``forecast`` and ``actual`` (channels, series, origins * steps) of them, the latter not a number
    where unknown; ``data``, which made them."""

    rows: pl.DataFrame
    forecast: NDArray[np.float64]
    actual: NDArray[np.float64]
    data: ForecastWindows


def _reconcile(
    hierarchy: Hierarchy,
    methods: Sequence[str],
    origins: str,
    arguments: Sequence[str],
    out: Path,
    log: Callable[..., None],
) -> None:
    past = None
    if any(METHODS[method]().insample for method in methods):
        span = ["--data.init_args.origins=val", "--data.init_args.predict_path=null"]
        past = _forecasts(hierarchy, [*arguments, *span], out / "validation")
    base = _forecasts(hierarchy, [*arguments, f"--data.init_args.origins={origins}"], out / origins)
    _warn_unless_adding_up(hierarchy, past or base)
    coherent = {
        method: np.stack(
            [
                reconciled(
                    method,
                    hierarchy,
                    forecast,
                    None if past is None else (past.actual[channel], past.forecast[channel]),
                )
                for channel, forecast in enumerate(base.forecast)
            ]
        )
        for method in methods
    }
    _write_rows(hierarchy, base, coherent, out / "reconciled.parquet")
    if origins == "test":
        table = _errors(hierarchy, base, coherent)
        with replacing(out / "errors_by_level.csv") as part:
            table.write_csv(part)
        over_all = table.filter(pl.col("level") == ALL)
        metrics = {f"test/mse_{m}": mse for m, mse in over_all.select("method", "mse").iter_rows()}
        log(out / "errors_by_level.csv", level_figure(table), metrics)
        print_table(table.drop("mse_original", "mae_original"))
    done = [f"reconcile done: {len(base.rows)} rows in {out / 'reconciled.parquet'}"]
    if origins == "test":
        done.append(f"errors by level: {out / 'errors_by_level.csv'}")
    sys.stdout.write("\n".join(done) + "\n")


def _forecasts(hierarchy: Hierarchy, arguments: Sequence[str], folder: Path) -> Forecasts:
    """Predict into ``folder``. Raises DataError for what has no forecast."""
    done = job("timeseries", ["predict", *arguments, f"--predictions.path={folder}"])
    rows = load_predictions(folder).collect()
    left_out = rows.filter(pl.col("forecast").is_null() | ~pl.col("forecast").is_finite())
    if len(left_out):
        name, reason = left_out.select("id", "reason").row(0)
        why = reason or "the forecast is not a finite number"
        raise DataError(f"{folder}: no forecast of {name!r}: {why}; a sum needs every part")
    channels = rows["channel"].unique(maintain_order=True).to_list()
    names = hierarchy.names
    place = pl.col("series").replace_strict(names, np.arange(len(names)), return_dtype=pl.Int64)
    channel = pl.col("channel").replace_strict(channels, np.arange(len(channels)))
    rows = rows.sort(channel, place, "record", "step")
    shape = len(channels), len(names), -1
    actual = rows["actual"].fill_null(np.nan).to_numpy().reshape(shape)
    return Forecasts(rows, rows["forecast"].to_numpy().reshape(shape), actual, done.datamodule)


def _warn_unless_adding_up(hierarchy: Hierarchy, found: Forecasts) -> None:
    away = np.abs(found.actual - _sums(hierarchy, found.actual)).max((0, 2), initial=0)
    size = np.abs(found.actual).max(initial=0)
    if away.max() > 1e-6 * size:
        name = hierarchy.names[int(away.argmax())]
        sys.stderr.write(
            f"warning: the data do not add up: {name!r} is up to {away.max():.4g} off the sum of "
            "its series\n"
        )


def _sums(hierarchy: Hierarchy, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., series, columns) as the sums of its own bottom series."""
    return hierarchy.summing @ values[..., hierarchy.places[BOTTOM], :]


def reconciled(
    method: str,
    hierarchy: Hierarchy,
    forecast: NDArray[np.float64],
    past: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
) -> NDArray[np.float64]:
    """Forecasts that add up: S P ``forecast``, (series, columns) both, with P of a method.

    ``bottom_up`` adds up the bottom; ``top_down`` divides the top by the bottom's shares of it
    (Gross and Sohl 1990, F). ``ols``, ``wls_struct``, ``wls_var`` and ``mint_shrink`` are
    P = (S' W^-1 S)^-1 S' W^-1 (Wickramasuriya et al. 2019), with W the identity, the number of
    bottom series, the mean squared errors, or the errors' covariance shrunk towards its diagonal;
    ``erm`` regresses what happened on the forecasts (Ben Taieb and Koo 2019). ``past`` is what
    happened and what was forecast then, (series, columns) each; all columns count the same.

    Raises DataError where the arithmetic of a method fails.
    """
    S = hierarchy.summing
    reconciler = METHODS[method]()
    known: dict[str, Any] = {"y_hat": forecast}
    if reconciler.insample:
        assert past is not None
        # the library's ridges and thresholds are in the data's units, which may be any
        unit = np.sqrt(np.mean((past[0] - past[1]) ** 2)) or 1.0
        actual, fitted = past[0] / unit, past[1] / unit
        # as y_hat too: erm takes no more columns of the past than there are of the forecast
        known = {"y_hat": fitted, "y_insample": actual, "y_hat_insample": fitted}
    try:
        reconciler.fit(S=S, tags=hierarchy.places, **known)
        found = reconciler.predict(S=S, y_hat=forecast)["mean"]
    except Exception as error:  # the library raises bare exceptions
        reason = str(error).rstrip(".")
        raise DataError(f"{method} failed: {reason}; leave it out of --methods") from error
    if not np.isfinite(found).all():
        raise DataError(f"{method} gave no finite forecasts; leave it out of --methods")
    return found


def _write_rows(
    hierarchy: Hierarchy, base: Forecasts, coherent: Mapping[str, NDArray], out: Path
) -> None:
    level_of = {name: level for level, names in hierarchy.levels.items() for name in names}
    level = pl.col("series").replace_strict(level_of).alias("level")
    columns = [pl.Series(method, values.ravel()) for method, values in coherent.items()]
    keys: list[str | pl.Expr] = [
        "id",
        "series",
        level,
        "origin",
        "step",
        "stamp",
        "channel",
        "forecast",
    ]
    with replacing(out) as part:
        base.rows.with_columns(columns).select(*keys, *coherent, "actual").write_parquet(part)


def _errors(hierarchy: Hierarchy, base: Forecasts, coherent: Mapping[str, NDArray]) -> pl.DataFrame:
    data = base.data
    assert data.fitted is not None
    assert data.path is not None
    by_name = {one.name: one for one in data.series(data.predict_path or data.path)}
    series = [by_name[name] for name in hierarchy.names]
    scales = [data.fitted.scales[name] for name in hierarchy.names]
    protocol = data.protocol
    season = season_of(protocol, series[0].frequency)
    naive = [
        seasonal_naive(
            one.values,
            np.array(protocol.origins(one, "test")),
            protocol.horizon,
            season if season <= protocol.lookback else 1,
        )
        for one in series
    ]
    forecasts = {BASE: base.forecast, **coherent, NAIVE: np.stack(naive, 1)}
    std = np.stack([scale.std for scale in scales], 1)
    seasonal_error = np.stack([scale.seasonal_error for scale in scales], 1)
    return errors_by_level(hierarchy, forecasts, base.actual, std, seasonal_error)


def seasonal_naive(
    values: NDArray[np.float64], origins: NDArray[np.int64], horizon: int, season: int
) -> NDArray[np.float64]:
    """(channels, origins * horizon): the season of ``values`` (time, channels) before each of the
    ``origins``, the rows at which a forecast begins, over and over."""
    rows = origins[:, None] - season + np.arange(horizon) % season
    return values[rows.ravel()].T


def errors_by_level(
    hierarchy: Hierarchy,
    forecasts: Mapping[str, NDArray[np.float64]],
    actual: NDArray[np.float64],
    std: NDArray[np.float64],
    seasonal_error: NDArray[np.float64],
) -> pl.DataFrame:
    """One row a level, and ``all``, and a kind of forecast, with the metrics of a test as means
    over series, columns and channels; ``incoherence`` is the mean distance from the sum of the
    bottom. Forecasts and ``actual`` are (channels, series, columns), scales (channels, series)."""
    places = {**hierarchy.places, ALL: np.arange(len(hierarchy.names))}
    rows = []
    for level, of in places.items():
        for method, forecast in forecasts.items():
            error = np.abs(forecast[:, of] - actual[:, of])
            away = np.abs(forecast - _sums(hierarchy, forecast))[:, of]
            scaled = error / std[:, of, None]
            rows.append(
                {
                    "level": level,
                    "series": len(of),
                    "method": method,
                    "mse": np.mean(scaled**2),
                    "mae": scaled.mean(),
                    "mse_original": np.mean(error**2),
                    "mae_original": error.mean(),
                    "mase": (error / seasonal_error[:, of, None]).mean(),
                    "incoherence": away.mean(),
                }
            )
    return pl.DataFrame(rows)
