"""The parser's messages as one line that offers the nearest name. Imports no torch."""

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
    if message.startswith("Problems parsing config"):
        return f"{_broken_file(arguments)}not YAML: {' '.join(message.split(':', 1)[1].split())}"
    where = re.match(r'Parser key "([^"]+)":\s*', message)
    reason = _reason(message[where.end() :] if where else message)
    prefix = f"{where[1]}: " if where else ""
    unknown = re.search(r"(?:option|Option|arguments:|Key) '?-*([\w.]+)'?", reason)
    if unknown and re.search(r"not accept|nrecognized|not expected", reason):
        whole = f"{where[1]}.{unknown[1]}" if where else unknown[1]
        return f"{prefix}unknown key '{unknown[1]}'{_nearest_key(whole, arguments, keys)}"
    if "arguments are required" in reason:
        return f"{reason}; they are usually in a --config FILE.yaml"
    return prefix + reason


def _reason(text: str) -> str:
    """The error that counts among those of a union's members, with the value that caused it."""
    text, _, given = text.partition("\n  Given value type:")
    bullets = re.findall(r"^\s*- (.*(?:\n(?!\s*- ).*)*)", text, re.MULTILINE)
    telling = [b for b in bullets if "<class 'NoneType'>" not in b and "Does not validate" not in b]
    reason = " ".join((telling[-1] if telling else text).split())
    value = re.search(r"Given value: ([^\n({]{1,60})$", given)
    if value and reason.startswith("Expected"):
        reason += f", got {value[1]}"
    return re.sub(r"(?:a )?<class '(\w+)'>", r"\1", reason)


def _nearest_key(word: str, arguments: Sequence[str], keys: Iterable[str]) -> str:
    """A name in place of the first part of the dotted ``word`` that is not known."""
    tree = {tuple(key.split(".")) for key in keys}
    parts = word.split(".")
    for level, part in enumerate(parts):
        above = tuple(parts[:level])
        names = {path[level] for path in tree if len(path) > level and path[:level] == above}
        if part not in names:
            break
    if level == 0 or not names:  # a class's own parameter; such keys may come without their group
        names |= {p for path in set(_class_paths(arguments)) for p in _parameters(path)}
        names |= {"class_path", "init_args"}
    return did_you_mean(part, names)


def _config_files(arguments: Sequence[str]) -> Iterator[Path]:
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=True):
        name, _, inline = flag.partition("=")
        if name in ("--config", "-c") and Path(inline or value).is_file():
            yield Path(inline or value)


def _broken_file(arguments: Sequence[str]) -> str:
    for path in _config_files(arguments):
        try:
            yaml.safe_load(path.read_text())
        except yaml.YAMLError:
            return f"{path}: "
    return ""


def _class_paths(arguments: Sequence[str]) -> Iterator[str]:
    for path in _config_files(arguments):
        yield from _class_paths_within(yaml.safe_load(path.read_text()))
    for word in arguments:
        given = word.rpartition("=")[2]
        if re.fullmatch(r"[A-Za-z_][\w.]*\.[A-Za-z_]\w*", given):
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
