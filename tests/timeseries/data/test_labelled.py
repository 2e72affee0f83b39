"""Series with classes: reading, splits, scale, padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from core.jobs.data import SkipRecord
from core.jobs.errors import DataError, UsageError
from timeseries.data.labelled import LabelledSeriesData, fit_classes, with_validation
from timeseries.data.labelled_tables import LabelledSeries

LENGTHS = {"p": 3, "q": 5, "r": 4, "s": 2, "t": 6}
CLASSES = {"p": "up", "q": "down", "r": "up", "s": "down", "t": "up"}
SPLITS = {"p": "train", "q": "train", "r": "val", "s": "train", "t": "test"}


def table(seed: int = 0) -> pl.DataFrame:
    """Five series of two channels; the rows of each are in reverse order of ``step``."""
    rng = np.random.default_rng(seed)
    rows = [
        (name, step, *rng.normal(3, 2, 2), CLASSES[name], SPLITS[name])
        for name, length in LENGTHS.items()
        for step in reversed(range(length))
    ]
    return pl.DataFrame(
        rows, schema=["unique_id", "step", "x", "y", "label", "split"], orient="row"
    )


def data(path: Path, rows: pl.DataFrame | None = None, **more: object) -> LabelledSeriesData:
    file = path / "series.csv"
    (table() if rows is None else rows).write_csv(file)
    settings = {"time": "step", **more}
    return LabelledSeriesData(path=str(file), **settings)  # type: ignore[arg-type]


def test_series_are_in_order_of_time_and_in_their_split(tmp_path: Path) -> None:
    found = data(tmp_path)
    found.setup("fit")
    assert {k: [s.name for s in part] for k, part in found.splits.items()} == {
        "train": ["p", "q", "s"],
        "val": ["r"],
        "test": ["t"],
    }
    rows = table().filter(pl.col("unique_id") == "t").sort("step")
    np.testing.assert_allclose(found.split("test")[0].values, rows.select("x", "y").to_numpy())
    assert found.classes == ("down", "up")
    assert found.model_facts() == {"channels": 2, "classes": 2}


@pytest.mark.parametrize("kind", ["number", "date"])
def test_times_are_numbers_or_dates_not_words(tmp_path: Path, kind: str) -> None:
    steps = pl.col("step") + 8  # as words, 10 would come before 9
    if kind == "date":
        steps = pl.datetime(2024, 1, steps).dt.strftime("%Y-%m-%d %H:%M")
    found = data(tmp_path, table().with_columns(steps.alias("step")))
    found.setup("fit")
    rows = table().filter(pl.col("unique_id") == "q").sort("step")
    np.testing.assert_allclose(found.split("train")[1].values[:, 0], rows["x"].to_numpy())


def test_scale_is_that_of_the_training_steps(tmp_path: Path) -> None:
    rows = table().with_columns(
        x=pl.when(pl.col("split") == "train").then(pl.col("x")).otherwise(1e6), y=pl.lit(5.0)
    )
    found = data(tmp_path, rows)
    found.setup("fit")
    seen = rows.filter(pl.col("split") == "train")["x"]
    assert found.fitted is not None
    np.testing.assert_allclose(found.fitted.mean, [seen.mean(), 5.0])
    np.testing.assert_allclose(found.fitted.std, [seen.std(ddof=0), 1.0])
    again = LabelledSeriesData()
    again.load_state_dict(found.state_dict())
    np.testing.assert_array_equal(again.standardised(np.eye(2)), found.standardised(np.eye(2)))
    assert again.classes == found.classes


def test_a_constant_channel_keeps_its_unit() -> None:
    """The standard deviation of a thousand times 0.1 is 1e-17 in float64."""
    assert np.full(1000, 0.1).std() > 0
    train = [LabelledSeries(kind, np.full((500, 1), 0.1), kind, "train") for kind in "ab"]
    assert fit_classes(Path("x.csv"), ("x",), train).std.tolist() == [1.0]


def test_classes_that_are_numbers_are_in_their_order(tmp_path: Path) -> None:
    rows = table().with_columns(label=pl.col("label").replace({"up": "10", "down": "9"}))
    found = data(tmp_path, rows)
    found.setup("fit")
    assert found.classes == ("9", "10")


def test_validation_has_a_share_of_each_class() -> None:
    series = [
        LabelledSeries(f"{label}{n}", np.zeros((1, 1)), label, split)
        for label, count in (("a", 20), ("b", 5), ("c", 1))
        for n in range(count)
        for split in ("train",)
    ]
    series += [LabelledSeries("a-test", np.zeros((1, 1)), "a", "test")]
    found = with_validation(series, 0.2)
    assert [s.name for s in found] == [s.name for s in series]
    val = [s.name for s in found if s.split == "val"]
    assert val == ["a2", "a7", "a12", "a17", "b2"]
    assert found[-1].split == "test"


def test_batches_are_padded_at_the_end(tmp_path: Path) -> None:
    found = data(tmp_path)
    found.setup("fit")
    batch = found.collate([found.encode(r) for r in records(found, "train")])
    assert batch["values"].shape == (3, 5, 2)
    assert batch["values"].dtype == torch.float32
    assert batch["sequences"].real.sum(1).tolist() == [3, 5, 2]
    assert not batch["values"][~batch["sequences"].real].any()
    assert batch["label"].tolist() == [1, 0, 0]
    one = found.collate([found.encode(r) for r in records(found, "test")])
    assert one["sequences"] is None


def records(found: LabelledSeriesData, split: str) -> list[dict[str, object]]:
    return [{"id": s.name, "values": s.values, "label": s.label} for s in found.split(split)]


def test_two_ts_files(tmp_path: Path) -> None:
    head = "@classLabel true a b\n@data\n"
    (tmp_path / "Toy_TRAIN.ts").write_text(head + "1,2:a\n3,4,5:b\n1,3:a\n2,2:b\n")
    (tmp_path / "Toy_TEST.ts").write_text(head + "9,2:a\n")
    found = LabelledSeriesData(
        path=str(tmp_path / "Toy_TRAIN.ts"), test_path=str(tmp_path / "Toy_TEST.ts"), val_share=0.5
    )
    found.setup("fit")
    assert [s.name for s in found.split("val")] == ["Toy_TRAIN-3", "Toy_TRAIN-4"]
    assert [s.name for s in found.split("test")] == ["Toy_TEST-1"]
    found.test_path = found.path
    found.splits = {}
    with pytest.raises(DataError, match="series 'Toy_TRAIN-1' is also in"):
        found.setup("fit")


def set_cell(row: int, column: str, value: object) -> pl.DataFrame:
    rows = table().cast(pl.String)
    return rows.with_row_index("#").with_columns(
        pl.when(pl.col("#") == row).then(pl.lit(value)).otherwise(pl.col(column)).alias(column)
    )[:, 1:]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (table().drop("label"), "no column 'label'"),
        (set_cell(4, "x", ""), "row 5 has no finite number in x"),
        (set_cell(4, "x", "nan"), "row 5 has no finite number in x"),
        (set_cell(4, "y", "-inf"), "row 5 has no finite number in y"),
        (set_cell(4, "y", "east"), "row 5 has no finite number in y"),
        (set_cell(4, "label", ""), "row 5 has no label"),
        (set_cell(4, "label", "up"), "series 'q' is 'down' and 'up'"),
        (set_cell(4, "split", "test"), "series 'q' is 'train' and 'test'"),
        (set_cell(19, "unique_id", "p"), "row 20: series 'p' was there before"),
        (set_cell(4, "step", "4"), "row 4: series 'q' has two rows with the same step"),
        (set_cell(4, "step", "soon"), "has no whole number or date in step"),
        (table().with_columns(split=pl.lit("dev")), "split 'dev' is none of train, val, test"),
        (table().with_columns(label=pl.lit("up")), "all training series have the class 'up'"),
        (
            table().with_columns(
                label=pl.when(pl.col("unique_id") == "t").then(pl.lit("new")).otherwise("label")
            ),
            "series 't' has class 'new', which was not in training",
        ),
    ],
)
def test_bad_tables(tmp_path: Path, rows: pl.DataFrame, said: str) -> None:
    with pytest.raises(DataError) as caught:
        data(tmp_path, rows).setup("fit")
    assert said in str(caught.value)
    assert "series.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def lists() -> pl.DataFrame:
    """The same series, a row each, in the order of the file."""
    rows = table().sort("step", maintain_order=True)
    return rows.group_by("unique_id", "label", "split", maintain_order=True).agg("x", "y")


@pytest.mark.parametrize("kind", [pl.List(pl.Float64), pl.List(pl.Int16), pl.Array])
def test_a_row_a_series(tmp_path: Path, kind: pl.DataType) -> None:
    rows, whole = lists(), table()
    if kind == pl.Array:
        rows = rows.with_columns(pl.col("x", "y").list.head(2).list.to_array(2))
        whole = whole.filter(pl.col("step") < 2)
    else:
        rows = rows.with_columns(pl.col("x", "y").cast(kind))
    file = tmp_path / "rows.parquet"
    rows.write_parquet(file)
    found, long = LabelledSeriesData(path=str(file)), data(tmp_path, whole)
    for one in (found, long):
        one.setup("fit")
    assert found.model_facts() == long.model_facts()
    for split in ("train", "val", "test"):
        for one, other in zip(found.split(split), long.split(split), strict=True):
            assert (one.name, one.label) == (other.name, other.label)
            exact = np.trunc(other.values) if kind == pl.List(pl.Int16) else other.values
            np.testing.assert_array_equal(one.values, exact)


def replaced(column: str, row: int, value: object) -> pl.DataFrame:
    rows = lists()
    cells = rows[column].to_list()
    cells[row] = value
    return rows.with_columns(pl.Series(column, cells, dtype=rows.schema[column]))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (replaced("x", 1, [1.0] * 4), "row 2 has another number of values in y than before"),
        (replaced("x", 2, []), "row 3 has no values in x"),
        (replaced("y", 2, None), "row 3 has no values in y"),
        (replaced("x", 1, [1.0, 2.0, None, 4.0, 5.0]), "row 2 has empty or infinite values"),
        (replaced("x", 1, [1.0, 2.0, 3.0, 4.0, float("inf")]), "row 2 has empty or infinite"),
        (replaced("x", 3, [None, 2.0]), "row 4 has empty or infinite values"),
        (replaced("unique_id", 4, "p"), "row 5 repeats its unique_id"),
        (replaced("label", 3, None), "row 4 has no label"),
        (replaced("split", 3, "dev"), "row 4: series 's': split 'dev' is none of train, val"),
        (lists().with_columns(y=pl.lit(1.0)), "column 'y' holds no lists"),
    ],
)
def test_bad_tables_of_lists(tmp_path: Path, rows: pl.DataFrame, said: str) -> None:
    file = tmp_path / "rows.parquet"
    rows.write_parquet(file)
    with pytest.raises(DataError) as caught:
        LabelledSeriesData(path=str(file)).setup("fit")
    assert said in str(caught.value)


def test_a_row_a_series_has_no_column_of_time(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    lists().with_columns(step=1).write_parquet(file)
    with pytest.raises(UsageError, match=r"leave out data\.time"):
        LabelledSeriesData(path=str(file), time="step").setup("fit")


def test_without_channels(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no column is left as a channel"):
        data(tmp_path, table().drop("x", "y")).setup("fit")


def test_a_split_without_series_is_named(tmp_path: Path) -> None:
    found = data(tmp_path, table().filter(pl.col("split") != "test"))
    found.setup("fit")
    with pytest.raises(DataError, match="no series of split 'test'"):
        found.test_dataloader()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([[1.0]], "one number for each of x, y"),
        ([], "one number for each of x, y"),
        ([[1.0, 2.0], [3.0]], "one number for each of x, y"),
        ([["east", 2.0]], "one number for each of x, y"),
        ([[1.0, float("inf")]], "empty or infinite"),
        ([[1.0, None]], "empty or infinite"),
    ],
)
def test_a_record_that_cannot_be_predicted_says_why(
    tmp_path: Path, values: list[object], said: str
) -> None:
    found = data(tmp_path)
    found.setup("fit")
    with pytest.raises(SkipRecord, match=said):
        found.encode({"id": "z", "values": values})
