"""What is measured: how each subject is started, under the same gunicorn settings for all."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.messages import API_KEY, MODEL
from tests.benchmarks.processes import ROOT, BenchmarkError, free_ports, python_of

# Given on the command line, where they also win over what gunicorn.conf.py says. The worker class
# is not among them: the router brings its own, a gevent worker too.
_SAME_FOR_ALL = (
    *("--workers", "1"),
    *("--worker-connections", "1000"),
    *("--keep-alive", "75"),
    *("--max-requests", "0"),
    *("--graceful-timeout", "3"),
)


BEFORE = "before"
_LAUNCHED_THERE = """
import json, pathlib, sys
from tests.benchmarks.subjects import SUBJECTS
directory, port, redis_url = sys.argv[1:]
launch = SUBJECTS["router"].launch(pathlib.Path(directory), int(port), redis_url or None)
print(json.dumps(vars(launch), default=str))
"""


@dataclass(frozen=True)
class Launch:
    """How one subject is brought up; commands are arguments to the Python interpreter."""

    port: int
    application: str
    options: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    preparation: tuple[str, ...] | None = None
    tree: Path = ROOT
    """The checkout that it is run in."""

    def command(self, application: str | None = None) -> list[str]:
        """The gunicorn command, serving `application` in place of the subject's own if given."""
        return ["-m", "gunicorn", *self.options, *_SAME_FOR_ALL, application or self.application]


@dataclass(frozen=True)
class Subject:
    """One thing to measure."""

    name: str
    forwards: bool
    launch: Callable[[Path, int, str | None], Launch]
    """From a directory of its own, the backend's port and the address of a Redis."""


def _launch_control(directory: Path, backend_port: int, _redis_url: str | None) -> Launch:
    base_url = f"http://127.0.0.1:{backend_port}/v1"
    return _launch_plain(directory, f'tests.benchmarks.control_app:create_app("{base_url}")')


def _launch_bare(directory: Path, _backend_port: int, _redis_url: str | None) -> Launch:
    return _launch_plain(directory, "tests.benchmarks.bare_app:app")


def _launch_plain(directory: Path, application: str) -> Launch:
    (port,) = free_ports(1)
    # Left to itself, gunicorn would pick up the router's gunicorn.conf.py from where it is started.
    configuration = directory / "gunicorn.conf.py"
    configuration.write_text(
        f'bind = "127.0.0.1:{port}"\nworker_class = "gevent"\ncontrol_socket_disable = True\n'
    )
    return Launch(port, application, ("-c", str(configuration)))


def _launch_router(directory: Path, backend_port: int, redis_url: str | None) -> Launch:
    port, ops_port = free_ports(2)
    data_dir = directory / "data"
    data_dir.mkdir()
    document = directory / "bench.yaml"
    document.write_text(json.dumps(_document(f"http://127.0.0.1:{backend_port}/v1")))
    environment = {
        "ROUTER_BIND": f"127.0.0.1:{port}",
        "ROUTER_OPS_BIND": f"127.0.0.1:{ops_port}",
        "ROUTER_DATA_DIR": str(data_dir),
        "ROUTER_DEMO": "1",
        "WEB_CONCURRENCY": "1",
    }
    if redis_url is not None:
        environment["RATE_LIMIT_REDIS_ADDR"] = redis_url
    in_checkout = (ROOT / "gunicorn.conf.py").exists()
    configuration = "gunicorn.conf.py" if in_checkout else "python:router.server.gunicorn_conf"
    return Launch(
        port,
        "router.wsgi:application",
        ("-c", configuration),
        environment,
        ("-m", "router.cli.main", "config", "apply", str(document)),
    )


def before(tree: Path) -> Subject:
    """The router of another checkout, which has its `.venv`, launched as its benchmark would."""

    def launch(directory: Path, backend_port: int, redis_url: str | None) -> Launch:
        arguments = (str(directory), str(backend_port), redis_url or "")
        done = subprocess.run(
            [python_of(tree), "-c", _LAUNCHED_THERE, *arguments],
            cwd=tree,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BenchmarkError(f"{tree} cannot be launched:\n{done.stderr}")
        fields = json.loads(done.stdout)
        for name in ("options", "preparation"):
            fields[name] = tuple(fields[name])
        return Launch(**fields | {"tree": tree})

    return Subject(BEFORE, True, launch)


def _document(base_url: str) -> dict[str, object]:
    """What a small installation applies: one organization, key, model and backend.

    Its limits are all asked on each call, and refuse none.
    """
    prices = {
        "input_usd_per_million_tokens": "2.50",
        "output_usd_per_million_tokens": "10.00",
    }
    policy = {"organization": "*", "model": "*", "backends": [{"id": "static", "weight": 100}]}
    wide = {"requests_per_second": 1_000_000, "burst": 1_000_000}
    spend = {"name": "spend", "unit": "usd", "period": "monthly", "limit": "1000000"}
    calls = {"name": "calls", "unit": "requests", "period": "daily", "limit": 1_000_000_000}
    return {
        "version": 1,
        "organizations": [{"id": "bench", "rate_limit": wide, "budgets": [spend]}],
        "keys": [
            {
                "id": "bench-key",
                "organization": "bench",
                "demo_secret": API_KEY,
                "rate_limit": wide,
                "budgets": [calls],
            }
        ],
        "models": [{"id": MODEL, "prices": prices}],
        "backends": [{"id": "static", "kind": "openai", "base_url": base_url}],
        "policies": [policy],
    }


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("control", True, _launch_control),
        Subject("router", True, _launch_router),
        Subject("bare", False, _launch_bare),
        # The control once more: how far its ratio is from 1 is how far to trust the others.
        Subject("twin", True, _launch_control),
    )
}
