"""``wsgi.errors`` for gunicorn."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gunicorn.http.wsgi import WSGIErrorsWrapper


class ErrorStream:
    """Gunicorn's own, which every request gets anew, made only if something is written to it: that
    looks up a logger, under the lock of all of them."""

    __slots__ = ("_cfg",)

    def __init__(self, cfg: Any) -> None:
        self._cfg = cfg

    def write(self, text: str) -> None:
        """Write to the error log as it is now, for it may have been opened anew."""
        WSGIErrorsWrapper(self._cfg).write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Nothing: each write is flushed."""
