"""Metric values in memory-mapped files, one set of files per worker slot.

The same file format as ``prometheus_client``'s own multi-process values, so its collector reads
them. What differs: files are named by slot, and there is neither a lock nor a look at the pid on
each increment. A worker has one thread, and nothing here lets another greenlet run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prometheus_client.mmap_dict import MmapedDict, mmap_key


def slot_value_class(slot: str, directory: Path) -> type:
    """A class for ``prometheus_client.values.ValueClass``, with its files in ``directory``."""
    files: dict[str, MmapedDict] = {}

    def open_file(prefix: str) -> MmapedDict:
        if prefix not in files:
            files[prefix] = MmapedDict(str(directory / f"{prefix}_{slot}.db"))  # type: ignore[no-untyped-call]
        return files[prefix]

    class SlotValue:
        """One number; what an earlier worker in the slot has counted stays counted."""

        _multiprocess = True

        def __init__(
            self,
            typ: str,
            metric_name: str,
            name: str,
            labelnames: Sequence[str],
            labelvalues: Sequence[str],
            help_text: str,
            multiprocess_mode: str = "",
            **_: Any,
        ) -> None:
            prefix = f"{typ}_{multiprocess_mode}" if typ == "gauge" else typ
            self._file = open_file(prefix)
            self._key = mmap_key(metric_name, name, list(labelnames), list(labelvalues), help_text)
            self._value, self._timestamp = self._file.read_value(self._key)  # type: ignore[no-untyped-call]

        def inc(self, amount: float) -> None:
            self._value += amount
            self._file.write_value(self._key, self._value, 0.0)  # type: ignore[no-untyped-call]

        def set(self, value: float, timestamp: float | None = None) -> None:
            self._value = value
            self._file.write_value(self._key, value, timestamp or 0.0)  # type: ignore[no-untyped-call]

        def get(self) -> float:
            return float(self._value)

        def set_exemplar(self, exemplar: object) -> None:
            """Exemplars have no place in the files."""

        def get_exemplar(self) -> None:
            """Exemplars have no place in the files."""

    return SlotValue
