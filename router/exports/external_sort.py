"""Sorting more lines than fit into memory: sorted runs on disk, merged when they are read."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final

RUN_BYTES: Final = 64 * 1024 * 1024
_LINE_BYTES: Final = 100
"""What a line in memory takes beside its text, about."""
_MAX_RUNS: Final = 64
"""So many files are open at once; more runs are merged into one."""


class ExternalSort:
    """Lines in the order of their bytes. Add all of them, then read as often as you like.

    ``directory`` must be there and belongs to the caller, who removes it.
    """

    def __init__(self, directory: Path, name: str, *, run_bytes: int = RUN_BYTES) -> None:
        self._directory = directory
        self._name = name
        self._run_bytes = run_bytes
        self._lines: list[bytes] = []
        self._bytes = 0
        self._runs: list[Path] = []
        self._made = 0

    def __enter__(self) -> ExternalSort:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add(self, line: bytes) -> None:
        """Take a line that holds no newline; raises ``OSError`` when the disk does not."""
        self._lines.append(line + b"\n")
        self._bytes += len(line) + _LINE_BYTES
        if self._bytes >= self._run_bytes:
            self._spill()

    def __iter__(self) -> Iterator[bytes]:
        self._lines.sort()
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("rb")) for path in self._runs]
            for line in heapq.merge(*files, self._lines):
                yield line[:-1]

    def close(self) -> None:
        """Remove the runs."""
        for path in self._runs:
            path.unlink(missing_ok=True)
        self._runs.clear()
        self._lines.clear()

    def _spill(self) -> None:
        self._lines.sort()
        self._write(iter(self._lines), [])
        self._lines, self._bytes = [], 0
        if len(self._runs) > _MAX_RUNS:
            merged = list(self._runs)
            with ExitStack() as stack:
                files = [stack.enter_context(path.open("rb")) for path in merged]
                self._write(heapq.merge(*files), merged)

    def _write(self, lines: Iterator[bytes], instead_of: list[Path]) -> None:
        path = self._directory / f"{self._name}-{self._made}"
        self._made += 1
        with path.open("wb") as file:
            file.writelines(lines)
        for old in instead_of:
            self._runs.remove(old)
            old.unlink()
        self._runs.append(path)
