"""docs/design.md names files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import router

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(router.__file__).parent
PAGE = (ROOT / "docs" / "design.md").read_text("utf-8")
DATA = {"state/", "spool/"}
"""Directories of a running router that the page names, too."""
NAMED = sorted(set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*/?(?:\.py|\.lua|\.yaml|/))`", PAGE)) - DATA)


def test_files_are_named() -> None:
    """The page has a file for each stop of a call and of a record."""
    assert len(NAMED) > 40


@pytest.mark.parametrize("name", NAMED)
def test_a_named_file_exists(name: str) -> None:
    """In the package, or in the repository: two stops once led to files that had gone."""
    assert (PACKAGE / name).exists() or (ROOT / name).exists()


@pytest.mark.parametrize("heading", ["One chat call", "One record"])
def test_a_story_fits_on_a_page(heading: str) -> None:
    """At most 20 lines, each with its file."""
    section = re.split(rf"^## {heading}$", PAGE, flags=re.MULTILINE)[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert 0 < len(rows) <= 20
    assert all(re.search(r"`[a-z_/]+\.py`", row) for row in rows)
