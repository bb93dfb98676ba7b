"""The manual names every variable, every field and every option, with the defaults of the code."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from router.cli.main import cli
from router.config.loader import load_serialized
from router.config.parsing import parse_yaml
from router.config.schema.json_schema import document_json_schema
from router.config.settings import Settings, load_settings

DOCS = Path(__file__).resolve().parents[3] / "docs"
CONFIGURATION = (DOCS / "configuration.md").read_text(encoding="utf-8")
CLI = (DOCS / "cli.md").read_text(encoding="utf-8")
SCHEMA = document_json_schema()


def rows(text: str) -> dict[str, str]:
    """The tables of a page: first cell → second cell, without the code marks."""
    found = re.findall(r"^\| `([^`]+)` \| ([^|]*) \|", text, re.MULTILINE)
    return {name: default.strip().strip("`") for name, default in found}


def section(title: str) -> dict[str, str]:
    """The table below a heading that names a part of the document."""
    return rows(CONFIGURATION.split(f"### `{title}`\n")[1].split("\n#")[0])


def variables() -> dict[str, str]:
    """Each variable that the settings read → the field that it fills."""
    return {field.metadata["variable"]: field.name for field in fields(Settings)}


def test_every_setting_has_a_variable_of_its_own() -> None:
    """No variable fills two fields."""
    assert len(variables()) == len(fields(Settings))


def test_every_variable_is_documented() -> None:
    """No variable is missing from the page, and none is invented there."""
    documented = set(rows(CONFIGURATION.split("## Document")[0]))
    assert documented == set(variables())


@pytest.mark.parametrize("variable", sorted(set(variables()) - {"ROUTER_KEY_PEPPER"}))
def test_documented_defaults_are_true(variable: str) -> None:
    """Setting a variable to its documented default changes nothing."""
    default = rows(CONFIGURATION)[variable].replace("empty", "")
    if variable == "ROUTER_RECORD_STORE":  # depends on where the data directory is
        assert default == f"the file `{Path(Settings().store_url).name}` in the data directory"
    elif variable == "PROMETHEUS_MULTIPROC_DIR":
        assert Settings().metrics_dir is None
    else:
        assert load_settings({variable: default}) == Settings()


PARTS = {
    "organizations": "Organization",
    "keys": "Key",
    "rate_limit": "RateLimit",
    "budgets": "Budget",
    "reservation": "Reservation",
    "models": "Model",
    "input_bounds": "InputBounds",
    "prices": "Prices",
    "tiers": "PriceTier",
    "service_tiers": "ServiceTier",
    "backends": "Backend",
    "timeouts": "Timeouts",
    "policies": "Policy",
}


def test_every_section_is_documented() -> None:
    """Each part of the schema has its place on the page."""
    assert {*PARTS.values(), "Share"} == set(SCHEMA["$defs"])


@pytest.mark.parametrize(("title", "part"), PARTS.items())
def test_every_field_is_documented(title: str, part: str) -> None:
    """The table of a part names its fields, all and no others."""
    assert set(section(title)) == set(SCHEMA["$defs"][part]["properties"])


WORDS: dict[str, Any] = {"empty": ""}


@pytest.mark.parametrize(("title", "part"), PARTS.items())
def test_documented_field_defaults_are_true(title: str, part: str) -> None:
    """Required fields say so, and written defaults are the schema's."""
    schema = SCHEMA["$defs"][part]
    for name, written in section(title).items():
        required = name in schema.get("required", ()) or name == "hash"
        assert (written == "required") == required, name
        if not required and written not in ("", "none", "see below"):
            value = WORDS.get(written, yaml.safe_load(written))
            assert value == schema["properties"][name]["default"], name


def test_the_example_is_a_valid_document() -> None:
    """What the page shows can be applied."""
    example = CONFIGURATION.split("```yaml\n")[1].split("```")[0]
    loaded = load_serialized(parse_yaml(example).data)
    assert [backend.id for backend in loaded.backends] == ["openai", "local"]


def commands(group: click.Group, prefix: str = "") -> dict[str, click.Command]:
    """All commands below a group, by the words that call them."""
    found = {}
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found.update(commands(command, f"{prefix}{name} "))
        else:
            found[f"{prefix}{name}"] = command
    return found


@pytest.mark.parametrize("name", sorted(commands(cli)))
def test_every_command_is_documented(name: str) -> None:
    """Each command has a heading, and below it each of its options."""
    headings = [line for line in CLI.splitlines() if line.startswith("## ")]
    assert any(f"`{name} " in line or f"`{name}`" in line for line in headings)
    text = re.split(rf"^## .*`{name}\b.*$", CLI, flags=re.MULTILINE)[1].split("\n## ")[0]
    for parameter in commands(cli)[name].params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert f"`{parameter.opts[-1]}" in text, parameter.opts
