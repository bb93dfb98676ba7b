"""``routerctl agent``: the process that ships what workers have spooled."""

from __future__ import annotations

import gc
import signal
from typing import TYPE_CHECKING

import click

from router.cli.options import Command, kafka_api_version_option
from router.cli.output import finding_out
from router.cli.shipping.sink_choice import note_sinks
from router.cli.trail_pepper import trail_pepper
from router.config.settings import Settings, load_settings

_YOUNG_OBJECTS = 20_000

_REDIS_TIMEOUT_S = 1.0
"""Nobody waits for the agent; a slow answer is better than none."""

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router.agent.adoption.lease_settler import KeepCharges
    from router.agent.adoption.unsent_reservations import WindowsOf
    from router.agent.service import Agent, AgentConfig
    from router.limits.budgets.windows import WindowSpec
    from router.redis.client import RedisClient


@click.command("agent", cls=Command, example="ROUTER_AGENT=external routerctl agent")
@click.option(
    "--master-pid",
    type=click.IntRange(min=1),
    metavar="PID",
    envvar="ROUTER_MASTER_PID",
    help="End when this process has ended, once its workers have too.",
)
@kafka_api_version_option
@click.option(
    "--accept-sinks",
    is_flag=True,
    help="Ship to the configured sinks even if records wait for others, which never get them.",
)
def agent(
    master_pid: int | None, kafka_api_version: tuple[int, ...] | None, accept_sinks: bool
) -> None:
    """Ship usage records and audit events from the spool to the record store and to Kafka.

    One agent runs for each data directory; a second one exits at once. By default the gateway
    starts its own; with ROUTER_AGENT=external it is up to you. TERM waits for the workers to end,
    ships what they left, and exits; a second TERM does not wait for them.

    Refuses to start while records wait for a sink that its environment does not have, unless the
    gateway has started it.
    """
    from router.agent.lock import AgentLock
    from router.telemetry.logs import configure_logging

    settings = load_settings()
    lock = AgentLock(settings.data_dir)
    # Before the slow imports, so that nobody starts a second agent meanwhile.
    with finding_out():
        is_ours = lock.take()
    if not is_ours:
        # Started by a gateway, it writes where the gateway's log goes, and that is JSON. Workers
        # that start the agent at the same moment are no event worth a line.
        if master_pid is None:
            click.echo(f"another agent runs for {settings.data_dir}")
        return
    configure_logging(settings.log_level)
    # The gateway's own agent has the gateway's environment, so its settings are right.
    is_embedded = master_pid is not None and settings.agent == "embedded"
    try:
        from router.agent.service import Agent

        with finding_out():
            config = _config(settings, master_pid, kafka_api_version)
            note_sinks(settings, check=not (is_embedded or accept_sinks))
            running = Agent(config)
        _run(running)
    finally:
        lock.release()


def _config(
    settings: Settings, master_pid: int | None, kafka_api_version: tuple[int, ...] | None
) -> AgentConfig:
    from router.agent.kafka.producer import KafkaConfig
    from router.agent.service import AgentConfig
    from router.records.audit_chain import derive_audit_key

    kafka = KafkaConfig(
        brokers=settings.kafka_brokers,
        usage_topic=settings.kafka_usage_topic,
        audit_topic=settings.kafka_audit_topic,
        api_version=kafka_api_version,
    )
    return AgentConfig(
        data_dir=settings.data_dir,
        record_store_url=settings.store_url,
        audit_key=derive_audit_key(trail_pepper(settings, create=True)),
        kafka=kafka if settings.kafka_brokers else None,
        audit_retention_days=settings.audit_retention_days,
        writers_wait_s=settings.drain_timeout_s,
        drain_s=settings.agent_drain_s,
        master_pid=master_pid,
        open_redis=None if settings.budget_service_endpoint else lambda: _open_redis(settings),
        keep_charges=_keep_charges(settings),
        lease_s=settings.lease_s,
        windows_of=_windows_of(settings),
    )


def _windows_of(settings: Settings) -> WindowsOf:
    """The budgets of the document as it is when somebody asks."""
    from router.config.state.state_reader import StateReader
    from router.limits.configured import window_specs

    state = StateReader(settings.state_dir)

    def find(organization_id: str, key_id: str | None) -> Sequence[WindowSpec]:
        key = None if key_id is None else state.find_key_with_id(key_id)
        return window_specs(state.document().organizations[organization_id], key)

    return find


def _keep_charges(settings: Settings) -> KeepCharges | None:
    """Where workers look for charges that are for the budget service; ``None`` without one."""
    if settings.budget_service_endpoint is None:
        return None
    from router.limits.remote.charge_file import leave_charges
    from router.limits.remote.service_ability import service_dir

    directory = service_dir(settings.data_dir, settings.budget_service_endpoint)
    return lambda charges: leave_charges(directory, charges)


def _open_redis(settings: Settings) -> RedisClient:
    """A client of the Redis that holds the budgets; connects when first used."""
    from router.net.resolver import system_resolve
    from router.redis.client import RedisClient
    from router.redis.connection import ConnectionOptions
    from router.redis.embedded.embedded_redis import redis_address

    timeout_s = max(_REDIS_TIMEOUT_S, settings.redis_timeout_s)
    options = ConnectionOptions(timeout_s=timeout_s, resolve=system_resolve)
    return RedisClient(redis_address(settings), options)


def _run(running: Agent) -> None:
    # A batch is thousands of objects that die together and in no cycle. A search for cycles after
    # each 700 of them would take an eighth of the agent's time.
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 20)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: running.stop())
    running.run()
