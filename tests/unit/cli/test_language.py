"""One language for all commands: nouns and verbs, options, examples, exit codes, former names."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from router.cli.main import OLD_NAMES, cli
from router.spool.frames import segment_name

Run = Callable[..., Result]

DOCUMENT = """
version: 1
organizations:
- {id: acme, name: Acme, budgets: [{name: spend, unit: usd, period: total}]}
models: [{id: gpt-4o}]
backends: [{id: a, kind: openai, base_url: "http://127.0.0.1:9101/v1"}]
policies: [{organization: "*", model: "*", backends: [{id: a}]}]
"""
RUNNING = ["serve", "demo", "agent", "budget-service"]


def walk(group: click.Group, *words: str) -> Iterator[tuple[str, click.Command]]:
    """All commands below a group with the words that call them."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from walk(command, *words, name)
        else:
            yield " ".join([*words, name]), command


COMMANDS = dict(walk(cli))
CASES = sorted(COMMANDS)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Call ``routerctl`` in a directory with ``router.yaml`` and the data directory ``data``."""
    (tmp_path / "router.yaml").write_text(DOCUMENT)
    (tmp_path / "other.yaml").write_text(DOCUMENT.replace("Acme", "Other"))
    (tmp_path / "bad.yaml").write_text("version: 1\nmore: 1\n")

    def call(line: str, **environ: str) -> Result:
        env = {
            "ROUTER_DATA_DIR": str(tmp_path / "data"),
            "ROUTER_KEY_PEPPER": None,
            "ROUTER_DEMO": None,
            "ROUTER_RECORD_STORE": "",
            "KAFKA_BROKERS": "",
            "RATE_LIMIT_REDIS_ADDR": f"unix://{tmp_path}/no.sock",
            **environ,
        }
        arguments = shlex.split(line.replace("@", f"{tmp_path}/"))
        return CliRunner().invoke(cli, arguments, env=env, prog_name="routerctl")

    return call


def test_commands_are_nouns_with_verbs() -> None:
    """Only what runs until it is ended stands alone; what developers need stands apart."""
    assert [name for name in COMMANDS if " " not in name] == RUNNING
    assert {name.split()[0] for name in COMMANDS if " " in name} == {
        "config", "prices", "keys", "requests", "budgets", "limits", "usage", "audit", "records",
        "spool", "dev",
    }  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_command_shows_an_example(name: str) -> None:
    """The help has a command line of this very command."""
    result = CliRunner().invoke(cli, [*name.split(), "--help"], prog_name="routerctl")
    assert result.exit_code == 0
    _, found, shown = result.output.partition("Example:")
    assert found
    assert f"routerctl {name}" in shown


@pytest.mark.parametrize("name", CASES)
def test_an_output_is_a_format_and_a_file_a_file(name: str) -> None:
    """No option means one thing here and another thing there."""
    for parameter in COMMANDS[name].params:
        if not isinstance(parameter, click.Option) or parameter.hidden:
            continue
        if "--output" in parameter.opts:
            assert parameter.opts == ["-o", "--output"]
            assert isinstance(parameter.type, click.Choice)
        elif "--file" in parameter.opts:
            assert isinstance(parameter.type, click.Path)
        assert {"--format", "--json"}.isdisjoint(parameter.opts)


@pytest.mark.parametrize("old", OLD_NAMES)
def test_a_former_name_still_works_and_says_the_new_one(old: str) -> None:
    """It leads to the new command, and the overview does not show it."""
    result = CliRunner().invoke(cli, [old, "--help"], prog_name="routerctl")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: routerctl {OLD_NAMES[old]}")
    assert result.stderr == (
        f"'routerctl {old}' is deprecated and will be removed: use 'routerctl {OLD_NAMES[old]}'\n"
    )
    assert f"  {old} " not in CliRunner().invoke(cli, ["--help"]).output


def test_a_former_command_line_does_what_it_did(run: Run) -> None:
    """With its former options, too."""
    assert run("apply @router.yaml").stdout.endswith("revision 1\n")
    exported = run("export --format json")
    assert (exported.exit_code, exported.stdout[:1]) == (0, "{")
    assert len(exported.stderr.splitlines()) == 2
    assert run("keys list --output text").stdout == "no keys\n"
    dry = run("apply --dry-run @other.yaml")
    assert (dry.exit_code, dry.stdout.splitlines()[-1]) == (0, "dry run, nothing was written")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("config validate @router.yaml", 0),
        ("config validate @bad.yaml", 1),
        ("config validate @none.yaml", 2),
        ("config diff @router.yaml", 0),
        ("config diff @other.yaml", 1),
        ("config diff @bad.yaml", 1),
        ("config apply @bad.yaml", 1),
        ("config apply @other.yaml", 0),
        ("config export", 0),
        ("config export -o csv", 2),
        ("keys list", 0),
        ("keys revoke nobody", 1),
        ("keys signing-secret nobody", 1),
        ("keys create --organization nobody", 1),
        ("keys create", 2),
        ("requests sign --path /v1", 2),
        ("budgets show nobody", 1),
        ("budgets list", 3),
        ("usage report", 3),
        ("usage export", 2),
        ("audit verify", 3),
        ("audit verify @none", 2),
        ("records reconcile", 3),
        ("records reconcile --from 2026-02-01 --to 2026-01-01", 2),
        ("spool status", 0),
        ("spool verify", 0),
        ("spool drain", 0),
        ("dev contracts check @none", 1),
        ("nonsense", 2),
        ("keys nonsense", 2),
    ],
)
def test_exit_codes(run: Run, line: str, code: int) -> None:
    """0 is fine, 1 differs or is damaged or refused, 2 is wrong usage, 3 could not find out."""
    assert run("config apply @router.yaml").exit_code == 0
    assert run(line).exit_code == code


@pytest.mark.parametrize("line", ["config export", "keys list", "spool status", "budgets list"])
def test_what_cannot_be_read_ends_with_three(run: Run, tmp_path: Path, line: str) -> None:
    """A data directory that is a file has no answer for anybody."""
    (tmp_path / "data").mkdir()
    for name in ("state", "spool"):
        (tmp_path / "data" / name).write_text("in the way")
    result = run(line)
    assert (result.exit_code, result.stderr.startswith("Error: ")) == (3, True)


@pytest.mark.parametrize("line", ["config export", "keys list", "serve", "spool status"])
def test_a_wrong_variable_is_wrong_usage(run: Run, line: str) -> None:
    """It is told apart from a difference, so that a check does not report one."""
    assert run(line, ROUTER_BIND="x").exit_code == 2


def test_a_damaged_spool_ends_with_one(run: Run, tmp_path: Path) -> None:
    """Damage is an answer."""
    writer = tmp_path / "data" / "spool" / "w"
    writer.mkdir(parents=True)
    (writer / "lock").touch()
    (writer / segment_name(1)).write_bytes(b"junk that is no frame")
    assert run("spool verify").exit_code == 1


def test_a_difference_is_shown_and_nothing_changes(run: Run) -> None:
    """`config diff` prints what `config apply` would change, in every format."""
    run("config apply @router.yaml")
    change = '~ organizations acme\n    name: "Acme" -> "Other"\n'
    assert run("config diff @other.yaml").stdout == change
    assert run("config diff @other.yaml -o csv").stdout.splitlines()[1] == (
        "changed,organizations,acme,name,Acme,Other"
    )
    assert '"new": "Other"' in run("config diff @other.yaml -o json").stdout
    same = run("config diff @router.yaml")
    assert (same.exit_code, same.stdout) == (0, "no changes\n")
