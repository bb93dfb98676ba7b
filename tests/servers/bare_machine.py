"""A machine with Python, pip, make, a shell and curl: a copy of the tree, and a PATH of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

from tests.servers.router_process import free_port

ROOT = Path(__file__).resolve().parents[2]

PROGRAMS = ("make", "sh", "curl")
COREUTILS = ("cp", "rm", "seq", "sleep", "sort", "touch", "uname", "uniq")
"""What the README's commands, the Makefile and `activate` use of them."""

_LEFT_OUT = shutil.ignore_patterns(
    ".git",
    ".venv*",
    ".tox",
    ".hypothesis",
    ".*_cache",
    "__pycache__",
    "*.egg-info",
    "build",
    "data",
)
_PASSED_ON = (
    "PIP_",
    "SSL_CERT_",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
)
"""How the package index is reached."""


def base_python() -> Path:
    """The interpreter that this one's virtual environment was made from, by its own path."""
    return Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))


class BareMachine:
    """A directory with the tree, a home and a `bin`; commands run there find nothing else."""

    def __init__(self, directory: Path, python: Path | None = None) -> None:
        self.tree = directory / "api-router"
        shutil.copytree(ROOT, self.tree, ignore=_LEFT_OUT)
        self.log = directory / "terminal.log"
        self.bin = directory / "bin"
        self.bin.mkdir()
        for name in (*PROGRAMS, *COREUTILS):
            found = shutil.which(name)
            assert found is not None, f"{name} IS NOT INSTALLED"
            (self.bin / name).symlink_to(found)
        (self.bin / "python3").symlink_to(python or base_python())
        home = directory / "home"
        home.mkdir()
        passed_on = {
            name: value
            for name, value in os.environ.items()
            if name.upper().startswith(_PASSED_ON) and name != "PIP_CONSTRAINT"
        }
        self.bind = f"127.0.0.1:{free_port()}"
        self.environment = {
            **passed_on,
            "HOME": str(home),
            "PATH": str(self.bin),
            "LANG": "C.UTF-8",
            "ROUTER_BIND": self.bind,
            "ROUTER_OPS_BIND": f"127.0.0.1:{free_port()}",
        }

    def remove_pip(self) -> None:
        """Give it a Python with the standard library alone, and without ensurepip."""
        library = (
            self.bin.parent / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
        )
        library.mkdir(parents=True)
        for entry in Path(os.__file__).parent.iterdir():
            if entry.name not in ("ensurepip", "site-packages", "dist-packages"):
                (library / entry.name).symlink_to(entry)
        # A copy, not a link: Python looks for its library beside the file that it is.
        python = self.bin / "python3"
        python.unlink()
        shutil.copy(base_python(), python)

    def run(
        self, commands: str, *, timeout_s: float = 60.0, **changes: str
    ) -> subprocess.CompletedProcess[str]:
        """What a user sees who pastes these commands into a terminal."""
        return subprocess.run(
            ["sh", "-c", commands],
            cwd=self.tree,
            env={**self.environment, **changes},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def open_terminal(self, commands: str) -> Terminal:
        """A terminal of its own for commands that stay in the foreground."""
        return Terminal(self, commands)


class Terminal:
    """A foreground command, its output so far, and Ctrl-C."""

    def __init__(self, machine: BareMachine, commands: str) -> None:
        self._process = subprocess.Popen(
            ["sh", "-c", commands],
            cwd=machine.tree,
            env=machine.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._lines.extend(iter(self._process.stdout.readline, ""))

    @property
    def text(self) -> str:
        """All that it has shown."""
        return "".join(list(self._lines))

    @property
    def has_ended(self) -> bool:
        """Whether the command has returned to the prompt."""
        return self._process.poll() is not None

    def interrupt(self, timeout_s: float = 30.0) -> None:
        """Ctrl-C, which reaches the whole foreground group."""
        if not self.has_ended:
            os.killpg(self._process.pid, signal.SIGINT)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            raise
        finally:
            self._reader.join()
            assert self._process.stdout is not None
            self._process.stdout.close()
