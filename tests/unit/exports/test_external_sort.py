"""Sorting with little memory."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from router.exports.external_sort import ExternalSort


@pytest.mark.parametrize("run_bytes", [1, 150, 5_000, 1_000_000])
def test_lines_come_in_the_order_of_their_bytes(tmp_path: Path, run_bytes: int) -> None:
    """As often as they are asked for, whether they fit into memory, and with equal ones twice."""
    chance = random.Random(run_bytes)
    alphabet = [bytes([n]) for n in range(256) if n != 10]
    lines = [b"".join(chance.choices(alphabet, k=chance.randrange(12))) for _ in range(300)]
    with ExternalSort(tmp_path, "run", run_bytes=run_bytes) as found:
        for line in lines:
            found.add(line)
        files = list(tmp_path.iterdir())
        assert bool(files) == (run_bytes < 1_000_000)
        assert len(files) <= 65
        expected = sorted(lines, key=lambda line: line + b"\n")
        assert list(found) == expected
        found.add(b"one more")
        assert list(found) == sorted([*lines, b"one more"], key=lambda line: line + b"\n")
    assert list(tmp_path.iterdir()) == []
