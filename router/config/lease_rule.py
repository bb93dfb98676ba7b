"""A reservation must last longer than its call: else a running call's amount is free for others."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from router.config.document import Backend, Document

log: Final = logging.getLogger("router.config")


def outlived_leases(lease_s: float, backends: Iterable[Backend]) -> list[str]:
    """One line for each backend whose calls may take as long as ``lease_s`` (``ROUTER_LEASE``)."""
    return [
        f"backends.{backend.id}.timeouts.total_s: a call may take {backend.timeouts.total_s:g} s,"
        f" but what it has reserved is free after {lease_s:g} s: raise ROUTER_LEASE above it"
        for backend in backends
        if backend.timeouts.total_s >= lease_s
    ]


class LeaseWarnings:
    """Logs what is wrong with each revision, once."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._checked = 0

    def check(self, document: Document) -> None:
        """Returns at once for a revision that was checked."""
        if document.revision == self._checked:
            return
        self._checked = document.revision
        for problem in outlived_leases(self._lease_s, document.backends.values()):
            log.warning(problem)
