"""Events through the command line: chorales to MIDI, a table to rows, and tables that are bad."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import mlflow
import music21
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
import yaml
from forked_cli import ROOT, Server

from core.backbone import Backbone
from core.jobs.errors import UsageError
from core.jobs.shards import load_predictions
from core.mixers import RelativeAttention
from timeseries.__main__ import MORE
from timeseries.data.events import read_events
from timeseries.generation import choose, draw, generate, load
from timeseries.models import EventModel

# Of mlflow's own use of pandas when it loads a model.
pytestmark = pytest.mark.filterwarnings("ignore:Operation with range is deprecated")

CHORALES = ROOT / "timeseries" / "configs" / "chorales.yaml"
DATA = "--data.init_args"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("events")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LONGSPAN_CACHE", str(folder / "cache"))
        server = Server(folder)
        yield server
        server.close()


def run(server: Server, *words: str) -> str:
    code, output = server.run(*words)
    assert code == 0, output
    return output


def run_folder(server: Server, output: str) -> Path:
    return server.folder / output.split("run folder: ")[1].split("\n")[0]


# Chorales


@pytest.fixture(scope="module")
def chorales(server: Server) -> Path:
    """A short run of the shipped config on some of the corpus."""
    few = (f"{DATA}.pieces", "12", "--trainer.max_epochs", "1")
    return run_folder(server, run(server, "fit", "--config", str(CHORALES), *few))


def test_chorales_config(server: Server, chorales: Path, tmp_path: Path) -> None:
    said = run(server, "test", "--ckpt_path", str(chorales))
    for metric in ("loss", "nll_type", "nll_time_markov", "accuracy_repeat", "loss_unigram"):
        assert f"test/{metric} " in said
    csv = tmp_path / "rows.csv"
    written = ("--predictions.path", str(tmp_path / "rows"), "--predictions.export", str(csv))
    run(server, "predict", "--ckpt_path", str(chorales), *written)
    rows = pl.read_csv(csv)
    assert rows["id"].n_unique() == 1  # a tenth of twelve
    assert rows["type"][-2] == "end"
    assert rows["type"].null_count() == 1
    assert (rows["nll_type"].drop_nulls() > 0).all()
    steps = rows["median_gap"].to_numpy() / 0.25
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-5)


def test_chorale_to_midi(server: Server, chorales: Path, tmp_path: Path) -> None:
    """The same seed gives the same notes; music21 reads those of the table."""
    module, _, name = MORE["generate"].function.partition(":")
    assert (module, name) == (generate.__module__, generate.__name__)
    words = ["--ckpt_path", str(chorales), "--events", "60", "--top_p", "0.95"]
    for name, seed in (("a.mid", "1"), ("again.mid", "1"), ("b.mid", "2"), ("a.csv", "1")):
        generate([*words, "--out", str(tmp_path / name), "--seed", seed])
    assert (tmp_path / "again.mid").read_bytes() == (tmp_path / "a.mid").read_bytes()
    assert (tmp_path / "b.mid").read_bytes() != (tmp_path / "a.mid").read_bytes()
    score = music21.converter.parse(tmp_path / "a.mid")
    pitches = {note.pitch.midi for note in score.flatten().notes}
    (events,) = read_events(tmp_path / "a.csv", grid=0.25)
    assert pitches <= {int(kind[1:]) for kind in events.types if kind[1:].isdigit()}
    assert len(pitches) > 5
    assert (np.diff(events.times) >= 0).all()


def test_steps_of_a_run_equal_its_forward(chorales: Path) -> None:
    """What generation steps through is what the likelihood of the same events is made of."""
    task, data = load(chorales)
    times, kinds = draw(task.model, 2, 40, generator=torch.Generator().manual_seed(0))
    assert data.types is not None
    for time, kind in zip(times, kinds, strict=True):
        types = [data.types[k] for k in kind]
        batch = data.collate([data.encode({"id": "a", "times": time.tolist(), "types": types})])
        names = ("type_in", "gap_in", "time_in")
        with torch.no_grad():
            whole = task.model(*(batch[k] for k in names), batch["sequences"])[0]
            state = task.model.backbone.init_state(1)
            for i in range(len(types)):
                features, state = task.model.step(*(batch[k][:, i] for k in names), state)
                torch.testing.assert_close(features[0], whole[i], rtol=1e-4, atol=1e-5)
                logits, stepped = task.model.logits(whole[i]), task.model.logits(features[0])
                torch.testing.assert_close(stepped, logits, rtol=1e-4, atol=1e-5)


def test_the_first_event_is_at_time_0() -> None:
    """No gap leads to it, and the model never learned one."""
    torch.manual_seed(0)
    blocks = {"attention": lambda dim: RelativeAttention(dim, heads=2, max_distance=4)}
    model = EventModel(Backbone(8, blocks, "attention"), types=3).eval()
    with torch.no_grad():
        model.gap_head[-1].bias[0] = -50  # no gap of 0
    times, _ = draw(model, 20, 4, generator=torch.Generator().manual_seed(0))
    assert (times[:, 0] == 0).all()
    assert (times.diff(dim=1) > 0).all()


# A table


HEADER = "case,when,what"


def table(path: Path, cases: int = 20, first: int = 0) -> Path:
    rng = np.random.default_rng(first)
    lines = [HEADER]
    for i in range(first, first + cases):
        times = np.cumsum(rng.exponential(size=8))
        lines += [f"c{i},{t:.6f},{'uvw'[(i + n) % 3]}" for n, t in enumerate(times)]
    path.write_text("\n".join(lines) + "\n")
    return path


def config(path: Path, data: Path) -> Path:
    mixer = {"class_path": "core.mixers.RelativeAttention", "init_args": {"heads": 2}}
    blocks = {"attention": mixer, "mlp": {"class_path": "core.backbone.MLP"}}
    backbone = {"dim": 16, "schedule": "attention mlp", "blocks": blocks}
    model = {"backbone": {"class_path": "core.backbone.Backbone", "init_args": backbone}}
    settings = {
        "trainer": {"max_epochs": 2, "log_every_n_steps": 1},
        "model": {
            "class_path": "timeseries.tasks.EventModelling",
            "init_args": {
                "model": {"class_path": "timeseries.models.EventModel", "init_args": model}
            },
        },
        "data": {
            "class_path": "timeseries.data.events.EventSequences",
            "init_args": {
                **{"path": str(data), "sequence": "case", "time": "when", "event": "what"},
                "length": 6,
            },
        },
    }
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def table_run(server: Server) -> Path:
    """A registered run on a file that is gone afterwards."""
    path = table(server.folder / "x.csv")
    given = ("--config", str(config(server.folder / "x.yaml", path)))
    output = run(server, "fit", *given, "--tracking.register_model", "true")
    path.unlink()
    return run_folder(server, output)


def predict(server: Server, folder: Path, path: Path, out: Path) -> tuple[int, str]:
    given = (f"{DATA}.predict_path", str(path), "--predictions.path", str(out))
    return server.run("predict", "--ckpt_path", str(folder), *given)


def test_another_table_is_predicted_and_served_alike(
    server: Server, table_run: Path, tmp_path: Path
) -> None:
    path = table(tmp_path / "next.csv", cases=3, first=50)
    code, output = predict(server, table_run, path, tmp_path / "rows")
    assert code == 0, output
    rows = load_predictions(tmp_path / "rows").collect()
    found = read_events(path, "case", "when", "what")
    assert rows["id"].to_list() == [e.name for e in found for _ in range(9)]
    assert rows["event"].to_list() == [*range(1, 10)] * 3
    records = [{"id": e.name, "times": e.times.tolist(), "types": e.types.tolist()} for e in found]
    kept = json.loads((table_run / "run.json").read_text())
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(kept["tracking_uri"])
    try:
        with warnings.catch_warnings():  # the model's code is this checkout, imported already
            warnings.simplefilter("ignore")
            model = mlflow.pyfunc.load_model("models:/toys.event_modelling@champion")
        served = model.predict(pd.DataFrame(records))
    finally:
        mlflow.set_tracking_uri(before)
    for column in ("probability", "median_gap"):
        np.testing.assert_allclose(served[column].to_numpy(float), rows[column], rtol=1e-4)
    assert served["predicted_type"].tolist() == rows["predicted_type"].to_list()


def test_table_run_generates_a_table(table_run: Path, tmp_path: Path) -> None:
    words = ["--ckpt_path", str(table_run), "--sequences", "3", "--events", "12"]
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        generate([*words, "--out", str(tmp_path / f"{name}.csv"), "--seed", seed])
    found = read_events(tmp_path / "a.csv", "case", "when", "what")
    assert [len(e.times) for e in found] == [12] * 3
    assert set("uvw") >= {kind for e in found for kind in e.types}
    texts = [(tmp_path / f"{name}.csv").read_text() for name in "abc"]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x.mid"], "x.mid: only a run on chorales has notes to write"),
        (["--out", "x.wav"], "x.wav: cannot write this kind of file; give .csv or .mid"),
        (["--out", "nowhere/x.csv"], "no such folder"),
        (["--out", "x.csv", "--top_p", "0"], "--top_p is 0.0"),
        (["--out", "x.csv", "--temperature", "-1"], "--temperature is -1.0"),
        (["--out", "x.csv", "--events", "0"], "must be at least 1"),
        (["--out", "x.csv", "--event", "3"], "unrecognized arguments"),
        ([], "required: --out"),
    ],
)
def test_wrong_use_of_generate(table_run: Path, words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        generate(["--ckpt_path", str(table_run), *words])
    assert message in str(caught.value)


def test_several_chorales_need_a_table(chorales: Path) -> None:
    with pytest.raises(UsageError, match="a MIDI file holds one sequence"):
        generate(["--ckpt_path", str(chorales), "--out", "x.mid", "--sequences", "2"])


def test_choice_keeps_the_likeliest() -> None:
    """Of 0.5, 0.3, 0.15 and 0.05, a share of 0.7 keeps the first two, at 5 to 3."""
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log().expand(20_000, 4)
    drawn = choose(logits, 1.0, 0.7, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {1, 3}
    assert (drawn == 1).double().mean().item() == pytest.approx(5 / 8, abs=0.02)
    cold = choose(logits, 0.5, 1.0, torch.Generator().manual_seed(0))
    squares = torch.tensor([0.15, 0.5, 0.05, 0.3]).square()
    share = torch.bincount(cold) / len(cold)
    torch.testing.assert_close(share, squares / squares.sum(), atol=0.02, rtol=0)
    assert set(choose(logits, 0.0, 1.0, None).tolist()) == {1}


def test_sequences_end_with_the_type_that_stops_them() -> None:
    torch.manual_seed(0)
    blocks = {"attention": lambda dim: RelativeAttention(dim, heads=2)}
    model = EventModel(Backbone(8, blocks, "attention"), types=4)
    times, kinds = draw(model, 6, 50, stop=2, generator=torch.Generator().manual_seed(0))
    assert (times.diff(dim=1) >= 0).all()
    ends = [row.index(2) for row in kinds.tolist()]
    assert len(set(ends)) > 1
    assert kinds.shape[1] == max(ends) + 1  # nothing is drawn behind the last end
    for row, end in zip(kinds.tolist(), ends, strict=True):
        assert all(kind >= 0 for kind in row[:end])
        assert set(row[end + 1 :]) <= {-1}


# Bad tables


BAD = {
    "unsorted": ("c0,9,u\nc0,1,v", "row 2: 'c0': when 1 goes back; sort each sequence by time"),
    "nan": ("c0,1,u\nc0,nan,v", "row 2: has no when"),
    "infinite": ("c0,1,u\nc0,inf,v", "row 2: when is infinite"),
    "no rows": ("", "the table has no rows"),
}


@pytest.mark.parametrize(("rows", "message"), BAD.values(), ids=BAD)
def test_bad_tables_end_a_fit(server: Server, tmp_path: Path, rows: str, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(f"{HEADER}\n{rows}\n" if rows else f"{HEADER}\n")
    given = ("--config", str(config(tmp_path / "x.yaml", path)))
    root = ("--tracking.root", str(tmp_path / "runs"))
    code, output = server.run("fit", *given, *root)
    assert code == 3, output
    assert message in output
    assert output.count("error: ") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEADER}\nc0,1,u\nc0,2,door\nc0,3,u\n", "row 2: 'c0': type 'door' was not in training"),
        ("case,when,kind\nc0,1,u\n", "no column 'what'; it has case, when, kind"),
        ("", "the file is empty"),
        (f"{HEADER}\nc0,2,u\nc0,1,u\n", "row 2: 'c0': when 1 goes back"),
    ],
)
def test_bad_tables_end_a_prediction(
    server: Server, table_run: Path, tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "next.csv"
    path.write_text(text)
    code, output = predict(server, table_run, path, tmp_path / "rows")
    assert code == 3, output
    assert message in output
    with pytest.raises(Exception, match="rows"):
        load_predictions(tmp_path / "rows")
