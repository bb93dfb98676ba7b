"""The commands' common language: examples, options that mean the same everywhere, former names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])

_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}")


def warn_deprecated(old: str, new: str) -> None:
    """Say on standard error, in one line, what replaces a former name."""
    click.echo(f"'{old}' is deprecated and will be removed: use '{new}'", err=True)


class Command(click.Command):
    """A command with an example in its help, whose former options still work.

    Each use of a former option names its successor on standard error. ``old_options`` maps them,
    alone or with a value: ``{"--format": "--output", "--json": "--output json"}``. One that is also
    a present option is replaced only where its value is not one of the present choices.
    """

    def __init__(
        self,
        *args: Any,
        example: str = "",
        old_options: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        if example:
            self.epilog = f"\b\nExample:\n  {example}"
        self._old_options = {"--output text": "--output table", **(old_options or {})}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what the present spelling of ``args`` would be."""
        present: list[str] = []
        waiting = list(args)
        while waiting and waiting[0] != "--":
            name, equals, value = waiting.pop(0).partition("=")
            if not equals and waiting:
                value = waiting[0]
            with_value = f"{name} {value}"
            if with_value in self._old_options:
                old, new = with_value, self._old_options[with_value]
                waiting = waiting if equals else waiting[1:]
            elif name in self._old_options and value not in self._choices(name):
                old, new = name, self._old_options[name]
                waiting = [value, *waiting] if equals else waiting
            else:
                present.append(name + equals + (value if equals else ""))
                continue
            warn_deprecated(old, new)
            present += new.split()
        return super().parse_args(ctx, [*present, *waiting])

    def _choices(self, name: str) -> Sequence[str]:
        for option in self.params:
            if name in option.opts and isinstance(option.type, click.Choice):
                return option.type.choices
        return ()


class Noun(click.Group):
    """A group of verbs."""

    command_class = Command


def output_option(*formats: str) -> Callable[[Function], Function]:
    """``-o/--output``, one of ``formats`` (default: table, json, csv), the first by default.

    The command gets it as ``output``.
    """
    return click.option(
        "-o",
        "--output",
        type=click.Choice(formats or ("table", "json", "csv")),
        default=(formats or ("table",))[0],
        show_default=True,
        help="The format.",
    )


def file_option(purpose: str, *, required: bool = False) -> Callable[[Function], Function]:
    """``--file``, a path to write; the command gets it as ``file``, a ``Path`` or ``None``."""
    return click.option(
        "--file",
        type=click.Path(dir_okay=False, path_type=Path),
        required=required,
        metavar="PATH",
        help=purpose,
    )


def moment(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    """Seconds since the epoch of an RFC 3339 moment, or of a day, which begins at 00:00 UTC."""
    from router.config.schema.notation import parse_timestamp

    if value is None:
        return None
    try:
        return parse_timestamp(f"{value}T00:00:00Z" if _DAY.fullmatch(value) else value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is neither a day nor a moment such as 2026-11-01T00:00:00Z"
        ) from None


def period_options(default_from: str) -> Callable[[Function], Function]:
    """Both options, as ``from_s`` and ``to_s``; ``None`` where they are not given."""

    def decorate(command: Function) -> Function:
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


def filter_options(*names: str) -> Callable[[Function], Function]:
    """``--organization`` and the named others, each one value; see ``FILTERS`` of the store."""

    def decorate(command: Function) -> Function:
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
    help="Of brokers that do not report their version, such as 2.3.",
)
