"""What a decision about limits takes against a Redis on this host.

    python -m tests.benchmarks.decisions [--decisions N]

One decision after the other over one connection, through the router's own client: the rates of a
call (two buckets), and all that a call asks before it is served (two buckets, its id, two budgets).
The control is the same server's answer to PING through redis-py, which decides nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import redis

from router.limits.budgets.ledger import Ledger
from router.limits.budgets.maintenance import LedgerMaintenance
from router.limits.budgets.windows import Amounts, Reservation, WindowSpec
from router.limits.idempotency.entries import Entry, Idempotency
from router.limits.idempotency.nonces import Nonces
from router.limits.outcome import Request
from router.limits.rates.decision import BucketSpec
from router.limits.rates.limiter import RateLimiter
from router.limits.redis_exchange import RedisExchange
from router.redis.address import parse_address
from router.redis.client import RedisClient
from router.redis.connection import ConnectionOptions
from tests.benchmarks import processes
from tests.benchmarks.processes import Child
from tests.benchmarks.report import percentile

_TTL_MS = 60_000
_WARM_UP = 200

BUCKETS = (
    BucketSpec("org-requests", (), 1_000_000.0, 1_000_000),
    BucketSpec("key-requests", ("bench",), 1_000_000.0, 1_000_000),
)
WINDOWS = (
    WindowSpec("spend", "usd", "monthly", 9_000_000 * 10**9),
    WindowSpec("calls", "requests", "daily", 10**12, scope="key", subject="bench"),
)

Decide = Callable[[], object]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; 2 where there is no redis-server."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.decisions", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--decisions", type=int, default=20_000, help="of each kind (20000)")
    count = parser.parse_args(arguments).decisions
    from tests.benchmarks.redis import PROGRAM

    if PROGRAM is None:
        print("NO REDIS-SERVER ON PATH: nothing to measure", file=sys.stderr)
        return 2
    cores = processes.plan_cores()
    processes.pin_current_process(cores.gateway)
    with (
        tempfile.TemporaryDirectory(prefix="router-benchmark-") as directory,
        processes.stopped_at_the_end() as children,
    ):
        server = Child(
            "redis",
            ["-m", "tests.benchmarks.redis", directory],
            cores=cores.others,
            log=Path(directory) / "redis.log",
            piped=True,
        )
        children.append(server)
        assert server.popen.stdout is not None
        port = int(server.popen.stdout.readline())
        _print(_measured(port, count))
    return 0


def _measured(port: int, count: int) -> dict[str, list[int]]:
    """Nanoseconds of each decision, ascending."""
    control = redis.Redis(port=port, protocol=2)
    _await(control)
    client = RedisClient(parse_address(f"redis://127.0.0.1:{port}"), ConnectionOptions(timeout_s=1))
    LedgerMaintenance(client).rebuild("bench", WINDOWS, lambda _lost: 0)
    kinds: dict[str, Decide] = {
        "control: PING": control.ping,
        "rates": _rates(client),
        "rates, id, budgets": _all(client),
    }
    try:
        return {name: _timed(decide, count) for name, decide in kinds.items()}
    finally:
        client.close()
        control.close()


def _rates(client: RedisClient) -> Decide:
    limiter = RateLimiter(client)

    def decide() -> None:
        assert limiter.take("bench", BUCKETS).allowed

    return decide


def _all(client: RedisClient) -> Decide:
    limiter = RateLimiter(client)
    exchange = RedisExchange(client, Ledger(client), Idempotency(client), Nonces(client))

    def decide() -> None:
        lease = str(uuid.uuid4())
        plan = limiter.plan("take", "bench", BUCKETS)
        request = Request("bench", lease, WINDOWS, Amounts(1_000, 10), _TTL_MS)
        rated, outcome = exchange.ask(plan.call, request, Entry("bench", lease, b"", lease))
        assert limiter.read(plan, rated).allowed
        assert isinstance(outcome, Reservation)

    return decide


def _timed(decide: Decide, count: int) -> list[int]:
    for _ in range(_WARM_UP):
        decide()
    taken = []
    for _ in range(count):
        began_ns = time.perf_counter_ns()
        decide()
        taken.append(time.perf_counter_ns() - began_ns)
    return sorted(taken)


def _await(control: redis.Redis) -> None:
    give_up_s = time.monotonic() + 10
    while True:
        try:
            control.ping()
            return
        except redis.ConnectionError:
            if time.monotonic() > give_up_s:
                raise
            time.sleep(0.02)


def _print(measured: dict[str, list[int]]) -> None:
    [control, *_] = measured.values()
    print(f"{'p50 us':>8} {'p99 us':>8} {'max us':>8} {'p50 / control':>14}  decision")
    for name, taken in measured.items():
        p50, p99 = percentile(taken, 0.5), percentile(taken, 0.99)
        ratio = p50 / percentile(control, 0.5)
        print(
            f"{p50 / 1e3:8.0f} {p99 / 1e3:8.0f} {taken[-1] / 1e3:8.0f} {ratio:14.2f}  {name}",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
