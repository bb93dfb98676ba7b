"""Many calls at once in one busy event loop, all on connections that are still to be made.

``python busy_worker.py redis|budget|backend URL`` writes how many of the calls were
answered and what the others met, as JSON.
"""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402  (nothing may precede the patch)
import ssl  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections import Counter  # noqa: E402
from collections.abc import Callable  # noqa: E402
from urllib.parse import urlsplit  # noqa: E402

import gevent  # noqa: E402

from router.breaker import Unavailable  # noqa: E402
from router.limits.remote.budget_session import BudgetSession  # noqa: E402
from router.net.resolver import Resolver  # noqa: E402
from router.redis.address import parse_address  # noqa: E402
from router.redis.client import RedisClient  # noqa: E402
from router.redis.connection import ConnectionOptions  # noqa: E402
from router.redis.scripts import ScriptCall, script  # noqa: E402
from router.upstream.connection_pool import ConnectionPool  # noqa: E402
from router.upstream.transport import Deadlines, TransportError  # noqa: E402

CALLS = 32
BUSY_S = 0.004
"""Of CPU for each call before it asks and after it was answered: 128 ms for all of them, where
``TIMEOUT_S`` is allowed for one exchange. A cold worker needs about as much."""
TIMEOUT_S = 0.05


def redis_asked(url: str) -> Callable[[int], object]:
    options = ConnectionOptions(
        timeout_s=TIMEOUT_S, pipeline_commands=True, resolve=Resolver().resolve
    )
    client = RedisClient(parse_address(url), options)
    count = script(f"return redis.call('INCR', KEYS[1]) -- unknown to the server: {time.time()}")
    return lambda number: client.run(ScriptCall(count, [f"{{{number}}}"], []))


def budget_asked(url: str) -> Callable[[int], object]:
    session = BudgetSession(timeout_s=TIMEOUT_S, token=None, resolve=Resolver().resolve)
    return lambda _number: session.get(url)


def backend_asked(url: str) -> Callable[[int], object]:
    parts = urlsplit(url)
    pool = ConnectionPool(
        (parts.scheme, str(parts.hostname), parts.port or 0),
        size=CALLS, idle_s=10.0, tls=ssl.create_default_context(), resolver=Resolver(),
    )  # fmt: skip

    def ask(_number: int) -> None:
        deadline_s = time.monotonic() + 10.0
        pool.open(Deadlines(TIMEOUT_S, 10.0, 10.0, deadline_s)).close()

    return ask


def busy() -> None:
    end_s = time.perf_counter() + BUSY_S
    while time.perf_counter() < end_s:
        pass


def main() -> None:
    kind, url = sys.argv[1], sys.argv[2]
    asked = {"redis": redis_asked, "budget": budget_asked, "backend": backend_asked}[kind](url)
    met: Counter[str] = Counter()

    def call(number: int) -> None:
        busy()
        try:
            asked(number)
            met["answered"] += 1
        except (Unavailable, TransportError) as error:
            met[repr(error)] += 1
        busy()

    gevent.joinall([gevent.spawn(call, number) for number in range(CALLS)])
    sys.stdout.write(json.dumps(met))


main()
