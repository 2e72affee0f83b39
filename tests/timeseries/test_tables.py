"""The tables of a test, against the rows that ``predict`` gives for the same origins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from forked_cli import ROOT, Server

from core.jobs.shards import load_predictions

HORIZON, SEASON, ROWS = 6, 24, {"north": 300, "south": 200}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("tables"))
    table().write_parquet(server.folder / "meters.parquet")
    yield server
    server.close()


def table() -> pl.DataFrame:
    """Two hourly series of different length and scale, with two channels."""
    rng, parts = np.random.default_rng(0), []
    for level, (name, rows) in enumerate(ROWS.items(), 1):
        t = np.arange(rows)
        stamps = np.datetime64("2024-01-01", "us") + t * np.timedelta64(1, "h")
        daily = np.sin(2 * np.pi * t / SEASON)[:, None]
        y = 10 * level + level**3 * (daily + 0.3 * rng.standard_normal((rows, 2)))
        columns = {"unique_id": [name] * rows, "ds": stamps, "a": y[:, 0], "b": y[:, 1]}
        parts.append(pl.DataFrame(columns))
    return pl.concat(parts)


@pytest.mark.parametrize(("config", "size"), [("dlinear", None), ("quantiles", 8)])
def test_tables_are_those_of_the_predicted_rows(
    server: Server, config: str, size: int | None
) -> None:
    dim = "--model.init_args.model.init_args.backbone.init_args.dim"
    data, runs = "--data.init_args", f"runs_{config}"
    code, said = server.run(
        *("fit", "--config", str(ROOT / f"timeseries/configs/{config}.yaml")),
        *(f"{data}.path", "meters.parquet", f"{data}.time", "ds", f"{data}.series", "unique_id"),
        *(f"{data}.targets", "[a, b]", "--trainer.max_epochs", "1", "--tracking.root", runs),
        *(f"{data}.protocol.lookback", "48", f"{data}.protocol.horizon", str(HORIZON)),
        *(f"{data}.protocol.train_end", "0.7", f"{data}.protocol.val_end", "0.8"),
        *((dim, str(size)) if size else ()),
    )
    assert code == 0, said
    run = said.split("run folder: ")[1].split("\n")[0]
    code, said = server.run("test", "--ckpt_path", run, "--tracking.root", runs)
    assert code == 0, said
    code, said = server.run(
        *("predict", "--ckpt_path", run, "--predictions.path", f"rows_{config}"),
        *(f"{data}.origins", "test", "--tracking.root", runs),
    )
    assert code == 0, said
    assert len(list((server.folder / runs).rglob("predicted_forecasts.png"))) == 1
    rows = load_predictions(server.folder / f"rows_{config}").collect()
    expected = by_hand(rows)

    found = stored(server.folder / runs, "test_by_series")
    keys = ["series", "channel"]
    assert found.select(keys).rows() == [(s, c) for s in ROWS for c in "ab"]
    assert found["windows"].to_list() == [55, 55, 35, 35]  # of 60 and 40 rows
    wanted = expected.group_by(keys, maintain_order=True).agg(pl.selectors.numeric().mean())
    if config == "quantiles":
        wanted = wanted.with_columns(wql=pl.col("loss") / pl.col("size"))
    intervals = (20, 40, 60, 80) if config == "quantiles" else (80, 95)
    kinds = {f"coverage_{level}" for level in intervals}
    kinds |= {"wql", "crps"} if config == "quantiles" else set()
    assert kinds <= set(found.columns)
    same(found, wanted.sort(keys), found.columns[3:])

    found = stored(server.folder / runs, "test_by_horizon")
    assert found["step"].to_list() == list(range(1, HORIZON + 1))
    wanted = expected.group_by("step").agg(pl.selectors.numeric().mean()).sort("step")
    if config == "quantiles":
        wanted = wanted.with_columns(wql=pl.col("loss") / pl.col("size"))
    assert kinds <= set(found.columns)
    assert found["windows"].unique().to_list() == [90]
    same(found, wanted, found.columns[2:])


def by_hand(rows: pl.DataFrame) -> pl.DataFrame:
    """Errors of each row, by plain numpy on the file."""
    parts = []
    for (name, channel), part in rows.group_by("series", "channel"):
        y = table().filter(pl.col("unique_id") == name)[str(channel)].to_numpy()
        train = y[: int(0.7 * len(y))]
        unit = np.abs(train[SEASON:] - train[:-SEASON]).mean()
        at = (part["stamp"].to_numpy() - np.datetime64("2024-01-01")) // np.timedelta64(1, "h")
        truth, naive = y[at], y[at - SEASON]  # the horizon is shorter than a season
        assert np.allclose(part["actual"], truth)
        errors: dict[str, np.ndarray] = {}
        for end, forecast in (("", part["forecast"].to_numpy()), ("_seasonal_naive", naive)):
            error = np.abs(forecast - truth)
            errors["mse" + end] = (error / train.std()) ** 2
            errors["mae" + end] = error / train.std()
            errors["mse_original" + end], errors["mae_original" + end] = error**2, error
            errors["mase" + end] = error / unit
        for end in (c for c in rows.columns if c.startswith("lower_")):
            level = end.removeprefix("lower_")
            low, high = (part[f"{side}_{level}"].to_numpy() for side in ("lower", "upper"))
            errors[f"coverage_{level}"] = ((low <= truth) & (truth <= high)).astype(float)
        quantiles = [c for c in rows.columns if c.startswith("q_")]
        if quantiles:
            loss = np.zeros(len(part))
            for column in quantiles:
                share, below = float(column[2:]) / 100, truth - part[column].to_numpy()
                loss += 2 * np.where(below > 0, share * below, (share - 1) * below)
            errors["loss"] = loss / len(quantiles)
            errors["crps"], errors["size"] = errors["loss"] / train.std(), np.abs(truth)
        parts.append(
            part.select("series", "channel", "step").with_columns(
                **{k: pl.Series(v) for k, v in errors.items()}
            )
        )
    return pl.concat(parts)


def stored(folder: Path, name: str) -> pl.DataFrame:
    [file] = folder.rglob(f"{name}.csv")
    return pl.read_csv(file)


def same(found: pl.DataFrame, wanted: pl.DataFrame, columns: list[str]) -> None:
    for column in columns:
        assert np.allclose(found[column], wanted[column], rtol=1e-4), column
