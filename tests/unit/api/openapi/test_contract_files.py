"""Writing the contracts, and finding out that somebody else has written them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from router.api.openapi.contract_files import (
    DOCUMENT_FILE,
    OPENAPI_FILE,
    check,
    files,
    write,
)
from router.config.schema.json_schema import document_json_schema

Change = Callable[[dict[str, Any]], object]


def changed(directory: Path, change: Change) -> list[str]:
    """What the check says after somebody changed the OpenAPI document."""
    path = write(directory)[0]
    document = json.loads(path.read_text("utf-8"))
    change(document)
    path.write_text(json.dumps(document), "utf-8")
    return check(directory)


def test_what_was_written_is_up_to_date(tmp_path: Path) -> None:
    """Into a folder that need not be there yet; once or twice."""
    directory = tmp_path / "deep" / "contracts"
    for _ in range(2):
        assert [path.name for path in write(directory)] == list(files())
        assert check(directory) == []


def test_it_is_the_same_every_time() -> None:
    """A diff in version control shows changes and nothing else."""
    assert files() == files()
    for text in files().values():
        assert text.endswith("}\n")
        assert not text.endswith("\n\n")


def test_the_document_schema_is_that_of_the_loader() -> None:
    """Sorted, otherwise the same."""
    assert json.loads(files()[DOCUMENT_FILE]) == document_json_schema()


def test_missing_files_are_reported(tmp_path: Path) -> None:
    """One line each, with what to do."""
    assert check(tmp_path / "contracts") == [
        f"{tmp_path / 'contracts' / name} is missing: run 'routerctl dev contracts write'"
        for name in files()
    ]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda found: found["paths"].pop("/v1/inference"),
            "/paths/~1v1~1inference is in the code only",
        ),
        (lambda found: found.update(more=1), "/more is in the file only"),
        (
            lambda found: found["info"].update(version="0"),
            '/info/version is "0" in the file, "1.0.0" in the code',
        ),
        (
            lambda found: found["tags"][1].update(name="x"),
            '/tags/1/name is "x" in the file, "openai" in the code',
        ),
        (lambda found: found["tags"].clear(), "/tags is [] in the file, "),
        (lambda found: None, "only in its layout"),
    ],
)
def test_a_difference_is_reported_with_its_place(tmp_path: Path, change: Change, line: str) -> None:
    """JSON Pointers lead to it."""
    first, second = changed(tmp_path, change)
    path = tmp_path / OPENAPI_FILE
    assert first == f"{path} differs from the code: run 'routerctl dev contracts write'"
    assert second.startswith(f"{path}: {line}")
    assert len(second) < len(str(path)) + 200


def test_many_differences_are_counted(tmp_path: Path) -> None:
    """The first of them are shown."""
    lines = changed(tmp_path, lambda found: found["components"].update(schemas={}))
    assert len(lines) == 22
    assert lines[-1].endswith("more differences")


@pytest.mark.parametrize("content", [b"{", b"\xff", b""])
def test_a_file_that_is_no_json_is_reported(tmp_path: Path, content: bytes) -> None:
    """It is a difference like any other, and no traceback."""
    write(tmp_path)
    (tmp_path / DOCUMENT_FILE).write_bytes(content)
    [line] = check(tmp_path)
    assert line.startswith(f"{tmp_path / DOCUMENT_FILE} cannot be read: ")


def test_a_folder_in_place_of_a_file_is_reported(tmp_path: Path) -> None:
    """Whatever is wrong with the place, it is told."""
    (tmp_path / OPENAPI_FILE).mkdir()
    assert any("cannot be read" in line for line in check(tmp_path))
