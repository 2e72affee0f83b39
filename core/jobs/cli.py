"""fit, validate, test, predict: LightningCLI with tracked runs, run folders and exit codes."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from core.jobs import provenance, runs, tracking
from core.jobs.checkpoints import CheckpointConfig, RunCheckpoints
from core.jobs.data import Record, RecordDataModule
from core.jobs.errors import DONE, OTHER, UsageError, UserError
from core.jobs.opening import Command, new_run, snake, take_up
from core.jobs.predictions import PredictionConfig, check_job, check_limit, predict
from core.jobs.runs import RunFolder
from core.jobs.shards import unpredicted
from core.jobs.signals import Interrupted
from core.jobs.summary import summary_lines
from core.jobs.usage import one_line
from core.jobs.weights import load_data_state, load_weights, read_checkpoint, weights_version

NOT_SAVED = ("config", "resume", "ckpt_path", "predictions")  # of one command, not of the run

PREDICTION_KEYS = [f"predictions.{field.name}" for field in fields(PredictionConfig)]


def run(domain: str, arguments: Sequence[str], function: str | None = None) -> int:
    """One command; its exit code. Errors become one line on stderr. ``function`` (``module:name``)
    runs a command that is the domain's own."""
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    # Lightning's use of torch, about which a user can do nothing.
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`")
    if not debug:
        warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
        for name in ("lightning.pytorch", "lightning.fabric", "alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.WARNING)
    try:
        if function is None:
            job(domain, arguments)
        else:
            module, _, name = function.partition(":")
            getattr(importlib.import_module(module), name)(arguments[1:])
        return DONE
    except SystemExit as end:  # --help and --print_config
        return end.code if isinstance(end.code, int) else OTHER
    except (Exception, Interrupted) as error:
        code, line = _outcome(error)
        if debug:
            traceback.print_exc()
        sys.stderr.write(f"error: {line}\n")
        return code


def job(domain: str, arguments: Sequence[str]) -> JobCLI:
    """Run one of the four commands here; errors are raised."""
    return JobCLI(domain, with_saved_config(arguments))


def check(domain: str, arguments: Sequence[str], commands: Sequence[str]) -> Namespace:
    """Raise what would end ``commands``, of which ``arguments`` begin with the first, before they
    begin; the settings of the first. Reads data and builds the model; opens no run."""
    return JobCLI(domain, with_saved_config(arguments), only_check=commands).config[commands[0]]


def _outcome(error: BaseException) -> tuple[int, str]:
    """Exit code and line of what ended a command."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError | Interrupted):
        return error.code, text
    return OTHER, f"{type(error).__name__}: {text}; --debug shows where"


def with_saved_config(arguments: Sequence[str]) -> list[str]:
    """The arguments, behind the configuration of the run they refer to.

    ``--resume DIR`` always begins with the run's own, ``--ckpt_path`` if no other is given.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--resume")
    parser.add_argument("--ckpt_path")
    parser.add_argument("-c", "--config")
    try:
        given, _ = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError:  # the real parser will say what is missing
        return list(arguments)
    folder = None
    if given.resume is not None:
        folder = runs.open_folder(Path(given.resume))
    elif given.ckpt_path is not None and given.config is None:
        _, folder = runs.find_checkpoint(Path(given.ckpt_path))
    if folder is None:
        return list(arguments)
    return [arguments[0], "--config", str(folder.config_file), *arguments[1:]]


class JobCLI(LightningCLI):
    """LightningCLI in subclass mode whose commands are tracked runs.

    The four commands take the same keys, so one YAML file serves all.
    """

    def __init__(
        self, domain: str, arguments: Sequence[str], only_check: Sequence[str] = ()
    ) -> None:
        """``only_check`` names commands for which everything is built and the input checked, while
        nothing is run."""
        self.domain = domain
        self.only_check = tuple(only_check)
        self.arguments = list(arguments)
        self.folder: RunFolder | None = None
        self.tracker: tracking.RunLogger | None = None
        self.origin: RunFolder | None = None  # the run that --ckpt_path belongs to
        self.records: Sequence[Record] | None = None  # to predict
        strict = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults={"deterministic": "warn"},
            parser_kwargs={**strict, **{command: dict(strict) for command in self.subcommands()}},
            args=self.arguments,
        )

    # Configuration

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        skip = {"model", "datamodule", "ckpt_path", "weights_only", "verbose"}
        loaders = {"dataloaders", "train_dataloaders", "val_dataloaders", "return_predictions"}
        return dict.fromkeys(("fit", "validate", "test", "predict"), skip | loaders)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        self.options = parser  # of a command; all commands take the same
        parser.add_class_arguments(tracking.TrackingConfig, "tracking")
        parser.add_class_arguments(CheckpointConfig, "checkpoints")
        parser.add_argument("--predictions", type=PredictionConfig | None, help="predict only")
        parser.add_argument("--resume", type=str | None, help="run folder to go on with; fit only")
        parser.add_argument(
            "--ckpt_path", type=str | None, help="run folder or .ckpt file to load; not with fit"
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        try:
            self.config = parser.parse_args(args)
        except argparse.ArgumentError as error:
            keys = [*self.options.get_defaults().keys(), *PREDICTION_KEYS]
            raise UsageError(one_line(str(error), self.arguments, keys)) from error

    def _parse_ckpt_path(self) -> None:
        """Nothing: a checkpoint's hyper-parameters must not replace what the user has given.
        `load_weights` says where the two differ."""

    def before_instantiate_classes(self) -> None:
        assert self.subcommand is not None
        self.command: str = self.subcommand
        options = self.config[self.command]
        if self.command == "fit" and options.ckpt_path is not None:
            raise UsageError("fit takes no --ckpt_path; --resume DIR goes on with a run")
        if self.command != "fit" and options.resume is not None:
            raise UsageError(f"{self.command} takes no --resume; use --ckpt_path DIR")
        if self.command == "predict" and options.predictions is None:
            raise UsageError("predict needs --predictions.path FOLDER, where the rows go")
        if options.ckpt_path is not None:
            runs.find_checkpoint(Path(options.ckpt_path))  # before a run is opened for nothing
        fill_in_facts(options)
        whole = yaml.safe_load(self.parser.dump(self.config, skip_none=False))[self.command]
        self.settings: dict[str, Any] = {k: v for k, v in whole.items() if k not in NOT_SAVED}
        if options.resume is not None:
            self.folder = runs.open_folder(Path(options.resume))
            if tracking.rank_zero():
                runs.check_resumable(self.folder, self.settings)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            if not str(error).startswith("Does not validate"):
                raise
            # what a constructor raised, among what else its place may hold
            raise UsageError(one_line(str(error), self.arguments, ())) from error

    # What can be known to fail, before a run is opened for it

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        options = self.config_init[self.command]
        registers = self.command == "fit" and options.tracking.register_model
        if self.command == "predict" or registers:
            self._require_records()
        trainer = self._built_trainer(options.trainer)
        check = getattr(self.datamodule, "check_trainer", None)
        if callable(check):
            check(trainer)
        self._check(options.ckpt_path)
        return trainer

    def _built_trainer(self, given: Namespace) -> Trainer:
        """Without a run. Raises UsageError for settings that no trainer can have."""
        terminal = sys.stderr.isatty()
        callbacks = list(given.callbacks or [])
        if terminal and given.enable_progress_bar is not False:
            callbacks.append(RichProgressBar())
        quiet: dict[str, Any] = {
            key: terminal if given[key] is None else given[key]
            for key in ("enable_progress_bar", "enable_model_summary")
        }
        try:
            return super().instantiate_trainer(
                logger=False,
                callbacks=callbacks,
                enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
                **quiet,
            )
        except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
            raise UsageError(f"trainer: {str(error).rstrip('.')}") from error

    def _check(self, checkpoint: str | None) -> None:
        """Let bad data, a checkpoint that does not fit, and predictions that cannot go where they
        should end the command."""
        path = None
        if checkpoint is not None:
            path, self.origin = runs.find_checkpoint(Path(checkpoint))
            load_data_state(self.datamodule, path)
        check = getattr(self.datamodule, "check_input", None)
        for command in self.only_check or (self.command,):
            if callable(check):
                check(command, self.model)
        if self.command != "fit" and not (self.only_check and path is None):
            self.version = self._load_weights(path)
        if self.command == "predict":
            self._check_predictions()

    def _load_weights(self, path: Path | None) -> str:
        """The version of the model whose weights ``path`` holds."""
        if path is None:
            if any(True for _ in self.model.parameters()):  # a baseline has none
                _warn("no --ckpt_path; the weights are those the model starts with")
            return f"untrained-{provenance.config_hash({'model': self.settings['model']})[:12]}"
        for line in load_weights(self.model, path, self.settings["model"]):
            _warn(line)
        return (self.origin.run.model_version if self.origin else None) or weights_version(path)

    def _check_predictions(self) -> None:
        options = self.config_init.predict
        check_limit(options.trainer.limit_predict_batches)
        if tracking.rank_zero():
            self.records = check_job(
                self.datamodule,
                options.predictions,
                model_version=self.version,
                config_hash=self._prediction_hash(),
            )

    def _require_records(self) -> None:
        if not isinstance(self.datamodule, RecordDataModule):
            raise UsageError(
                f"data {type(self.datamodule).__name__} cannot be predicted record by record; "
                "give a subclass of core.jobs.data.RecordDataModule"
            )

    # The run

    def _track(self) -> None:
        """Open the run that the trainer logs to and leaves its checkpoints in."""
        options = self.config_init[self.command]
        given = options.trainer
        if given.logger is False or given.fast_dev_run or given.barebones:
            return
        if tracking.rank_zero():
            self.tracker = self._open_run(options.tracking)
            self.trainer.loggers = [self.tracker, *_as_list(given.logger)]
        if self.command == "fit" and given.enable_checkpointing is not False:
            folder = self.folder.checkpoints if self.folder else None
            checkpoints = RunCheckpoints(options.checkpoints, folder, self.tracker)
            self.trainer.callbacks.append(checkpoints)  # type: ignore[attr-defined]

    def _open_run(self, config: tracking.TrackingConfig) -> tracking.RunLogger:
        command = Command(self.domain, self.command, self.model, self.datamodule, self.settings)
        if self.folder is not None:
            return take_up(command, self.folder)
        self.folder, logger = new_run(command, config)
        return logger

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Whatever ends the command, the run's final state says so."""
        state: runs.State = "FAILED"
        try:
            yield
            state = "FINISHED"
        except Interrupted:
            state = "KILLED"
            raise
        finally:
            if self.folder is not None and self.tracker is not None:
                self.folder.run.state = state
                self.folder.save()
                self.tracker.close(state)

    # Commands

    def _run_subcommand(self, subcommand: str) -> None:
        if not self.only_check:
            self._track()
            super()._run_subcommand(subcommand)

    def fit(self, model: LightningModule, datamodule: LightningDataModule, **_: Any) -> None:
        with self._recorded():
            last = self._last_checkpoint()
            with tracking.system_metrics(self.tracker, self.config_init.fit.tracking):
                self.trainer.fit(
                    model,
                    datamodule=datamodule,
                    ckpt_path=last,
                    weights_only=True if last else None,
                )
            self._keep_best(self.config_init.fit.tracking.register_model)
        self._summary(self.trainer.callback_metrics)

    def _last_checkpoint(self) -> Path | None:
        """Where to go on; None for a new run, or one that was lost before its first checkpoint."""
        if self.config.fit.resume is None or self.folder is None:
            return None
        last = self.folder.checkpoints / "last.ckpt"
        step = read_checkpoint(last)["global_step"] if last.is_file() else 0
        if self.tracker is not None:
            self.tracker.client.set_tag(self.tracker.identity, "resumed_from_step", step)
        return last if last.is_file() else None

    @rank_zero_only
    def _keep_best(self, register: bool) -> None:
        """Upload the best checkpoint, once; and put its model into the registry if asked."""
        if self.folder is None or self.tracker is None:
            return
        best = self.folder.checkpoints / "best.ckpt"
        if not best.is_file():
            return
        self.tracker.client.log_artifact(self.tracker.identity, str(best), "checkpoints")
        if register:
            load_weights(self.model, best, self.settings["model"])
            name = f"{self.domain}.{snake(type(self.model).__name__)}"
            self.folder.run.model_version = tracking.register_model(
                self.tracker, name, self.model, self.datamodule, self.settings
            )

    def validate(self, **_: Any) -> None:
        self._evaluate()

    def test(self, **_: Any) -> None:
        self._evaluate()

    def _evaluate(self) -> None:
        with self._recorded():
            self._tag_model()
            evaluate = getattr(self.trainer, self.command)
            evaluate(self.model, datamodule=self.datamodule, verbose=False)
        self._summary(self.trainer.callback_metrics)

    def predict(self, **_: Any) -> None:
        with self._recorded():
            self._tag_model()
            target = predict(
                self.model,
                self.datamodule,
                self.trainer,
                self.config_init.predict.predictions,
                model_version=self.version,
                config_hash=self._prediction_hash(),
                records=self.records,
            )
        self._say_unpredicted(target)
        self._summary({}, f"predictions: {target}")

    @rank_zero_only
    def _say_unpredicted(self, folder: Path) -> None:
        line = unpredicted(folder)
        if line is not None:
            _warn(line)

    def _prediction_hash(self) -> str:
        """Of what decides the rows: not the number of devices, nor settings of training."""
        trainer = {"precision": self.settings["trainer"]["precision"]}
        chosen = {k: self.settings[k] for k in ("model", "data", "seed_everything")}
        return provenance.config_hash({**chosen, "trainer": trainer})

    def _tag_model(self) -> None:
        """Tag the run with the checkpoint that it uses."""
        if self.tracker is None or self.config[self.command].ckpt_path is None:
            return
        tags = {"model.version": self.version}
        if self.origin is not None:
            tags[tracking.PARENT_RUN] = self.origin.run.run_id
        for key, value in tags.items():
            self.tracker.client.set_tag(self.tracker.identity, key, value)

    @rank_zero_only
    def _summary(self, metrics: Mapping[str, Any], *lines: str) -> None:
        shown = [*summary_lines(self.command, metrics), *lines]
        if self.folder is not None:
            shown.append(f"run folder: {self.folder.path}")
            shown.append(f"see it: {tracking.where_to_look(self.folder.run)}")
        sys.stdout.write("\n".join(shown) + "\n")


def fill_in_facts(options: Namespace) -> None:
    """Put the sizes that the data decides in place of the model's zeros, so that the saved
    configuration builds the model without the data."""
    zeros = [
        key
        for key, value in options.items()
        if key.startswith("model.") and type(value) is int and value == 0
    ]
    if not zeros:
        return
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    data = parser.instantiate(Namespace(data=options.data)).data
    facts = data.model_facts() if isinstance(data, RecordDataModule) else {}
    for key in zeros:
        name = key.rpartition(".")[2]
        if name in facts:
            options[key] = facts[name]


@rank_zero_only
def _warn(line: str) -> None:
    sys.stderr.write(f"warning: {line}\n")


def _as_list(value: Any) -> list[Any]:
    if value is None or value is True:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
