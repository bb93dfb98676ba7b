"""``routerctl records reconcile``: whether the same records stand everywhere, and which do not."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, closing
from typing import IO, TYPE_CHECKING, Any, Final

import click

from router.cli import output as out
from router.cli.options import (
    Command,
    check_period,
    filter_options,
    kafka_api_version_option,
    output_option,
    period_options,
)
from router.cli.records import reconcile_report
from router.cli.records.reconcile_report import Answer
from router.clock import Clock
from router.config.settings import Settings, load_settings

if TYPE_CHECKING:
    from router.agent.kafka.producer import KafkaConfig
    from router.cli.records.reconcile_sources import SpoolSource
    from router.exports.comparison import Figures, Scope
    from router.exports.reconciliation import Reconciliation

_DAY_S: Final = 86_400.0
_CLIENT_MARGIN_S: Final = 3600.0
"""A client's clock and a call's length may put a call beyond the period's ends."""


def _brokers(
    _ctx: click.Context, _parameter: click.Parameter, value: str | None
) -> tuple[str, ...] | None:
    if value is None:
        return None
    found = tuple(part.strip() for part in value.split(",") if part.strip())
    if not all(part.rpartition(":")[0] and part.rpartition(":")[2].isdecimal() for part in found):
        raise click.BadParameter("expected HOST:PORT, several separated by commas")
    return found


@click.command(
    "reconcile",
    cls=Command,
    example="routerctl records reconcile --from 2027-01-15 --to 2027-01-16 --client answers.jsonl",
    old_options={"--json": "--output json"},
)
@period_options("24 hours before --to")
@filter_options("key")
@click.option("--brokers", callback=_brokers, metavar="LIST", help="Default: KAFKA_BROKERS.")
@click.option("--topic", metavar="NAME", help="Default: KAFKA_USAGE_TOPIC.")
@kafka_api_version_option
@click.option("--no-kafka", is_flag=True, help="Leave Kafka out.")
@click.option(
    "--client",
    type=click.File("r", encoding="utf-8"),
    metavar="FILE",
    help="What a client saw answered: JSON Lines, CSV, or a request id on each line; - is stdin.",
)
@click.option(
    "--client-format",
    type=click.Choice(["jsonl", "csv", "lines"]),
    help="Default: what the file begins like.",
)
@click.option(
    "--client-complete",
    is_flag=True,
    help="The file has every answer of the period: records that it lacks are differences.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    metavar="N",
    help="Show so many differences; all of them are counted.",
)
@output_option("table", "json")
def reconcile(
    from_s: float | None,
    to_s: float | None,
    organization: str | None,
    key: str | None,
    client: IO[str] | None,
    client_format: str | None,
    client_complete: bool,
    limit: int,
    output: str,
    **kafka: Any,
) -> None:
    """Compare the usage records of a period: spool, record store, Kafka, and a client's list.

    Changes nothing and may run beside everything. Records that are in the spool and not yet
    acknowledged are under way and no difference. Exits with 1 if there is a difference, with 3 if
    the store, Kafka or the client's file cannot be read.
    """
    from router.agent.kafka.topic_reader import TopicUnreadable
    from router.exports.client_list import ClientFileError, read_answers
    from router.exports.comparison import Scope
    from router.exports.reconciliation import DATABASE_ERRORS
    from router.store.failures import StoreError

    settings = load_settings()
    to_s = Clock().now_s() if to_s is None else to_s
    from_s = to_s - _DAY_S if from_s is None else from_s
    check_period(from_s, to_s)
    margin_s = 0.0 if client is None else _CLIENT_MARGIN_S
    scope = Scope(from_s, to_s, organization, key, margin_s)
    config = _kafka(settings, **kafka)
    with out.finding_out(StoreError, TopicUnreadable, ClientFileError, *DATABASE_ERRORS):
        answers = None if client is None else read_answers(client, client_format)
        answer = _compare(
            settings, scope, config, answers, is_complete=client_complete, limit=limit
        )
    reconcile_report.print_answer(answer, output)
    if not answer.agrees():
        out.end_with_difference()


def _compare(
    settings: Settings,
    scope: Scope,
    kafka: KafkaConfig | None,
    answers: Iterable[tuple[str, Figures]] | None,
    *,
    is_complete: bool,
    limit: int,
) -> Answer:
    """Observe every source, and the client's ``answers`` where there are some."""
    from router.cli.records.reconcile_sources import SpoolSource, note_refusals
    from router.exports.client_list import match_client
    from router.exports.comparison import KAFKA, STORE
    from router.exports.reconciliation import Reconciliation

    sinks = (STORE,) if kafka is None else (STORE, KAFKA)
    spool = SpoolSource(settings, sinks)
    with closing(Reconciliation(scope, sinks)) as records:
        if answers is not None:
            records.add_answers(answers)
        topic_begins_late = _observe(records, spool, kafka)
        found = records.compare(limit)
        listed = None
        if answers is not None:
            listed = match_client(records.by_request(), found.differences, is_complete=is_complete)
    note_refusals(settings, found.differences.first)
    damage = (spool.damaged, spool.missing_segments, spool.too_new)
    return Answer(scope, found, listed, *damage, topic_begins_late)


def _kafka(
    settings: Settings,
    brokers: tuple[str, ...] | None,
    topic: str | None,
    kafka_api_version: tuple[int, ...] | None,
    no_kafka: bool,
) -> KafkaConfig | None:
    from router.agent.kafka.producer import KafkaConfig

    brokers = settings.kafka_brokers if brokers is None else brokers
    if no_kafka or not brokers:
        return None
    topic = topic or settings.kafka_usage_topic
    return KafkaConfig(brokers, usage_topic=topic, api_version=kafka_api_version)


def _observe(records: Reconciliation, spool: SpoolSource, kafka: KafkaConfig | None) -> int:
    """Observe all records; a second time where something is missing, see ``reconciliation``.

    Returns how many partitions of the topic have lost their oldest messages.
    """
    from router.agent.kafka.topic_reader import TopicReader
    from router.cli.records.reconcile_sources import look_up_missing, read_store, read_topic
    from router.store.record_store import RecordStore

    with ExitStack() as stack:
        topic = None
        if kafka is not None:
            topic = stack.enter_context(TopicReader(kafka, kafka.usage_topic))
        url = spool.settings.store_url
        store = stack.enter_context(RecordStore(url, read_only=True))
        spool.read(records)
        if topic is not None:
            read_topic(topic, records)
        read_store(store, records)
        if any(records.missing_records()):
            records.begin_second_pass()
            spool.read(records)
            if topic is not None:
                read_topic(topic, records)
            look_up_missing(store, records)
        return 0 if topic is None else topic.begins_late
