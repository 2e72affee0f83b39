"""Links between the project's own pages lead somewhere, headings included."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def pages() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return listed.stdout.split()


def anchor(heading: str) -> str:
    """As GitHub makes it of a heading."""
    words = re.sub(r"\[(.*?)\]\(.*?\)|[`*]", r"\1", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def broken(page: Path) -> list[str]:
    found = []
    for link in LINK.findall(page.read_text()):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, part = link.partition("#")
        target = page.parent / path if path else page
        exists = target.exists()
        headings = HEADING.findall(target.read_text()) if exists and target.suffix == ".md" else []
        if not exists or (part and part not in map(anchor, headings)):
            found.append(link)
    return found


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("## What it's `for`, 1,024\n")
    page = tmp_path / "b.md"
    good = "[x](a.md#what-its-for-1024) [y](https://example.org/none) [z](a.md)"
    page.write_text(f"{good} [v](gone.md) [w](a.md#gone) [u](#gone)")
    assert broken(page) == ["gone.md", "a.md#gone", "#gone"]


@pytest.mark.parametrize("page", pages())
def test_links(page: str) -> None:
    assert broken(ROOT / page) == []
