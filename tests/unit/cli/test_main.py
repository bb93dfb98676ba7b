"""``routerctl`` as an operator meets it: what it prints, how it ends, how fast it starts."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner, Result

from router.auth.keys import derive_signing_secret, hash_key, is_well_formed
from router.auth.signatures import SignedParts, verify
from router.cli.main import COMMANDS, cli
from router.config.pepper import load_pepper
from router.config.settings import Settings
from router.config.state.state_reader import StateReader
from tests.unit.cli.operator_stand import succeeded

Run = Callable[..., Result]

DOCUMENT = """
version: 1
organizations: [{id: acme, name: Acme}]
models:
- id: gpt-4o
  prices: {input_usd_per_million_tokens: "2.50", output_usd_per_million_tokens: "10.00"}
backends: [{id: a, kind: openai, base_url: "http://127.0.0.1:9101/v1"}]
policies: [{organization: "*", model: "*", backends: [{id: a}]}]
"""


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def run(data_dir: Path) -> Run:
    """Call ``routerctl`` with its own data directory; keywords are variables."""

    def call(*arguments: str, stdin: str | bytes | None = None, **environ: str) -> Result:
        names = {"ROUTER_DEMO": None, "ROUTER_KEY_PEPPER": None, "ROUTER_SIGNING_SECRET": None}
        env = {**names, "ROUTER_DATA_DIR": str(data_dir), **environ}
        return CliRunner().invoke(cli, arguments, input=stdin, env=env, prog_name="routerctl")

    return call


@pytest.fixture
def document(tmp_path: Path) -> Path:
    file = tmp_path / "document.yaml"
    file.write_text(DOCUMENT, encoding="utf-8")
    return file


@pytest.fixture
def applied(run: Run, document: Path) -> Run:
    assert run("config", "apply", str(document)).exit_code == 0
    return run


@pytest.fixture
def demo_file() -> str:
    return str(resources.files("router.demo").joinpath("demo.yaml"))


def failed(result: Result, code: int = 1) -> str:
    """What a failed command said to standard error, without a traceback."""
    assert result.exit_code == code
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    return result.stderr


# --- the frame ------------------------------------------------------------------------------


def test_the_overview_names_every_command(run: Run) -> None:
    """The help lists all commands in the table's order, each with a sentence."""
    listed = re.findall(r"^  ([a-z][a-z-]+)  +[A-Z].*\.$", succeeded(run("--help")), re.MULTILINE)
    assert listed == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists(name: str) -> None:
    """The table leads to a command that goes by the name that it is listed under."""
    command = cli.get_command(click.Context(cli), name)
    assert isinstance(command, click.Command)
    assert command.name == name


def test_starting_is_quick() -> None:
    """The overview imports nothing that a command may need and the overview does not."""
    heavy = ["marshmallow", "lmdb", "yaml", "flask", "gevent", "requests", "gunicorn", "apispec"]
    program = (
        "import sys; from click.testing import CliRunner; from router.cli.main import cli;"
        "assert CliRunner().invoke(cli, ['--help']).exit_code == 0;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_the_version_is_shown(run: Run) -> None:
    """One line with the name and the version."""
    assert re.fullmatch(r"routerctl \S+\n", succeeded(run("--version")))


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["config", "apply"], ["keys", "create"], ["requests", "sign"]]
)
def test_a_wrong_command_line_ends_with_two(run: Run, arguments: list[str]) -> None:
    """Misuse is told apart from failure."""
    assert "Usage: routerctl" in failed(run(*arguments), code=2)


def test_wrong_variables_are_all_named(run: Run) -> None:
    """Mistakes in the environment come one per line, without a traceback."""
    lines = failed(run("keys", "list", ROUTER_BIND="x", WEB_CONCURRENCY="0"), code=2).splitlines()
    assert lines == [
        "Error: ROUTER_BIND: expected HOST:PORT, got 'x'",
        "Error: WEB_CONCURRENCY: must be between 1 and 256, got 0",
    ]


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_nothing_starts_with_wrong_variables(run: Run, command: str) -> None:
    """gunicorn would wrap the same mistake in a traceback."""
    assert failed(run(command, ROUTER_BIND="x"), code=2).startswith("Error: ROUTER_BIND: ")


# --- documents ------------------------------------------------------------------------------


def test_a_valid_document_is_summed_up(run: Run, document: Path, data_dir: Path) -> None:
    """A check says what it read and leaves nothing behind."""
    assert succeeded(run("config", "validate", str(document))) == (
        f"{document} is valid: 1 organization, 0 keys, 1 model, 1 backend, 1 policy\n"
    )
    assert not data_dir.exists()


def test_mistakes_come_one_per_line(run: Run, document: Path) -> None:
    """All problems go to standard error as bare lines, and the exit code is 1."""
    document.write_text(DOCUMENT.replace("kind: openai", "kind: x, y: z"), encoding="utf-8")
    assert failed(run("config", "validate", str(document))).splitlines() == [
        "backends[0].kind: must be one of openai, anthropic",
        "backends[0].y: unknown field",
    ]


@pytest.mark.parametrize(("total_s", "is_refused"), [(899, False), (900, True), (1200, True)])
def test_a_call_must_not_outlive_its_lease(
    run: Run, document: Path, total_s: int, is_refused: bool
) -> None:
    """P6: its reservation would be free while it runs. Only a warning where it is applied."""
    backend = "kind: openai, "
    assert backend in DOCUMENT
    text = DOCUMENT.replace(backend, f"{backend}timeouts: {{total_s: {total_s}}}, ")
    document.write_text(text, encoding="utf-8")
    check = run("config", "validate", str(document))
    assert check.exit_code == int(is_refused), check.output
    assert ("timeouts.total_s: a call may take" in check.stderr) == is_refused
    applied = run("config", "apply", str(document))
    assert applied.exit_code == 0
    assert ("warning: backends." in applied.stderr) == is_refused
    assert succeeded(run("config", "validate", str(document), ROUTER_LEASE="2000"))


def test_a_check_of_the_demo_makes_no_pepper(run: Run, demo_file: str, data_dir: Path) -> None:
    """Demo secrets can be checked before there is anything to hash them with."""
    assert "3 keys," in succeeded(run("config", "validate", demo_file, ROUTER_DEMO="1"))
    assert not data_dir.exists()
    assert "only in demo mode" in failed(run("config", "validate", demo_file))


def test_applying_shows_what_is_new(run: Run, document: Path) -> None:
    """The first apply lists every entity with its values, and no colours without a terminal."""
    lines = succeeded(run("config", "apply", str(document))).splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        "+ organizations acme",
        "+ models gpt-4o",
        "+ backends a",
        "+ policies */*",
        f"applied {document}, revision 1",
    ]
    assert '    base_url: "http://127.0.0.1:9101/v1"' in lines


def test_applying_shows_what_changes(applied: Run, document: Path, data_dir: Path) -> None:
    """A change is shown with its old and its new value, and becomes a revision."""
    document.write_text(DOCUMENT.replace("2.50", "2.75"), encoding="utf-8")
    change = '~ models gpt-4o\n    prices.input_usd_per_million_tokens: "2.50" -> "2.75"\n'
    dry = succeeded(applied("config", "apply", "--dry-run", str(document)))
    assert dry == change + "dry run, nothing was written\n"
    assert StateReader(data_dir / "state").revision() == 1
    assert succeeded(applied("config", "apply", str(document))) == (
        change + f"applied {document}, revision 2\n"
    )
    assert StateReader(data_dir / "state").revision() == 2


def test_applying_the_same_is_no_change(applied: Run, document: Path) -> None:
    """Equal documents say so and make no revision."""
    assert succeeded(applied("config", "apply", str(document))) == "no changes, revision 1\n"
    assert succeeded(applied("config", "apply", "--dry-run", str(document))) == "no changes\n"


def test_a_bad_document_changes_nothing(applied: Run, document: Path) -> None:
    """A document is applied whole or not at all (C2)."""
    before = applied("config", "export").stdout
    document.write_text(DOCUMENT.replace("acme", "other") + "x: 1\n", encoding="utf-8")
    assert failed(applied("config", "apply", str(document))) == "x: unknown field\n"
    assert applied("config", "export").stdout == before


def test_an_apply_may_prune_and_reactivate(applied: Run, document: Path, tmp_path: Path) -> None:
    """Both need to be asked for, and the refusal names the flag."""
    succeeded(applied("keys", "create", "--organization", "acme", "--id", "made"))
    exported = tmp_path / "exported.yaml"
    exported.write_text(applied("config", "export").stdout, encoding="utf-8")
    succeeded(applied("keys", "revoke", "made"))
    assert "--reactivate-keys" in failed(applied("config", "apply", str(exported)))
    shown = succeeded(applied("config", "apply", "--reactivate-keys", str(exported)))
    assert '    status: "revoked" -> "active"' in shown
    assert "- keys made" in succeeded(applied("config", "apply", "--prune-keys", str(document)))
    assert json.loads(applied("keys", "list", "--output", "json").stdout) == []


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_an_export_can_be_applied(applied: Run, tmp_path: Path, form: str) -> None:
    """What was printed is the configuration, keys included, in a form that apply takes."""
    succeeded(applied("keys", "create", "--organization", "acme", "--expires-in", "90d"))
    text = succeeded(applied("config", "export", "--output", form))
    assert yaml.safe_load(text)["models"][0]["id"] == "gpt-4o"
    file = tmp_path / f"exported.{form}"
    file.write_text(text, encoding="utf-8")
    assert succeeded(applied("config", "apply", str(file))) == "no changes, revision 1\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["config", "export"],
        ["keys", "list"],
        ["keys", "revoke", "x"],
        ["keys", "signing-secret", "x"],
    ],
)
def test_before_the_first_apply_there_is_nothing(
    run: Run, arguments: list[str], data_dir: Path
) -> None:
    """The operator is told what to do first."""
    assert failed(run(*arguments), code=3) == (
        "Error: nothing has been applied yet: run 'routerctl config apply FILE' first\n"
    )
    assert not data_dir.exists()


# --- keys -----------------------------------------------------------------------------------


def created(run: Run, *arguments: str) -> dict[str, Any]:
    text = succeeded(
        run("keys", "create", "--organization", "acme", "--output", "json", *arguments)
    )
    found: dict[str, Any] = json.loads(text)
    return found


def test_a_key_is_shown_once(applied: Run, data_dir: Path) -> None:
    """The printed key is the one whose hash is stored, and its secret the one that verifies."""
    new = created(applied, "--env", "test", "--name", "ci", "--model", "gpt-4o")
    pepper = load_pepper(Settings(data_dir=data_dir), create=False)
    key_hash = hash_key(new["key"], pepper)
    record = StateReader(data_dir / "state").find_key(key_hash)
    assert new["key"].startswith("rtr_test_")
    assert is_well_formed(new["key"])
    assert (record.id, record.name, record.models) == (new["id"], "ci", {"gpt-4o"})
    assert new["signing_secret"] == derive_signing_secret(pepper, new["id"], key_hash.hex())
    assert "shown only now" in new["notice"]


def test_a_key_is_nowhere_but_on_the_screen(applied: Run, data_dir: Path) -> None:
    """Neither the store nor any other command knows the key or its secret (K6, P17)."""
    new = created(applied)
    files = b"".join(path.read_bytes() for path in data_dir.rglob("*") if path.is_file())
    shown = "".join(
        succeeded(applied(*arguments))
        for arguments in (
            ["keys", "list"],
            ["keys", "list", "--output", "json"],
            ["config", "export"],
        )
    )
    for secret in (new["key"], new["signing_secret"]):
        assert secret.encode() not in files
        assert secret not in shown


def test_the_text_says_that_it_is_shown_once(applied: Run) -> None:
    """The notice goes to standard error, out of the way of a script."""
    result = applied("keys", "create", "--organization", "acme", "--id", "made")
    lines = dict(re.findall(r"^(.+?): +(.+)$", succeeded(result), re.MULTILINE))
    assert (lines["id"], lines["organization"], lines["expires"]) == ("made", "acme", "never")
    assert lines["key"].startswith("rtr_live_")
    assert lines["signing secret"].startswith("rsk_")
    assert "shown only now and cannot be shown again" in result.stderr


def test_a_key_has_all_scopes_unless_told(applied: Run) -> None:
    """Scopes are a closed set, chosen one by one."""
    assert created(applied)["scopes"] == ["inference", "models:read"]
    assert created(applied, "--scope", "models:read")["scopes"] == ["models:read"]
    error = failed(applied("keys", "create", "--organization", "acme", "--scope", "x"), code=2)
    assert "'inference', 'models:read'" in error


def test_a_key_may_expire(applied: Run) -> None:
    """Both ways of saying when are understood, one at a time."""
    assert created(applied, "--expires-at", "2999-01-31T02:00:00+02:00")["expires_at"] == (
        "2999-01-31T00:00:00Z"
    )
    assert created(applied, "--expires-in", "2w")["expires_at"].endswith("Z")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--expires-in", "90"], "expected a number with m, h, d or w"),
        (["--expires-in", "0d"], "expected a number with m, h, d or w"),
        (["--expires-at", "2999-01-31"], "must be a time with its zone"),
        (["--expires-at", "2001-01-31T00:00:00Z"], "lies in the past"),
        (["--expires-at", "2999-01-31T00:00:00Z", "--expires-in", "1d"], "exclude each other"),
        (["--env", "Live!"], "a key's environment is"),
    ],
)
def test_wrong_words_about_a_key_are_misuse(
    applied: Run, arguments: list[str], message: str
) -> None:
    """What cannot be meant is a usage error, and no key is made."""
    error = failed(applied("keys", "create", "--organization", "acme", *arguments), code=2)
    assert message in error
    assert json.loads(applied("keys", "list", "--output", "json").stdout) == []


def test_a_key_for_nobody_is_refused(applied: Run) -> None:
    """Unknown organizations and models are named, all of them."""
    arguments = ["--organization", "gone", "--model", "none", "--id", "a b"]
    assert failed(applied("keys", "create", *arguments)).splitlines() == [
        "Error: id: must be 1 to 128 of A-Z a-z 0-9 . _ : / - and begin with a letter or digit",
        "Error: no organization has the id 'gone'",
        "Error: no model has the id 'none'",
    ]


def test_an_id_is_taken_once(applied: Run) -> None:
    """Creating a key never replaces one."""
    first = created(applied, "--id", "made")
    error = failed(applied("keys", "create", "--organization", "acme", "--id", "made"))
    assert error == "Error: there is already a key 'made'\n"
    secret = succeeded(applied("keys", "signing-secret", "made"))
    assert secret == first["signing_secret"] + "\n"


def test_keys_are_listed_with_their_state(applied: Run, tmp_path: Path) -> None:
    """Active, revoked, expired: what a key is good for is seen at a glance."""
    created(applied, "--id", "a", "--name", "works")
    created(applied, "--id", "b", "--model", "gpt-4o")
    succeeded(applied("keys", "revoke", "b"))
    plain = yaml.safe_load(applied("config", "export").stdout)
    old = {"id": "c", "organization": "acme", "hash": "0" * 64}
    plain["keys"].append({**old, "expires_at": "2001-01-31T00:00:00Z", "scopes": []})
    file = tmp_path / "with-old.json"
    file.write_text(json.dumps(plain), encoding="utf-8")
    succeeded(applied("config", "apply", str(file)))
    assert [line.split() for line in succeeded(applied("keys", "list")).splitlines()] == [
        ["ID", "ORGANIZATION", "STATUS", "EXPIRES", "SCOPES", "MODELS", "NAME"],
        ["a", "acme", "active", "never", "inference,", "models:read", "all", "works"],
        ["b", "acme", "revoked", "never", "inference,", "models:read", "gpt-4o", "-"],
        ["c", "acme", "expired", "2001-01-31T00:00:00Z", "none", "all", "-"],
    ]


def test_a_pepper_that_leaked_stops_every_use(applied: Run, data_dir: Path) -> None:
    """The operator is told how to mend it."""
    created(applied, "--id", "made")
    (data_dir / "pepper").chmod(0o644)
    error = failed(applied("keys", "signing-secret", "made"), code=3)
    assert error == (
        f"Error: the pepper {data_dir / 'pepper'}: others may access it;"
        f" run 'chmod 600 {data_dir / 'pepper'}'\n"
    )


@pytest.mark.parametrize("first", [["config", "apply"], []])
def test_a_refused_key_makes_no_pepper(
    run: Run, document: Path, data_dir: Path, first: list[str]
) -> None:
    """What fails leaves nothing behind, be it for want of a document or of the organization."""
    if first:
        succeeded(run(*first, str(document)))
    failed(run("keys", "create", "--organization", "gone"), code=1 if first else 3)
    assert not (data_dir / "pepper").exists()


def test_a_bad_demo_makes_no_pepper(run: Run, document: Path, data_dir: Path) -> None:
    """The pepper comes after the document was found valid."""
    document.write_text(DOCUMENT + "x: 1\n", encoding="utf-8")
    failed(run("config", "apply", str(document), ROUTER_DEMO="1"))
    assert not data_dir.exists()


OTHER_PEPPER = "Error: this ROUTER_KEY_PEPPER is not the one that the stored keys were made with\n"


def test_another_pepper_is_refused(applied: Run, tmp_path: Path, document: Path) -> None:
    """Every command that hashes says so before it changes anything; others go on."""
    created(applied, "--id", "made")
    file = tmp_path / "exported.yaml"
    file.write_text(succeeded(applied("config", "export")), encoding="utf-8")
    other = {"ROUTER_KEY_PEPPER": "x" * 32}
    for arguments in (
        ["keys", "create", "--organization", "acme"],
        ["keys", "signing-secret", "made"],
        ["requests", "sign", "--key-id", "made", "--path", "/"],
        ["config", "apply", str(file)],
        ["config", "diff", str(file)],
    ):
        assert failed(applied(*arguments, **other), code=3) == OTHER_PEPPER
    assert succeeded(applied("config", "export")) == file.read_text(encoding="utf-8")
    succeeded(applied("config", "apply", str(document), **other))
    succeeded(applied("config", "apply", "--prune-keys", str(document), **other))
    succeeded(applied("keys", "create", "--organization", "acme", **other))


def test_a_lost_pepper_is_not_replaced(applied: Run, data_dir: Path) -> None:
    """A new one beside keys of the old one would hide the loss."""
    created(applied)
    (data_dir / "pepper").unlink()
    error = failed(applied("keys", "create", "--organization", "acme"), code=3)
    assert "does not exist and ROUTER_KEY_PEPPER is not set" in error
    assert not (data_dir / "pepper").exists()


def test_the_example_document_is_valid(run: Run) -> None:
    """What the installation copies can be applied as it is."""
    file = Path(__file__).resolve().parents[3] / "deploy" / "router.example.yaml"
    assert "1 organization, 0 keys, 1 model, 1 backend, 1 policy" in succeeded(
        run("config", "validate", str(file))
    )


# --- signing --------------------------------------------------------------------------------

BODY = b'{"model": "gpt-4o"}'


def signed(secret: str, headers: dict[str, str], body: bytes, *, query: str = "") -> bool:
    parts = SignedParts(
        "POST", "/v1/inference", query, headers["X-Router-Timestamp"], headers["X-Router-Nonce"]
    )
    return verify(secret, parts, body, headers["X-Router-Signature"])


@pytest.mark.parametrize("source", ["key", "file", "stdin", "variable"])
def test_a_signature_verifies(applied: Run, tmp_path: Path, source: str) -> None:
    """Wherever the secret comes from, never the command line, the signature is the server's."""
    new = created(applied, "--id", "made")
    secret, body = tmp_path / "secret", tmp_path / "body"
    secret.write_text(new["signing_secret"] + "\n", encoding="ascii")
    body.write_bytes(BODY)
    words = {
        "key": ["--key-id", "made"],
        "file": ["--secret-file", str(secret)],
        "stdin": ["--secret-file", "-"],
        "variable": [],
    }
    environ = {"ROUTER_SIGNING_SECRET": new["signing_secret"]} if source == "variable" else {}
    result = applied(
        *(
            "requests",
            "sign",
            "--path",
            "/v1/inference",
            "--query",
            "a=%20",
            "--body-file",
            str(body),
        ),
        *("--output", "json", *words[source]),
        stdin=new["signing_secret"],
        **environ,
    )
    headers = json.loads(succeeded(result))
    assert signed(new["signing_secret"], headers, BODY, query="a=%20")
    assert not signed(new["signing_secret"], headers, BODY + b" ", query="a=%20")


def test_the_body_may_come_from_standard_input(run: Run) -> None:
    """Headers are printed one per line, ready to be pasted."""
    text = succeeded(
        run(
            *("requests", "sign", "--path", "/v1/inference", "--body-file", "-"),
            stdin=BODY,
            ROUTER_SIGNING_SECRET="rsk_x",
        )
    )
    headers = dict(line.split(": ") for line in text.splitlines())
    assert signed("rsk_x", headers, BODY)


def test_a_nonce_is_used_once(run: Run) -> None:
    """Two signatures of one request differ, or the second would be a replay."""
    texts = {
        succeeded(run("requests", "sign", "--path", "/v1/inference", ROUTER_SIGNING_SECRET="rsk_x"))
        for _ in range(2)
    }
    assert len(texts) == 2


def test_a_curl_line_holds_no_secret(run: Run, tmp_path: Path) -> None:
    """The line can be pasted into a shell; the API key stays a variable of that shell."""
    body = tmp_path / "it's a body"
    body.write_bytes(BODY)
    text = succeeded(
        run(
            *(
                "requests",
                "sign",
                "--path",
                "/v1/inference",
                "--query",
                "a=1&b=2",
                "--body-file",
                str(body),
            ),
            *("--output", "curl", "--url", "https://router.example/"),
            ROUTER_SIGNING_SECRET="rsk_x",
        )
    )
    words = shlex.split(text)
    assert words[:4] == ["curl", "-X", "POST", "https://router.example/v1/inference?a=1&b=2"]
    assert words[-2:] == ["--data-binary", f"@{body}"]
    assert "X-API-Key: $ROUTER_API_KEY" in words
    headers = dict(word.split(": ") for word in words if word.startswith("X-Router-"))
    assert signed("rsk_x", headers, BODY, query="a=1&b=2")
    assert "rsk_x" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--path", "/v1"], "give --key-id or --secret-file, or set ROUTER_SIGNING_SECRET"),
        (["--path", "v1"], "must begin with / and end before the ?"),
        (["--path", "/v1?a=b"], "must begin with / and end before the ?"),
        (["--path", "/v1", "--key-id", "a", "--secret-file", "-"], "exclude each other"),
    ],
)
def test_a_request_that_cannot_be_signed_is_misuse(
    run: Run, arguments: list[str], message: str
) -> None:
    """The reason is one line after the usage."""
    assert message in failed(run("requests", "sign", *arguments), code=2)


def test_a_signed_part_holds_no_line_break(run: Run) -> None:
    """What could be read as another request is not signed."""
    arguments = ["requests", "sign", "--path", "/v1\n/x"]
    assert "line break" in failed(run(*arguments, ROUTER_SIGNING_SECRET="rsk_x"), code=2)
