"""An export that breaks off anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from router.exports import export_file
from router.exports.export_file import ExportFile, ExportRefused

ASKED = {"format": "csv", "filters": {"model": "gpt-4o"}, "from_s": None}
PAGES = [(b"one\n", (1, 1), 1), (b"two\nthree\n", (2, 5), 2), (b"four\n", (2, 6), 1)]
WHOLE = b"head\none\ntwo\nthree\nfour\n"


class Died(BaseException):
    """The process ended here."""


def export(target: Path, **options: Any) -> None:
    """All pages that are left, as a command writes them."""
    with ExportFile(target) as file:
        progress = file.begin(ASKED, lambda: {"newest_id": 7}, header=b"head\n", **options)
        done = [page[1] for page in PAGES].index(progress.after) + 1 if progress.after else 0
        for content, after, records in PAGES[done:]:
            file.append(content, after, records)
        assert file.progress.records == 4
        assert file.progress.bounds == {"newest_id": 7}
        file.finish()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "usage.csv"


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Death before the step whose number stands first; the second counts the steps."""
    counter = [10**9, 0]

    def dying(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            counter[1] += 1
            if counter[1] > counter[0]:
                raise Died
            return function(*arguments, **options)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(export_file.os, name, dying(getattr(export_file.os, name)))
    return counter


def test_it_appears_when_it_is_complete(target: Path) -> None:
    """And nothing else stays."""
    target.write_bytes(b"of last month")
    export(target)
    assert target.read_bytes() == WHOLE
    assert list(target.parent.iterdir()) == [target]


def test_death_at_every_step_changes_nothing_about_the_file(target: Path, steps: list[int]) -> None:
    """Whatever the last moment was, the next run ends with the very same file."""
    export(target)
    total = steps[1]
    assert total > 10
    for step in range(total):
        target.write_bytes(b"of last month")
        steps[:] = [step, 0]
        with pytest.raises(Died):
            export(target)
        assert target.read_bytes() in (b"of last month", WHOLE)
        steps[:] = [10**9, 0]
        export(target)
        assert target.read_bytes() == WHOLE
        assert list(target.parent.iterdir()) == [target]


def break_off(target: Path) -> None:
    with ExportFile(target) as file:
        file.begin(ASKED, lambda: {"newest_id": 7}, header=b"head\n")
        file.append(*PAGES[0])


def test_what_is_not_counted_is_cut_off(target: Path) -> None:
    """A page that was half written when the process died is written anew."""
    break_off(target)
    partial = target.with_name("usage.csv.partial")
    partial.write_bytes(partial.read_bytes() + b"tw" * 100)
    export(target)
    assert target.read_bytes() == WHOLE


@pytest.mark.parametrize("cursor", [b"", b"{", b"[]", b'{"format":2}', b'{"format":1,"after":3}'])
def test_a_cursor_that_cannot_be_read_begins_anew(target: Path, cursor: bytes) -> None:
    """What it counted is unknown, so nothing of it counts."""
    break_off(target)
    target.with_name("usage.csv.cursor").write_bytes(cursor)
    export(target)
    assert target.read_bytes() == WHOLE


def test_bytes_that_are_gone_begin_anew(target: Path) -> None:
    """A cursor without its file, or with less of it, counts nothing."""
    break_off(target)
    target.with_name("usage.csv.partial").write_bytes(b"hea")
    export(target)
    assert target.read_bytes() == WHOLE


def test_another_question_is_refused(target: Path) -> None:
    """Half of one export and half of another would look like one."""
    break_off(target)
    with ExportFile(target) as file, pytest.raises(ExportRefused, match="--restart"):
        file.begin({**ASKED, "format": "jsonl"}, dict)
    export(target, restart=True)
    assert target.read_bytes() == WHOLE


def test_two_processes_do_not_write_one_file(target: Path) -> None:
    """The second one is refused as long as the first is at it."""
    with ExportFile(target) as file:
        file.begin(ASKED, dict)
        with ExportFile(target) as second, pytest.raises(ExportRefused, match="another process"):
            second.begin(ASKED, dict)


def test_a_conversion_is_repeated_until_it_is_done(target: Path) -> None:
    """It works on what was exported, which stays until the file is in place."""

    def fail(_source: Path, _target: Path) -> None:
        raise Died

    def convert(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes().upper())

    break_off(target)
    for conversion in (fail, convert):
        with ExportFile(target) as file:
            file.begin(ASKED, dict)
            try:
                file.finish(conversion)
            except Died:
                assert not target.exists()
    assert target.read_bytes() == b"HEAD\nONE\n"
    assert list(target.parent.iterdir()) == [target]
