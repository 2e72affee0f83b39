"""Event tables: what is read, what is refused, how sequences are split and cut."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.jobs.data import SkipRecord
from core.jobs.errors import DataError, UsageError
from core.objectives import IGNORE
from timeseries.data.events import EventSequences, read_events

ROWS = ["b,0.5,x", "a,1,y", "b,0.5,y", "a,2.25,x", "b,3,x", "c,7,z"]
HEADER = "sequence,time,type"


def write(path: Path, rows: list[str] = ROWS, header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def many(path: Path, sequences: int = 20, events: int = 7) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(sequences):
        times = np.cumsum(rng.exponential(size=events))
        kinds = rng.integers(0, 3, events)
        rows += [f"s{i},{t},{'xyz'[k]}" for t, k in zip(times, kinds, strict=True)]
    return write(path, rows)


@pytest.mark.parametrize("kind", ["csv", "tsv", "csv.gz", "parquet"])
def test_reads_every_kind_of_table(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    text = "\n".join([HEADER, *ROWS]) + "\n"
    if kind == "parquet":
        pl.read_csv(text.encode()).write_parquet(path)
    elif kind == "csv.gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text.replace(",", "\t") if kind == "tsv" else text)
    found = read_events(path)
    assert [e.name for e in found] == ["b", "a", "c"]
    assert [e.times.tolist() for e in found] == [[0.5, 0.5, 3], [1, 2.25], [7]]
    assert [e.types.tolist() for e in found] == [["x", "y", "x"], ["y", "x"], ["z"]]
    assert [e.rows.tolist() for e in found] == [[1, 3, 5], [2, 4], [6]]
    assert found[0].gaps.tolist() == [0, 0, 2.5]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_dates_become_hours(tmp_path: Path, kind: str) -> None:
    stamps = ["2024-01-01 00:30", "2024-01-01 06:00", "2024-01-02 00:00"]
    path = write(tmp_path / "x.csv", [f"a,{s},x" for s in stamps])
    if kind == "parquet":
        table = pl.read_csv(path).with_columns(pl.col("time").str.to_datetime())
        path = tmp_path / "x.parquet"
        table.write_parquet(path)
    (found,) = read_events(path)
    assert found.gaps.tolist() == [0, 5.5, 18]
    assert found.times[-1] == 24 * (
        np.datetime64("2024-01-02") - np.datetime64("1970-01-01")
    ).astype(int)


BAD = {
    "goes back": (["a,1,x", "b,9,x", "a,0.5,y"], " row 3: 'a': time 0.5 goes back; sort each"),
    "no time": (["a,1,x", "a,,y"], " row 2: has no time"),
    "not a number": (["a,1,x", "a,nan,y"], " row 2: has no time"),
    "infinite": (["a,1,x", "a,inf,y"], " row 2: time is infinite"),
    "text as time": (["a,1,x", "a,soon,y"], " row 2: time 'soon' is not a number"),
    "date among numbers": (["a,1,x", "a,2024-01-01,y"], " row 2: time '2024-01-01' is not a"),
    "number among dates": (["a,2024-01-01,x", "a,7,y"], " row 2: time '7' is not a stamp"),
    "no type": (["a,1,x", "a,2,", "a,3,"], " row 2: has no type (2 such rows)"),
    "no sequence": (["a,1,x", ",2,x"], " row 2: has no sequence"),
}


@pytest.mark.parametrize(("rows", "message"), BAD.values(), ids=BAD)
def test_bad_rows_are_named(tmp_path: Path, rows: list[str], message: str) -> None:
    path = write(tmp_path / "x.csv", rows)
    with pytest.raises(DataError) as caught:
        read_events(path)
    assert str(caught.value).startswith(f"{path}{message}")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_bad_times_in_parquet(tmp_path: Path, value: float | None) -> None:
    path = tmp_path / "x.parquet"
    columns = {"sequence": ["a", "a"], "time": [1.0, value], "type": ["x", "y"]}
    pl.DataFrame(columns).write_parquet(path)
    with pytest.raises(DataError, match=r"x\.parquet row 2: "):
        read_events(path)


def test_bad_files(tmp_path: Path) -> None:
    for header, rows, message in (
        (HEADER, [], "the table has no rows"),
        ("sequence,time,kind", ROWS, "no column 'type'; it has sequence, time, kind"),
    ):
        with pytest.raises(DataError, match=message):
            read_events(write(tmp_path / "x.csv", rows, header))
    (tmp_path / "empty.csv").touch()
    with pytest.raises(DataError, match="the file is empty"):
        read_events(tmp_path / "empty.csv")
    with pytest.raises(DataError, match="no such file"):
        read_events(tmp_path / "none.csv")


def test_grid_holds_gaps_not_times(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", ["a,0.1,x", "a,0.6,x", "a,1.35,x", "a,1.45,x"])
    with pytest.raises(DataError, match=r"row 4: 'a': time 1.45 is 0.1 after .* data.grid = 0.25"):
        read_events(path, grid=0.25)
    assert len(read_events(write(path, ["a,0.1,x", "a,0.6,x", "a,1.35,x"]), grid=0.25)[0].gaps) == 3


def test_split_column(tmp_path: Path) -> None:
    rows = ["a,1,x,train", "b,1,y,test", "a,2,x,train", "c,1,x,val"]
    path = write(tmp_path / "x.csv", rows, f"{HEADER},split")
    data = EventSequences(str(path), split="split")
    assert {s: [e.name for e in data.sequences(s)] for s in ("train", "val", "test")} == {
        "train": ["a"],
        "val": ["c"],
        "test": ["b"],
    }
    for changed, message in (
        ("a,2,x,test", "row 3: 'a': split 'test', unlike its sequence's rows before"),
        ("a,2,x,dev", "row 3: split 'dev'; give train, val or test"),
    ):
        write(path, [*rows[:2], changed, rows[3]], f"{HEADER},split")
        with pytest.raises(DataError, match=message):
            EventSequences(str(path), split="split").sequences("train")
    write(path, rows[:3], f"{HEADER},split")
    with pytest.raises(DataError, match="none of 2 sequences is left for val"):
        EventSequences(str(path), split="split").sequences("train")


def test_drawn_split_takes_whole_sequences_whatever_their_order(tmp_path: Path) -> None:
    path = many(tmp_path / "x.csv")
    data = EventSequences(str(path), val_share=0.2, test_share=0.1, split_seed=3)
    names = {s: {e.name for e in data.sequences(s)} for s in ("train", "val", "test")}
    assert {s: len(n) for s, n in names.items()} == {"train": 14, "val": 4, "test": 2}
    assert len(set.union(*names.values())) == 20
    lines = path.read_text().splitlines()
    blocks = [lines[1 + 7 * i : 8 + 7 * i] for i in range(20)]
    write(path, [line for block in reversed(blocks) for line in block])
    turned = EventSequences(str(path), val_share=0.2, test_share=0.1, split_seed=3)
    assert {s: {e.name for e in turned.sequences(s)} for s in names} == names
    other = EventSequences(str(path), val_share=0.2, test_share=0.1, split_seed=4)
    assert {e.name for e in other.sequences("val")} != names["val"]


@given(events=st.integers(1, 9), length=st.integers(1, 12))
def test_pieces_predict_every_event_once(events: int, length: int) -> None:
    data = EventSequences(length=length)
    data.types = ["x", "y"]
    rng = np.random.default_rng(events)
    times = np.cumsum(rng.exponential(size=events))
    types = ["xy"[k] for k in rng.integers(0, 2, events)]
    record = {"id": "a", "times": times.tolist(), "types": types}
    batch = data.collate([data.encode(record)])
    real = batch["sequences"].real
    assert batch["event"][real].tolist() == list(range(1, events + 2))
    kinds = ["xy".index(k) for k in types]
    assert batch["target"][real].tolist() == [*kinds, IGNORE]
    assert batch["type_in"][real].tolist() == [2, *kinds]
    gaps = np.diff(times, prepend=times[0]).astype(np.float32)
    assert batch["gap"][real].tolist() == [*gaps.tolist(), 0]
    assert batch["gap_in"][real].tolist() == [0, *gaps.tolist()]
    assert batch["time_in"][real].tolist() == [0, *times.tolist()]
    assert batch["timed"][real].tolist() == [0 < i < events for i in range(events + 1)]
    assert (batch["target"][~real] == IGNORE).all()
    assert not batch["timed"][~real].any()


def test_training_leaves_out_what_comes_after_the_end(tmp_path: Path) -> None:
    """Seven events are two pieces of four places; of eight, the last has nothing to learn from."""
    data = EventSequences(str(many(tmp_path / "x.csv")), length=4)
    data.setup("fit")
    batches = list(data.val_dataloader())
    assert sum(len(b["id"]) for b in batches) == 2 * len(data.sequences("val"))
    for batch in batches:
        assert ((batch["target"] == IGNORE) == ~batch["sequences"].real).all()
    events = sum(int((b["target"] != IGNORE).sum()) for b in batches)
    assert events == 7 * len(data.sequences("val"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"types": ["x", "new"]}, "type 'new' was not in training"),
        ({"times": [1.0, 0.5]}, "must not go back"),
        ({"times": [1.0, 1.1]}, "multiples of data.grid"),
        ({"times": [1.0]}, "one for each of types"),
        ({"times": [1.0, float("nan")]}, "finite numbers"),
        ({"times": ["soon", 1.0]}, "times must be numbers"),
    ],
)
def test_bad_records_are_skipped(change: dict[str, Any], reason: str) -> None:
    data = EventSequences(grid=0.5)
    data.load_state_dict({"types": ["x", "y"]})
    record = {"id": "a", "times": [1.0, 1.5], "types": ["x", "y"]}
    assert len(data.encode(record)["pieces"]) == 1
    with pytest.raises(SkipRecord, match=reason):
        data.encode({**record, **change})


def test_bad_settings() -> None:
    for options, message in (
        ({"grid": 0.0}, "data.grid is 0.0"),
        ({"length": 0}, "data.length is 0"),
        ({"val_share": 0.5, "test_share": 0.5}, "their sum below 1"),
    ):
        with pytest.raises(UsageError, match=message):
            EventSequences("x.csv", **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"data\.path is not given"):
        EventSequences().sequences("train")
