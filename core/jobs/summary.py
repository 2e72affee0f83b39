"""Metrics as a command prints them at its end."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 100  # of a line


def summary_lines(command: str, metrics: Mapping[str, Any]) -> list[str]:
    """``test done: test/accuracy 0.98  test/loss 0.05``, or, where that is longer than `WIDTH`,
    ``test done:`` and below it a line for each kind of metric.

    A metric is followed by those that add a word to its name (baselines, other scales), unless
    these are followed by others themselves; those that differ by a last number go together. Every
    metric is its name, a space and its value, and two spaces lie between two.
    """
    names = sorted(metrics, key=_natural)
    values = {name: f"{name} {float(metrics[name]):.4g}" for name in names}
    line = f"{command} done: " + "  ".join(values.values())
    if not names:
        return [f"{command} done"]
    if len(line) <= WIDTH:
        return [line]
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_kind(name, names), []).append(values[name])
    return [f"{command} done:", *(line for group in groups.values() for line in _wrapped(group))]


def _kind(name: str, names: Sequence[str]) -> str:
    """The name that a metric's line begins with."""
    stem = re.sub(r"_\d+$", "", name)
    if stem != name:
        return stem
    if any(other.startswith(f"{name}_") for other in names):
        return name
    heads = [head for head in names if name.startswith(f"{head}_")]
    return max(heads, key=len, default=name)


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that puts ``at_25`` before ``at_100``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _wrapped(group: Sequence[str]) -> list[str]:
    lines = [f"  {group[0]}"]
    for one in group[1:]:
        if len(lines[-1]) + 2 + len(one) > WIDTH:
            lines.append(f"    {one}")
        else:
            lines[-1] += f"  {one}"
    return lines
