"""``routerctl dev contracts``: the published description of the API, kept equal to the code."""

from __future__ import annotations

from pathlib import Path

import click

from router.api.openapi.contract_files import check as check_contracts
from router.api.openapi.contract_files import write as write_contracts
from router.cli.options import Noun
from router.cli.output import end_with_difference

_directory = click.argument(
    "directory", type=click.Path(file_okay=False, path_type=Path), default=Path("contracts")
)


@click.group("contracts", cls=Noun)
def contracts() -> None:
    """Write or check the OpenAPI document and the JSON Schemas."""


@contracts.command("write", example="routerctl dev contracts write")
@_directory
def write(directory: Path) -> None:
    """Write the contracts to DIRECTORY (default: contracts)."""
    write_contracts(directory)
    click.echo(f"wrote {directory}")


@contracts.command("check", example="routerctl dev contracts check")
@_directory
def check(directory: Path) -> None:
    """Report where DIRECTORY (default: contracts) differs from the code: exit code 1."""
    problems = check_contracts(directory)
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        end_with_difference()
    click.echo(f"{directory} is up to date")
