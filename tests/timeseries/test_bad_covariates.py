"""Covariates at the command line: what they do to a forecast, and bad ones refused in one line that
says what, where and what to do, before anything is written."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import yaml
from forked_cli import Server
from series_commands import (
    CONFIG,
    DATA,
    HEADER,
    ROWS,
    fit,
    nothing_left,
    one_error,
    predict,
    table,
    tracking,
)

from core.jobs.shards import load_predictions

COVARIATE_ROWS = [f"{row},{(5 * i) % 17},{row[0]}" for i, row in enumerate(ROWS)]
AHEAD = [f"{name},2024-01-06 {h:02d}:00,,{h},{name}" for name in "ab" for h in range(6)]
COVARIATE_TABLE = sorted([*COVARIATE_ROWS, *AHEAD], key=lambda row: row[0])
COVARIATES = f"{HEADER},price,kind"
COVARIATE_KEYS = [f"{DATA}.known", "[price]", f"{DATA}.static", "[kind]"]
INFORMER = {
    "class_path": "timeseries.models.Informer",
    "init_args": {"dim": 8, "heads": 2, "feedforward": 8, "label_length": 6},
}


@pytest.fixture(scope="module")
def covariate_run(server: Server) -> str:
    """A folder of a run that reads covariates."""
    home = server.folder / "covariates"
    home.mkdir()
    (home / "x.csv").write_text(table(COVARIATE_TABLE, COVARIATES))
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    config["model"]["init_args"]["model"] = INFORMER
    config["data"]["init_args"]["path"] = str(home / "x.csv")
    (home / "x.yaml").write_text(yaml.safe_dump(config))
    code, output = fit(server, home, *COVARIATE_KEYS)
    assert code == 0, output
    return output.split("run folder: ")[1].split("\n")[0]


def test_covariates_to_a_forecast(server: Server, folder: Path, covariate_run: str) -> None:
    """Rows after the last target reach the model: another future, another forecast."""
    found = []
    for number, price in enumerate(("7", "-900")):
        rows = [
            f"{row.rsplit(',', 2)[0]},{price},{row[-1]}" if ",," in row else row
            for row in COVARIATE_TABLE
        ]
        (folder / "next.csv").write_text(table(rows, COVARIATES))
        out = ["--predictions.path", str(folder / f"out{number}")]
        out += ["--predictions.export", str(folder / f"out{number}.csv")]
        code, output = predict(server, folder, covariate_run, *out)
        assert code == 0, output
        found.append(load_predictions(folder / f"out{number}").collect())
    assert found[0]["stamp"][0] == pl.Series(["2024-01-06 00:00"]).str.to_datetime()[0]
    assert len(found[0]) == len(found[1]) == 2 * 6
    assert (found[0]["forecast"] != found[1]["forecast"]).all()


def with_price(place: int, price: str) -> list[str]:
    """The table of covariates with another price in one row."""
    rows = list(COVARIATE_TABLE)
    first, _, kind = rows[place - 1].rsplit(",", 2)
    rows[place - 1] = f"{first},{price},{kind}"
    return rows


COVARIATE_FLAWS = {
    "price not a number ahead": (
        with_price(124, "NaN"),
        COVARIATES,
        " row 124: 'a': no price at 2024-01-06 03:00:00, after the last target; give every known",
    ),
    "infinite price ahead": (
        with_price(124, "inf"),
        COVARIATES,
        " row 124: price is infinite; correct it, or leave the cell empty",
    ),
    "no price before": (
        with_price(7, ""),
        COVARIATES,
        " row 7: 'a': no price at 2024-01-01 06:00:00; give it, as it is known ahead, or set",
    ),
    "known column missing": (
        [",".join(row.split(",")[:3] + row.split(",")[4:]) for row in COVARIATE_TABLE],
        f"{HEADER},kind",
        ": no column 'price'; it has unique_id, ds, y, kind; add it, or correct --data.known",
    ),
    "no price ahead": (
        [row.replace(",,3,", ",,,") for row in COVARIATE_TABLE],
        COVARIATES,
        " row 124: 'a': no price at 2024-01-06 03:00:00, after the last target; give every known",
    ),
    "column missing": (
        [row.rpartition(",")[0] for row in COVARIATE_TABLE],
        f"{HEADER},price",
        ": no column 'kind'; it has unique_id, ds, y, price",
    ),
    "too few rows ahead": (
        [row for row in COVARIATE_TABLE if "06 05:00" not in row],
        COVARIATES,
        ": series 'a' has 5 rows after its last target, and the horizon needs 6; add rows with",
    ),
    "static changes": (
        [*COVARIATE_TABLE[:9], COVARIATE_TABLE[9][:-1] + "x", *COVARIATE_TABLE[10:]],
        COVARIATES,
        " row 10: 'a': static kind is 'x', before it was 'a'; name it in data.known",
    ),
}


@pytest.mark.parametrize(
    ("rows", "header", "message"), COVARIATE_FLAWS.values(), ids=COVARIATE_FLAWS
)
def test_bad_covariates(
    server: Server, folder: Path, covariate_run: str, rows: list[str], header: str, message: str
) -> None:
    (folder / "next.csv").write_text(table(rows, header))
    code, output = predict(server, folder, covariate_run)
    assert code == 3, output
    assert f"{folder / 'next.csv'}{message}" in one_error(output)
    nothing_left(folder)


@pytest.mark.parametrize(
    "flaw", ["price not a number ahead", "infinite price ahead", "no price before"]
)
def test_bad_covariates_are_not_trained_on(server: Server, folder: Path, flaw: str) -> None:
    rows, header, message = COVARIATE_FLAWS[flaw]
    (folder / "x.csv").write_text(table(rows, header))
    informer = ["--model.init_args.model", "timeseries.models.Informer"]
    informer += [f"{DATA}.policies.missing", "previous"]  # of targets
    code, output = fit(server, folder, *COVARIATE_KEYS, *informer)
    assert code == 3, output
    assert f"{folder / 'x.csv'}{message}" in one_error(output)
    nothing_left(folder)


def test_a_model_that_does_not_read_covariates_says_so(server: Server, folder: Path) -> None:
    (folder / "x.csv").write_text(table(COVARIATE_TABLE, COVARIATES))
    naive = "timeseries.models.StatisticalForecaster"
    statistical = ["--model.init_args.model", naive]
    statistical += ["--model.init_args.model.init_args.method", "seasonal_naive"]
    out = ["--predictions.path", str(folder / "out")]
    for command, more, name in (
        ("fit", [], "DLinear"),
        ("test", statistical, "StatisticalForecaster"),
        ("predict", [*statistical, *out], "StatisticalForecaster"),
    ):
        given = ["--config", str(folder / "x.yaml"), *tracking(server, folder), *COVARIATE_KEYS]
        code, output = server.run(command, *given, *more)
        assert code == 2, output
        assert f"{name} does not read covariates; leave out data.known" in output
        nothing_left(folder)
