"""What a user meets at the command line: help, exit codes, one-line errors, checkpoints."""

from __future__ import annotations

import json
import os
import pickle
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from forked_cli import ROOT, Server

from core.jobs import front
from core.jobs.usage import one_line

FIT = ("fit", "--config", "toy.yaml", "--trainer.max_epochs", "1")
REGISTER = ("--tracking.register_model", "true")


def fails(server: Server, code: int, *arguments: str) -> str:
    """The one line that a failing command says."""
    got, output = server.run(*arguments)
    assert got == code, output
    lines = output.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], output
    assert "Traceback" not in output
    return lines[-1].removeprefix("error: ")


def runs(server: Server) -> set[Path]:
    return set(server.folder.glob("runs/toys/*/*"))


# Before torch


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["fti"]])
def test_answers_at_once_without_torch(arguments: list[str]) -> None:
    code = (
        "import sys, time; start = time.perf_counter(); from genomics.__main__ import main;"
        f"sys.argv[1:] = {arguments}; code = main(); took = time.perf_counter() - start;"
        "assert not {'torch', 'lightning', 'mlflow'} & set(sys.modules); print(took)"
    )
    shortest = min(
        float(
            subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split()[-1]
        )
        for _ in range(3)
    )
    assert shortest < 0.5


def test_module_runs_as_program() -> None:
    command = [sys.executable, "-m", "genomics", "--version"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output == f"genomics (longspan {front.version()})\n"


def test_help_tells_commands_codes_and_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main("toys", "About toys.", ["-h"]) == 0
    text = capsys.readouterr().out
    for word in (*front.COMMANDS, "About toys.", "--resume", "130", "143", "MLFLOW_TRACKING_URI"):
        assert word in text
    assert front.main("toys", "About toys.", []) == 2


def test_unknown_command_offers_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main("toys", "", ["fitt", "--config", "x"]) == 2
    assert capsys.readouterr().err == "error: unknown command 'fitt', did you mean 'fit'?\n"
    assert front.main("toys", "", ["xyz"]) == 2
    assert "use one of fit, validate, test, predict" in capsys.readouterr().err


# Wrong use


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*FIT, "--trainer.max_step", "3"], "'trainer.max_step', did you mean 'max_steps'?"),
        ([*FIT, "--model.init_args.dropuot", "3"], "unknown key 'dropuot', did you mean 'dropout'"),
        ([*FIT, "--modle.init_args.dim", "3"], "'modle.init_args.dim', did you mean 'model'?"),
        ([*FIT, "--tracking.ur", "x"], "did you mean 'uri'?"),
        ([*FIT, "--trainer.max_epochs", "1.5"], "trainer.max_epochs: Expected int, got 1.5"),
        ([*FIT, "--model.init_args.lr", "x"], "Expected float. Got value: x"),
        ([*FIT, "--model", "toy_fit.Nope"], "'toy_fit.Nope': module 'toy_fit' has no attribute"),
        ([*FIT, "--data", "toy_fit.OnlyBatches", *REGISTER], "core.jobs.data.RecordDataModule"),
        ([*FIT, "--ckpt_path", "x"], "fit takes no --ckpt_path; --resume"),
        ([*FIT, "--checkpoints.monitor", "val/los"], "did you mean 'val/loss'?"),
        ([*FIT, "--tracking.uri", "file:mlruns"], "use sqlite:///mlruns.db"),
        (["fit"], "required: fit.data, fit.model; they are usually in a --config"),
        (["fit", "--config", "none.yaml"], "File does not exist"),
        (["fit", "--config", "broken.yaml"], "broken.yaml: not YAML"),
        (["fit", "--config", "typo.yaml"], "unknown key 'dimm', did you mean 'dim'?"),
        (["fit", "--resume", "nowhere"], "nowhere: no run.json here"),
        (["test", "--config", "toy.yaml", "--resume", "x"], "no run.json"),
        (["test", "--config", "toy.yaml", "--ckpt_path", "no.ckpt"], "'no.ckpt' does not exist"),
        (["predict", "--config", "toy.yaml"], "predict needs --predictions.path"),
        (["predict", "--config", "toy.yaml", "--predictions.pth", "x"], "did you mean 'path'?"),
    ],
    ids=lambda value: value.split(",")[0] if isinstance(value, str) else "",
)  # fmt: skip
def test_wrong_use_is_one_line_and_code_2(
    server: Server, whole: Path, arguments: list[str], words: str
) -> None:
    (server.folder / "broken.yaml").write_text("model: {class_path: toy_fit.Toy\n")
    (server.folder / "typo.yaml").write_text(
        "model: {class_path: toy_fit.Toy, init_args: {dimm: 3}}\ndata: toy_fit.ToyData\n"
    )
    assert words in fails(server, 2, *arguments)


def test_a_message_without_known_form_is_passed_on() -> None:
    assert one_line("strange\n  things", [], []) == "strange things"


def test_data_errors_are_code_3(server: Server, whole: Path) -> None:
    (server.folder / "bad.txt").write_text("bad")
    line = fails(server, 3, *FIT, "--data.init_args.file", "bad.txt")
    assert line == "bad.txt, line 1: not a number; correct it"
    line = fails(server, 3, *FIT, "--data.init_args.file", "none.txt")
    assert line == "none.txt: No such file or directory; check the data's file names"


def test_other_errors_are_code_1_and_debug_shows_where(server: Server, whole: Path) -> None:
    wrong = [*FIT, "--model.init_args.fail_at", "3"]
    assert fails(server, 1, *wrong) == "ArithmeticError: the step failed; --debug shows where"
    code, output = server.run(*wrong, "--debug")
    assert code == 1
    assert "in training_step" in output


# Checkpoints


def test_weights_of_another_model_are_refused_in_one_line(server: Server, whole: Path) -> None:
    line = fails(server, 2, "test", "--ckpt_path", str(whole), "--model", "toy_fit.Other")
    assert "(toy_fit.Toy) does not fit the configured toy_fit.Other: 2 missing" in line
    assert "first 'extra.weight'" in line
    line = fails(server, 2, "test", "--ckpt_path", str(whole), "--model.init_args.dim", "5")
    assert "'net.0.weight' is (4, 2), wanted (5, 2)" in line


@pytest.mark.parametrize(
    ("monitor", "trained"), [("val/los", False), ("train/los", True)], ids=["val", "train"]
)
def test_a_monitor_that_nothing_logs_fails_the_run(
    server: Server, whole: Path, monitor: str, trained: bool
) -> None:
    """That of a validation before the first step, another at the end of the first validation."""
    experiment = f"toys/monitor-{trained}"
    given = ["--checkpoints.monitor", monitor, "--tracking.experiment", experiment]
    line = fails(server, 2, *FIT, *given, "--trainer.log_every_n_steps", "1")
    assert line.startswith(f"checkpoints.monitor '{monitor}' is not among the logged metrics ")
    assert line.endswith(f", did you mean '{monitor}s'?")
    [folder] = server.folder.glob(f"runs/{experiment}/*")
    record = json.loads((folder / "run.json").read_text())
    assert record["state"] == "FAILED"
    with closing(sqlite3.connect(server.folder / "mlflow.db")) as store:
        tracked = "select status from runs where run_uuid = ?"
        assert store.execute(tracked, [record["run_id"]]).fetchall() == [("FAILED",)]
        steps = "select count(*) from metrics where run_uuid = ? and key = 'train/loss'"
        assert bool(store.execute(steps, [record["run_id"]]).fetchone()[0]) == trained


class Mischief:
    def __reduce__(self) -> Any:
        return os.mkdir, ("mischief",)


def test_a_checkpoint_runs_no_code(server: Server, whole: Path) -> None:
    evil, broken = server.folder / "evil.ckpt", server.folder / "broken.ckpt"
    torch.save({"state_dict": {}, "x": Mischief()}, evil)
    broken.write_bytes(pickle.dumps(1)[:3])
    arguments = ("test", "--config", "toy.yaml", "--ckpt_path")
    assert "is not loaded" in fails(server, 2, *arguments, "evil.ckpt")
    assert not (server.folder / "mischief").exists()
    assert "'broken.ckpt'" in fails(server, 2, *arguments, "broken.ckpt")


@pytest.mark.parametrize("file", ["", "checkpoints/best.ckpt"])
def test_given_values_win_over_the_checkpoint_and_it_is_said(
    server: Server, whole: Path, file: str
) -> None:
    before = runs(server)
    given = ("--ckpt_path", str(whole / file), "--model.init_args.lr", "0.5")
    code, output = server.run("test", *given)
    assert code == 0, output
    assert "warning: model.init_args.lr is 0.5 here and was 0.01 in" in output
    [folder] = runs(server) - before
    assert "lr: 0.5" in (folder / "config.yaml").read_text()


@pytest.mark.parametrize("command", ["validate", "test"])
def test_run_folder_is_enough_to_evaluate(server: Server, whole: Path, command: str) -> None:
    code, output = server.run(command, "--ckpt_path", str(whole))
    assert code == 0, output
    assert "warning" not in output
    lines = output.splitlines()
    assert lines[0].startswith(f"{command} done: ")
    assert lines[1].startswith(f"run folder: runs/toys/whole/{command}-toy-toy_data-s0-")
    assert lines[2] == f"see it: mlflow ui --backend-store-uri sqlite:///{server.folder}/mlflow.db"
    best = torch.load(whole / "checkpoints" / "best.ckpt", weights_only=True)
    last = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)
    score = float(lines[0].split("loss ")[1])
    assert score == pytest.approx(last["run"]["best_score"], rel=1e-3)
    assert "optimizer_states" not in best


def test_predict_writes_every_record_once(server: Server, whole: Path) -> None:
    before = runs(server)
    arguments = ("predict", "--ckpt_path", str(whole), "--predictions.path", "rows")
    code, output = server.run(*arguments)
    assert code == 0, output
    assert "predictions: rows" in output
    rows = pl.read_parquet(server.folder / "rows" / "*.parquet")
    assert rows["id"].to_list() == [f"r{n}" for n in range(40)]
    [folder] = runs(server) - before
    assert folder.name.startswith("predict-toy-toy_data-s0-")
    times = {f: f.stat().st_mtime_ns for f in (server.folder / "rows").glob("*.parquet")}
    assert server.run(*arguments)[0] == 0
    assert times == {f: f.stat().st_mtime_ns for f in (server.folder / "rows").glob("*.parquet")}
    line = fails(server, 2, *arguments, "--model.init_args.lr", "0.5")
    assert "rows" in line


def test_without_checkpoint_there_is_a_warning(server: Server, whole: Path) -> None:
    code, output = server.run("test", "--config", "toy.yaml")
    assert code == 0, output
    assert "warning: no --ckpt_path" in output


@pytest.mark.parametrize("option", ["--trainer.fast_dev_run", "--trainer.logger"])
def test_untracked_runs_leave_nothing(server: Server, whole: Path, option: str) -> None:
    before = runs(server)
    value = "true" if option.endswith("run") else "false"
    code, output = server.run(*FIT, option, value)
    assert code == 0, output
    assert runs(server) == before


# Resume


def test_resume_refuses_what_makes_another_run_and_names_it(server: Server, whole: Path) -> None:
    changes = ["--model.init_args.lr", "0.5", "--data.init_args.batch_size", "2"]
    line = fails(server, 2, "fit", "--resume", str(whole), *changes, "--trainer.max_epochs", "13")
    assert "data.init_args.batch_size (4 -> 2)" in line
    assert "model.init_args.lr (0.01 -> 0.5)" in line
    assert "max_epochs" not in line


def test_a_finished_run_may_go_on_longer(server: Server, whole: Path) -> None:
    code, output = server.run(*FIT, "--tracking.experiment", "toys/longer")
    assert code == 0, output
    [folder] = server.folder.glob("runs/toys/longer/*")
    last = folder / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 10
    again = ("fit", "--resume", str(folder))
    assert server.run(*again)[0] == 0  # nothing left to do
    code, output = server.run(*again, "--trainer.max_epochs", "2")
    assert code == 0, output
    assert torch.load(last, weights_only=True)["global_step"] == 20
    assert json.loads((folder / "run.json").read_text())["state"] == "FINISHED"
    assert "max_epochs: 2" in (folder / "config.yaml").read_text()


def test_resume_refuses_other_data_and_other_commands(server: Server, whole: Path) -> None:
    file = server.folder / "input.txt"
    file.write_text("one")
    code, output = server.run(
        *FIT, "--data.init_args.file", "input.txt", "--tracking.experiment", "toys/data"
    )
    assert code == 0, output
    [folder] = server.folder.glob("runs/toys/data/*")
    file.write_text("two")
    assert "data files have changed" in fails(server, 2, "fit", "--resume", str(folder))
    server.run("test", "--ckpt_path", str(whole), "--tracking.experiment", "toys/test")
    [folder] = server.folder.glob("runs/toys/test/*")
    assert "a test run; only fit can go on" in fails(server, 2, "fit", "--resume", str(folder))


def test_print_config_runs_nothing(server: Server, whole: Path) -> None:
    before, start = runs(server), time.monotonic()
    code, output = server.run(*FIT, "--print_config")
    assert code == 0
    assert "monitor: null" in output
    assert runs(server) == before
    assert time.monotonic() - start < 60
