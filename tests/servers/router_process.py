"""The router as an operator runs it: a process of its own, its data directory, its log."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.mmap_dict import MmapedDict

from router.config.settings import load_settings
from router.server.metrics_dir import shared_metrics_dir

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 45.0
LINE_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 20.0
POLL_S = 0.01

# What the shell of a developer, or tox, may have set must not reach the program under test.
_OURS = ("ROUTER_", "PROMETHEUS_", "GUNICORN_", "WEB_CONCURRENCY")

Line = dict[str, Any]


@dataclass(frozen=True)
class NewKey:
    """What `routerctl keys create` shows, once."""

    id: str
    key: str
    signing_secret: str


@dataclass(frozen=True)
class Reply:
    """A whole HTTP reply."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        """The parsed body."""
        return json.loads(self.body)


def clean_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without what sets the router, and with `changes`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return {**kept, **changes}


def free_port() -> int:
    """A loopback port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def children(pid: int) -> list[int]:
    """The direct children of a process, the oldest first."""
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return sorted(int(child) for child in listed.split())


def is_running(pid: int) -> bool:
    """Whether there is such a process and it is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def resident_bytes(pid: int) -> int:
    """How much memory a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Seconds until `condition` held; AssertionError when it did not in time."""
    started_s = time.monotonic()
    while not condition():
        elapsed_s = time.monotonic() - started_s
        assert elapsed_s < timeout_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(POLL_S)
    return time.monotonic() - started_s


def run_routerctl(
    *arguments: str, environment: Mapping[str, str], cwd: Path
) -> subprocess.CompletedProcess[str]:
    """A command of `routerctl`, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "router.cli.main", *arguments],
        env=clean_environment(environment),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )


@dataclass
class RouterProcess:
    """gunicorn with the router, on free ports, with a data directory below `directory`."""

    directory: Path
    workers: int = 2
    environment: dict[str, str] = field(default_factory=dict)
    python_options: tuple[str, ...] = ()
    program: tuple[str, ...] = ("-m", "gunicorn")
    port: int = field(default_factory=free_port)
    ops_port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log_path = self.directory / "router.log"
        # Whatever nobody may find in what the router writes.
        self.secrets = [value for name, value in self.environment.items() if "CREDENTIAL" in name]
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: list[Line] = []
        self._read_bytes = 0

    # --- where it is ---------------------------------------------------------------------------

    @property
    def data_dir(self) -> Path:
        """`ROUTER_DATA_DIR`."""
        return self.directory / "data"

    @property
    def metrics_dir(self) -> Path:
        """Where the workers count."""
        chosen = self.environment.get("PROMETHEUS_MULTIPROC_DIR")
        return Path(chosen) if chosen else shared_metrics_dir(load_settings(self.settings))

    @property
    def url(self) -> str:
        """Where clients go."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def settings(self) -> dict[str, str]:
        """The variables that make this router what it is."""
        return {
            "ROUTER_BIND": f"127.0.0.1:{self.port}",
            "ROUTER_OPS_BIND": f"127.0.0.1:{self.ops_port}",
            "ROUTER_DATA_DIR": str(self.data_dir),
            "WEB_CONCURRENCY": str(self.workers),
            # Tests of limits set their own; those of something else call as fast as they can.
            "RATE_LIMIT_DEFAULT_RPS": "1000000",
            "RATE_LIMIT_BURST_SIZE": "1000000",
            **self.environment,
        }

    @property
    def pid(self) -> int:
        """The master's process id."""
        assert self._process is not None, "the router was not started"
        return self._process.pid

    def worker_pids(self) -> list[int]:
        """The workers that live now."""
        return children(self.pid)

    # --- its life ------------------------------------------------------------------------------

    def start(self, document: Mapping[str, Any] | None = None) -> RouterProcess:
        """Apply `document`, start, and return once every worker serves."""
        if document is not None:
            applied = self.apply(document)
            assert applied.returncode == 0, applied.stderr
        self.spawn()
        try:
            wait_until(self._serves, START_TIMEOUT_S, "the router serves")
        except AssertionError as error:
            log = self.log_text()
            self.kill()
            raise AssertionError(f"{error}; its log:\n{log}") from None
        return self

    def spawn(self) -> None:
        """Start it and wait for nothing."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, *self.python_options, *self.program),
                    *("-c", "python:router.server.gunicorn_conf"),
                ],
                env=clean_environment(self.settings),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the master."""
        os.kill(self.pid, number)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """The exit code, once the master has ended."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """SIGTERM; the exit code. Nothing of it runs when this returns."""
        process = self._process
        assert process is not None
        if process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running {timeout_s:g} s after SIGTERM") from None
        finally:
            self.kill()

    def kill(self) -> None:
        """End what still runs, master and workers."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        workers = children(process.pid)
        process.kill()
        process.wait()
        for pid in workers:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if "PROMETHEUS_MULTIPROC_DIR" not in self.environment:
            # A killed master leaves it, and the next one with this data directory would empty it.
            shutil.rmtree(self.metrics_dir, ignore_errors=True)

    def _serves(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"it ended with code {self._process.returncode}"
        if len(self.worker_pids()) < self.workers:
            return False
        if not all(map(_has_event_loop, self.worker_pids())):
            return False
        try:
            return self.request("GET", "/healthz", timeout_s=2).status == 200
        except OSError:
            return False

    # --- what an operator does -----------------------------------------------------------------

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`routerctl` with this router's environment."""
        return run_routerctl(*arguments, environment=self.settings, cwd=self.directory)

    def apply(self, document: Mapping[str, Any]) -> subprocess.CompletedProcess[str]:
        """`routerctl config apply` of this document."""
        file = self.directory / "document.json"
        file.write_text(json.dumps(document), "utf-8")
        return self.ctl("config", "apply", str(file))

    def create_key(self, organization: str, *options: str) -> NewKey:
        """`routerctl keys create`."""
        made = self.ctl("keys", "create", "--organization", organization, "--output=json", *options)
        assert made.returncode == 0, made.stderr
        shown = json.loads(made.stdout)
        self.secrets += [shown["key"], shown["signing_secret"]]
        return NewKey(shown["id"], shown["key"], shown["signing_secret"])

    # --- what a client does --------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float = 15.0,
        ops: bool = False,
    ) -> Reply:
        """One request on a connection of its own."""
        port = self.ops_port if ops else self.port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
        try:
            connection.request(method, path, body, dict(headers or {}))
            reply = connection.getresponse()
            return Reply(reply.status, reply.headers, reply.read())
        finally:
            connection.close()

    def post(
        self, path: str, fields: Any, key: str, *, request_id: str | None = None, **headers: str
    ) -> Reply:
        """A JSON body with a key."""
        sent = {"Content-Type": "application/json", "X-API-Key": key, **headers}
        if request_id is not None:
            sent["X-Request-ID"] = request_id
        return self.request("POST", path, json.dumps(fields).encode(), sent)

    def metrics(self) -> str:
        """A scrape."""
        reply = self.request("GET", "/metrics", ops=True)
        assert reply.status == 200
        return reply.body.decode()

    # --- what it wrote -------------------------------------------------------------------------

    def log_text(self) -> str:
        """Everything on standard output and standard error."""
        return self.log_path.read_text("utf-8", errors="replace") if self.log_path.exists() else ""

    def log(self) -> list[Line]:
        """The log lines, parsed; a line that is not JSON is an AssertionError."""
        if self.log_path.exists():
            with self.log_path.open("rb") as file:
                file.seek(self._read_bytes)
                self._parse(file.read())
        return list(self._lines)

    def _parse(self, new: bytes) -> None:
        """Add the lines that are whole; the last one may be half written."""
        whole = new[: new.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        for text in whole.splitlines():
            try:
                self._lines.append(json.loads(text))
            except ValueError:
                raise AssertionError(f"a log line that is not JSON: {text!r}") from None

    def calls(self) -> list[Line]:
        """The lines of the calls."""
        return [line for line in self.log() if line["event"] == "call"]

    def lines_of(self, request_id: str) -> list[Line]:
        """The lines of one request."""
        return [line for line in self.calls() if line["request_id"] == request_id]

    def line_of(self, request_id: str, timeout_s: float = LINE_TIMEOUT_S) -> Line:
        """The one line of one request, as soon as it is written."""
        what = f"a log line of {request_id}"
        wait_until(lambda: bool(self.lines_of(request_id)), timeout_s, what)
        (line,) = self.lines_of(request_id)
        return line

    def leaks(self) -> list[str]:
        """Where a secret stands in the log, in the metrics or in a file of the data directory."""
        written = {"log": self.log_text().encode(), "metrics": self.metrics().encode()}
        for path in self.data_dir.rglob("*"):
            if path.is_file():
                written[str(path.relative_to(self.data_dir))] = path.read_bytes()
        return [
            place
            for place, data in written.items()
            if any(secret.encode() in data for secret in self.secrets)
        ]

    def faults(self) -> list[Line]:
        """Lines of level error or worse."""
        return [line for line in self.log() if line["level"] in ("error", "critical")]

    def answered_by_slot(self, **labels: str) -> Counter[str]:
        """How many requests with these labels each worker slot has answered."""
        answered: Counter[str] = Counter()
        for file in self.metrics_dir.glob("counter_*.db"):
            for key, value, *_ in MmapedDict.read_all_values_from_file(str(file)):
                family, _, found, _ = json.loads(key)
                if family.startswith("api_router_requests") and labels.items() <= found.items():
                    answered[file.stem.removeprefix("counter_")] += int(value)
        return answered


def _has_event_loop(pid: int) -> bool:
    """A worker that serves waits in epoll on both listeners; before, it imports."""
    try:
        links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return False
    return any("eventpoll" in link for link in links)
