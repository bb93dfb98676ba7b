"""``routerctl``, the operator's command line: nouns, and verbs below them.

Importing a command's module may take longer than the command itself, so a command is imported when
it is called; the overviews of ``--help`` come from the tables below.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import click

from router.cli.options import warn_deprecated
from router.cli.output import DIFFERS, UNKNOWN, USAGE, CannotFindOut
from router.config.config_errors import (
    ConfigurationError,
    DocumentError,
    PepperError,
    StateUnavailable,
)
from router.config.settings import SettingsError
from router.errors import RouterError


class Entry(NamedTuple):
    """Where a command is and what it is for."""

    module: str
    """Below ``router``."""
    summary: str
    attribute: str = ""
    """Default: the command's name with underscores."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def __init__(self, *, entries: Mapping[str, Entry | LazyGroup], **settings: Any) -> None:
        super().__init__(**settings)
        self._entries = entries

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order of the table."""
        return list(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command; ``None`` when there is none of this name."""
        entry = self._entries.get(cmd_name)
        if entry is None or isinstance(entry, LazyGroup):
            return entry
        module = importlib.import_module(f"router.{entry.module}")
        attribute = entry.attribute or cmd_name.replace("-", "_")
        command: click.Command = getattr(module, attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the overview without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, entry.summary if isinstance(entry, Entry) else entry.short_help or "")
                    for name, entry in self._entries.items()
                ]
            )


COMMANDS: Final[Mapping[str, Entry | LazyGroup]] = {
    "serve": Entry("cli.serve_commands", "Run the gateway."),
    "demo": Entry("cli.serve_commands", "Run a router with two demo backends."),
    "agent": Entry("cli.shipping.agent_commands", "Ship records to the store and to Kafka."),
    "budget-service": Entry(
        "cli.budgets.budget_service_commands", "Run the reference budget service."
    ),
    "config": Entry("cli.config_commands", "Validate, compare, apply or export a document."),
    "prices": Entry(
        "cli.prices.prices_commands", "Compare prices with a catalogue, or import them."
    ),
    "keys": Entry("cli.keys_commands", "Create, list and revoke API keys."),
    "requests": LazyGroup(
        name="requests",
        short_help="Sign requests as a client does.",
        help="Sign requests as a client does, to try a call or to compare signatures.",
        entries={"sign": Entry("cli.requests_commands", "Sign a request.")},
    ),
    "budgets": Entry("cli.budgets.budgets_commands", "Show and correct budgets."),
    "limits": Entry("cli.limits_commands", "Show rate limits, and fill one up again."),
    "usage": Entry("cli.records.usage_commands", "Report or export what was used."),
    "audit": Entry("cli.records.audit_commands", "Export, verify, prune the audit trail."),
    "records": LazyGroup(
        name="records",
        short_help="Compare usage records of spool, store and Kafka.",
        help="Compare usage records wherever they are kept.",
        entries={
            "reconcile": Entry("cli.records.records_commands", "Name what is missing or differs.")
        },
    ),
    "spool": Entry("cli.shipping.spool_commands", "Check or ship records that wait."),
    "dev": LazyGroup(
        name="dev",
        short_help="Commands for developers of the router.",
        help="Commands for developers of the router and of its clients.",
        entries={
            "contracts": Entry("cli.dev_commands", "Write or check contracts/."),
            "mock-backend": Entry("demo.backend", "Run a mock backend.", "command"),
        },
    ),
}
OLD_NAMES: Final = {
    "check-config": "config validate",
    "apply": "config apply",
    "export": "config export",
    "sign": "requests sign",
    "reconcile": "records reconcile",
    "contracts": "dev contracts",
    "mock-backend": "dev mock-backend",
}
"""Names of the release before. They work for one more release."""


class OperatorError(click.ClickException):
    """Problems that an operator can fix, a line for each."""

    def __init__(self, lines: list[str], exit_code: int) -> None:
        super().__init__("\n".join(lines))
        self.exit_code = exit_code  # type: ignore[misc]

    def show(self, file: Any = None) -> None:
        """Print the lines to standard error."""
        click.echo(self.message, file=file, err=file is None)


class RootGroup(LazyGroup):
    """All commands; failures that an operator can fix end without a traceback."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, also by its name of the release before."""
        if args and args[0] in OLD_NAMES:
            new = OLD_NAMES[args[0]]
            warn_deprecated(f"routerctl {args[0]}", f"routerctl {new}")
            args = [*new.split(), *args[1:]]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except DocumentError as error:
            raise OperatorError(error.problems, DIFFERS) from None
        except (SettingsError, ConfigurationError) as error:
            code = DIFFERS
            if isinstance(error, SettingsError):
                code = USAGE
            elif isinstance(error, (PepperError, StateUnavailable)):
                code = UNKNOWN
            raise OperatorError([f"Error: {problem}" for problem in error.problems], code) from None
        except RouterError as error:
            raise CannotFindOut(error.message) from None


def _show_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from importlib import metadata

    try:
        version = metadata.version("api-router")
    except metadata.PackageNotFoundError:
        version = "unreleased"  # run from a checkout that was never installed
    click.echo(f"routerctl {version}")
    ctx.exit()


@click.group(
    cls=RootGroup,
    entries=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 fine; 1 differs, damaged or refused; 2 usage; 3 could not find out.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Operate an API Router.

    Settings come from the environment: ROUTER_DATA_DIR names the data directory (default: data).
    """


def main() -> None:
    """Run ``routerctl`` and end the process with the command's exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a name is no reason to fail after the work was done.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    cli(prog_name="routerctl")


if __name__ == "__main__":
    main()
