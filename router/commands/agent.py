"""``routerctl agent``: the process that ships what workers have spooled."""

from __future__ import annotations

import gc
import signal
from typing import TYPE_CHECKING

import click

from router.config.settings import Settings, load_settings

_YOUNG_OBJECTS = 20_000

if TYPE_CHECKING:
    from router.agent.agent import AgentConfig


def _version(
    _ctx: click.Context, _parameter: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """``2.3`` → ``(2, 3)``."""
    if value is None:
        return None
    parts = value.split(".")
    if not all(part.isdecimal() for part in parts):
        raise click.BadParameter("expected a version such as 2.3")
    return tuple(map(int, parts))


@click.command("agent")
@click.option(
    "--master-pid",
    type=click.IntRange(min=1),
    metavar="PID",
    envvar="ROUTER_MASTER_PID",
    help="End when this process has ended, once its workers have too.",
)
@click.option(
    "--kafka-api-version",
    callback=_version,
    metavar="VERSION",
    envvar="KAFKA_API_VERSION",
    help="Of brokers that cannot be asked for it, such as 2.3.",
)
def agent(master_pid: int | None, kafka_api_version: tuple[int, ...] | None) -> None:
    """Ship usage records and audit events from the spool to the record store and to Kafka.

    One agent runs for each data directory; a second one exits at once. By default the gateway
    starts its own; with ROUTER_AGENT=external it is up to you. TERM waits for the workers to end,
    ships what they left, and exits; a second TERM does not wait for them.
    """
    from router.agent.lock import AgentLock
    from router.telemetry.logs import configure_logging

    settings = load_settings()
    lock = AgentLock(settings.data_dir)
    # Before the slow imports, so that nobody starts a second agent meanwhile.
    if not lock.take():
        # Started by a gateway, it writes where the gateway's log goes, and that is JSON. Workers
        # that look after the agent at the same moment are nothing to tell anybody of.
        if master_pid is None:
            click.echo(f"another agent runs for {settings.data_dir}")
        return
    configure_logging(settings.log_level)
    try:
        _run(_config(settings, master_pid, kafka_api_version))
    finally:
        lock.release()


def _config(
    settings: Settings, master_pid: int | None, kafka_api_version: tuple[int, ...] | None
) -> AgentConfig:
    from router.accounting.audit import derive_audit_key
    from router.agent.agent import AgentConfig
    from router.agent.kafka_producer import KafkaConfig
    from router.config.pepper import load_pepper

    kafka = KafkaConfig(
        brokers=settings.kafka_brokers,
        usage_topic=settings.kafka_usage_topic,
        audit_topic=settings.kafka_audit_topic,
        api_version=kafka_api_version,
    )
    return AgentConfig(
        data_dir=settings.data_dir,
        record_store_url=settings.store_url,
        audit_key=derive_audit_key(load_pepper(settings, create=True)),
        kafka=kafka if settings.kafka_brokers else None,
        audit_retention_days=settings.audit_retention_days,
        writers_wait_s=settings.drain_timeout_s,
        drain_s=settings.agent_drain_s,
        master_pid=master_pid,
    )


def _run(config: AgentConfig) -> None:
    from router.agent.agent import Agent

    # A batch is thousands of objects that die together and in no cycle: to look for cycles after
    # each 700 of them takes an eighth of all that the agent does.
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 20)
    running = Agent(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: running.stop())
    running.run()
