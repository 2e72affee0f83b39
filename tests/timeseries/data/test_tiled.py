"""Windows that hold every stamp once, and see nothing of another split."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.jobs.data import SkipRecord
from core.jobs.errors import DataError, UsageError
from timeseries.data import streaming
from timeseries.data.anomalies import AnomalyWindows
from timeseries.data.imputation import ImputationWindows
from timeseries.data.masks import Masks
from timeseries.data.protocol import Tiling
from timeseries.data.series import Policies, read_series

pytestmark = pytest.mark.filterwarnings("ignore::timeseries.data.repairs.RepairWarning")

ROWS = {"a": 400, "b": 250}
TILING = Tiling(length=48, overlap=20, stride=7)


@given(st.integers(1, 30), st.integers(0, 29), st.integers(0, 200), st.integers(0, 50))
def test_tiles_hold_every_row_once(length: int, overlap: int, rows: int, start: int) -> None:
    tiling = Tiling(length=length, overlap=min(overlap, length - 1))
    span = (start, start + rows)
    tiles = tiling.tiles(span)
    own = [row for tile in tiles for row in range(tile.first, tile.end)]
    assert own == list(range(*span))
    for tile in tiles:
        assert span[0] <= tile.start <= tile.first < tile.end <= tile.start + length
        assert tile.start + length <= span[1] or len(tiles) == 1
    for one, other in itertools.pairwise(tiles):
        assert one.start + length - other.start >= tiling.overlap
    # no window that sees a row has its middle more than half a step nearer to it
    middle = [tile.start + (length - 1) / 2 for tile in tiles]
    for place, tile in zip(middle, tiles, strict=True):
        for row in range(tile.first, tile.end) if rows > length else ():
            assert abs(row - place) <= min(abs(row - m) for m in middle) + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length is 0"),
        ({"stride": 0}, "stride is 0"),
        ({"length": 8, "overlap": 8}, "overlap is 8"),
        ({"overlap": -1}, "overlap is -1"),
    ],
)
def test_bad_tiling(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Tiling(**options).check()


def table(seed: int = 0) -> pl.DataFrame:
    """Two hourly series with two channels and a tenth of the cells empty."""
    random, parts = np.random.default_rng(seed), []
    for name, rows in ROWS.items():
        stamps = np.datetime64("2024-01-01", "us") + np.arange(rows) * np.timedelta64(1, "h")
        y = 50 + 10 * random.standard_normal((rows, 2)).cumsum(0)
        y[random.random((rows, 2)) < 0.1] = np.nan
        parts.append(
            pl.DataFrame({"unique_id": [name] * rows, "ds": stamps, "x": y[:, 0], "y": y[:, 1]})
        )
    return pl.concat(parts).fill_nan(None)


def windows(path: Path, kind: Any = ImputationWindows, **options: Any) -> Any:
    data = kind(str(path), targets=["x", "y"], **{"tiling": TILING, **options})
    data.setup("fit")
    return data


@pytest.fixture
def path(tmp_path: Path) -> Path:
    table().write_parquet(tmp_path / "x.parquet")
    return tmp_path / "x.parquet"


def truth(path: Path, name: str) -> np.ndarray:
    part = pl.read_parquet(path).filter(pl.col("unique_id") == name)
    return part.select("x", "y").to_numpy().astype(float)


def borders(name: str) -> tuple[int, int, int]:
    rows = ROWS[name]
    return int(rows * 0.7), int(rows * 0.8), rows


def test_the_scale_is_that_of_the_known_values_of_training(path: Path) -> None:
    fitted = windows(path).fitted
    for name in ROWS:
        known = truth(path, name)[: borders(name)[0]]
        assert np.allclose(fitted.scales[name].mean, np.nanmean(known, 0), rtol=1e-12)
        assert np.allclose(fitted.scales[name].std, np.nanstd(known, 0), rtol=1e-12)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_examples_are_the_rows_of_their_split(path: Path, split: str) -> None:
    data = windows(path)
    loader = getattr(data, f"{split}_dataloader")()
    seen = {name: np.zeros(rows, int) for name, rows in ROWS.items()}
    for batch in loader:
        for i, name in enumerate(batch["series"]):
            train, val, end = borders(name)
            span = {"train": (0, train), "val": (train, val), "test": (val, end)}[split]
            row, scale = int(batch["row"][i]), data.fitted.scales[name]
            rows = np.arange(row, min(row + TILING.length, span[1]))
            assert span[0] <= row
            values = np.full((TILING.length, 2), np.nan)
            values[: len(rows)] = (truth(path, name)[rows] - scale.mean) / scale.std
            assert np.array_equal(batch["known"][i], ~np.isnan(values))
            assert np.allclose(batch["values"][i], np.nan_to_num(values), atol=1e-5)
            assert not (batch["hidden"][i] & ~batch["known"][i]).any()
            own = np.flatnonzero(batch["own"][i]) + row
            seen[name][own] += 1
            stamps = np.datetime64("2024-01-01", "us") + rows * np.timedelta64(1, "h")
            assert (batch["stamps"][i][: len(rows)] == stamps).all()
    if split != "train":
        for name, counts in seen.items():
            train, val, end = borders(name)
            first, last = {"val": (train, val), "test": (val, end)}[split]
            assert (counts[first:last] == len(data.masks.kinds)).all()
            assert counts.sum() == (last - first) * len(data.masks.kinds)


def test_what_is_hidden_is_hidden_in_every_window(path: Path) -> None:
    data = windows(path)
    found: dict[tuple, bool] = {}
    hidden = 0
    for batch in data.test_dataloader():
        for i, (name, kind) in enumerate(zip(batch["series"], batch["kind"], strict=True)):
            for step, channel in np.argwhere(batch["known"][i].numpy()):
                key = (name, kind, int(batch["row"][i]) + int(step), int(channel))
                mark = bool(batch["hidden"][i, step, channel])
                assert found.setdefault(key, mark) == mark
                hidden += mark
    assert hidden
    assert 0.1 < np.mean(list(found.values())) < 0.3


def test_training_knows_nothing_of_later_spans(path: Path, tmp_path: Path) -> None:
    """The same examples and scale whatever stands behind the training span."""
    changed = table().with_columns(
        pl.when(
            pl.int_range(pl.len()).over("unique_id") < (pl.len() * 0.7).over("unique_id").floor()
        )
        .then(pl.col(c))
        .otherwise(1e6)
        .alias(c)
        for c in ("x", "y")
    )
    changed.write_parquet(tmp_path / "changed.parquet")
    one, other = (windows(p) for p in (path, tmp_path / "changed.parquet"))
    assert one.state_dict() == other.state_dict()
    for a, b in zip(one.train_dataloader(), other.train_dataloader(), strict=True):
        assert np.array_equal(a["values"], b["values"])
        assert np.array_equal(a["known"], b["known"])


def test_a_file_read_by_pieces_gives_the_same(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = windows(path)
    monkeypatch.setattr(streaming, "STREAM_ROWS", 1)
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    mapped = windows(path)
    assert isinstance(mapped.series(path)[0].values, np.memmap)
    assert mapped.state_dict() == whole.state_dict()
    for a, b in zip(whole.test_dataloader(), mapped.test_dataloader(), strict=True):
        assert a["id"] == b["id"]
        for key in ("values", "known", "hidden", "own", "time"):
            assert np.array_equal(a[key], b[key])
    records = zip(whole.predict_records(), mapped.predict_records(), strict=True)
    assert all(np.array_equal(a["values"], b["values"], equal_nan=True) for a, b in records)


def test_missing_values_are_asked_for_once(path: Path) -> None:
    data = windows(path)
    asked = {name: np.zeros((rows, 2), int) for name, rows in ROWS.items()}
    for record in data.predict_records():
        example = data.encode(record)
        step, channel = np.nonzero(example["asked"] & example["own"][:, None])
        asked[record["series"]][example["row"] + step, channel] += 1
    for name, counts in asked.items():
        assert np.array_equal(counts, np.isnan(truth(path, name)).astype(int))


def test_kept_gaps_are_missing_rows(tmp_path: Path) -> None:
    rows = table().filter(pl.col("unique_id") == "a")
    rows.filter(~pl.int_range(pl.len()).is_between(100, 180)).write_csv(tmp_path / "gap.csv")
    data = windows(tmp_path / "gap.csv")
    (one,) = data.series(tmp_path / "gap.csv")
    assert len(one) == 400
    assert np.isnan(one.values[100:181]).all()
    known = rows.select("x", "y").to_numpy().astype(float)
    known[100:181] = np.nan
    assert np.array_equal(one.values, known, equal_nan=True)


def test_gaps_and_empty_values_by_policy(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("unique_id,ds,y\na,1,1\na,2,\na,3,3\na,5,5\n")
    nan = float("nan")
    for gaps, missing, expected in (
        ("keep", "keep", [1, nan, 3, nan, 5]),
        ("linear", "keep", [1, nan, 3, 4, 5]),
        ("keep", "linear", [1, 2, 3, 4, 5]),
        ("previous", "previous", [1, 1, 3, 3, 5]),
    ):
        policies = Policies(gaps=gaps, missing=missing)  # type: ignore[arg-type]
        (one,) = read_series(tmp_path / "x.csv", policies=policies)
        assert np.array_equal(one.values[:, 0], expected, equal_nan=True), (gaps, missing)
    with pytest.raises(DataError, match=r"row 2: 'a': no y at 2; set data.policies.missing"):
        read_series(tmp_path / "x.csv", policies=Policies(gaps="keep"))


def test_a_channel_without_values_is_refused(tmp_path: Path) -> None:
    row = pl.int_range(pl.len()).over("unique_id")
    for condition, where in ((row < 0, ""), (row > 290, " in the training span")):
        empty = table().with_columns(pl.when(condition).then(1.0).alias("y"))
        empty.filter(pl.col("unique_id") == "a").write_csv(tmp_path / "x.csv")
        with pytest.raises(DataError, match=f"series 'a' has no value of y{where}; leave"):
            windows(tmp_path / "x.csv")


def test_records_that_cannot_be_filled_in(path: Path) -> None:
    data = windows(path)
    good = {"id": "1", "series": "a", "start": "2024-01-01 00:00", "values": [[1.0, None]] * 3}
    example = data.encode(good)
    assert np.array_equal(np.argwhere(example["asked"] & example["own"][:, None])[:, 0], [0, 1, 2])
    for change, message in (
        ({"series": "c"}, "was not in training"),
        ({"values": [[1.0]]}, "for each of x, y"),
        ({"values": [[1.0, 2.0, None]]}, "for each of x, y"),
        ({"values": []}, "1 to 48 rows"),
        ({"values": [[1.0, None]] * 49}, "1 to 48 rows"),
        ({"values": [[1.0, float("inf")]]}, "finite number"),
        ({"values": [["one", None]]}, "finite number"),
        ({"values": [[1.0, 2.0]]}, "no value is missing"),
        ({"start": "soon"}, "is not a stamp"),
    ):
        with pytest.raises(SkipRecord, match=message):
            data.encode({**good, **change})


def test_a_file_without_gaps_has_nothing_to_fill_in(tmp_path: Path) -> None:
    table().fill_null(1.0).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="no value is missing; there is nothing to fill in"):
        windows(tmp_path / "x.parquet").predict_records()


def test_a_span_in_which_nothing_is_hidden_is_refused(path: Path) -> None:
    data = windows(path, masks=Masks(kinds=["points"], rate=1e-9))
    with pytest.raises(DataError, match="no value of the val span is hidden as points"):
        data.val_dataloader()


def labelled(tmp_path: Path, label: pl.Expr) -> Path:
    path = tmp_path / "labelled.parquet"
    table().with_columns(label.alias("odd")).write_parquet(path)
    return path


def test_labels_stand_beside_their_stamps(tmp_path: Path) -> None:
    row = pl.int_range(pl.len()).over("unique_id")
    label = pl.when(row % 5 > 0).then((row % 7 == 0).cast(pl.Int8))
    data = windows(labelled(tmp_path, label), AnomalyWindows, labels="odd")
    series, kinds = data.tested()
    for one, kind in zip(series, kinds, strict=True):
        assert one.values.shape[1] == 2
        expected = [-1 if k % 5 == 0 else int(k % 7 == 0) for k in range(len(one))]
        assert kind.tolist() == expected
    assert data.model_facts() == {"channels": 2, "time_features": 4, "season": 24}
    with pytest.raises(DataError, match="column 'odd' holds 2; labels are 0, 1 or empty"):
        windows(labelled(tmp_path, row % 3), AnomalyWindows, labels="odd")
