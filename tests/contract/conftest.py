"""A router in this process, for the tests that ask for one."""

from __future__ import annotations

from tests.fakes.router_stand import stand, world

__all__ = ["stand", "world"]
