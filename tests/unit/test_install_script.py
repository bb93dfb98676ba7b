"""What `make` shows of an installation, with a pip that says what a test wants."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "install.py"
PIP = """
import sys
arguments = sys.argv[sys.argv.index("--constraint") + 2:]
print("Collecting", *arguments)
print("  Downloading a.whl")
print("Collecting b")
{says}
"""
UNREACHABLE = "sys.exit('WARNING: Retrying (Retry(total=1)) after connection broken')"


class Install:
    """The script in an environment of its own."""

    def __init__(self, directory: Path) -> None:
        self._venv = directory / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self._venv], check=True)
        self._pip = directory / "path" / "pip"
        self._pip.mkdir(parents=True)
        (self._pip / "__init__.py").touch()

    def run(self, says: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Install with a pip that ends with the statement ``says``."""
        (self._pip / "__main__.py").write_text(PIP.format(says=says))
        return subprocess.run(
            [self._venv / "bin" / "python", SCRIPT, "the router", *arguments],
            env={"PYTHONPATH": str(self._pip.parent)},
            capture_output=True,
            text=True,
            timeout=30,
        )

    @property
    def log(self) -> str:
        return (self._venv / "install.log").read_text()


@pytest.fixture
def install(tmp_path: Path) -> Install:
    return Install(tmp_path)


def test_each_kind_of_step_is_shown_once(install: Install) -> None:
    """The terminal is not silent and not full; the log has everything."""
    done = install.run("", "one")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Installing the router\n  collecting ...\n  downloading ...\n"
    assert install.log == "Collecting one\n  Downloading a.whl\nCollecting b\n"


def test_what_cannot_be_installed_is_left_out(install: Install) -> None:
    """The optional part has no build for each machine."""
    missing = "'lite' in arguments and sys.exit('ERROR: No matching distribution found for lite')"
    done = install.run(missing, "one", "lite", "--without", "lite", "one", "fake")
    assert done.returncode == 0
    assert "Installing the router without lite\n" in done.stdout
    assert install.log.startswith("Collecting one fake\n")


@pytest.mark.parametrize("more", [(), ("--without", "lite", "fake")])
def test_an_index_out_of_reach_is_one_line(install: Install, more: tuple[str, ...]) -> None:
    """It is tried once: nothing else could be installed either."""
    done = install.run(UNREACHABLE, "lite", *more)
    [line] = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith("The package index cannot be reached, so the router is not installed")
    assert "without lite" not in done.stdout


def test_any_other_failure_is_the_last_error_of_pip(install: Install) -> None:
    """One line, with the place of all the others."""
    done = install.run("sys.exit('ERROR: first\\nERROR: the disk is full')", "one")
    [line] = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith("pip could not install the router: ERROR: the disk is full; see ")
