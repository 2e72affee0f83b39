"""A domain's command line before torch is imported: help, version, wrong commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from types import MappingProxyType

from core.jobs import signals
from core.jobs.errors import DONE, USAGE
from core.jobs.usage import did_you_mean

COMMANDS = {
    "fit": "train a model; a tracked run with checkpoints",
    "validate": "metrics on the validation data",
    "test": "metrics on the test data",
    "predict": "one row per record into a folder of Parquet files",
}

HELP = """\
usage: {domain} COMMAND --config FILE.yaml [--KEY VALUE ...]

{about}

commands:
{commands}

  {domain} COMMAND --help     every key of a command (takes some seconds)
  {domain} --version

examples:
  {domain} fit --config FILE.yaml --trainer.max_epochs 5
  {domain} fit --resume runs/EXPERIMENT/RUN      go on after a stop, in the same run
  {domain} test --ckpt_path runs/EXPERIMENT/RUN
  {domain} predict --ckpt_path runs/EXPERIMENT/RUN --predictions.path OUT
  {domain} fit --config FILE.yaml --print_config  the full configuration, nothing is run

options of every command:
  --config FILE.yaml      may be given more than once; later files and keys win
  --ckpt_path PATH        a run folder (its best checkpoint) or a .ckpt file; not with fit
  --resume DIR            a run folder; only with fit
  --debug                 full traceback and library logs

exit codes:
  0 done   1 other error   2 wrong use or configuration   3 bad data
  130 stopped by Ctrl-C   143 stopped by SIGTERM (both leave a checkpoint to --resume)

environment:
  MLFLOW_TRACKING_URI     where runs are recorded (default sqlite:///mlflow.db, in this folder)
  LONGSPAN_OPS            auto, reference or triton: which kernels compute
  CUDA_VISIBLE_DEVICES    which GPUs are used
"""


def version() -> str:
    try:
        return metadata.version("longspan")
    except metadata.PackageNotFoundError:  # a source tree that was never installed
        return "unknown"


@dataclass(frozen=True)
class Extra:
    """A command of one domain: a line of help, and ``module:function``, which takes the arguments
    behind the command's name."""

    about: str
    function: str


def _help(domain: str, about: str, more: Mapping[str, Extra]) -> str:
    lines = {**COMMANDS, **{name: extra.about for name, extra in more.items()}}
    commands = "\n".join(f"  {name:<10}{text}" for name, text in lines.items())
    return HELP.format(domain=domain, about=about, commands=commands)


def main(
    domain: str,
    about: str,
    argv: Sequence[str] | None = None,
    more: Mapping[str, Extra] = MappingProxyType({}),
) -> int:
    """Run one command of ``domain`` and return its exit code.

    Args:
        domain: name of the package, also the first half of experiment names.
        about: one line for the help text.
        argv: arguments without the program name; ``sys.argv[1:]`` if left out.
        more: commands that only this domain has.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(_help(domain, about, more))
        return DONE if arguments else USAGE
    if arguments[0] == "--version":
        sys.stdout.write(f"{domain} (longspan {version()})\n")
        return DONE
    command = next((a for a in arguments if not a.startswith("-")), arguments[0])
    known = [*COMMANDS, *more]
    if command not in known:
        hint = did_you_mean(command, known) or f"; use one of {', '.join(known)}"
        sys.stderr.write(f"error: unknown command '{command}'{hint}\n")
        return USAGE
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # ours says it once
    if "--debug" not in arguments:
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    signals.install()
    try:
        from core.jobs.cli import run

        return run(domain, arguments, more[command].function if command in more else None)
    except signals.Interrupted as stop:
        sys.stderr.write(f"error: {stop}\n")
        return stop.code
