"""Files that a command may not or cannot use: one line that names them, and no traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click


@contextmanager
def files_explained() -> Iterator[None]:
    """Turn ``OSError`` into a message with the path; exit code 1."""
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read our output has enough
    except OSError as error:
        why = error.strerror or str(error)
        path = error.filename
        raise click.ClickException(f"{path}: {why}" if path else why) from None
