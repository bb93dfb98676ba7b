"""Whom the service knows: the document of its data directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.breaker import Unavailable
from router.budget_service.application import windows_of_document
from router.config.loader import load_serialized
from router.config.settings import load_settings
from router.config.state.state_writer import StateWriter
from router.errors import NotConfigured

DOCUMENT = {
    "version": 1,
    "organizations": [
        {"id": "acme", "budgets": [{"name": "b", "unit": "usd", "period": "total", "limit": "1"}]},
        {"id": "other"},
    ],
    "keys": [
        {
            "id": "k1",
            "organization": "acme",
            "hash": "ab" * 32,
            "budgets": [{"name": "c", "unit": "requests", "period": "total", "limit": 3}],
        }
    ],
}


@pytest.mark.parametrize(
    ("caller", "names"),
    [
        (("acme", None), ["b"]),
        (("acme", "k1"), ["b", "c"]),
        (("other", None), []),
        (("other", "k1"), None),
        (("acme", "k2"), None),
        (("nobody", None), None),
        (("nobody", "k1"), None),
    ],
)
def test_windows_are_those_of_organization_and_key(
    tmp_path: Path, caller: tuple[str, str | None], names: list[str] | None
) -> None:
    """An organization without budgets is known; a key of another one is not its key."""
    StateWriter(tmp_path / "state").apply(load_serialized(DOCUMENT))
    windows = windows_of_document(load_settings({"ROUTER_DATA_DIR": str(tmp_path)}))(*caller)
    assert (None if windows is None else [window.name for window in windows]) == names


def test_without_a_document_nobody_is_known(tmp_path: Path) -> None:
    """That is no mistake: a service of its own has none."""
    windows_of = windows_of_document(load_settings({"ROUTER_DATA_DIR": str(tmp_path)}))
    with pytest.raises(NotConfigured):
        windows_of("acme", None)


def test_a_store_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    """It used to mean that there is no such organization."""
    (tmp_path / "state").write_text("no directory")
    windows_of = windows_of_document(load_settings({"ROUTER_DATA_DIR": str(tmp_path)}))
    with pytest.raises(Unavailable):
        windows_of("acme", None)
