"""Options that mean the same to every command that has them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}")


def moment(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    """Seconds since the epoch of an RFC 3339 moment, or of a day, which begins at 00:00 UTC."""
    from router.config.schema.fields import parse_timestamp

    if value is None:
        return None
    try:
        return parse_timestamp(f"{value}T00:00:00Z" if _DAY.fullmatch(value) else value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is neither a day nor a moment such as 2026-11-01T00:00:00Z"
        ) from None


def period_options(default_from: str) -> Callable[[Command], Command]:
    """Both options, as ``from_s`` and ``to_s``; ``None`` where they are not given."""

    def decorate(command: Command) -> Command:
        upto = click.option(
            "--to",
            "to_s",
            callback=moment,
            metavar="TIME",
            help="Calls that began before it; default: now.",
        )
        since = click.option(
            "--from",
            "from_s",
            callback=moment,
            metavar="TIME",
            help="Calls that began at or after this moment, or on or after this day (UTC);"
            f" default: {default_from}.",
        )
        return since(upto(command))

    return decorate


def check_period(from_s: float | None, to_s: float | None) -> None:
    """Raises ``click.BadParameter`` for a period that ends before it begins."""
    if from_s is not None and to_s is not None and from_s > to_s:
        raise click.BadParameter("lies after --to", param_hint="--from")


def filter_options(*names: str) -> Callable[[Command], Command]:
    """``--organization`` and the named others, each one value; see ``FILTERS`` of the store."""

    def decorate(command: Command) -> Command:
        for name in reversed(("organization", *names)):
            command = click.option(f"--{name}", metavar="ID", help=f"Of this {name} only.")(command)
        return command

    return decorate


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


kafka_api_version_option = click.option(
    "--kafka-api-version",
    callback=_version,
    metavar="VERSION",
    envvar="KAFKA_API_VERSION",
    help="Of brokers that cannot be asked for it, such as 2.3.",
)
