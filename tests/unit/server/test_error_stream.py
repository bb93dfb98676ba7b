"""What an application writes to ``wsgi.errors`` is in gunicorn's error log."""

from __future__ import annotations

import io
import logging
from types import SimpleNamespace

import pytest

from router.server.error_stream import ErrorStream


def test_what_is_written_is_in_the_log_of_that_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after the log was opened anew, as for its rotation."""
    first, second = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(first)
    monkeypatch.setattr(logging.getLogger("gunicorn.error"), "handlers", [handler])
    errors = ErrorStream(SimpleNamespace(errorlog="/var/log/router.log"))
    errors.write("one\n")
    handler.stream = second
    errors.writelines(["two\n", "three\n"])
    errors.flush()
    assert (first.getvalue(), second.getvalue()) == ("one\n", "two\nthree\n")
