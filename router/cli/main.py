"""``routerctl``, the operator's command line.

Importing a command's module may take longer than the command itself, so a command is imported when
it is called; the overview of ``--help`` comes from the table below.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, Final, NamedTuple

import click

from router.config.faults import ConfigurationError, DocumentError
from router.config.settings import SettingsError
from router.errors import RouterError


class Entry(NamedTuple):
    """Where a command is and what it is for."""

    module: str
    attribute: str
    summary: str


COMMANDS: Final = {
    "serve": Entry("router.cli.serve", "serve", "Run the gateway."),
    "demo": Entry("router.cli.serve", "demo", "Run a gateway with two mock backends."),
    "agent": Entry("router.cli.agent_commands", "agent", "Ship records to the store and to Kafka."),
    "check-config": Entry(
        "router.cli.config", "check_config", "Report every mistake of a document."
    ),
    "apply": Entry("router.cli.config", "apply", "Make a document the configuration."),
    "export": Entry("router.cli.config", "export", "Print the configuration."),
    "keys": Entry("router.cli.keys", "keys", "Create, list and revoke API keys."),
    "sign": Entry("router.cli.sign", "sign", "Sign a request."),
    "spool": Entry("router.cli.spool", "spool", "Look at waiting records, or ship them."),
    "usage": Entry("router.cli.usage", "usage", "Export what was used, or report it."),
    "reconcile": Entry(
        "router.cli.reconcile", "reconcile", "Compare the records of spool, store and Kafka."
    ),
    "audit": Entry("router.cli.audit", "audit", "Export or verify the audit trail."),
    "budgets": Entry("router.cli.budgets", "budgets", "Show what budgets hold, and correct them."),
    "budget-service": Entry(
        "router.cli.budget_service_command", "budget_service", "Run the reference budget service."
    ),
    "contracts": Entry("router.cli.contracts", "contracts", "Write or check contracts/."),
    "mock-backend": Entry("router.mock_backend.command", "command", "Run a backend for tests."),
}


class OperatorError(click.ClickException):
    """What went wrong, a line for each problem; the exit code is 1."""

    def __init__(self, problems: list[str], prefix: str = "Error: ") -> None:
        super().__init__("\n".join(problems))
        self._lines = [f"{prefix}{problem}" for problem in problems]

    def show(self, file: Any = None) -> None:
        """Print the lines to standard error."""
        for line in self._lines:
            click.echo(line, file=file, err=file is None)


class LazyGroup(click.Group):
    """Commands by name; failures that an operator can mend end without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command; ``None`` when there is none of this name."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = getattr(importlib.import_module(entry.module), entry.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the overview without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except DocumentError as error:
            raise OperatorError(error.problems, prefix="") from None
        except (ConfigurationError, SettingsError) as error:
            raise OperatorError(error.problems) from None
        except RouterError as error:
            raise OperatorError([error.message]) from None


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


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
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
    """Run ``routerctl``; exit code 1 for a failure, 2 for a wrong command line."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a name is no reason to fail after the work was done.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    cli(prog_name="routerctl")


if __name__ == "__main__":
    main()
