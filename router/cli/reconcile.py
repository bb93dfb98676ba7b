"""``routerctl reconcile``: whether the same records stand everywhere, and which ones do not."""

from __future__ import annotations

import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from heapq import merge
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NamedTuple

import click

from router.cli import reconcile_report
from router.cli.reconcile_report import Answer
from router.cli.time_range import check_period, filter_options, period_options
from router.clock import Clock
from router.config.settings import Settings, load_settings

if TYPE_CHECKING:
    from router.agent.kafka.producer import KafkaConfig
    from router.cli.reconcile_sources import SpoolSource
    from router.exports.external_sort import ExternalSort
    from router.exports.reconciliation import Scope

_DAY_S: Final = 86_400.0
_CLIENT_MARGIN_S: Final = 3600.0
"""A client's clock and a call's length may put a call beyond the period's ends."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is compared."""

    settings: Settings
    scope: Scope
    kafka: KafkaConfig | None
    client: IO[str] | None
    client_format: str | None
    client_complete: bool
    limit: int


def _brokers(
    _ctx: click.Context, _parameter: click.Parameter, value: str | None
) -> tuple[str, ...] | None:
    if value is None:
        return None
    found = tuple(part.strip() for part in value.split(",") if part.strip())
    if not all(part.rpartition(":")[0] and part.rpartition(":")[2].isdecimal() for part in found):
        raise click.BadParameter("expected HOST:PORT, several separated by commas")
    return found


def _version(
    _ctx: click.Context, _parameter: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    parts = (value or "").split(".")
    if value is not None and not all(part.isdecimal() for part in parts):
        raise click.BadParameter("expected a version such as 2.3")
    return None if value is None else tuple(map(int, parts))


@click.command("reconcile")
@period_options("24 hours before --to")
@filter_options("key")
@click.option("--brokers", callback=_brokers, metavar="LIST", help="Default: KAFKA_BROKERS.")
@click.option("--topic", metavar="NAME", help="Default: KAFKA_USAGE_TOPIC.")
@click.option(
    "--kafka-api-version",
    callback=_version,
    metavar="VERSION",
    envvar="KAFKA_API_VERSION",
    help="Of brokers that cannot be asked for it, such as 2.3.",
)
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
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def reconcile(
    from_s: float | None,
    to_s: float | None,
    organization: str | None,
    key: str | None,
    brokers: tuple[str, ...] | None,
    topic: str | None,
    kafka_api_version: tuple[int, ...] | None,
    no_kafka: bool,
    client: IO[str] | None,
    client_format: str | None,
    client_complete: bool,
    limit: int,
    as_json: bool,
) -> None:
    """Compare the usage records of a period: spool, record store, Kafka, and a client's list.

    Changes nothing and may run beside everything. Records that are in the spool and not yet
    acknowledged are under way and no difference. Exits with 1 if there is a difference.
    """
    from router.exports.reconciliation import Scope

    settings = load_settings()
    to_s = Clock().now_s() if to_s is None else to_s
    from_s = to_s - _DAY_S if from_s is None else from_s
    check_period(from_s, to_s)
    margin_s = 0.0 if client is None else _CLIENT_MARGIN_S
    answer = _answer(
        Question(
            settings,
            Scope(from_s, to_s, organization, key, margin_s),
            None if no_kafka else _kafka(settings, brokers, topic, kafka_api_version),
            client,
            client_format,
            client_complete,
            limit,
        )
    )
    click.echo(reconcile_report.as_json(answer) if as_json else reconcile_report.as_text(answer))
    if not answer.agrees():
        raise click.exceptions.Exit(1)


def _kafka(
    settings: Settings,
    brokers: tuple[str, ...] | None,
    topic: str | None,
    api_version: tuple[int, ...] | None,
) -> KafkaConfig | None:
    from router.agent.kafka.producer import KafkaConfig

    brokers = settings.kafka_brokers if brokers is None else brokers
    if not brokers:
        return None
    return KafkaConfig(
        brokers, usage_topic=topic or settings.kafka_usage_topic, api_version=api_version
    )


def _answer(question: Question) -> Answer:
    """Compare; what keeps it from doing so ends without a traceback."""
    from router.agent.kafka.topic_reader import TopicUnreadable
    from router.exports.client_list import ClientFileError
    from router.store.store_errors import StoreError

    try:
        with tempfile.TemporaryDirectory(prefix="routerctl-") as place:
            return _compare(question, Path(place))
    except (StoreError, TopicUnreadable, ClientFileError) as error:
        raise click.ClickException(str(error)) from None
    except UnicodeDecodeError:
        raise click.ClickException("the client's file is not UTF-8") from None
    except OSError as error:
        raise click.ClickException(str(error)) from None


def _compare(question: Question, place: Path) -> Answer:
    from router.cli.reconcile_sources import SpoolSource, note_refusals
    from router.exports.client_list import match_client, record_line
    from router.exports.external_sort import ExternalSort
    from router.exports.reconciliation import KAFKA, STORE, judge

    sinks = (STORE,) if question.kafka is None else (STORE, KAFKA)
    with ExitStack() as stack:
        early, late, calls = (
            stack.enter_context(ExternalSort(place, name)) for name in ("early", "late", "calls")
        )
        _read_client(question, calls)
        spool = SpoolSource(question.settings, sinks)
        met = _look(question, spool, early, late)
        judgement = judge(
            merge(early, late),
            sinks,
            looks=met.looks,
            limit=question.limit,
            tell=None if question.client is None else lambda one: calls.add(record_line(one)),
        )
        for source, count in met.unreadable.items():
            judgement.tallies[source].unreadable += count
        client = None
        if question.client is not None:
            differences = judgement.differences
            client = match_client(calls, differences, is_complete=question.client_complete)
    note_refusals(question.settings, judgement.differences.first)
    return Answer(
        question.scope,
        judgement,
        client,
        spool.damaged,
        spool.missing_segments,
        spool.too_new,
        met.topic_begins_late,
    )


def _read_client(question: Question, calls: ExternalSort) -> None:
    from router.exports.client_list import client_line, read_client_lines

    if question.client is not None:
        for told in read_client_lines(question.client, question.client_format):
            calls.add(client_line(told))


class _Met(NamedTuple):
    """How the looking went."""

    looks: int
    unreadable: Counter[str]
    topic_begins_late: int


def _look(question: Question, spool: SpoolSource, early: ExternalSort, late: ExternalSort) -> _Met:
    """Meet all records; a second time where something is missing, see ``reconciliation``."""
    from router.agent.kafka.topic_reader import TopicReader
    from router.cli.reconcile_sources import (
        Sightings,
        look_into_store,
        look_into_topic,
        look_up,
    )
    from router.exports.reconciliation import missing_somewhere
    from router.store.record_store import RecordStore

    first = Sightings(question.scope, early)
    second = Sightings(question.scope, late, is_late=True, unreadable=first.unreadable)
    with ExitStack() as stack:
        topic = None
        if question.kafka is not None:
            topic = TopicReader(question.kafka, question.kafka.usage_topic)
            stack.enter_context(topic)
        store = stack.enter_context(RecordStore(question.settings.store_url, read_only=True))
        looks = 1
        spool.look(first)
        if topic is not None:
            look_into_topic(topic, first)
        look_into_store(store, first)
        if any(True for _ in missing_somewhere(early, spool.sinks)):
            looks = 2
            spool.look(second)
            if topic is not None:
                look_into_topic(topic, second)
            look_up(store, missing_somewhere(early, spool.sinks), second)
        return _Met(looks, first.unreadable, 0 if topic is None else topic.begins_late)
