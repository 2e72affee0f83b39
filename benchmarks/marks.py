"""Tables of a page stand between marks, ``<!-- name: begin -->`` and ``<!-- name: end -->``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def lines(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rule = "|" + "---|" * len(head)
    first, *rest = (f"| {' | '.join(cells)} |" for cells in (head, *body))
    return "\n".join([first, rule, *rest])


def filled(page: Path, tables: Mapping[str, str]) -> str:
    """The page's text with each of ``tables`` between the marks of its name.

    SystemExit where a mark is missing.
    """
    text = page.read_text()
    for mark, table in tables.items():
        begin, end = (f"<!-- {mark}: {side} -->" for side in ("begin", "end"))
        before, found, rest = text.partition(f"{begin}\n")
        _, closed, after = rest.partition(f"\n{end}")
        if not (found and closed):
            raise SystemExit(f"error: {page} needs the marks {begin} and {end}")
        text = before + found + table + closed + after
    return text
