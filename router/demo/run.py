"""``make run``: two demo backends, the demo document, a router, and commands to paste."""

from __future__ import annotations

import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Final
from urllib.request import ProxyHandler, build_opener

from router.config.settings import (
    EMBEDDED_REDIS,
    Address,
    Settings,
    child_environment,
    load_settings,
    whole_environment,
)
from router.demo.claims import DemoError, claim_directory, claim_port
from router.redis.embedded.embedded_redis import EmbeddedRedis, EmbeddedRedisError, redis_address
from router.server.command import gunicorn_command

BACKENDS: Final = {"demo-a": "http://127.0.0.1:9101/v1", "demo-b": "http://127.0.0.1:9102/v1"}
"""The backends of the demo document and the addresses that stand for them in it."""

START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 60.0

_BANNER: Final = """
The router is up at {url} with two demo backends. Try:

  curl -s {url}/v1/chat/completions \\
    -H 'X-API-Key: dev-test-key' -H 'Content-Type: application/json' \\
    -d '{{"model": "gpt-4o", "messages": [{{"role": "user", "content": "Hello"}}]}}'

dev-test-key may make 5 calls a second, 20 at once; more of them get 429. The keys dev-budget-key
and dev-quota-key get 402: their budget and their quota are used up. What was used and what it cost,
a second later:

  curl -s '{url}/v1/usage?group_by=model' -H 'X-API-Key: dev-test-key'
  ROUTER_DATA_DIR={directory} {routerctl} usage report

Limits and budgets are counted in {redis}.
Metrics: {ops_url}/metrics   Health: {ops_url}/readyz
Log: {log}   Stop: Ctrl-C
"""


def run() -> int:
    """Run the demo until it is interrupted; the exit code is the router's.

    Raises :class:`DemoError` when it cannot be started; a demo that already runs is not disturbed.
    """
    settings = load_settings()
    with ExitStack() as parts, _terminable():
        try:
            router = _start(parts, settings, settings.data_dir / "demo")
            return router.wait()
        except KeyboardInterrupt:
            return 0


def _start(parts: ExitStack, settings: Settings, directory: Path) -> subprocess.Popen[str]:
    """Claim, then start everything in order; ``parts`` stops it in the opposite order."""
    claim_directory(parts, directory, _url(settings.bind))
    listeners = (
        claim_port(parts, settings.bind, "ROUTER_BIND"),
        claim_port(parts, settings.ops_bind, "ROUTER_OPS_BIND"),
    )
    log = parts.enter_context((directory / "router.log").open("w", encoding="utf-8"))
    launcher = _Launcher(
        parts, log, whole_environment(ROUTER_DEMO="1", ROUTER_DATA_DIR=str(directory))
    )
    redis = _start_redis(parts, settings, directory)
    urls = {name: launcher.start_backend(name) for name in BACKENDS}
    launcher.apply(directory / "demo.yaml", _document(urls))
    router = launcher.start_router(*listeners)
    _await_ready(router, _url(settings.bind), log.name)
    _say(_banner(settings, directory, redis))
    return router


@dataclass(frozen=True, slots=True)
class _Launcher:
    """Starts processes whose output goes to the log; ``parts`` stops them."""

    parts: ExitStack
    log: IO[str]
    environment: dict[str, str]
    """Of the router; a backend gets no more than it needs."""

    def start_backend(self, name: str) -> str:
        """A demo backend on a free port; its base URL."""
        arguments = ["-m", "router.demo.backend", "--port", "0", "--name", name]
        process = self._start(
            [sys.executable, *arguments], child_environment(), stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise DemoError(f"the backend {name} does not start; see {self.log.name}")
        return url

    def apply(self, file: Path, document: str) -> None:
        """Make ``document`` the configuration."""
        file.write_text(document, encoding="utf-8")
        command = [sys.executable, "-m", "router.cli.main", "config", "apply", str(file)]
        done = subprocess.run(command, env=self.environment, stdout=self.log, stderr=self.log)
        if done.returncode != 0:
            raise DemoError(f"the demo document was refused; see {self.log.name}")

    def start_router(self, *listeners: socket.socket) -> subprocess.Popen[str]:
        """gunicorn on these sockets, which are its own from now on."""
        fds = [listener.fileno() for listener in listeners]
        process = self._start(
            gunicorn_command(*fds), self.environment, stdout=self.log, pass_fds=fds
        )
        for listener in listeners:
            listener.close()
        return process

    def _start(
        self,
        command: list[str],
        environment: dict[str, str],
        *,
        stdout: int | IO[str],
        pass_fds: Collection[int] = (),
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=self.log,
            text=True,
            pass_fds=pass_fds,
            # Ctrl-C reaches the whole foreground group, but the parts have to end in order.
            start_new_session=True,
        )
        self.parts.callback(_stop, process)
        return process


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _start_redis(parts: ExitStack, settings: Settings, directory: Path) -> str:
    """Make sure that limits are enforced from the first call on; says where they are counted."""
    if settings.redis_addr != EMBEDDED_REDIS:
        return f"the Redis at {redis_address(settings)} (RATE_LIMIT_REDIS_ADDR)"
    embedded = EmbeddedRedis(directory / "redis")
    parts.callback(embedded.leave)
    try:
        embedded.join()
    except EmbeddedRedisError as error:
        raise DemoError(str(error)) from None
    engine = embedded.engine
    kept = "memory" if engine == "fakeredis" else str(directory / "redis")
    return f"{engine}, a private server with its data in {kept}"


def _document(urls: dict[str, str]) -> str:
    """The demo document with the ports that the backends really have."""
    text = resources.files("router.demo").joinpath("demo.yaml").read_text(encoding="utf-8")
    for name, url in urls.items():
        text = text.replace(BACKENDS[name], url)
    return text


def _await_ready(router: subprocess.Popen[str], url: str, log: str) -> None:
    opener = build_opener(ProxyHandler({}))
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if router.poll() is not None:
            raise DemoError(f"the router ended with code {router.returncode}; see {log}")
        try:
            with opener.open(f"{url}/readyz", timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise DemoError(f"the router was not ready within {START_TIMEOUT_S:g} s; see {log}")


def _banner(settings: Settings, directory: Path, redis: str) -> str:
    command = Path(sys.argv[0])
    return _BANNER.format(
        url=_url(settings.bind),
        ops_url=_url(settings.ops_bind),
        directory=shlex.quote(str(directory)),
        routerctl=shlex.quote(str(command)) if command.name == "routerctl" else "routerctl",
        redis=redis,
        log=directory / "router.log",
    )


def _url(address: Address) -> str:
    """Where this host reaches a listener that may be bound to every address."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    return f"http://{Address(host, address.port)}"


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@contextmanager
def _terminable() -> Iterator[None]:
    """TERM ends the demo as Ctrl-C does."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
