"""Makes the virtual environment of the Makefile and installs into it, with progress in few words.

    python3 deploy/install.py --create .venv
    .venv/bin/python deploy/install.py WHAT PIP_ARGUMENT... [--without NAME PIP_ARGUMENT...]

What follows ``--without NAME`` is installed instead where NAME cannot be installed on this machine.
Versions are those of ``constraints/locked.txt``. All that pip says goes to ``install.log`` in the
environment; a failure is one line and exit code 1. This needs Python's standard library only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).resolve().parents[1] / "constraints" / "locked.txt"

STEPS = ("Obtaining", "Collecting", "Downloading", "Building", "Preparing", "Installing")
"""First words of the lines of pip that say how far it is."""

UNREACHABLE = ("Retrying (Retry(", "Max retries exceeded")
"""What pip says when it cannot ask the package index."""
NO_VERSIONS = "(from versions: none)"


def main() -> None:
    """Do what the command line says; its first word chooses."""
    if sys.argv[1] == "--create":
        create(Path(sys.argv[2]))
    else:
        install(sys.argv[1], sys.argv[2:])


def create(venv: Path) -> None:
    """A virtual environment with pip; some systems ship Python without what ``venv`` needs."""
    version = ".".join(map(str, sys.version_info[:3]))
    _say(f"Creating {venv} with Python {version}\n")
    if _succeeds("-m", "venv", "--clear", str(venv)):
        return
    if not _succeeds("-m", "pip", "--version"):
        shutil.rmtree(venv, ignore_errors=True)
        sys.exit(
            f"{sys.executable} has neither ensurepip nor pip, so it can create no virtual "
            "environment. On Debian and Ubuntu: apt-get install python3-venv"
        )
    bootstrap = Path(f"{venv}.bootstrap")
    try:
        _pip("virtualenv", ["--target", str(bootstrap), "virtualenv"], Path(f"{venv}.log"))
        os.environ["PYTHONPATH"] = str(bootstrap)
        if not _succeeds("-m", "virtualenv", "--clear", str(venv)):
            sys.exit(f"virtualenv cannot create {venv}")
    finally:
        shutil.rmtree(bootstrap, ignore_errors=True)


def install(what: str, arguments: list[str]) -> None:
    """Run pip in this environment; ``what`` says for people what it installs."""
    log = Path(sys.prefix) / "install.log"
    if "--without" not in arguments:
        _pip(what, arguments, log)
        return
    split = arguments.index("--without")
    name, *instead = arguments[split + 1 :]
    if not _pip(what, arguments[:split], log, optional=name):
        _pip(f"{what} without {name}", instead, log)


def _pip(what: str, arguments: list[str], log: Path, *, optional: str = "") -> bool:
    """False if it failed and ``optional`` may be why; other failures end the program."""
    _say(f"Installing {what}\n")
    environment = {"PIP_RETRIES": "2", **os.environ, "PIP_NO_INPUT": "1"}
    options = ["--disable-pip-version-check", "--constraint", str(LOCK)]
    command = [sys.executable, "-m", "pip", "install", *options, *arguments]
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as pip:
        assert pip.stdout is not None
        lines = []
        with _Progress() as progress, log.open("w") as file:
            for line in pip.stdout:
                lines.append(line)
                file.write(line)
                progress.show(line.split())
    if pip.returncode == 0:
        return True
    text = "".join(lines)
    is_unreachable = any(sign in text for sign in UNREACHABLE)
    if optional and not is_unreachable and optional in text:
        return False
    if is_unreachable or NO_VERSIONS in text:
        sys.exit(f"The package index cannot be reached, so {what} is not installed; see {log}")
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:] or ["no output"]
    sys.exit(f"pip could not install {what}: {errors[-1].strip()}; see {log}")


class _Progress:
    """Shows the step of pip: on a terminal each in place of the one before, else each kind once."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._seen: set[str] = set()
        self._count = 0

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_terminal:
            _say("\r\033[K")

    def show(self, words: list[str]) -> None:
        """``words`` of a line of pip."""
        if len(words) < 2 or words[0] not in STEPS:
            return
        self._count += words[0] == "Collecting"
        if self._is_terminal:
            step = f"  {self._count} packages: {words[0]} {words[1]}"
            _say(f"\r\033[K{step[: shutil.get_terminal_size().columns - 1]}")
        elif words[0] not in self._seen:
            _say(f"  {words[0].lower()} ...\n")
        self._seen.add(words[0])


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _succeeds(*arguments: str) -> bool:
    done = subprocess.run([sys.executable, *arguments], capture_output=True)
    return done.returncode == 0


if __name__ == "__main__":
    main()
