"""Covariates: what is read of them, the features they become, and that a model uses them."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from core.jobs.data import SkipRecord
from core.jobs.errors import DataError, UsageError
from timeseries.data.covariates import Covariates, moments
from timeseries.data.forecasts import ForecastWindows
from timeseries.data.layout import Roles
from timeseries.data.protocol import Protocol
from timeseries.data.repairs import Repairs
from timeseries.data.series import Policies, read_series
from timeseries.models import Informer, TemporalFusionTransformer

pytestmark = pytest.mark.filterwarnings("ignore::timeseries.data.repairs.RepairWarning")

LOOKBACK, HORIZON = 8, 3
PROTOCOL = Protocol(LOOKBACK, HORIZON)
KINDS: dict[str, Any] = {
    "known": ["price", "holiday"],
    "observed": ["rain"],
    "static": ["kind", "size"],
}


def table(rows: int = 60, ahead: int = HORIZON) -> pl.DataFrame:
    """Two hourly series; behind the targets, ``ahead`` rows of what is known."""
    parts = []
    for seed, (name, kind, size) in enumerate([("north", "shop", 2.0), ("south", "home", 5.0)]):
        rng, length = np.random.default_rng(seed), rows + ahead + seed
        t = np.arange(length)
        now = pl.Series(t < length - ahead)
        part = pl.DataFrame(
            {
                "unique_id": [name] * length,
                "ds": np.datetime64("2024-01-01", "us") + t * np.timedelta64(1, "h"),
                "y": rng.normal(10 * seed, 1 + seed, length).round(3),
                "price": rng.normal(100, 20 + seed, length).round(3),
                "holiday": (t // 24 % 3 == 0).astype(int),
                "rain": rng.gamma(2, 3, length).round(3),
                "kind": [kind] * length,
                "size": [size] * length,
            }
        )
        gone = [pl.when(now).then(pl.col(c)).otherwise(None).alias(c) for c in ("y", "rain")]
        parts.append(part.with_columns(*gone))
    return pl.concat(parts)


def fitted(path: Path, **options: Any) -> ForecastWindows:
    data = ForecastWindows(path=str(path), **{"protocol": PROTOCOL, **KINDS, **options})
    data.setup("fit")
    return data


def predicting(path: Path, state: dict[str, Any], **options: Any) -> ForecastWindows:
    given = {"path": "gone.csv", "protocol": PROTOCOL, **KINDS, **options}
    data = ForecastWindows(predict_path=str(path), **given)
    data.load_state_dict(json.loads(json.dumps(state)))
    data.setup("predict")
    return data


@pytest.fixture
def path(tmp_path: Path) -> Path:
    table().write_csv(tmp_path / "x.csv")
    return tmp_path / "x.csv"


def library(
    frame: pl.DataFrame, known: list[str], observed: list[str], train: dict[str, int]
) -> Any:
    """pytorch-forecasting's data set, its scalers fitted to the training rows."""
    from pytorch_forecasting import TimeSeriesDataSet
    from pytorch_forecasting.data.encoders import TorchNormalizer

    frame = frame.drop_nulls("y").with_columns(
        pl.int_range(pl.len()).over("unique_id").alias("row"), pl.col("holiday").cast(pl.Float64)
    )
    whole = frame.to_pandas()
    ends = whole["unique_id"].map(train)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = TimeSeriesDataSet(
            whole[whole["row"] < ends],
            time_idx="row",
            target="y",
            group_ids=["unique_id"],
            min_encoder_length=LOOKBACK,
            max_encoder_length=LOOKBACK,
            min_prediction_length=HORIZON,
            max_prediction_length=HORIZON,
            static_reals=["size"],
            time_varying_known_reals=known,
            time_varying_unknown_reals=["y", *observed],
            target_normalizer=TorchNormalizer(method="identity"),
        )
        return TimeSeriesDataSet.from_dataset(first, whole)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_windows_are_those_of_pytorch_forecasting(path: Path, split: str) -> None:
    data = fitted(path)
    windows = data.windows(split)
    batch = windows.__getitems__(list(range(len(windows))))
    theirs = library(table(), ["price", "holiday"], ["rain"], {"north": 42, "south": 42})
    columns = {"price": 4, "holiday": 5, "rain": 6}
    place = {name: theirs.reals.index(name) for name in columns}
    seen = {}
    for x, _ in theirs:
        first = int(x["encoder_time_idx_start"])
        seen[int(x["groups"][0]), first + LOOKBACK] = x["x_cont"]
    for i, (number, origin) in enumerate(
        zip(batch["series"].tolist(), batch["origin"].tolist(), strict=True)
    ):
        rows = seen[number, origin].numpy()
        past, future = batch["past_time"][i].numpy(), batch["future_time"][i].numpy()
        for name, column in columns.items():
            assert_allclose(past[:, column], rows[:LOOKBACK, place[name]], atol=1e-5)
        for name, column in (("price", 4), ("holiday", 5)):
            assert_allclose(future[:, column], rows[LOOKBACK:, place[name]], atol=1e-5)
        assert (future[:, 6] == 0).all()
        kinds = [[0, 1], [1, 0]][number]  # home, shop
        for side in (past, future):
            assert (side[:, 7:9] == kinds).all()
            assert_allclose(side[:, 9], [-1, 1][number])


def test_facts_count_the_features(path: Path) -> None:
    assert fitted(path).model_facts()["time_features"] == 4 + 2 + 1 + 3
    assert fitted(path, static=["size"]).model_facts()["time_features"] == 4 + 2 + 1 + 1


def test_moments_in_pieces_are_those_of_the_whole() -> None:
    values = np.random.default_rng(0).normal(1e4, 3, (1000, 2))
    values[:, 1] = 0.1
    mean, std = moments([values[:1], values[1:700], values[700:]])
    assert_allclose(mean, values.mean(0), rtol=1e-13)
    assert_allclose(std, [values[:, 0].std(), 1], rtol=1e-12)


def test_training_alone_decides_the_scale(path: Path, tmp_path: Path) -> None:
    frame = table()
    later = pl.int_range(pl.len()).over("unique_id") >= 43
    changed = [pl.when(later).then(1e6).otherwise(pl.col(c)).alias(c) for c in ("price", "rain")]
    frame.with_columns(changed).write_csv(tmp_path / "changed.csv")
    before, after = fitted(path), fitted(tmp_path / "changed.csv")
    assert before.state_dict()["covariates"] == after.state_dict()["covariates"]


def test_a_record_is_the_window_that_the_test_has(path: Path) -> None:
    data = fitted(path, origins="test")
    windows = data.windows("test")
    again = predicting(path, data.state_dict(), origins="test")
    records = again.predict_records()
    plain = [
        {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in record.items()}
        for record in records
    ]
    expected = windows.__getitems__(list(range(len(windows))))
    for some in (records, plain):
        batch = again.collate([again.encode(record) for record in some])
        for key in ("past", "past_time", "future_time"):
            assert batch[key].dtype == expected[key].dtype
            assert torch.equal(batch[key], expected[key]), key


def test_rows_after_the_last_target_are_the_future(path: Path) -> None:
    data = fitted(path)
    frame = table()
    for record in data.predict_records():
        mine = frame.filter(pl.col("unique_id") == record["series"])
        assert_array_equal(record["values"][:, 0], mine["y"].drop_nulls()[-LOOKBACK:])
        assert_array_equal(record["known"][:, 0], mine["price"][-LOOKBACK - HORIZON :])
        assert_array_equal(record["observed"][:, 0], mine["rain"].drop_nulls()[-LOOKBACK:])
        example = data.encode(record)
        assert example["stamps"][-1] == mine["ds"][-1]
        price = data.fitted.covariates  # type: ignore[union-attr]
        assert_allclose(
            example["future_time"][:, 4],
            (mine["price"][-HORIZON:].to_numpy() - price.mean[0]) / price.std[0],
            rtol=1e-5,
        )
    assert data.input_columns["known"] == "double[][]"
    assert "known" not in ForecastWindows.input_columns


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"known": None}, "known must be 11 rows of one finite number for each of price, holiday"),
        ({"known": [[1.0, 0.0]] * 8}, "known must be 11 rows"),
        ({"observed": [[1.0, 2.0]] * 8}, "observed must be 8 rows of one finite number .* rain"),
        ({"observed": [[float("nan")]] * 8}, "observed must be 8 rows"),
    ],
)
def test_a_record_without_its_covariates_is_skipped(
    path: Path, change: dict[str, Any], reason: str
) -> None:
    data = fitted(path)
    with pytest.raises(SkipRecord, match=reason):
        data.encode({**data.predict_records()[0], **change})
    short = {k: v for k, v in data.predict_records()[0].items() if k not in change}
    with pytest.raises(SkipRecord, match=reason):
        data.encode(short)


def test_more_rows_than_the_lookback_over_the_wire(path: Path) -> None:
    data = fitted(path)
    record = data.predict_records()[0]
    longer = {**record}
    for key in ("values", "known", "observed"):
        longer[key] = np.vstack([record[key][:2] + 7, record[key]])
    expected, found = data.encode(record), data.encode(longer)
    for key in ("past", "past_time", "future_time"):
        assert_array_equal(found[key], expected[key])


def spoilt(path: Path, row: int, **cells: Any) -> None:
    """The table with other cells in a row, counted from 1."""
    frame = table()
    for column, value in cells.items():
        there = pl.int_range(pl.len()) == row - 1
        other = pl.lit(value, frame.schema[column])
        frame = frame.with_columns(
            pl.when(there).then(other).otherwise(pl.col(column)).alias(column)
        )
    frame.write_csv(path)


@pytest.mark.parametrize(
    ("row", "cells", "message"),
    [
        (62, {"price": None}, r"row 62: 'north': no price at 2024-01-03 13:00:00, after the last"),
        (
            5,
            {"price": None},
            r"row 5: 'north': no price at 2024-01-01 04:00:00; give it, as it is known ahead",
        ),
        (5, {"rain": None}, r"row 5: 'north': no rain at 2024-01-01 04:00:00; set data\.policies"),
        (5, {"price": np.inf}, "row 5: price is infinite"),
        (70, {"kind": "x"}, "row 70: 'south': static kind is 'x', before it was 'home'"),
        (64, {"size": 9.0}, r"row 65: 'south': static size is '5\.0', before it was '9\.0'; name"),
        (9, {"kind": None}, "row 9: has no kind"),
    ],
)
def test_bad_covariates_are_named_with_their_row(
    path: Path, row: int, cells: dict[str, Any], message: str
) -> None:
    spoilt(path, row, **cells)
    with pytest.raises(DataError, match=message):
        fitted(path)


FILL = Policies(missing="previous", gaps="previous")


def without_row(path: Path, row: int) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:row], *lines[row + 1 :]]) + "\n")


def test_policies_fill_the_past_and_not_the_future(path: Path) -> None:
    policies = replace(FILL, known="previous")
    columns = Covariates(("price",), ("rain",))
    spoilt(path, 5, price=None, rain=None, y=None)
    series = read_series(path, policies=policies, roles=Roles(covariates=columns))[0]
    assert (series.known[4], series.observed[4]) == (series.known[3], series.observed[3])
    assert (len(series), len(series.known)) == (60, 63)
    without_row(path, 20)
    again = read_series(path, policies=policies, roles=Roles(covariates=columns))[0]
    assert_array_equal(again.known[19], series.known[18])
    assert_array_equal(np.delete(again.known, 19), np.delete(series.known, 19))
    assert_array_equal(again.values[19], series.values[18])
    spoilt(path, 61, price=None)
    with pytest.raises(DataError, match="row 61: 'north': no price at"):
        read_series(path, policies=policies, roles=Roles(covariates=columns))


@pytest.mark.parametrize("known", ["fail", "previous", "linear"])
def test_a_row_missing_in_the_future_is_not_made_up(path: Path, known: Any) -> None:
    without_row(path, 62)
    with pytest.raises(DataError, match="row 62: 'north': no price at 2024-01-03 13:00:00, after"):
        fitted(path, policies=replace(FILL, known=known))


@pytest.mark.parametrize("row", [5, 20, 59])
@pytest.mark.parametrize("there", [True, False], ids=["empty", "gap"])
def test_the_policy_of_targets_is_not_that_of_known_covariates(
    path: Path, row: int, there: bool
) -> None:
    if there:
        spoilt(path, row, price=np.nan, y=None, rain=None)
    else:
        without_row(path, row)
    stamp = np.datetime64("2024-01-01", "s") + np.timedelta64(row - 1, "h")
    when = str(stamp).replace("T", " ")
    said = f"row {row}: 'north': no price at {when}; give it, as it is known ahead"
    with pytest.raises(DataError, match=said):
        fitted(path, policies=FILL)
    with pytest.raises(DataError, match=r"no (y|price)|missing"):  # nor the other way round
        fitted(path, policies=Policies(known="previous"))
    heard = Repairs()
    columns = Covariates(("price", "holiday"), ("rain",))
    policies = replace(FILL, known="linear")
    found = read_series(path, policies=policies, roles=Roles(covariates=columns), repairs=heard)[0]
    assert found.known[row - 1, 0] == pytest.approx(found.known[[row - 2, row], 0].mean())
    expected = {"price": 1} if there else {"price": 1, "holiday": 1}
    assert heard.found["known"].columns == expected
    assert heard.found["known"].rows == [row]


def test_prediction_needs_what_training_had(path: Path, tmp_path: Path) -> None:
    state = fitted(path).state_dict()
    later = tmp_path / "next.csv"
    for change, message in (
        (
            table().gather_every(2, offset=1),
            r"series 'north' has steps of 2h; the model was trained on steps of 1h",
        ),
        (table(ahead=2), r"series 'north' has 2 rows after its last target, and the horizon needs"),
        (table().drop("price"), r"next\.csv: no column 'price'; it has"),
        (table().drop("rain"), r"next\.csv: no column 'rain'; it has"),
        (table().drop("size"), r"next\.csv: no column 'size'; it has"),
        (
            table().with_columns(pl.col("size") + 1),
            r"static column 'size' of series 'north' is 3\.0; the model was trained with 2\.0",
        ),
    ):
        change.write_csv(later)
        with pytest.raises(DataError, match=message):
            predicting(later, state).predict_records()
    table().write_csv(later)
    with pytest.raises(
        DataError, match="covariates are known price; the model was trained on known"
    ):
        predicting(later, state, known=["price"], observed=[], static=[]).predict_records()
    with pytest.raises(UsageError, match="column 'price' is named twice"):
        fitted(path, observed=["price"])


@pytest.mark.parametrize(("north", "south"), [("1", "x"), ("1", "2")])
def test_a_static_column_is_the_same_whatever_other_series_have(
    tmp_path: Path, north: str, south: str
) -> None:
    """A column of codes is text where one of them is, and numbers in a file of the others."""
    code = pl.when(pl.col("unique_id") == "north").then(pl.lit(north)).otherwise(pl.lit(south))
    whole = table().with_columns(code.alias("kind"))
    whole.write_csv(tmp_path / "x.csv")
    state = fitted(tmp_path / "x.csv").state_dict()
    later = tmp_path / "next.csv"
    whole.filter(unique_id="north").write_csv(later)
    assert len(predicting(later, state).predict_records()) == 1
    other = pl.col("unique_id").replace("south", "new"), code.replace("2", "y").alias("kind")
    whole.with_columns(*other).write_csv(later)
    assert len(predicting(later, state).predict_records()) == 2
    whole.with_columns(pl.lit("3").alias("kind")).write_csv(later)
    with pytest.raises(DataError, match="static column 'kind' of series 'north' is 3"):
        predicting(later, state).predict_records()


@pytest.mark.parametrize("kind", [Informer, TemporalFusionTransformer])
def test_a_model_uses_them(tmp_path: Path, kind: Any) -> None:
    """White noise in the known column is the series' next value: nothing else tells it."""
    rows, torch_seed = 400, 0
    signal = np.random.default_rng(0).standard_normal(rows)
    stamps = np.datetime64("2024-01-01", "us") + np.arange(rows) * np.timedelta64(1, "h")
    pl.DataFrame({"ds": stamps, "y": 5 + 2 * signal, "x": signal}).write_parquet(
        tmp_path / "x.parquet"
    )
    sizes = {
        Informer: {"dim": 32, "heads": 2, "feedforward": 32, "label_length": 4, "dropout": 0.0},
        TemporalFusionTransformer: {"hidden_size": 8, "dropout": 0.0},
    }
    errors = {}
    for known in ([], ["x"]):
        data = ForecastWindows(
            str(tmp_path / "x.parquet"),
            series=None,
            targets=["y"],
            known=known,
            protocol=PROTOCOL,
        )
        data.setup("fit")
        facts = {k: v for k, v in data.model_facts().items() if k != "season"}
        torch.manual_seed(torch_seed)
        model = kind(**facts, **sizes[kind])
        optimiser = torch.optim.Adam(model.parameters(), 1e-2)
        given = ("past", "past_time", "future_time")
        for _ in range(8):
            for batch in data.train_dataloader():
                optimiser.zero_grad()
                forecast = model(*(batch[key] for key in given))
                (forecast - batch["future"]).square().mean().backward()
                optimiser.step()
        windows = data.windows("test")
        batch = windows.__getitems__(list(range(len(windows))))
        with torch.no_grad():
            forecast = model.eval()(*(batch[key] for key in given))
        errors[len(known)] = float((forecast - batch["future"]).square().mean())
    assert errors[0] > 0.7
    assert errors[1] < 0.15
