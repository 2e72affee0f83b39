"""Batch jobs against the closed form of the toy task."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from toy_job import Job
from toy_predict import ToyData, ToyTask, toy_trainer, write_input

from core.jobs import shards
from core.jobs.errors import DataError, UsageError, UserError
from core.jobs.predictions import PredictionConfig, predict
from core.jobs.shards import load_predictions, unpredicted

# Lightning 2.6 uses a name of torch.utils that torch 2.15 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")


def expected(records: int, skip: tuple[int, ...] = (), rows: int = 1) -> pl.DataFrame:
    numbers = [n for n in range(records) for _ in range(1 if n in skip else rows)]
    good = [n not in skip for n in numbers]
    pairs = list(zip(numbers, good, strict=True))
    table = {
        "record": pl.Series(numbers, dtype=pl.Int64),
        "id": [f"r{n}" for n in numbers],
        "score": pl.Series([n + 1.0 if g else None for n, g in pairs], dtype=pl.Float32),
        "pair": pl.Series(
            [[n / 2, 1.0] if g else None for n, g in pairs], dtype=pl.List(pl.Float64)
        ),
        "label": pl.Series(
            [("even", "odd")[n % 2] if g else None for n, g in pairs], dtype=pl.String
        ),
        "reason": pl.Series(
            [None if g else f"r{n} is on the list" for n, g in pairs], dtype=pl.String
        ),
    }
    if not any(good):
        table = {name: table[name] for name in ("record", "id", "reason")}
    return pl.DataFrame(table)


@pytest.mark.parametrize("records", [1, 9, 10, 11, 20, 21])
def test_each_record_gets_its_row(tmp_path: Path, records: int) -> None:
    job = Job(tmp_path, records)
    assert job().seen == records
    assert_frame_equal(load_predictions(job.out).collect(), expected(records))
    assert len(list(job.out.glob("*.parquet"))) == -(-records // 10)
    assert json.loads((job.out / "_SUCCESS").read_text()) == {"records": records, "rows": records}


def test_a_folder_named_like_a_pattern(tmp_path: Path) -> None:
    """``run[1]`` would match ``run1``."""
    folder = tmp_path / "run[1]"
    folder.mkdir()
    job = Job(folder, 11)
    job()
    assert_frame_equal(load_predictions(job.out).collect(), expected(11))


def test_data_workers_change_nothing(tmp_path: Path) -> None:
    job = Job(tmp_path, 53, num_workers=2, skip=(3, *range(20, 30)))
    job()
    assert_frame_equal(load_predictions(job.out).collect(), expected(53, job.data["skip"]))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_sizes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    records = data.draw(st.integers(1, 40), "records")
    skip = tuple(data.draw(st.sets(st.integers(0, records - 1)), "skip"))
    rows = data.draw(st.integers(1, 3), "rows")
    size = data.draw(st.integers(1, 50), "rows_per_shard")
    batch = data.draw(st.integers(1, 50), "batch_size")
    job = Job(tmp_path_factory.mktemp("job"), records, size, batch_size=batch, skip=skip)
    task = job(ToyTask(rows))
    assert_frame_equal(load_predictions(job.out).collect(), expected(records, skip, rows))
    for names in task.batches:
        assert len({int(name[1:]) // size for name in names}) == 1, "a batch across two shards"
    for shard in range(-(-records // size)):
        numbers = pq.read_table(job.shard(shard))["record"].to_pylist()
        assert {number // size for number in numbers} == {shard}
    schemas = {str(pq.read_schema(file)) for file in job.out.glob("*.parquet")}
    assert len(schemas) == 1, "every shard can be read alone"


def test_no_records_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    job = Job(tmp_path, 0)
    with pytest.raises(DataError, match="input is empty"):
        job()
    assert not job.out.exists()


def test_finished_job_returns_at_once(tmp_path: Path) -> None:
    job = Job(tmp_path, 35)
    job()
    before = job.files()
    assert job().seen == 0
    assert job.files() == before


def test_rerun_predicts_only_what_is_missing(tmp_path: Path) -> None:
    job = Job(tmp_path, 35)
    job()
    before = job.files()
    job.forget(1)
    job.shard(3).unlink()
    with pytest.raises(UsageError, match="no finished predictions"):
        load_predictions(job.out)
    task = job()
    assert sorted({int(name[1:]) // 10 for names in task.batches for name in names}) == [1, 3]
    assert task.seen == 15
    after = job.files()
    assert after["part-00000.parquet"] == before["part-00000.parquet"]
    assert {name: content for name, (_, content) in after.items()} == {
        name: content for name, (_, content) in before.items()
    }


def test_shard_gone_from_a_finished_folder_is_made_again(tmp_path: Path) -> None:
    job = Job(tmp_path, 35)
    job()
    job.shard(2).unlink()
    with pytest.raises(ValueError, match="'id'"):
        job(NoIds())
    with pytest.raises(UsageError, match="no finished predictions"):
        load_predictions(job.out)
    assert job().seen == 10
    assert_frame_equal(load_predictions(job.out).collect(), expected(35))


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _flip(file: Path) -> None:
    """One byte of the ids, such that Arrow reads other ids and sees nothing amiss."""
    before, content = pq.read_table(file), file.read_bytes()
    column = pq.ParquetFile(file).metadata.row_group(0).column(1)
    assert column.path_in_schema == "id"
    start = column.dictionary_page_offset
    for place in range(start, start + column.total_compressed_size):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            after = pq.read_table(file)
        except (OSError, pa.ArrowException):
            continue
        if after["record"] == before["record"] and after["id"] != before["id"]:
            return
    pytest.fail("every flip is seen anyway")


def _other_records(file: Path) -> None:
    table = pq.read_table(file)
    pq.write_table(table.slice(1), file)


@pytest.mark.parametrize("damage", [_cut, _empty, _flip, _other_records])
def test_damaged_shard_is_made_again(tmp_path: Path, damage: Any) -> None:
    job = Job(tmp_path, 35)
    job()
    damage(job.shard(2))
    (job.out / "_SUCCESS").unlink()
    assert job().seen == 10
    assert_frame_equal(load_predictions(job.out).collect(), expected(35))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_version": "2"}, "model_version 1 there, 2 here"),
        ({"config_hash": "d"}, "config_hash c there, d here"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_folder_of_another_job_is_refused(
    tmp_path: Path, change: dict[str, str], named: str, finished: bool
) -> None:
    job = Job(tmp_path, 35)
    job()
    if not finished:
        job.forget(1)
    before = job.files()
    with pytest.raises(UsageError, match=named):
        job(**change)
    assert job.files() == before


def test_folder_of_another_input_or_cut_is_refused(tmp_path: Path) -> None:
    job = Job(tmp_path, 35)
    job()
    before = job.files()
    job.rows_per_shard = 11
    with pytest.raises(UsageError, match="rows_per_shard 10 there, 11 here"):
        job()
    job.rows_per_shard = 10
    job.file.write_text(job.file.read_text().replace("r3 1.5", "r3 1.6"))
    with pytest.raises(UsageError, match="input_digest"):
        job()
    assert job.files() == before


def test_moved_input_is_the_same_input(tmp_path: Path) -> None:
    job = Job(tmp_path, 35)
    job()
    job.file = job.file.rename(tmp_path / "elsewhere.txt")
    assert job().seen == 0


@pytest.mark.parametrize("name", ["notes.txt", "part-00000.parquet"])
def test_folder_of_something_else_is_refused(tmp_path: Path, name: str) -> None:
    job = Job(tmp_path, 5)
    job.out.mkdir()
    (job.out / name).write_text("mine")
    with pytest.raises(UsageError, match="holds no predictions"):
        job()
    assert [(f.name, f.read_text()) for f in job.out.iterdir()] == [(name, "mine")]


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}'])
def test_strange_manifest_is_refused(tmp_path: Path, text: str) -> None:
    job = Job(tmp_path, 5)
    job.out.mkdir()
    (job.out / "manifest.json").write_text(text)
    with pytest.raises(UsageError, match="not a prediction manifest"):
        job()


def test_output_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    job = Job(tmp_path, 5)
    job.out.write_text("mine")
    with pytest.raises(UsageError, match="choose an empty folder"):
        job()
    assert job.out.read_text() == "mine"


def test_leftovers_of_dead_writers_are_cleaned(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    job = Job(tmp_path, 5)
    job.out.mkdir()
    host = socket.gethostname()
    leftover = job.out / f".tmp-{host}-{dead.pid}-part-00000.parquet"
    alive = job.out / f".tmp-{host}-{os.getppid()}-part-00000.parquet"
    for file in (leftover, alive):
        file.write_text("half")
    manifest = shards.Manifest("d", "1", "c", 5, 10)
    assert shards.open_folder(job.out, manifest) == [0]
    assert not leftover.exists()
    assert alive.exists(), "another job may be writing it"


@pytest.mark.parametrize(("first", "second"), [(1, 2), (1, 8), (1, 31)])
def test_ids_must_be_unique(tmp_path: Path, first: int, second: int) -> None:
    job = Job(tmp_path, 35)
    job.file.write_text(job.file.read_text().replace(f"r{second} ", f"r{first} "))
    with pytest.raises(DataError, match=f"'r{first}' appears twice .records {first} and {second}"):
        job()
    assert not (job.out / "_SUCCESS").exists()


def test_ids_are_compared_in_parts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_IDS_AT_ONCE", 7)
    job = Job(tmp_path, 35)
    job()
    job.forget(3)
    job.file.write_text(job.file.read_text().replace("r34 ", "r2 "))
    (job.out / "manifest.json").unlink()
    for number in range(3):
        job.shard(number).unlink()
    with pytest.raises(DataError, match=r"'r2' appears twice .records 2 and 34"):
        job()


@pytest.mark.parametrize("damage", [_cut, _other_records, Path.unlink])
def test_merge_finds_what_went_wrong_meanwhile(tmp_path: Path, damage: Any) -> None:
    job = Job(tmp_path, 35)
    job()
    damage(job.shard(2))
    (job.out / "_SUCCESS").unlink()
    with pytest.raises(UserError, match=r"part-00002.parquet: .*; run the same command again"):
        shards.merge(job.out, shards.read_manifest(job.out))
    assert not (job.out / "_SUCCESS").exists()


class DropsARow(ToyTask):
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        return {"id": batch["id"][1:], "score": batch["x"][1:, 0]}


class Uneven(ToyTask):
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        return {"id": batch["id"], "score": batch["x"][1:, 0]}


class NoIds(ToyTask):
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        return {"score": batch["x"][:, 0]}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (DropsARow, "its batch's ids; 'r0' is not so"),
        (Uneven, "'score' has 3 rows, 'id' has 4"),
        (NoIds, "with 'id'"),
    ],
)
def test_task_that_loses_records_is_caught(tmp_path: Path, task: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Job(tmp_path, 5)(task())


class IntegersAtFirst(ToyTask):
    """A list column whose type depends on what is in the batch."""

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        names = batch["id"]
        return {"id": names, "count": [int(n[1:]) if int(n[1:]) < 15 else 0.5 for n in names]}


def test_shards_end_with_one_schema(tmp_path: Path) -> None:
    job = Job(tmp_path, 25, batch_size=5)
    job(IntegersAtFirst())
    for number in range(3):
        assert pq.read_schema(job.shard(number)).field("count").type == pa.float64()
    counts = load_predictions(job.out).collect()["count"].to_list()
    assert counts == [*map(float, range(15)), *[0.5] * 10]


def test_export(tmp_path: Path) -> None:
    job = Job(tmp_path, 25)
    target = tmp_path / "scores.txt"
    job(export=target)
    assert [float(line) for line in target.read_text().split()] == [n + 1.0 for n in range(25)]
    target.write_text("old")
    assert job(export=target).seen == 0
    assert len(target.read_text().split()) == 25


def test_export_is_checked_before_any_work(tmp_path: Path) -> None:
    job = Job(tmp_path, 25)
    task = ToyTask()
    with pytest.raises(UsageError, match=r"scores.vcf: cannot export .* supported: .txt"):
        job(task, export=tmp_path / "scores.vcf")
    with pytest.raises(UsageError, match="is the input itself"):
        job(task, export=job.file)
    assert task.seen == 0
    assert not job.out.exists()


def test_failed_export_leaves_no_file(tmp_path: Path) -> None:
    job = Job(tmp_path, 25, skip=(20,))
    target = tmp_path / "scores.txt"
    with pytest.raises(TypeError):
        job(export=target)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["in.txt", "out"]


@pytest.mark.parametrize("batches", [1, 2, 0.5])
def test_limited_batches_are_refused(tmp_path: Path, batches: float) -> None:
    with pytest.raises(UsageError, match="leave records out"):
        Job(tmp_path, 25)(limit_predict_batches=batches)


def test_an_export_into_no_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    job, task = Job(tmp_path, 25), ToyTask()
    with pytest.raises(UsageError, match=r"none/scores.txt: give a file in a folder that exists"):
        job(task, export=tmp_path / "none" / "scores.txt")
    assert task.seen == 0
    assert not job.out.exists()


def test_records_without_prediction_are_counted_by_reason(tmp_path: Path) -> None:
    job = Job(tmp_path, 25)
    job()
    assert unpredicted(job.out) is None
    reasons = {2: "no", 3: "'a' is 1 long", 14: "'b' is 2 long", 20: "so", 21: "so", 22: "so"}
    folder = tmp_path / "reasons"
    folder.mkdir()
    job = Job(folder, 25, reasons=reasons)
    job()
    assert unpredicted(job.out) == (
        "6 of 25 records have no prediction, and their rows a reason: "
        "so (3); 'a' is 1 long (2); no (1)"
    )


def test_rare_reasons_are_counted_together(tmp_path: Path) -> None:
    names = "abcdefgh"
    job = Job(tmp_path, 10, reasons=dict(enumerate(names)) | {8: "a", 9: "h"})
    job()
    assert unpredicted(job.out) == (
        "10 of 10 records have no prediction, and their rows a reason: "
        "a (2); h (2); b (1); c (1); d (1); 3 other reasons (3)"
    )
    with pytest.raises(UsageError, match="rows_per_shard is 0"):
        Job(tmp_path, 25, rows_per_shard=0)()


def test_trainer_can_be_used_again(tmp_path: Path) -> None:
    trainer, task = toy_trainer(), ToyTask()
    callbacks = list(trainer.callbacks)
    for name in "ab":
        predict(
            task,
            ToyData(str(write_input(tmp_path / "in.txt", 5))),
            trainer,
            PredictionConfig(str(tmp_path / name)),
            model_version="1",
            config_hash="c",
        )
    assert task.seen == 10
    assert trainer.callbacks == callbacks


def test_plain_trainer_predict_runs_on_the_data_module(tmp_path: Path) -> None:
    data = ToyData(str(write_input(tmp_path / "in.txt", 6)))
    columns = toy_trainer().predict(ToyTask(), datamodule=data)
    assert [name for part in columns for name in part["id"]] == [f"r{n}" for n in range(6)]
