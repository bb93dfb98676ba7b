"""What every test relies on: the installed package, shared test code, one marker per folder."""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

import router

ROOT = Path(__file__).resolve().parents[1]
SERVER_TESTS = Path(__file__).parent / "servers"
ENDURANCE_TESTS = frozenset(
    {
        "test_agent.py", "test_broker_outage.py", "test_chaos.py", "test_corrupt_spool.py",
        "test_drained_records.py", "test_full_disk.py", "test_spool_crash.py",
    }
)  # fmt: skip
# Together they use each dependency as the router does: gunicorn and gevent, Redis, Kafka, both
# record stores, the parser of replies.
BOUNDS_TESTS = frozenset(
    {
        "test_behind_nginx.py", "test_budget_service.py", "test_canary.py", "test_entry_point.py",
        "test_limits.py", "test_limits_models.py", "test_openai_sdk.py", "test_settlement.py",
        "test_spool_command.py", "test_store_postgres.py", "test_streaming.py", "test_usage.py",
        "test_visibility.py",
    }
)  # fmt: skip

# At the end of the path: `tests.fakes` is found here, `router` still where pip put it.
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

# All processes of a run have to draw the same tests; on a build server they draw fixed ones.
if "CI" not in os.environ:
    os.environ.setdefault("ROUTER_TEST_SEED", str(random.getrandbits(32)))

# A shell ignores Ctrl-C for what it runs in the background, and what is ignored is inherited: tests
# that interrupt a program would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A slow machine is no defect of the code. On a build server the examples are the same on every run;
# elsewhere they are new ones, and a failure prints what reproduces it.
settings.register_profile("router", deadline=None, derandomize="CI" in os.environ, print_blob=True)
settings.load_profile("router")


def pytest_sessionstart() -> None:
    """Refuse to test the source tree where the built package is meant."""
    if "TOX_ENV_NAME" in os.environ and Path(router.__file__).is_relative_to(ROOT / "router"):
        raise pytest.UsageError(f"tox tests the installed package, but found {router.__file__}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever lies below tests/servers starts real programs."""
    for item in items:
        if item.path.is_relative_to(SERVER_TESTS):
            item.add_marker(pytest.mark.servers)
            if item.path.name in ENDURANCE_TESTS:
                item.add_marker(pytest.mark.endurance)
            if item.path.name in BOUNDS_TESTS:
                item.add_marker(pytest.mark.bounds)
            if hasattr(getattr(item, "module", None), "PROOF"):
                item.add_marker(pytest.mark.proof)
