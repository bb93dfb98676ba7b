"""Whether a budget service can reserve, or is only asked for checks."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from router.limits.remote.contract import CANNOT_RESERVE

log = logging.getLogger(__name__)

Mode = Literal["auto", "reserve", "check"]
"""What the operator says of the service; ``auto`` is what the service shows."""

CHECKS_ONLY_S: Final = 60.0
"""For how long a service that cannot reserve is asked for checks before it is asked again."""

_MARKER: Final = "reserves"


def service_dir(data_dir: Path, endpoint: str) -> Path:
    """Where a host keeps what it has to remember of this service."""
    name = hashlib.sha256(endpoint.rstrip("/").encode()).hexdigest()[:16]
    return data_dir / "budget-service" / name


class ServiceAbility:
    """Remembers whether a service has ever reserved.

    One that has is never taken for a check-only one because of a bare 404: between a check and the
    end of its call nothing is reserved, so a budget of 100 USD once let 287 USD through. The memory
    is a file, shared by all workers of the data directory, so it survives their restarts.
    """

    def __init__(
        self,
        mode: Mode = "auto",
        directory: Path | None = None,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """``directory`` is :func:`service_dir`; without one, this process alone remembers."""
        self._mode = mode
        self._marker = None if directory is None else directory / _MARKER
        self._monotonic_s = monotonic_s
        self._has_reserved = False
        self._checks_until_s = float("inf") if mode == "check" else float("-inf")

    @property
    def only_checks(self) -> bool:
        """Whether nothing is reserved there at present."""
        return self._monotonic_s() < self._checks_until_s

    def has_reserved(self) -> None:
        """The service has decided about a reservation."""
        if self._has_reserved:
            return
        self._has_reserved = True
        if self._marker is not None and not self._marker.exists():
            try:
                _create(self._marker)
            except OSError as error:
                log.error("cannot remember that the budget service reserves: %s", error)

    def may_lack_reservations(self, code: str | None) -> bool:
        """Whether 404, 405 or 501 with this code, to a reservation, may come from a service that
        only checks: it says so, or has never reserved."""
        if self._mode == "reserve":
            return False
        if code == CANNOT_RESERVE:
            return True
        is_marked = self._marker is not None and self._marker.exists()
        return not (self._has_reserved or is_marked)

    def lacks_reservations(self) -> None:
        """The service only checks: ask it for a reservation again after a while."""
        self._checks_until_s = self._monotonic_s() + CHECKS_ONLY_S


def _create(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o660))
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
