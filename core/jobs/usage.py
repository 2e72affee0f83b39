"""The configuration parser's messages as one line that offers the nearest name. Imports no torch."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``, did you mean 'max_steps'?`` or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean '{near[0]}'?" if near else ""


def one_line(message: str, arguments: Sequence[str], keys: Iterable[str]) -> str:
    """A message of jsonargparse, which may span many lines, as one.

    Args:
        message: what the parser said.
        arguments: the command line it parsed, to find the classes whose parameters may be meant.
        keys: every key of the command.
    """
    where = re.match(r'Parser key "([^"]+)":\s*', message)
    reason = _reason(message[where.end() :] if where else message)
    prefix = f"{where[1]}: " if where else ""
    unknown = re.search(r"(?:option|Option|arguments:|Key) '?-*([\w.]+)'?", reason)
    if unknown and re.search(r"not accept|nrecognized|not expected", reason):
        return f"{prefix}unknown key '{unknown[1]}'{_nearest_key(unknown[1], arguments, keys)}"
    return prefix + reason


def _reason(text: str) -> str:
    """The error that counts among those of a union's members."""
    text = re.split(r"\n\s*Given value type:", text)[0]
    bullets = re.findall(r"^\s*- (.*(?:\n(?!\s*- ).*)*)", text, re.MULTILINE)
    telling = [b for b in bullets if "<class 'NoneType'>" not in b and "Does not validate" not in b]
    return " ".join((telling[-1] if telling else text).split())


def _nearest_key(word: str, arguments: Sequence[str], keys: Iterable[str]) -> str:
    keys = list(keys)
    stem, _, leaf = word.rpartition(".")
    groups = {key.split(".")[0] for key in keys}
    if stem and word.split(".")[0] not in groups and not word.startswith("init_arg"):
        return did_you_mean(word.split(".")[0], groups)  # a misspelt group: modle.init_args.dim
    siblings = [key.rpartition(".")[2] for key in keys if key.rpartition(".")[0] == stem]
    parameters = [p for path in set(_class_paths(arguments)) for p in _parameters(path)]
    return did_you_mean(leaf, [*siblings, *parameters, "class_path", "init_args"])


def _class_paths(arguments: Sequence[str]) -> Iterator[str]:
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=True):
        name, _, inline = flag.partition("=")
        given = inline or value
        if name in ("--config", "-c") and Path(given).is_file():
            yield from _class_paths_within(yaml.safe_load(Path(given).read_text()))
        elif re.fullmatch(r"[A-Za-z_][\w.]*\.[A-Za-z_]\w*", given):
            yield given


def _class_paths_within(config: Any) -> Iterator[str]:
    if isinstance(config, Mapping):
        if isinstance(config.get("class_path"), str):
            yield config["class_path"]
        for value in config.values():
            yield from _class_paths_within(value)
    elif isinstance(config, list):
        for value in config:
            yield from _class_paths_within(value)


def _parameters(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
        return [p for p in inspect.signature(found).parameters if p not in ("args", "kwargs")]
    except (ImportError, AttributeError, TypeError, ValueError):
        return []
