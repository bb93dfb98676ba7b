"""A small valid document, a store for it, and strategies for any document."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from router.clock import FrozenClock
from router.config.document import LoadedDocument
from router.config.loader import load_serialized
from router.config.state.state_reader import StateReader
from router.config.state.state_writer import StateWriter

HASH = "ab" * 32

PLAIN: dict[str, Any] = {
    "version": 1,
    "organizations": [{"id": "acme", "name": "Acme"}],
    "keys": [{"id": "key-a", "organization": "acme", "hash": HASH}],
    "models": [
        {
            "id": "gpt-4o",
            "aliases": ["gpt"],
            "prices": {
                "input_usd_per_million_tokens": "2.50",
                "output_usd_per_million_tokens": "10.00",
            },
        }
    ],
    "backends": [{"id": "a", "kind": "openai", "base_url": "http://127.0.0.1:9101/v1"}],
    "policies": [{"organization": "*", "model": "*", "backends": [{"id": "a", "weight": 70}]}],
}


@pytest.fixture
def plain() -> dict[str, Any]:
    """A document as plain data, free to be changed."""
    return copy.deepcopy(PLAIN)


@pytest.fixture
def loaded(plain: dict[str, Any]) -> LoadedDocument:
    return load_serialized(plain)


@pytest.fixture
def named() -> Callable[[str], LoadedDocument]:
    """The document with its organization under another name: a new revision each time."""

    def make(name: str) -> LoadedDocument:
        plain = copy.deepcopy(PLAIN)
        plain["organizations"][0]["name"] = name
        return load_serialized(plain)

    return make


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "data" / "state"


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock()


@pytest.fixture
def writer(state_dir: Path, clock: FrozenClock) -> StateWriter:
    return StateWriter(state_dir, clock)


@pytest.fixture
def reader(state_dir: Path, clock: FrozenClock) -> StateReader:
    return StateReader(state_dir, clock)
