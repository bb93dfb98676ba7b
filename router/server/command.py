"""The command line that starts gunicorn with the router in it."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def gunicorn_command(*listener_fds: int) -> list[str]:
    """gunicorn's command line; inherited listeners replace ROUTER_BIND and ROUTER_OPS_BIND."""
    command = [sys.executable, "-m", "gunicorn", "-c", "python:router.server.gunicorn_conf"]
    for fd in listener_fds:
        command += ["--bind", f"fd://{fd}"]
    return command


def run() -> NoReturn:
    """Replace this process by gunicorn."""
    command = gunicorn_command()
    os.execv(command[0], command)
