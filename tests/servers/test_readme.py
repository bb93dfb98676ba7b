"""The README's commands, pasted in order into the terminals of a machine with next to nothing."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from router.demo.backend import DemoBackend
from tests.servers.bare_machine import PROGRAMS, ROOT, BareMachine, Terminal
from tests.servers.router_process import wait_until

pytestmark = pytest.mark.skipif(
    any(shutil.which(name) is None for name in PROGRAMS), reason="MAKE OR CURL IS NOT INSTALLED"
)

INSTALL_S = 400.0
FOREGROUND = ("make run", "gunicorn ")
"""What stays in its terminal until Ctrl-C."""
NO_INDEX = "The package index cannot be reached"


def blocks() -> list[str]:
    """The blocks of shell commands, in order. `make test` stays out: it runs this very test."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [re.sub(r"^make test.*\n", "", block, flags=re.MULTILINE) for block in found]


def is_foreground(block: str) -> bool:
    return block.splitlines()[-1].startswith(FOREGROUND)


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2):
            return True
    except (URLError, OSError):
        return False


@pytest.fixture
def machine(tmp_path: Path) -> BareMachine:
    return BareMachine(tmp_path)


@pytest.fixture
def openai(machine: BareMachine) -> Iterator[DemoBackend]:
    """What the example document calls OpenAI: no test leaves this host but to install."""
    with DemoBackend("openai") as backend:
        serving = threading.Thread(target=backend.serve_forever)
        serving.start()
        example = machine.tree / "deploy" / "router.example.yaml"
        text = example.read_text(encoding="utf-8")
        assert "https://api.openai.com/v1" in text
        example.write_text(text.replace("https://api.openai.com/v1", backend.base_url))
        yield backend
        backend.shutdown()
        serving.join()


class Reader:
    """Somebody who pastes block after block; what each has shown is kept."""

    def __init__(self, machine: BareMachine) -> None:
        self._machine = machine
        self._terminal: Terminal | None = None
        self.shown: list[str] = []

    def paste(self, block: str) -> None:
        block = block.replace("127.0.0.1:8080", self._machine.bind).replace("sleep 2", "sleep 8")
        if is_foreground(block):
            self.interrupt()
            self._terminal = self._machine.open_terminal(block)
            self._wait_until_up(self._terminal)
            self.shown.append(self._terminal.text)
            return
        done = self._machine.run(block, timeout_s=INSTALL_S)
        assert done.returncode == 0, (block, done.stdout, done.stderr)
        self.shown.append(done.stdout)

    def _wait_until_up(self, terminal: Terminal) -> None:
        url = f"http://{self._machine.bind}/readyz"
        wait_until(lambda: terminal.has_ended or answers(url), INSTALL_S, "the router is up")
        if NO_INDEX in terminal.text:
            pytest.skip("THE PACKAGE INDEX IS OUT OF REACH: the README is not tested")
        assert not terminal.has_ended, terminal.text
        time.sleep(3)  # the banner; records of the calls before have been shipped

    def interrupt(self) -> None:
        """Ctrl-C in the terminal of what runs."""
        if self._terminal is not None:
            self._terminal.interrupt()
            self._terminal = None


@pytest.fixture
def reader(machine: BareMachine) -> Iterator[Reader]:
    made = Reader(machine)
    yield made
    made.interrupt()


def test_every_command_works_as_pasted(reader: Reader, openai: DemoBackend) -> None:
    """Front door: limits and budgets are enforced, and every command shows what the page says."""
    for number, block in enumerate(blocks()):
        if number == 3:
            time.sleep(3)  # "a second or two later"
        reader.paste(block)
    run, curl, sdk, records, refusals, serve, call, targets = reader.shown

    assert run.rstrip().endswith("Stop: Ctrl-C")
    assert "Traceback" not in run + serve
    assert json.loads(curl)["choices"][0]["message"]["content"] == "You said: Hello"
    assert sdk.rstrip().endswith("You said: Hello")
    assert records.count("gpt-4o") >= 3

    *counts, budget, quota = refusals.splitlines()
    by_status = {status: int(count) for count, status in map(str.split, counts)}
    assert by_status.keys() == {"200", "429"}
    assert by_status["200"] >= 20
    assert json.loads(budget)["code"] == "BUDGET_EXCEEDED"
    assert json.loads(quota)["code"] == "QUOTA_EXCEEDED"

    reply, rest = call.split("\n", 1)
    assert json.loads(reply)["choices"][0]["message"]["content"] == "You said: Hello"
    history, end = json.JSONDecoder().raw_decode(rest)
    assert [one["request_id"] for one in history["records"]] == ["my-first-call"]
    usage, _ = json.JSONDecoder().raw_decode(rest[end:].lstrip())
    assert [row["requests"] for row in usage["data"]] == [1]
    assert "proof" in targets


def test_without_a_package_index_it_is_said(machine: BareMachine) -> None:
    """One line after the steps, and no environment that looks whole."""
    done = machine.run("make run", PIP_INDEX_URL="http://127.0.0.1:1/simple", PIP_RETRIES="0")
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if not line.startswith("make: ")]
    assert len(said) == 1
    assert said[0].startswith(NO_INDEX)
    assert not (machine.tree / ".venv" / ".installed").exists()


def test_without_pip_it_is_said(machine: BareMachine) -> None:
    """Debian's Python comes without what makes environments; the line names the package."""
    machine.remove_pip()
    done = machine.run("make run")
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if not line.startswith("make: ")]
    assert len(said) == 1, done.stderr
    assert "neither ensurepip nor pip" in said[0]
    assert "apt-get install python3-venv" in said[0]
