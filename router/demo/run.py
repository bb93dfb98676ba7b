"""``make run``: two demo backends, the demo document, a gateway, and a line to paste."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import FrameType
from typing import IO, Final
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from router.config.settings import Address, Settings, child_environment, load_settings

BACKENDS: Final = {"mock-a": "http://127.0.0.1:9101/v1", "mock-b": "http://127.0.0.1:9102/v1"}
"""The backends of the demo document and the addresses that stand for them in it."""

DEMO_KEY: Final = "dev-test-key"
START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 60.0

_WELCOME: Final = """
The router is up at {url} with two demo backends. Try:

  curl -s {url}/v1/chat/completions \\
    -H 'X-API-Key: {key}' -H 'Content-Type: application/json' \\
    -d '{{"model": "gpt-4o", "messages": [{{"role": "user", "content": "Hello"}}]}}'

The key {key} may do 5 calls a second, 20 at once: a loop of these answers 429. With the key
dev-budget-key it answers 402 BUDGET_EXCEEDED, with dev-quota-key 402 QUOTA_EXCEEDED.
What it used and cost, and what was recorded, a second later:

  curl -s '{url}/v1/usage?group_by=model' -H 'X-API-Key: {key}'
  ROUTER_DATA_DIR={data_dir} {routerctl} usage report

Metrics: {ops_url}/metrics   Health: {url}/v1/status/readyz   Stop: Ctrl-C
"""


class DemoError(Exception):
    """The demo could not be started; the message says what to do."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One process of the demo."""

    name: str
    process: subprocess.Popen[str]

    def stop(self) -> None:
        """Ask it to end, wait, insist."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def run() -> int:
    """Run the demo until it is interrupted; the exit code is the gateway's."""
    settings = load_settings()
    environment = {
        "ROUTER_DEMO": "1",
        "ROUTER_DATA_DIR": str(settings.data_dir / "demo"),
        "ROUTER_BIND": str(settings.bind),
        "ROUTER_OPS_BIND": str(settings.ops_bind),
        "WEB_CONCURRENCY": str(settings.workers),
    }
    with ExitStack() as parts, _interruptible():
        try:
            _apply(_document(_start_backends(parts)), settings, environment)
            gateway = _start(parts, "gateway", ["serve"], environment)
            _await_ready(gateway, settings)
            _say(_welcome(settings))
            return gateway.process.wait()
        except KeyboardInterrupt:
            return 0


def _welcome(settings: Settings) -> str:
    command = Path(sys.argv[0])
    return _WELCOME.format(
        url=_url(settings),
        ops_url=_ops_url(settings),
        key=DEMO_KEY,
        data_dir=shlex.quote(os.fspath(settings.data_dir / "demo")),
        routerctl=shlex.quote(os.fspath(command)) if command.name == "routerctl" else "routerctl",
    )


def _start_backends(parts: ExitStack) -> dict[str, str]:
    """Both backends on free ports; backend id → base URL."""
    urls = {}
    for name in BACKENDS:
        part = _start(
            parts, name, ["mock-backend", "--port", "0", "--name", name], {}, subprocess.PIPE
        )
        assert part.process.stdout is not None
        urls[name] = json.loads(_first_line(part, part.process.stdout))["url"] + "/v1"
    return urls


def _start(
    parts: ExitStack,
    name: str,
    arguments: list[str],
    environment: dict[str, str],
    stdout: int | None = None,
) -> _Part:
    process = subprocess.Popen(
        [sys.executable, "-m", "router.cli.main", *arguments],
        env=child_environment(**environment),
        stdout=stdout,
        text=True,
        # Ctrl-C reaches the whole foreground group; the parts are ended in order by us instead.
        start_new_session=True,
    )
    part = _Part(name, process)
    parts.callback(part.stop)
    return part


def _first_line(part: _Part, stdout: IO[str]) -> str:
    line = stdout.readline()
    if not line:
        raise DemoError(f"{part.name} ended at once with code {part.process.wait()}")
    return line


def _document(urls: dict[str, str]) -> str:
    """The demo document with the ports that the backends really have."""
    text = resources.files("router.demo").joinpath("demo.yaml").read_text(encoding="utf-8")
    for name, url in urls.items():
        if BACKENDS[name] not in text:
            raise DemoError(f"the demo document does not name {BACKENDS[name]}")
        text = text.replace(BACKENDS[name], url)
    return text


def _apply(document: str, settings: Settings, environment: dict[str, str]) -> None:
    place: Path = settings.data_dir / "demo"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = place / "demo.yaml"
    file.write_text(document, encoding="utf-8")
    applied = subprocess.run(
        [sys.executable, "-m", "router.cli.main", "apply", str(file)],
        env=child_environment(**environment),
        capture_output=True,
        text=True,
        check=False,
    )
    if applied.returncode != 0:
        raise DemoError(f"the demo document was refused:\n{applied.stderr}")


def _await_ready(gateway: _Part, settings: Settings) -> None:
    opener = build_opener(ProxyHandler({}))
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if gateway.process.poll() is not None:
            raise DemoError(
                f"the gateway ended with code {gateway.process.returncode}; is {settings.bind} or "
                f"{settings.ops_bind} in use? ROUTER_BIND and ROUTER_OPS_BIND choose others"
            )
        try:
            with opener.open(f"{_url(settings)}/readyz", timeout=2):
                return
        except (URLError, OSError):
            time.sleep(0.1)
    raise DemoError(f"the gateway was not ready within {START_TIMEOUT_S:g} s")


def _url(settings: Settings) -> str:
    return _reachable(settings.bind)


def _ops_url(settings: Settings) -> str:
    return _reachable(settings.ops_bind)


def _reachable(address: Address) -> str:
    """Where this host reaches a listener that may be bound to every address."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    return f"http://{Address(host, address.port)}"


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
