"""`routerctl demo`: what `make run` starts, and that nothing of it stays."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.demo.backend import DemoBackend
from router.redis.embedded.embedded_redis import ENGINES, EmbeddedRedis
from tests.servers.router_process import (
    children,
    clean_environment,
    free_port,
    is_running,
    wait_until,
)

pytestmark = pytest.mark.skipif(
    shutil.which("curl") is None, reason="CURL IS NOT INSTALLED: the demo's own line is not tested"
)

START_TIMEOUT_S = 40.0
STOP_TIMEOUT_S = 20.0


def descendants(pid: int) -> list[int]:
    """The processes below this one, at any depth."""
    found = children(pid)
    return found + [below for child in found for below in descendants(child)]


def environment(directory: Path, **changes: str) -> dict[str, str]:
    """What a demo with free ports and its data in ``directory`` is started with."""
    own = {
        "ROUTER_BIND": f"127.0.0.1:{free_port()}",
        "ROUTER_OPS_BIND": f"127.0.0.1:{free_port()}",
        "ROUTER_DATA_DIR": str(directory / "data"),
    }
    return clean_environment({**own, **changes})


COMMAND = (sys.executable, "-m", "router.cli.main", "demo")


def refusal(environ: dict[str, str]) -> str:
    """What a demo says that cannot be started: one line, and exit code 1."""
    done = subprocess.run(COMMAND, env=environ, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    return line


class Demo:
    """A running demo and what it has printed."""

    def __init__(self, directory: Path) -> None:
        self.environment = environment(directory)
        self.url = f"http://{self.environment['ROUTER_BIND']}"
        self.directory = directory / "data" / "demo"
        self.process = subprocess.Popen(
            COMMAND,
            env=self.environment,
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    @property
    def text(self) -> str:
        return "".join(list(self.lines))

    def curl_line(self) -> str:
        """The command that it tells its reader to paste."""
        wait_until(lambda: "Stop: Ctrl-C" in self.text, START_TIMEOUT_S, "the demo is up")
        found = re.search(r"^ *(curl (?:.*\\\n)*.*)$", self.text, re.MULTILINE)
        assert found is not None, self.text
        return found[1]

    def close(self) -> None:
        """End whatever still runs."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path)
    yield demo
    demo.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_demo_serves_and_leaves_nothing(demo: Demo, number: signal.Signals) -> None:
    """Must show 1: the printed line returns a completion; Ctrl-C or TERM ends every process."""
    line = demo.curl_line()
    answer = subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, timeout=20, check=True
    )
    started = descendants(demo.process.pid)

    reply = json.loads(answer.stdout)
    assert reply["choices"][0]["message"]["content"]
    assert reply["usage"]["total_tokens"] > 0
    # Two backends, the master and two workers.
    assert len(started) >= 5

    demo.process.send_signal(number)
    assert demo.process.wait(STOP_TIMEOUT_S) == 0
    assert [pid for pid in started if is_running(pid)] == []
    assert "Traceback" not in demo.text


def native(url: str, key: str) -> list[str]:
    """The curl line of a native call that prints the status alone."""
    body = json.dumps({"request_id": str(uuid.uuid4()), "model": "gpt-4o", "payload": "test"})
    headers = ["-H", f"X-API-Key: {key}", "-H", "Content-Type: application/json"]
    return ["curl", "-s", "-w", "\n%{http_code}", f"{url}/v1/inference", *headers, "-d", body]


def test_the_demo_refuses(demo: Demo) -> None:
    """T019 by hand: a loop of 150 curls meets 429, and two keys have nothing left."""
    url = re.findall(r"http://[\d.:]+", demo.curl_line())[0]

    def call(key: str) -> tuple[str, str]:
        done = subprocess.run(
            native(url, key), capture_output=True, text=True, timeout=20, check=True
        )
        body, _, status = done.stdout.rpartition("\n")
        return status, json.loads(body).get("code")

    counted = Counter(call("dev-test-key") for _ in range(150))
    assert counted.keys() == {("200", None), ("429", "RATE_LIMIT_EXCEEDED")}
    assert counted["200", None] >= 20
    assert call("dev-budget-key") == ("402", "BUDGET_EXCEEDED")
    assert call("dev-quota-key") == ("402", "QUOTA_EXCEEDED")


def test_the_banner_is_all_that_the_terminal_shows(demo: Demo) -> None:
    """Logs go to the file that the banner names; nothing follows the banner."""
    demo.curl_line()
    shown = demo.text
    subprocess.run(native(demo.url, "dev-test-key"), capture_output=True, timeout=20, check=True)
    log = demo.directory / "router.log"
    assert f"Log: {log}" in shown
    wait_until(
        lambda: '"endpoint":"native.inference"' in log.read_text(), 5.0, "the call is logged"
    )
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(STOP_TIMEOUT_S) == 0
    assert demo.text == shown
    assert shown.rstrip().endswith("Stop: Ctrl-C")


def test_the_banner_says_where_limits_are_counted(demo: Demo) -> None:
    """The server that it names is the one whose data lies in the demo's directory."""
    demo.curl_line()
    found = re.search(r"counted in ([\w-]+), a private server with its data in (.+)\.", demo.text)
    assert found is not None, demo.text
    assert found[1] in ENGINES
    assert found[2] in ("memory", str(demo.directory / "redis"))
    redis = EmbeddedRedis(demo.directory / "redis")
    assert redis.is_running
    redis.leave()


def test_a_second_demo_does_not_disturb_the_first(demo: Demo) -> None:
    """It says in one line where the first one runs, also if it was given other ports."""
    demo.curl_line()
    document = (demo.directory / "demo.yaml").read_bytes()
    for environ in (demo.environment, environment(demo.directory.parent.parent)):
        line = refusal(environ)
        assert f"a demo already runs at {demo.url}" in line
    assert (demo.directory / "demo.yaml").read_bytes() == document
    answer = subprocess.run(
        native(demo.url, "dev-test-key"), capture_output=True, text=True, timeout=20, check=True
    )
    assert answer.stdout.endswith("\n200")


@pytest.mark.parametrize("variable", ["ROUTER_BIND", "ROUTER_OPS_BIND"])
def test_a_port_of_another_program_is_refused(tmp_path: Path, variable: str) -> None:
    """It was taken for the router if it answered 200; now one line says how to choose another."""
    with DemoBackend("other") as other:
        serving = threading.Thread(target=other.serve_forever)
        serving.start()
        taken = f"127.0.0.1:{other.server_address[1]}"
        line = refusal(environment(tmp_path, **{variable: taken}))
        other.shutdown()
        serving.join()
    assert f"{taken} is not free" in line
    assert f"{variable}=127.0.0.1:" in line
    assert not (tmp_path / "data" / "demo" / "state").exists()
