"""Layer schedules as data: ``"(mamba2 mlp)*4 attention mlp"``."""

from __future__ import annotations

import re
from collections.abc import Sequence

_TOKEN = re.compile(r"\s*(?:(?P<name>[A-Za-z_]\w*)|(?P<open>\()|(?P<close>\))|\*\s*(?P<times>\d+))")


def parse_schedule(schedule: str | Sequence[str]) -> list[str]:
    """Names of block kinds in order.

    A string holds names separated by spaces; parentheses group and ``*N`` repeats the name or group
    before it. A list is taken as it is, each item parsed like a string. Raises ValueError with the
    position of what cannot be read.
    """
    if not isinstance(schedule, str):
        return [name for item in schedule for name in parse_schedule(item)]
    stack: list[list[list[str]]] = [[]]
    position = 0
    text = schedule.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            _refuse(schedule, position)
        elif match["name"]:
            stack[-1].append([match["name"]])
        elif match["open"]:
            stack.append([])
        elif match["close"]:
            if len(stack) == 1:
                _refuse(schedule, position)
            group = [name for part in stack.pop() for name in part]
            stack[-1].append(group)
        elif not stack[-1] or int(match["times"]) < 1:
            _refuse(schedule, position)
        else:
            stack[-1][-1] = stack[-1][-1] * int(match["times"])
        if match is not None:
            position = match.end()
    if len(stack) > 1:
        _refuse(schedule, len(text))
    return [name for part in stack[0] for name in part]


def _refuse(schedule: str, position: int) -> None:
    raise ValueError(
        f"schedule {schedule!r}: cannot read it at position {position}; "
        "write names, (groups) and *repeats, such as '(hyena mlp)*2 attention'"
    )
