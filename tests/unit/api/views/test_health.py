"""Health, readiness, and the metrics that only the operations listener shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import prometheus_client.values
import pytest
from prometheus_client.mmap_dict import MmapedDict

from router.agent.status import Shipping, SinkState
from router.app import expose_metrics
from router.errors import NotConfigured
from router.readiness.components import StateHistory
from router.readiness.watch import Observation
from router.spool.writer import SpoolStatus
from router.telemetry import slot_values
from router.telemetry.metrics import use_worker_slot
from tests.fakes.router_stand import RouterStand, World

HEALTH = ("/v1/status/healthz", "/healthz")
READINESS = ("/v1/status/readyz", "/readyz")
OPS = "8081"
"""Port of the ops listener."""


class StubbornState:
    """A store in whatever condition a test wants; it counts who asks."""

    def __init__(
        self, document: Any = None, fault: str | None = None, *, keys_fit: bool | None = True
    ) -> None:
        self._document = document
        self._keys_fit = keys_fit
        self.fault = fault
        self.asked = 0

    def document(self) -> Any:
        self.asked += 1
        if self._document is None:
            raise NotConfigured
        return self._document

    def pepper_matches(self, fingerprint: str) -> bool | None:
        return self._keys_fit


@pytest.mark.parametrize("path", HEALTH)
def test_health_says_what_is_running(stand: RouterStand, path: str) -> None:
    """H1: no key is needed and no backend is asked."""
    reply = stand.call("GET", path, key=None, SERVER_PORT=OPS)
    assert reply.status == 200
    assert reply.json["status"] == "ok"
    assert reply.json["build"] == "tested"
    assert reply.json["version"]
    assert stand.received() == 0


@pytest.mark.parametrize("path", [*HEALTH, *READINESS])
@pytest.mark.parametrize("key", [None, "main"])
def test_a_stranger_learns_one_word(stand: RouterStand, path: str, key: str | None) -> None:
    """On the public listener: no version, no part, no size, whoever asks."""
    reply = stand.call("GET", path, key=key)
    assert reply.json == {"status": "ok" if path in HEALTH else "degraded"}


@pytest.mark.parametrize("path", HEALTH)
def test_health_touches_nothing(world: World, path: str) -> None:
    """H2: it answers with every store away."""
    state = StubbornState()
    stand = world.stand(state=state)
    assert stand.call("GET", path, key=None, SERVER_PORT=OPS).status == 200
    assert state.asked == 0


class Seen:
    """What a look at the agent and the store has shown."""

    def __init__(
        self,
        *sinks: tuple[str, str | None],
        is_running: bool = True,
        store_error: str | None = None,
        silent_s: float | None = None,
    ) -> None:
        states = {name: SinkState(0, 0, failing) for name, failing in sinks}
        shipping = Shipping(is_running, sinks=states, silent_s=silent_s)
        self.observed: Observation | None = Observation(shipping, store_error)

    @classmethod
    def nothing(cls) -> Seen:
        """Before the first look."""
        made = cls()
        made.observed = None
        return made


@pytest.mark.parametrize("path", READINESS)
def test_ready(world: World, path: str) -> None:
    """With the revision that it serves with, and with the size of the spool."""
    reply = world.stand(watch=Seen(("store", None), ("log", None))).call(
        "GET", path, key=None, SERVER_PORT=OPS
    )
    assert reply.status == 200
    assert reply.json["status"] == "ready"
    checks = reply.json["checks"]
    assert checks["spool"].pop("bytes_used") > 0
    assert checks == {
        "state": {"status": "ok", "revision": 1},
        "spool": {"status": "ok", "bytes_limit": world.settings.spool_max_bytes},
        "agent": {"status": "ok"},
        "record_store": {"status": "ok"},
    }


@pytest.mark.parametrize(
    ("seen", "component", "detail"),
    [
        (Seen.nothing(), "agent", "not looked at yet"),
        (Seen.nothing(), "record_store", "not looked at yet"),
        (Seen(is_running=False), "agent", "no agent runs"),
        (
            Seen(("store", "no news"), silent_s=7.3),
            "agent",
            "the agent has not reported for 7 s",
        ),
        (
            Seen(("store", None), ("kafka", "no broker")),
            "agent",
            "not delivered to: kafka",
        ),
        (
            Seen(store_error="the record store is damaged"),
            "record_store",
            "the record store is damaged",
        ),
    ],
)
def test_who_takes_the_records_on_may_be_away(
    world: World, seen: Seen, component: str, detail: str
) -> None:
    """H2: calls are served without them, so the router is ready; the reply says what is away."""
    reply = world.stand(watch=seen).call("GET", "/readyz", key=None, SERVER_PORT=OPS)
    assert (reply.status, reply.json["status"]) == (200, "degraded")
    assert reply.json["checks"][component] == {"status": "degraded", "detail": detail}


@pytest.mark.parametrize("reason", ["disk_full", "disk_error", "disk_slow", "spool_full"])
def test_not_ready_while_calls_cannot_be_recorded(world: World, reason: str) -> None:
    """P3, H2: what the policy refuses is not ready, and readiness says why."""
    stand = world.stand(watch=Seen())
    stand.spool.reason = reason
    reply = stand.call("GET", "/readyz", key=None, SERVER_PORT=OPS)
    assert (reply.status, reply.json["status"]) == (503, "not_ready")
    spool = reply.json["checks"]["spool"]
    assert (spool["status"], spool["detail"]) == ("failed", reason)
    stand.spool.reason = None
    assert stand.call("GET", "/readyz", key=None, SERVER_PORT=OPS).status == 200


class _FillingSpool:
    """A spool of any size, with anything held in memory."""

    def __init__(self, total_bytes: int, buffered_bytes: int) -> None:
        self._figures = SpoolStatus(None, total_bytes, 1000, 0, buffered_bytes, 0, 0, 0)

    def check(self) -> None:
        """It can be written."""

    def status(self) -> SpoolStatus:
        return self._figures


@pytest.mark.parametrize(
    ("total_bytes", "buffered_bytes", "status"),
    [(500, 0, "ok"), (501, 0, "degraded"), (0, 1, "degraded")],
)
def test_a_spool_that_fills_is_shown_early(
    world: World, total_bytes: int, buffered_bytes: int, status: str
) -> None:
    """Half full, or with records in memory only: still ready, and time to look."""
    stand = world.stand(watch=Seen())
    stand.services.recorder.spool = _FillingSpool(total_bytes, buffered_bytes)  # type: ignore[assignment]
    reply = stand.call("GET", "/readyz", key=None, SERVER_PORT=OPS)
    assert reply.status == 200
    assert reply.json["checks"]["spool"]["status"] == status


@pytest.mark.parametrize("path", READINESS)
def test_degraded_is_ready(world: World, path: str) -> None:
    """H2: the last good configuration serves on, and the reply says what is wrong."""
    document = world.services.state.document()
    stand = world.stand(state=StubbornState(document, "revision 2 cannot be used"), watch=Seen())
    reply = stand.call("GET", path, key=None, SERVER_PORT=OPS)
    assert (reply.status, reply.json["status"]) == (200, "degraded")
    assert reply.json["checks"]["state"] == {
        "status": "degraded",
        "revision": 1,
        "detail": "revision 2 cannot be used",
    }


@pytest.mark.parametrize("path", READINESS)
def test_not_ready_before_anything_was_applied(world: World, path: str) -> None:
    """D6: the router starts, and says that it has nothing to serve with."""
    reply = world.stand(state=StubbornState()).call("GET", path, key=None, SERVER_PORT=OPS)
    assert (reply.status, reply.json["status"]) == (503, "not_ready")
    assert reply.json["checks"]["state"]["status"] == "failed"


@pytest.mark.parametrize("path", [*HEALTH, *READINESS, "/v1/models", "/v1/models/gpt-4o"])
def test_head_is_get_without_a_body(stand: RouterStand, path: str) -> None:
    """Load balancers like it."""
    reply = stand.call("HEAD", path)
    assert (reply.status, reply.body) == (200, b"")
    assert reply.header("Content-Length") == str(len(stand.call("GET", path).body))


def components(stand: RouterStand) -> dict[str, Any]:
    """What readiness says now of each component."""
    shown: dict[str, Any] = stand.call("GET", "/readyz", key=None, SERVER_PORT=OPS).json[
        "components"
    ]
    return shown


def test_every_component_is_shown_with_its_date(world: World) -> None:
    """State and since when; the facts of configuration and records stand beside them."""
    stand = world.stand(watch=Seen(), history=StateHistory(world.clock))
    shown = components(stand)
    began = {"state": "ok", "since": "2027-01-15T08:00:00Z"}
    assert shown["records"].pop("bytes_used") > 0
    assert shown == {
        "configuration": {**began, "revision": 1},
        "backends": began,
        "limits": began,
        "records": {**began, "bytes_limit": world.settings.spool_max_bytes},
        "agent": began,
        "store": began,
    }


def test_a_component_says_what_happens_meanwhile(world: World) -> None:
    """H2: in words, with the time at which it began; the old ``checks`` keep their short words."""
    stand = world.stand(watch=Seen(), history=StateHistory(world.clock))
    components(stand)
    world.clock.advance(60)
    stand.spool.reason = "disk_full"
    reply = stand.call("GET", "/readyz", key=None, SERVER_PORT=OPS)
    records = reply.json["components"]["records"]
    assert records["state"] == "unavailable"
    assert records["since"] == "2027-01-15T08:01:00Z"
    assert records["detail"] == "calls cannot be recorded, the disk is full; every call is refused"
    assert reply.json["checks"]["spool"]["detail"] == "disk_full"


def test_a_heartbeat_dates_a_state_that_nobody_asks_for(world: World) -> None:
    """Else ``since`` would be the time of the first look at it."""
    stand = world.stand(watch=_Ticking(), history=StateHistory(world.clock))
    stand.services.heartbeat()
    world.clock.advance(60)
    assert components(stand)["limits"]["since"] == "2027-01-15T08:00:00Z"


def test_backends_without_credential_are_counted(world: World) -> None:
    """H2: the others serve on; nobody is told their names."""
    watch = Seen()
    references = {
        backend.credential for backend in world.services.state.document().backends.values()
    }
    assert watch.observed is not None
    watch.observed = replace(
        watch.observed, missing_credentials=frozenset(filter(None, references))
    )
    reply = world.stand(watch=watch).call("GET", "/readyz", key=None, SERVER_PORT=OPS)
    backends = reply.json["components"]["backends"]
    assert backends["state"] == "degraded"
    assert "have no credential; calls " in backends["detail"]
    assert (reply.status, reply.json["status"]) == (200, "degraded")


# --- metrics --------------------------------------------------------------------------------


@pytest.fixture
def metered(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RouterStand]:
    """A stand that counts in files, as workers do, and shows them."""
    files: list[MmapedDict] = []

    class File(MmapedDict):
        def __init__(self, *place: Any) -> None:
            super().__init__(*place)
            files.append(self)

    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(slot_values, "MmapedDict", File)
    monkeypatch.setattr(prometheus_client.values, "ValueClass", prometheus_client.values.ValueClass)
    use_worker_slot(0, tmp_path)
    stand = world.stand()
    expose_metrics(stand.app)
    yield stand
    for file in files:
        file.close()


def test_metrics_are_shown_to_operators(metered: RouterStand) -> None:
    """All families of this worker, with what was counted."""
    metered.chat()
    reply = metered.call("GET", "/metrics", key=None, SERVER_PORT="8081")
    assert reply.status == 200
    text = reply.body.decode()
    assert 'api_router_requests_total{endpoint="openai.chat_completions"' in text
    assert "api_router_cost_nanousd_total 45000.0" in text
    assert metered.keys["main"] not in text


@pytest.mark.parametrize("headers", [{}, {"Host": "127.0.0.1:8081"}, {"X-Forwarded-Port": "8081"}])
def test_metrics_are_hidden_from_the_public(metered: RouterStand, headers: dict[str, str]) -> None:
    """Z2: on the public listener there is no such path, whatever a client says of itself."""
    reply = metered.call("GET", "/metrics", headers=headers)
    assert (reply.status, reply.json["code"]) == (404, "NOT_FOUND")


def test_everything_public_is_on_the_operations_listener_too(metered: RouterStand) -> None:
    """A probe of the host may use either."""
    assert metered.call("GET", "/readyz", key=None, SERVER_PORT="8081").status == 200


def test_what_is_true_now_is_published(stand: RouterStand) -> None:
    """In flight and revision are gauges, set from plain numbers."""
    stand.services.metrics.running = 3
    stand.services.metrics.publish(7)
    assert stand.metric("requests_in_flight") == 3.0
    assert stand.metric("config_revision") == 7.0


def test_records_are_published_with_every_heartbeat(world: World) -> None:
    """What the spool holds and what was refused, and what was seen of the agent."""
    stand = world.stand(watch=_Ticking(("store", "it is away")))
    stand.chat()
    stand.spool.reason = "disk_full"
    assert stand.chat().status == 503
    stand.services.heartbeat()
    assert stand.metric("spool_limit_bytes") == world.settings.spool_max_bytes
    assert stand.metric("spool_bytes") > 0
    assert stand.metric("records_total") >= 2.0
    assert stand.metric("records_refused_total", reason="disk_full") >= 1.0
    assert stand.metric("agent_up") == 1.0
    assert stand.metric("agent_sink_failing", sink="store") == 1.0


def test_a_silent_agent_is_not_up(world: World) -> None:
    """On a full disk its last report used to count as long as its process lived."""
    stand = world.stand(watch=_Ticking(("store", "no news"), silent_s=6.0))
    stand.services.heartbeat()
    assert stand.metric("agent_up") == 0.0
    assert stand.metric("agent_sink_failing", sink="store") == 1.0


class _Ticking(Seen):
    def tick(self) -> None:
        """It has looked already."""


def test_keys_of_another_pepper_are_noticed(world: World) -> None:
    """Every key would be refused as unknown; readiness used to say that all is well."""
    document = world.services.state.document()
    stand = world.stand(state=StubbornState(document, keys_fit=False))
    reply = stand.call("GET", "/readyz", SERVER_PORT=OPS)
    assert reply.status == 503
    assert "another pepper" in reply.json["checks"]["state"]["detail"]
