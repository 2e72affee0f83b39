"""Bad series at the command line: one line that says what, where and what to do; code 2 or 3; and
no output at all."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import polars as pl
import pytest
import yaml
from forked_cli import Server
from series_commands import (
    CONFIG,
    DATA,
    HOURS,
    ROWS,
    fit,
    nothing_left,
    one_error,
    predict,
    table,
    tracking,
)

from core.jobs.shards import load_predictions


@pytest.fixture(scope="module")
def run(server: Server) -> str:
    """A folder of a run on the good table."""
    home = server.folder
    (home / "x.csv").write_text(table(ROWS))
    (home / "x.yaml").write_text(yaml.safe_dump(CONFIG))
    code, output = fit(server, home)
    assert code == 0, output
    return output.split("run folder: ")[1].split("\n")[0]


def changed(*places: tuple[int, str]) -> Callable[[Path], None]:
    """The table with other rows at some places; an empty text leaves one out."""

    def change(path: Path) -> None:
        rows = list(ROWS)
        for place, row in places:
            rows[place - 1] = row
        path.write_text(table([row for row in rows if row]))

    return change


def put(text: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(text)

    return change


def no_gzip(path: Path) -> None:
    packed = gzip.compress(table(ROWS).encode())
    path.write_bytes(packed[: len(packed) // 2])


BAD = {
    "missing": (lambda path: path.unlink(), ": no such file"),
    "empty": (put(""), ": the file is empty"),
    "only a header": (put(table([])), ": the table has no rows"),
    "cut gzip": (no_gzip, ": cannot be read as a csv table"),
    "ragged": (changed((7, "a,b,c,d")), ": cannot be read as a csv table"),
    "column missing": (
        put(table(ROWS, "unique_id,ds,load")),
        ": no column 'y'; it has unique_id, ds, load; ",
    ),
    "unsorted": (
        changed((3, ROWS[3]), (4, ROWS[2])),
        " row 4: 'a': stamp 2024-01-01 02:00:00 goes back; sort the file, or set",
    ),
    "duplicate": (
        changed((131, ROWS[129])),
        " row 131: 'b': stamp 2024-01-01 09:00:00 stands there twice; set data.policies.dup",
    ),
    "gap": (
        changed((5, ""), (6, "")),
        " row 5: 'a': 2 stamps are missing, first 2024-01-01 04:00:00; set data.policies.gaps",
    ),
    "off the grid": (
        changed((5, "a,2024-01-01 04:10,1")),
        " row 5: 'a': stamp 2024-01-01 04:10:00 is off the grid of 1h",
    ),
    "no stamp": (changed((9, "a,soon,1")), " row 9: ds 'soon' is not a stamp such as 2024-01-31"),
    "mixed offsets": (
        changed((2, "a,2024-01-01 01:00Z,1")),
        " row 2: ds '2024-01-01 01:00Z' has an offset from UTC, unlike the rows before",
    ),
    "empty value": (
        changed((8, "a,2024-01-01 07:00,"), (200, ROWS[199].rpartition(",")[0] + ",nan")),
        " row 8: 'a': no y at 2024-01-01 07:00:00; set data.policies.missing (2 such rows)",
    ),
    "infinite": (
        changed((8, "a,2024-01-01 07:00,-inf")),
        " row 8: y is infinite; correct it, or leave the cell empty",
    ),
    "not a number": (
        changed((8, "a,2024-01-01 07:00,1;5")),
        " row 8: y '1;5' is not a number; correct it, or leave the cell empty",
    ),
    "mixed frequency": (
        put(
            table([*ROWS[:120], *(row for row in ROWS[120:] if row.split()[1][:2] in ("00", "12"))])
        ),
        " row 121: series 'b' has steps of 12h, 'a' of 1h",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD)
def test_bad_data_is_one_line_and_leaves_nothing(
    server: Server, folder: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(folder / "x.csv")
    code, output = fit(server, folder)
    assert code == 3, output
    assert f"{folder / 'x.csv'}{message}" in one_error(output)
    nothing_left(folder)


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_bad_data_with_known_sizes_leaves_nothing(
    server: Server, folder: Path, run: str, command: str
) -> None:
    """A run's own configuration has no size left for which the data had to be read."""
    spoil, message = BAD["duplicate"]
    spoil(folder / "x.csv")
    model = ["--config", f"{run}/config.yaml"] if command == "fit" else ["--ckpt_path", run]
    other = f"{DATA}.path={folder / 'x.csv'}"
    code, output = server.run(command, *model, other, *tracking(server, folder))
    assert code == 3, output
    assert f"{folder / 'x.csv'}{message}" in one_error(output)
    nothing_left(folder)


def test_spans_without_room_leave_nothing(server: Server, folder: Path) -> None:
    borders = [f"{DATA}.protocol.train_end=110", f"{DATA}.protocol.val_end=113"]
    code, output = fit(server, folder, *borders)
    assert code == 3, output
    expected = f"{folder / 'x.csv'}: the val span has no room for a horizon of 6; move the borders"
    assert expected in one_error(output)
    nothing_left(folder)


@pytest.mark.parametrize(
    "flaw",
    ["empty", "column missing", "unsorted", "duplicate", "gap", "empty value", "infinite"],
)
def test_bad_data_at_predict_leaves_nothing(
    server: Server, folder: Path, run: str, flaw: str
) -> None:
    spoil, message = BAD[flaw]
    spoil(folder / "next.csv")
    code, output = predict(server, folder, run)
    assert code == 3, output
    assert f"{folder / 'next.csv'}{message}" in one_error(output)
    nothing_left(folder)


LENGTHS = "are shorter than look-back"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*ROWS, *(f"s,{t},1" for t in HOURS[:29])], f"1 of 3 series {LENGTHS} + horizon = 30"),
        ([f"a,{t},1" for t in HOURS[:29]], "first 'a' with 29; shorten data.protocol, or set"),
    ],
)
def test_short_series(server: Server, folder: Path, rows: list[str], message: str) -> None:
    (folder / "x.csv").write_text(table(rows))
    code, output = fit(server, folder)
    assert code == 3, output
    line = one_error(output)
    assert line.startswith(f"error: {folder / 'x.csv'}: ")
    assert message in line
    nothing_left(folder)


def test_short_series_are_left_out_if_asked(server: Server, folder: Path) -> None:
    (folder / "x.csv").write_text(table([*ROWS, *(f"s,{t},1" for t in HOURS[:29])]))
    code, output = fit(server, folder, f"{DATA}.policies.short", "skip")
    assert code == 0, output
    said = "1 of 3 series are shorter than look-back + horizon = 30, first 's' with 29"
    assert f"warning: {folder / 'x.csv'}: {said}; they are skipped" in output


def test_short_series_have_no_forecast_if_asked(server: Server, folder: Path, run: str) -> None:
    """Shorter than the look-back: all of the file is refused, or that series has a reason."""
    (folder / "next.csv").write_text(table([*ROWS[:23], *ROWS[120:]]))
    code, output = predict(server, folder, run)
    assert code == 3, output
    said = f"1 of 2 series {LENGTHS} = 24, first 'a' with 23; shorten data.protocol, or set"
    assert f"{folder / 'next.csv'}: {said}" in one_error(output)
    nothing_left(folder)
    code, output = predict(server, folder, run, f"{DATA}.policies.short", "skip")
    assert code == 0, output
    rows = load_predictions(folder / "out").collect()
    assert rows["series"].to_list() == [None] + ["b"] * 6
    assert rows["reason"][0] == "23 values, fewer than the look-back of 24"


def test_files_unlike_training(server: Server, folder: Path, run: str) -> None:
    daily = [f"a,2024-02-{day:02d},1" for day in range(1, 29)]
    for rows, message in (
        (daily, "series 'a' has steps of 1d; the model was trained on steps of 1h; bring"),
        ([f"a,{h},1" for h in range(40)], "series 'a' has numbered rows; the model was trained on"),
        (ROWS[:23], f"1 of 1 series {LENGTHS} = 24, first 'a' with 23"),
    ):
        (folder / "next.csv").write_text(table(rows))
        code, output = predict(server, folder, run)
        assert code == 3, output
        assert f"error: {folder / 'next.csv'}: {message}" in one_error(output)
        nothing_left(folder)


def test_good_data_is_predicted(server: Server, folder: Path, run: str) -> None:
    """The same commands work on the same table unspoilt, and on one as long as the look-back; a
    series that training had not gets a reason."""
    (folder / "x.csv").rename(folder / "next.csv")
    assert predict(server, folder, run)[0] == 0
    assert len(load_predictions(folder / "out").collect()) == 2 * 6
    unseen = [row.replace("a,", "new,") for row in ROWS[:24]]
    (folder / "next.csv").write_text(table([*ROWS[:24], *unseen]))
    out = ("--predictions.path", str(folder / "again"))
    code, output = predict(server, folder, run, *out)
    assert code == 0, output
    said = "warning: 1 of 2 records have no prediction, and their rows a reason: series 'new' was"
    assert [line for line in output.splitlines() if line.startswith(said)], output
    rows = load_predictions(folder / "again").collect()
    assert rows["series"].to_list() == ["a"] * 6 + [None]
    assert rows["stamp"][0] == pl.Series(["2024-01-02 00:00"]).str.to_datetime()[0]
    assert rows["reason"].to_list()[-2:] == [
        None,
        "series 'new' was not in training, so its scale is not known",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["frequency", "hourly"], "frequency 'hourly': give one such as 10m"),
        (["protocol.horizon", "0"], "data.protocol.horizon is 0; it must be >= 1"),
        (["protocol.season", "0"], "data.protocol.season is 0; give a number of steps"),
        (["protocol.train_end", "soon"], "border 'soon' is no stamp such as 2024-01-31"),
        (["protocol.train_end", "1000"], "series 'a' has 120 rows; the borders"),
        (["protocol.test_end", "1.5"], "border 1.5 is no share"),
        (["policies.gaps", "guess"], "guess"),
        (["polices.gaps", "linear"], "did you mean"),
        (["targets", "[]"], "no column is left as a target"),
    ],
)
def test_bad_settings(server: Server, folder: Path, options: list[str], message: str) -> None:
    code, output = fit(server, folder, f"{DATA}.{options[0]}", options[1])
    assert code == 2, output
    assert message in one_error(output)
    nothing_left(folder)


@pytest.mark.parametrize("kind", ["yaml", "option"])
def test_borders_may_be_stamps(server: Server, folder: Path, kind: str) -> None:
    borders = {"train_end": "2024-01-03", "val_end": "2024-01-04 12:00"}
    options = [f"--data.init_args.protocol.{key}={stamp}" for key, stamp in borders.items()]
    if kind == "yaml":
        text = (folder / "x.yaml").read_text()
        lines = "".join(f"      {key}: {stamp}\n" for key, stamp in borders.items())
        (folder / "x.yaml").write_text(
            text.replace("      horizon: 6\n", f"      horizon: 6\n{lines}")
        )
        options = []
    code, output = fit(server, folder, *options)
    assert code == 0, output
    run = output.split("run folder: ")[1].split("\n")[0]
    kept = yaml.safe_load((Path(run) / "config.yaml").read_text())["data"]["init_args"]["protocol"]
    assert {key: str(kept[key]) for key in borders} == borders
    code, output = server.run("test", "--ckpt_path", run, *tracking(server, folder))
    assert code == 0, output


# Of mlflow's own use of sqlalchemy.
@pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")
def test_repairs_are_said_once_and_kept_with_the_run(server: Server, folder: Path) -> None:
    changed((5, f"a,{HOURS[4]},"), (9, ""), (10, ""), (130, f"b,{HOURS[9]},"))(folder / "x.csv")
    uri = f"sqlite:///{server.folder / 'mlflow.db'}"
    filled = [f"{DATA}.policies.missing", "previous", f"{DATA}.policies.gaps", "linear"]
    code, output = fit(server, folder, *filled)
    assert code == 0, output
    said = [line for line in output.splitlines() if "x.csv: " in line]
    assert said == [
        f"warning: {folder / 'x.csv'}: {what}"
        for what in (
            "missing stamps: 2, first at row 9 of 'a'; data.policies.gaps: linear",
            "empty values: 2 (y 2), first at row 5, 128 of 'a', 'b'; "
            "data.policies.missing: previous",
        )
    ]
    kept = output.split("run folder: ")[1].split("\n")[0]
    run = json.loads((Path(kept) / "run.json").read_text())["run_id"]
    client = mlflow.MlflowClient(uri)
    tags = client.get_run(run).data.tags
    assert tags["data.repairs"] == "gaps: linear 2; missing: previous 2"
    manifest = json.loads(Path(client.download_artifacts(run, "data/manifest.json")).read_text())
    (entry,) = manifest["files"]
    assert entry["repairs"] == [
        {
            **{"policy": "gaps", "how": "linear", "count": 2, "rows": [9]},
            **{"series": 1, "columns": {}},
        },
        {
            **{"policy": "missing", "how": "previous", "count": 2, "rows": [5, 128]},
            **{"series": 2, "columns": {"y": 2}},
        },
    ]
    assert str(folder) not in json.dumps(manifest)
