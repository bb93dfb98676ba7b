"""The same connections on gevent's sockets, which is what workers run on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PROGRAM = """
from gevent import monkey
monkey.patch_all()
import sys
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


def test_connections_behave_alike_under_gevent() -> None:
    """Reuse, deadlines and TLS; trickled TLS bytes used to outlive every deadline there, and only
    there (F7, X1)."""
    files = ("test_connection_reuse.py", "test_transport_tls.py", "test_transport_waits.py")
    chosen = (
        "reuse or black_hole or first_byte or client_that_left or reads_nothing"
        " or (tls and not large and not slow_reader)"
    )
    ran = subprocess.run(
        [
            sys.executable, "-c", PROGRAM,
            "-c", str(ROOT / "setup.cfg"), "--rootdir", str(ROOT), "-q", "-p", "no:cacheprovider",
            "-k", chosen,
            # gevent's accept() warns of sockets that a test's server leaves to be collected.
            "-W", "ignore::pytest.PytestUnraisableExceptionWarning",
            *(str(HERE / name) for name in files),
        ],
        # One process, whatever this one was told about how many to use.
        env={name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-1000:]
    assert " passed" in ran.stdout
