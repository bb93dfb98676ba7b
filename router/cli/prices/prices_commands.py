"""``routerctl prices``: import prices from the catalogue, compare with it, look into it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from router.cli.options import Noun, output_option
from router.cli.output import Column, end_with_difference, finding_out, print_rows
from router.cli.prices.catalogue import Catalogue, Listed
from router.cli.prices.document_text import CannotEdit, with_values
from router.cli.prices.matching import Change, Match, matches, planned, same
from router.config.document import LoadedDocument, Prices
from router.config.loader import load_file
from router.config.parsing import read_text
from router.config.schema.prices_schema import PricesSchema

Function = TypeVar("Function", bound=Callable[..., Any])
Row = dict[str, Any]

_SCHEMA: Final = PricesSchema()
_CHANGE_COLUMNS: Final = (
    Column("change"),
    Column("model"),
    Column("backend"),
    Column("field"),
    Column("old"),
    Column("new"),
    Column("source"),
)
_PRICE_COLUMNS: Final = (
    Column("provider"),
    Column("model"),
    Column("field"),
    Column("price"),
)
_document = click.argument(
    "document", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="DOCUMENT"
)


def _day(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> date | None:
    try:
        return None if value is None else date.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no day such as 2026-11-09") from None


_on = click.option(
    "--on", callback=_day, metavar="DAY", help="Prices in force on this day; default: today."
)


def _choice(command: Function) -> Function:
    model = click.option(
        "--model", "models", multiple=True, metavar="ID", help="Only this model; may be repeated."
    )
    provider = click.option(
        "--provider",
        metavar="ID",
        help="The price list of this provider for the models, whatever their backends are.",
    )
    return model(provider(_on(command)))


@click.group("prices", cls=Noun)
def prices() -> None:
    """Compare a document's prices with a catalogue, or fill them from it.

    The catalogue is the snapshot in the package genai-prices; nothing is asked over the network.
    Remarks say of which day it is. Install it as api-router[prices] (Python 3.11 or newer).

    A model at a backend is looked up at the provider that has the backend's address, else at the
    provider its kind is named after, by the backend's own name for the model, the model's id and
    its aliases. What is free at a backend in a private network stays so.
    """


@prices.command("import", example="routerctl prices import router.yaml")
@_document
@_choice
@output_option()
def import_prices(
    document: Path, models: tuple[str, ...], provider: str | None, on: date | None, output: str
) -> None:
    """Write the catalogue's prices into DOCUMENT, and show what has changed.

    A model gets them where the catalogue has it at all its backends, a backend its own where they
    differ. The rest of the file stays as it is; 'config apply' makes it the configuration.
    """
    loaded = _load(document)
    found = _found(loaded, Catalogue(on), models, provider)
    changes = [change for change in planned(found) if change.old != change.new]
    if changes:
        _write(document, loaded, changes)
    print_rows(output, _CHANGE_COLUMNS, [*_rows(found, changes)], empty="no changes")


@prices.command("diff", example="routerctl prices diff router.yaml")
@_document
@_choice
@output_option()
def diff(
    document: Path, models: tuple[str, ...], provider: str | None, on: date | None, output: str
) -> None:
    """Show where DOCUMENT's prices differ from the catalogue's; change nothing.

    Exits with 1 if they differ. A row for each field; models that the catalogue does not have are
    'skipped' and are no difference.
    """
    found = _found(_load(document), Catalogue(on), models, provider)
    changes = [change for change in planned(found) if not same(change.old, change.new)]
    print_rows(output, _CHANGE_COLUMNS, [*_rows(found, changes)], empty="no differences")
    if changes:
        end_with_difference()


@prices.command("show", example="routerctl prices show gpt-4o --provider openai")
@click.argument("model", metavar="MODEL")
@click.option("--provider", metavar="ID", help="Only this provider's price list.")
@_on
@output_option()
def show(model: str, provider: str | None, on: date | None, output: str) -> None:
    """Show what the catalogue has for MODEL, a name as its providers write it.

    The fields are those of 'prices' in a document.
    """
    catalogue = Catalogue(on)
    _say_what_it_is(catalogue)
    known = catalogue.providers() if provider is None else [_known(catalogue, provider)]
    found = [listed for one in known if (listed := catalogue.find(one, [model]))]
    # A provider that resells another's models is found with the other's entry, too.
    entries = {listed.name: listed for listed in found}.values()
    for listed in entries:
        _say_notes(listed)
    rows = [
        {"provider": listed.provider, "model": listed.model, "field": field, "price": price}
        for listed in entries
        for field, price in _flat(_SCHEMA.dump(listed.prices))
    ]
    print_rows(output, _PRICE_COLUMNS, rows, empty=f"the catalogue has no {model}")


def _load(document: Path) -> LoadedDocument:
    # Whether its demo secrets may be used, and their hashes, are of no matter to prices.
    return load_file(document, demo=True, pepper=b"")


def _found(
    loaded: LoadedDocument, catalogue: Catalogue, models: tuple[str, ...], provider: str | None
) -> list[Match]:
    """What was chosen, looked up; says what a document cannot hold."""
    _say_what_it_is(catalogue)
    unknown = {*models} - {name for model in loaded.models for name in (model.id, *model.aliases)}
    if unknown:
        raise click.BadParameter(
            f"the document has no model {', '.join(sorted(unknown))}", param_hint="--model"
        )
    chosen = None if provider is None else _known(catalogue, provider)
    found = [*matches(loaded, catalogue, models=frozenset(models), provider=chosen)]
    for listed in {match.listed.name: match.listed for match in found if match.listed}.values():
        _say_notes(listed)
    return found


def _known(catalogue: Catalogue, provider: str) -> str:
    if provider not in catalogue.providers():
        known = ", ".join(catalogue.providers())
        raise click.BadParameter(f"{provider!r} is none of {known}", param_hint="--provider")
    return provider


def _say_what_it_is(catalogue: Catalogue) -> None:
    click.echo(f"catalogue: {catalogue}", err=True)


def _say_notes(listed: Listed) -> None:
    for note in listed.notes:
        click.echo(f"{listed.name}: {note}", err=True)


def _rows(found: list[Match], changes: list[Change]) -> Iterator[Row]:
    """A row for each field that changes, and one for each model at a backend that was not found."""
    for change in changes:
        match = change.match
        source = "" if match.listed is None else f"{match.listed.name}, {match.reason}"
        facts = {"model": match.model.id, "backend": change.backend_id}
        verb = "added" if change.old is None else "changed"
        for field, old, new in _differences(change.old, change.new):
            yield {
                "change": verb,
                **facts,
                "field": field,
                "old": old,
                "new": new,
                "source": source,
            }
    for match in found:
        if match.listed is None:
            backend = None if match.backend is None else match.backend.id
            nothing = dict.fromkeys(("field", "old", "new"))
            facts = {"model": match.model.id, "backend": backend}
            yield {"change": "skipped", **facts, **nothing, "source": match.reason}


def _differences(old: Prices | None, new: Prices) -> Iterator[tuple[str, str | None, str | None]]:
    before = {} if old is None else dict(_flat(_SCHEMA.dump(old)))
    after = dict(_flat(_SCHEMA.dump(new)))
    for field in [*after, *[name for name in before if name not in after]]:
        if before.get(field) != after.get(field):
            yield field, before.get(field), after.get(field)


def _flat(dumped: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """``tiers[200000].input_usd_per_million_tokens`` and the like, each with its text."""
    for name, value in dumped.items():
        if isinstance(value, dict):
            for tier, prices_of_tier in value.items():
                yield from _flat(prices_of_tier, f"{prefix}{name}.{tier}.")
        elif isinstance(value, list):
            for size in value:
                above = size["above_input_tokens"]
                rest = {field: price for field, price in size.items() if price != above}
                yield from _flat(rest, f"{prefix}{name}[{above}].")
        elif value is not None:
            yield f"{prefix}{name}", value


def _write(document: Path, loaded: LoadedDocument, changes: list[Change]) -> None:
    """Put the prices into the file, all or none of them."""
    values = [(_place(loaded, change), _SCHEMA.dump(change.new)) for change in changes]
    file = document.resolve()
    with finding_out(CannotEdit):
        text = with_values(read_text(file), values)
        descriptor, name = tempfile.mkstemp(dir=file.parent, suffix=file.suffix)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as new:
                new.write(text)
            shutil.copymode(file, name)
            _load(Path(name))
            Path(name).replace(file)
        finally:
            Path(name).unlink(missing_ok=True)


def _place(loaded: LoadedDocument, change: Change) -> list[str | int]:
    model_id = change.match.model.id
    if change.backend_id is None:
        return ["models", [model.id for model in loaded.models].index(model_id), "prices"]
    backends = [backend.id for backend in loaded.backends]
    return ["backends", backends.index(change.backend_id), "prices", model_id]
