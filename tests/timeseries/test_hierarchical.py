"""Reconciliation against closed forms, and aggregate and reconcile as users run them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import polars as pl
import pytest
from forked_cli import ROOT, Server
from numpy.typing import NDArray

from core.jobs.errors import DataError
from timeseries.data.hierarchy import Hierarchy
from timeseries.hierarchical import METHODS, errors_by_level, reconciled

# Of mlflow's own use of sqlalchemy.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")

Matrix = NDArray[np.float64]
LEVELS = {"total": ["t"], "region": ["n", "s"], "bottom": ["a", "b", "c", "d", "e"]}
S = np.vstack([np.ones(5), [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], np.eye(5)])
TREE = Hierarchy(Path("x.csv"), LEVELS, S)


@pytest.fixture(scope="module")
def past() -> tuple[Matrix, Matrix]:
    """What happened, which adds up, and biased, correlated forecasts of it."""
    rng = np.random.default_rng(0)
    actual = S @ (rng.normal(size=(5, 400)) + np.arange(1, 6)[:, None])
    noise = rng.normal(size=(8, 8)) @ rng.normal(size=(8, 400)) + 0.3
    return actual, actual + np.sqrt(S.sum(1))[:, None] * noise


def shrunk(errors: Matrix) -> Matrix:
    """Covariance shrunk towards its diagonal (Schaefer and Strimmer 2005, target D)."""
    n = errors.shape[1]
    spread = errors.std(1, ddof=1)
    x = (errors - errors.mean(1, keepdims=True)) / spread[:, None]
    products = x[:, None] * x[None]
    correlation = products.sum(2) / (n - 1)
    variance = n / (n - 1) ** 3 * np.square(products - products.mean(2, keepdims=True)).sum(2)
    off = ~np.eye(len(x), dtype=bool)
    share = variance[off].sum() / np.square(correlation[off]).sum()
    assert 0.001 < share < 0.9
    shrunk = np.where(off, (1 - share) * correlation, 1.0)
    return shrunk * np.outer(spread, spread)


@pytest.mark.parametrize("method", ["ols", "wls_struct", "wls_var", "mint_shrink"])
def test_minimum_trace_is_its_closed_form(method: str, past: tuple[Matrix, Matrix]) -> None:
    errors = past[0] - past[1]
    weights = {
        "ols": np.eye(8),
        "wls_struct": np.diag(S.sum(1)),
        "wls_var": np.diag(np.square(errors).mean(1)),
        "mint_shrink": shrunk(errors),
    }
    forecast = past[1][:, :50] + 1
    inverse = np.linalg.inv(weights[method])
    expected = S @ np.linalg.inv(S.T @ inverse @ S) @ S.T @ inverse @ forecast
    found = reconciled(method, TREE, forecast, past)
    assert np.abs(found - expected).max() < 1e-6
    assert np.abs(found - forecast).max() > 0.1


def test_other_methods_are_their_closed_forms(past: tuple[Matrix, Matrix]) -> None:
    forecast = past[1][:, :50] + 1
    shares = past[0].mean(1)[3:] / past[0].mean(1)[0]
    regression = np.linalg.lstsq(past[1].T, past[0][3:].T, rcond=None)[0]
    expected = {
        "bottom_up": S @ forecast[3:],
        "top_down": S @ np.outer(shares, forecast[0]),
        "erm": S @ regression.T @ forecast,
    }
    for method, wanted in expected.items():
        assert np.abs(reconciled(method, TREE, forecast, past) - wanted).max() < 1e-9, method
    # one column of the future takes all of the past all the same
    one = reconciled("erm", TREE, forecast[:, :1], past)
    assert np.abs(one - expected["erm"][:, :1]).max() < 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_forecasts_add_up_and_have_no_unit(method: str, past: tuple[Matrix, Matrix]) -> None:
    found = reconciled(method, TREE, past[1], past)
    children = {0: [1, 2], 1: [3, 4], 2: [5, 6, 7]}
    for parent, below in children.items():
        away = np.abs(found[parent] - found[below].sum(0))
        assert away.max() < 8 * np.finfo(float).eps * np.abs(found).max()
    coherent = reconciled(method, TREE, past[0], past)
    if method not in ("top_down", "erm"):  # the others leave alone what adds up
        assert np.allclose(coherent, past[0])
    small = reconciled(method, TREE, past[1] * 1e-7, (past[0] * 1e-7, past[1] * 1e-7))
    assert np.allclose(small * 1e7, found)


def test_a_perfect_past_is_one_line(past: tuple[Matrix, Matrix]) -> None:
    with pytest.raises(DataError, match=r"mint_shrink failed: .* close to 0"):
        reconciled("mint_shrink", TREE, past[1], (past[0], past[0]))


def test_errors_by_level_are_means_over_its_series() -> None:
    rng = np.random.default_rng(0)
    actual, forecast = rng.normal(size=(2, 2, 8, 30))
    std, unit = rng.uniform(1, 2, size=(2, 2, 8))
    table = errors_by_level(TREE, {"none": forecast}, actual, std, unit)
    assert table["level"].to_list() == ["total", "region", "bottom", "all"]
    row = table.row(1, named=True)
    error = (forecast - actual)[:, 1:3]
    assert row["mse_original"] == pytest.approx(np.square(error).mean())
    assert row["mse"] == pytest.approx(np.square(error / std[:, 1:3, None]).mean())
    assert row["mase"] == pytest.approx(np.abs(error / unit[:, 1:3, None]).mean())
    away = forecast[:, 1] - forecast[:, 3:5].sum(1), forecast[:, 2] - forecast[:, 5:].sum(1)
    assert row["incoherence"] == pytest.approx(np.abs(away).mean())
    assert table.row(2, named=True)["incoherence"] == 0


# The command line

DATA = "--data.init_args"
METERS = ["sub_metering_1", "sub_metering_2", "sub_metering_3", "rest"]
HORIZON = 6


def meters(rows: int = 1_200) -> pl.DataFrame:
    """Energy of a household's three meters and of the rest of it, each hour."""
    sample = pl.read_parquet(ROOT / "timeseries" / "samples" / "household_power.parquet").head(rows)
    sample = sample.with_columns(pl.col("^[gs].*$").cast(pl.Float64))
    rest = pl.col("global_active_power") * 1000 / 60 - pl.sum_horizontal(*METERS[:3])
    wide = sample.select(pl.col("date").alias("ds"), *METERS[:3], rest.alias("rest"))
    long = wide.unpivot(index="ds", variable_name="unique_id", value_name="y")
    kind = pl.when(pl.col("unique_id") == METERS[2]).then(pl.lit("heat")).otherwise(pl.lit("use"))
    return long.with_columns(kind.alias("kind"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("hierarchy"))
    meters().write_csv(server.folder / "meters.csv")
    yield server
    server.close()


@pytest.fixture(scope="module")
def run(server: Server) -> str:
    """The folder of a run on all levels."""
    levels = ("--levels", "total", "kind", "--out", "levels.parquet")
    code, said = server.run("aggregate", "--path", "meters.csv", *levels)
    assert code == 0, said
    assert "7 series in levels.parquet (1 of total, 2 of kind, 4 of bottom)" in said
    code, said = server.run(
        *("fit", "--config", str(ROOT / "timeseries/configs/dlinear.yaml")),
        *(f"{DATA}.path", "levels.parquet", f"{DATA}.time", "ds", f"{DATA}.series", "unique_id"),
        *(f"{DATA}.protocol.lookback", "48", f"{DATA}.protocol.horizon", str(HORIZON)),
        *("--trainer.max_epochs", "1"),
    )
    assert code == 0, said
    return said.split("run folder: ")[1].split("\n")[0]


def reconcile(server: Server, run: str, *more: str) -> tuple[int, str]:
    words = ("--hierarchy", "meters.csv", "--levels", "total", "kind", "--ckpt_path", run)
    return server.run("reconcile", *words, *more)


@pytest.fixture(scope="module")
def reconciled_rows(server: Server, run: str) -> pl.DataFrame:
    code, said = reconcile(server, run, "--out", "out", "--methods", *METHODS)
    assert code == 0, said
    assert "warning" not in said
    return pl.read_parquet(server.folder / "out" / "reconciled.parquet")


def test_levels_of_the_house_are_what_the_house_draws(server: Server, run: str) -> None:
    levels = pl.read_parquet(server.folder / "levels.parquet")
    assert levels["unique_id"].unique(maintain_order=True).to_list() == [
        "total",
        "use",
        "heat",
        *METERS,
    ]
    sample = pl.read_parquet(ROOT / "timeseries" / "samples" / "household_power.parquet")
    house = sample["global_active_power"].head(1_200).cast(pl.Float64) * 1000 / 60
    assert np.allclose(levels.filter(pl.col("unique_id") == "total")["y"], house)


@pytest.mark.parametrize("method", METHODS)
def test_rows_add_up_at_every_origin_and_stamp(reconciled_rows: pl.DataFrame, method: str) -> None:
    keys = ["origin", "stamp"]
    wide = reconciled_rows.pivot("series", index=keys, values=method)
    assert len(wide) == (240 - HORIZON + 1) * HORIZON
    limit = 8 * np.finfo(float).eps * wide["total"].abs().max()
    assert (wide["total"] - wide["use"] - wide["heat"]).abs().max() <= limit
    assert (wide["use"] - wide[METERS[0]] - wide[METERS[1]] - wide["rest"]).abs().max() <= limit
    assert (wide["heat"] - wide[METERS[2]]).abs().max() <= limit
    assert wide.null_count().sum_horizontal().item() == 0


def test_minimum_trace_of_the_files(server: Server, reconciled_rows: pl.DataFrame) -> None:
    """The rows once more, from the forecasts of the validation span that lie beside them."""
    order = ["total", "use", "heat", *METERS]
    summing = np.vstack([np.ones(4), [1, 1, 0, 1], [0, 0, 1, 0], np.eye(4)])
    validation = pl.read_parquet(server.folder / "out" / "validation" / "part-*.parquet")
    error = (pl.col("actual") - pl.col("forecast")).alias("error")
    assert validation["stamp"].n_unique() == 120

    def matrix(rows: pl.DataFrame, column: str) -> Matrix:
        wide = rows.pivot("series", index=["record_of_series", "step"], values=column)
        return wide.select(order).to_numpy().T

    def numbered(rows: pl.DataFrame) -> pl.DataFrame:
        return rows.with_columns(pl.col("origin").alias("record_of_series"))

    errors = matrix(numbered(validation.with_columns(error)), "error")
    inverse = np.linalg.inv(shrunk(errors) + 1e-9 * np.eye(7))
    rows = numbered(reconciled_rows)
    P = np.linalg.inv(summing.T @ inverse @ summing) @ summing.T @ inverse
    expected = summing @ P @ matrix(rows, "forecast")
    assert np.abs(matrix(rows, "mint_shrink") - expected).max() < 1e-4


def test_table_beside_that_of_test(server: Server, run: str, reconciled_rows: pl.DataFrame) -> None:
    """What is not reconciled, and seasonal naive, have the errors that test gives by series."""
    code, said = server.run("test", "--ckpt_path", run)
    assert code == 0, said
    [file] = server.folder.rglob("test_by_series.csv")
    by_series = pl.read_csv(file)
    found = pl.read_csv(server.folder / "out" / "errors_by_level.csv")
    assert found["method"].unique(maintain_order=True).to_list() == [
        "none",
        *METHODS,
        "seasonal_naive",
    ]
    for level, names in (("total", ["total"]), ("kind", ["use", "heat"]), ("bottom", METERS)):
        there = by_series.filter(pl.col("series").is_in(names))
        for method, end in (("none", ""), ("seasonal_naive", "_seasonal_naive")):
            [row] = found.filter(level=level, method=method).iter_rows(named=True)
            for kind in ("mse", "mae", "mse_original", "mae_original", "mase"):
                assert row[kind] == pytest.approx(there[kind + end].mean(), rel=1e-4)
    coherent = found.filter(pl.col("method").is_in([*METHODS, "seasonal_naive"]))
    assert coherent["incoherence"].max() < 1e-12
    assert found.filter(level="all", method="none")["incoherence"].item() > 1e-3


def test_the_run_is_tracked(server: Server, reconciled_rows: pl.DataFrame) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{server.folder}/mlflow.db")
    experiment = client.get_experiment_by_name("timeseries/reconcile")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'")
    assert run.data.params["levels"] == "total kind"
    table = pl.read_csv(server.folder / "out" / "errors_by_level.csv")
    mse = table.filter(level="all", method="wls_struct")["mse"].item()
    assert run.data.metrics["test/mse_wls_struct"] == pytest.approx(mse)
    kept = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert kept == {"errors_by_level.csv", "plots"}


def test_forecasts_of_another_file_from_its_end(server: Server, run: str) -> None:
    later = pl.read_parquet(server.folder / "levels.parquet").group_by(
        "unique_id", maintain_order=True
    )
    later.tail(60).write_parquet(server.folder / "later.parquet")
    end = ("--origins", "end", "--methods", "ols", f"{DATA}.predict_path", "later.parquet")
    code, said = reconcile(server, run, *end, "--out", "end")
    assert code == 0, said
    rows = pl.read_parquet(server.folder / "end" / "reconciled.parquet")
    assert len(rows) == 7 * HORIZON
    assert rows["level"].unique(maintain_order=True).to_list() == ["total", "kind", "bottom"]
    assert rows["actual"].null_count() == len(rows)
    assert not (server.folder / "end" / "validation").exists()
    assert not (server.folder / "end" / "errors_by_level.csv").exists()


def test_a_model_that_is_not_trained(server: Server, run: str) -> None:
    """Seasonal naive forecasts of series that add up do so as well, and stay what they are, at
    each origin that a test takes."""
    words = ["--config", str(ROOT / "timeseries/configs/seasonal_naive.yaml"), "--out", "naive"]
    words += [f"{DATA}.path", "levels.parquet", f"{DATA}.time", "ds", f"{DATA}.series", "unique_id"]
    words += [f"{DATA}.protocol.lookback", "48", f"{DATA}.protocol.horizon", str(HORIZON)]
    words += [f"{DATA}.protocol.test_stride", "50"]
    given = ("--hierarchy", "meters.csv", "--levels", "total", "kind", "--methods", "ols")
    code, said = server.run("reconcile", *given, *words)
    assert code == 0, said
    assert "no --ckpt_path" not in said  # there are no weights
    rows = pl.read_parquet(server.folder / "naive" / "reconciled.parquet")
    assert rows["origin"].n_unique() == len(range(0, 240 - HORIZON + 1, 50))
    assert np.allclose(rows["ols"], rows["forecast"], atol=1e-5)
    table = pl.read_csv(server.folder / "naive" / "errors_by_level.csv")
    mse = table.filter(level="all")["mse"]
    assert np.allclose(mse, mse[0], rtol=1e-6)


def bad_hierarchy(server: Server, name: str, rows: list[str]) -> str:
    (server.folder / name).write_text("\n".join(["unique_id,kind", *rows]) + "\n")
    return name


PLACED = [f"{name},{'heat' if name == METERS[2] else 'use'}" for name in METERS]


@pytest.mark.parametrize(
    ("rows", "levels", "code", "message"),
    [
        (PLACED, ["room"], 3, "x.csv: no column 'room'; it has unique_id, kind"),
        ([*PLACED[:3], "rest,"], ["kind"], 3, "x.csv row 4: has no kind"),
        (
            [*PLACED, "garage,use"],
            ["total", "kind"],
            3,
            "levels.parquet: level 'bottom' lacks 1 of its 5 series, first 'garage'; train on",
        ),
        (PLACED, ["total"], 3, "series 'use' is not in the hierarchy of x.csv (2 such series)"),
        (
            [row.replace("heat", "warmth") for row in PLACED],
            ["total", "kind"],
            3,
            "levels.parquet: level 'kind' lacks 1 of its 2 series, first 'warmth'",
        ),
        (PLACED, ["kind", "kind"], 2, "level 'kind' is named twice"),
        (PLACED, ["kind"], 2, "top_down needs one series at the top"),
    ],
)
def test_bad_hierarchies_leave_nothing(
    server: Server, run: str, rows: list[str], levels: list[str], code: int, message: str
) -> None:
    bad_hierarchy(server, "x.csv", rows)
    runs = set((server.folder / "runs" / "timeseries").rglob("run.json"))
    words = ("--hierarchy", "x.csv", "--levels", *levels, "--ckpt_path", run, "--out", "none")
    found, said = server.run("reconcile", *words, "--methods", "top_down", "ols")
    assert found == code, said
    [line] = said.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (server.folder / "none").exists()
    assert set((server.folder / "runs" / "timeseries").rglob("run.json")) == runs


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "none"], "give --ckpt_path RUN, or --config FILE"),
        (["--config", "gone.yaml", "--out", "none"], "gone.yaml"),
        (["--methods", "magic", "--out", "none"], "invalid choice: 'magic'"),
        (
            ["--config", str(ROOT / "timeseries/configs/anomalies.yaml"), "--out", "none"],
            "anomalies.yaml: data: Import path timeseries.data.anomalies.AnomalyWindows does not "
            "correspond to a subclass of ForecastWindows",
        ),
        (
            [
                *("--config", str(ROOT / "timeseries/configs/seasonal_naive.yaml")),
                *(f"{DATA}.protocol.horizons", "5", "--out", "none"),
            ],
            "unknown key 'protocol.horizons'",
        ),
    ],
)
def test_wrong_use_of_reconcile(server: Server, words: list[str], message: str) -> None:
    given = ("--hierarchy", "meters.csv", "--levels", "total")
    code, said = server.run("reconcile", *given, *words)
    assert code == 2, said
    [line] = said.splitlines()
    assert message in line
    assert not (server.folder / "none").exists()


def spoilt(rows: pl.DataFrame, how: str) -> pl.DataFrame:
    first = pl.int_range(pl.len()) == 4
    if how == "NaN":
        return rows.with_columns(pl.when(~first).then(pl.col("y")).alias("y"))
    if how == "infinite":
        return rows.with_columns(pl.when(first).then(np.inf).otherwise("y").alias("y"))
    return rows.filter(~((pl.col("unique_id") == "rest") & (pl.col("ds").rank("dense") == 1)))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("NaN", "row 5: 'sub_metering_1': no y at 2006-12-16 22:00:00; set data.policies.missing"),
        ("infinite", "row 5: y is infinite"),
        ("shorter", "series 'rest' has 1199 stamps from 2006-12-16T19:00:00.000000 to"),
    ],
)
def test_bad_tables_are_not_aggregated(server: Server, how: str, message: str) -> None:
    spoilt(meters(), how).write_csv(server.folder / "spoilt.csv")
    words = ("--path", "spoilt.csv", "--levels", "total", "--out", "sums.csv")
    code, said = server.run("aggregate", *words)
    assert code == 3, said
    [line] = said.splitlines()
    assert f"error: spoilt.csv{'' if how == 'shorter' else ' '}" in line
    assert message in line
    assert not (server.folder / "sums.csv").exists()


def test_sums_of_missing_values_are_refused(server: Server) -> None:
    words = ("--path", "meters.csv", "--levels", "total", "--out", "sums.csv")
    code, said = server.run("aggregate", *words, "--policies.gaps", "keep")
    assert code == 2, said
    assert "invalid choice: 'keep'" in said
    assert not (server.folder / "sums.csv").exists()


def test_totals_that_are_not_sums_are_a_warning(server: Server, run: str) -> None:
    table = pl.read_parquet(server.folder / "levels.parquet")
    more = pl.when(pl.col("unique_id") == "use").then(pl.col("y") + 2).otherwise("y").alias("y")
    table.with_columns(more).write_parquet(server.folder / "off.parquet")
    code, said = reconcile(
        server, run, "--methods", "ols", "--out", "off", f"{DATA}.path", "off.parquet"
    )
    assert code == 0, said
    assert "warning: the data do not add up: 'use' is up to 2 off the sum of its series" in said
