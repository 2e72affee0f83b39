"""Several fits and tests as one study: a table, restartable, and one MLflow run above theirs."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import polars as pl
import yaml
from jsonargparse import Namespace

from core.jobs import provenance, tracking
from core.jobs.cli import check, job
from core.jobs.errors import DataError, UsageError, UserError
from core.jobs.files import replacing
from core.jobs.signals import Interrupted

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Trial:
    """One fit and its test: what names it in the table, and the command line's arguments. Without
    ``train`` the model is tested as it is built."""

    labels: Mapping[str, str | int]
    arguments: tuple[str, ...]
    train: bool = True


def run_study(
    domain: str,
    name: str,
    trials: Sequence[Trial],
    table: Path,
    draw: Callable[[pl.DataFrame], Figure],
    more: Callable[[pl.DataFrame], Mapping[str, Figure | pl.DataFrame]] | None = None,
) -> pl.DataFrame:
    """Run every trial that ``table`` (CSV) does not hold yet, and add its row when it is done.

    Columns: the labels, the test metrics without ``test/``, ``seconds`` of fit and test, a digest
    of the trial's ``settings`` and data, ``run_id`` of the test. The table and the figure that
    ``draw`` makes of it are artifacts of a run in the experiment ``<domain>/<name>``, and so are
    figures and tables that ``more`` makes, by path; the trials' runs are its children. Raises
    UsageError for a table of other labels or with a trial of other settings or data, and what ends
    any trial before its run begins, before the first one.
    """
    digests = _digests(trials)
    done = _read(table, trials, digests)
    _check(domain, [t for t in trials if done is None or done.filter(_is(t)).is_empty()])
    table.parent.mkdir(parents=True, exist_ok=True)
    with parent_run(domain, name) as log:
        for number, (trial, digest) in enumerate(zip(trials, digests, strict=True), start=1):
            if done is not None and not done.filter(_is(trial)).is_empty():
                continue
            sys.stderr.write(f"{name} {number}/{len(trials)}: {_said(trial)}\n")
            row = pl.DataFrame([_run(domain, trial, digest)])
            done = row if done is None else pl.concat([done, row], how="diagonal_relaxed")
            with replacing(table) as part:
                done.write_csv(part)
        assert done is not None
        log(table, draw(done), more=more(done) if more else {})
    return done


def _check(domain: str, trials: Sequence[Trial]) -> None:
    """Raises what would end a trial before its run begins. Seeds change nothing of that."""
    checked = set()
    for trial in trials:
        arguments = _without_seed(trial.arguments)
        if (arguments, trial.train) in checked:
            continue
        checked.add((arguments, trial.train))
        commands = ("fit", "test") if trial.train else ("test",)
        try:
            _check_kept(check(domain, [commands[0], *trial.arguments], commands).trainer, trial)
        except UserError as error:
            raise type(error)(f"{_said(trial)}: {error}") from error


def _check_kept(trainer: Namespace, trial: Trial) -> None:
    """Raises UsageError unless the trial leaves the runs and the checkpoint that a study reads."""
    off = {
        "logger=false": trainer.logger is False,
        "fast_dev_run": bool(trainer.fast_dev_run),
        "barebones": trainer.barebones,
        "enable_checkpointing=false": trial.train and trainer.enable_checkpointing is False,
    }
    for setting, given in off.items():
        if given:
            raise UsageError(f"trainer.{setting} keeps nothing that a study reads; leave it out")


def _without_seed(arguments: Sequence[str]) -> tuple[str, ...]:
    before = ("", *arguments[:-1])
    return tuple(
        word
        for word, left in zip(arguments, before, strict=True)
        if "--seed_everything" not in (word, left)
    )


def _said(trial: Trial) -> str:
    return ", ".join(f"{key} {value}" for key, value in trial.labels.items())


def logged_table(run_id: str, path: str) -> pl.DataFrame | None:
    """A table that a run of a study has logged; None if it is not to be had."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    client = MlflowClient(tracking.tracking_uri(tracking.TrackingConfig()))
    with tempfile.TemporaryDirectory() as folder:
        try:
            return pl.read_csv(client.download_artifacts(run_id, path, folder), glob=False)
        except (MlflowException, OSError, pl.exceptions.PolarsError):
            return None


def _is(trial: Trial) -> pl.Expr:
    return pl.all_horizontal(pl.col(k).cast(pl.String) == str(v) for k, v in trial.labels.items())


def _read(table: Path, trials: Sequence[Trial], digests: Sequence[str]) -> pl.DataFrame | None:
    if not trials:
        raise UsageError("there is nothing to run")
    if not table.exists():
        return None
    try:
        done = pl.read_csv(table, schema_overrides={"settings": pl.String}, glob=False)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{table}: cannot be read; remove it or name another --out") from error
    if not set(trials[0].labels) <= set(done.columns):
        raise UsageError(f"{table}: holds another study; remove it or name another --out")
    if "settings" not in done.columns:  # of a table that is older than they are
        return done
    for trial, digest in zip(trials, digests, strict=True):
        found = set(done.filter(_is(trial))["settings"].drop_nulls())
        if found and found != {digest}:
            raise UsageError(
                f"{table}: holds {_said(trial)} with other settings or data; give those, remove "
                "the table or name another --out"
            )
    return done


def rows_of(table: pl.DataFrame, trials: Sequence[Trial]) -> pl.DataFrame:
    """Without the rows of other trials that the same table holds."""
    return table.filter(pl.any_horizontal(_is(trial) for trial in trials))


def _digests(trials: Sequence[Trial]) -> list[str]:
    """Of each trial's arguments, in which files stand for what they hold."""
    digest = cache(provenance.file_digest)  # the trials of a study share their data
    return [_digest(trial, digest) for trial in trials]


def _digest(trial: Trial, digest: Callable[[Path], str]) -> str:
    words = [part for word in trial.arguments for part in word.split("=", 1)]
    configs = {word: _settings_of(word) for word in words if _is_config(word)}
    # a path of data may be seen from a folder that stands beside it
    folders = [folder for key, folder in pairwise(words) if key.endswith("folder")]
    for config in configs.values():
        folders += [str(value) for key, value in config.items() if key.endswith("folder")]

    def content(word: Any) -> str:
        if not isinstance(word, str):
            return str(word)
        if word in configs:
            return "\n".join(f"{key}: {content(v)}" for key, v in sorted(configs[word].items()))
        files = (os.path.join(folder, word) for folder in ("", *folders))
        found = next((file for file in files if os.path.isfile(file)), None)
        return digest(Path(found)) if found else word

    return hashlib.sha256("\0".join(map(content, words)).encode()).hexdigest()[:16]


def _is_config(word: str) -> bool:
    return Path(word).suffix in (".yaml", ".yml") and os.path.isfile(word)


def _settings_of(file: str) -> dict[str, Any]:
    config = yaml.safe_load(Path(file).read_text())
    return provenance.flatten(config) if isinstance(config, dict) else {"": config}


def _run(domain: str, trial: Trial, digest: str) -> dict[str, str | int | float]:
    arguments, started = list(trial.arguments), time.perf_counter()
    if trial.train:
        fit = job(domain, ["fit", *arguments])
        assert fit.folder is not None
        arguments = [*arguments, "--ckpt_path", str(fit.folder.path)]
    test = job(domain, ["test", *arguments])
    assert test.folder is not None
    metrics = {
        key.removeprefix("test/"): float(value)
        for key, value in test.trainer.callback_metrics.items()
        if key.startswith("test/")
    }
    seconds = round(time.perf_counter() - started, 1)
    run = {"settings": digest, "run_id": test.folder.run.run_id}
    return {**trial.labels, **metrics, "seconds": seconds, **run}


@contextmanager
def parent_run(
    domain: str, name: str, params: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Callable[..., None]]:
    """A run that is the parent of all that are made within; yields what logs its table, its figure,
    metrics, and further figures and tables by path."""
    from mlflow.tracking import MlflowClient

    config = tracking.TrackingConfig()
    uri = tracking.tracking_uri(config)
    tags = {"domain": domain, "command": name, **provenance.git_state(), **provenance.versions()}
    tags |= provenance.process_tags()
    with tracking.readable_errors(uri), tracking.one_at_a_time(uri):
        root = Path(config.root) / "artifacts"
        run_id = tracking.create_run(uri, f"{domain}/{name}", name, tags, root)
    client, state, before = MlflowClient(uri), "FAILED", os.environ.get("MLFLOW_RUN_ID")
    os.environ["MLFLOW_RUN_ID"] = run_id

    for key, value in params.items():
        client.log_param(run_id, key, value)

    def log(
        table: Path,
        figure: Figure,
        metrics: Mapping[str, float] = MappingProxyType({}),
        more: Mapping[str, Figure | pl.DataFrame] = MappingProxyType({}),
    ) -> None:
        for key, value in metrics.items():
            client.log_metric(run_id, key, value)
        client.log_artifact(run_id, str(table))
        client.log_figure(run_id, figure, f"plots/{name}.png")
        for path, item in more.items():
            if isinstance(item, pl.DataFrame):
                client.log_text(run_id, item.write_csv(), path)
            else:
                client.log_figure(run_id, item, path)

    try:
        yield log
        state = "FINISHED"
    except Interrupted:
        state = "KILLED"
        raise
    finally:
        client.set_terminated(run_id, state)
        if before is None:
            del os.environ["MLFLOW_RUN_ID"]
        else:
            os.environ["MLFLOW_RUN_ID"] = before
