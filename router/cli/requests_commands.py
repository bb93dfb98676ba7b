"""``routerctl requests``: signs a request as a client does, to try one or to compare signatures."""

from __future__ import annotations

import secrets
import shlex
from typing import IO, Final

import click

from router.auth import signatures
from router.cli.keys_commands import find_signing_secret
from router.cli.options import Command, output_option
from router.cli.output import print_json
from router.clock import Clock
from router.config.settings import load_settings, resolve_credential

_SECRET_VARIABLE: Final = "ROUTER_SIGNING_SECRET"
_NONCE_BYTES: Final = 16


@click.command(
    "sign",
    cls=Command,
    old_options={"--format": "--output"},
    example="routerctl requests sign --key-id batch --path /v1/chat/completions"
    " --body-file call.json -o curl",
)
@click.option("--key-id", metavar="ID", help="Derive the secret of this stored key, on its host.")
@click.option(
    "--secret-file", type=click.File("r"), help="Read the secret from a file; - is standard input."
)
@click.option("--method", default="POST", show_default=True, help="The request's method.")
@click.option("--path", required=True, help="The path as it will be sent.")
@click.option("--query", default="", help="What follows the '?' as it will be sent.")
@click.option(
    "--body-file", type=click.File("rb"), help="The exact body; - is standard input. Default: none."
)
@output_option("headers", "curl", "json")
@click.option(
    "--url", default="http://127.0.0.1:8080", show_default=True, help="Where curl sends it."
)
def sign(
    key_id: str | None,
    secret_file: IO[str] | None,
    method: str,
    path: str,
    query: str,
    body_file: IO[bytes] | None,
    output: str,
    url: str,
) -> None:
    """Sign a request and print the three headers to send with it.

    The signing secret is taken from --secret-file, else from the variable ROUTER_SIGNING_SECRET,
    or derived with --key-id; never from the command line, which others can read.
    """
    if not path.startswith("/") or "?" in path:
        raise click.BadParameter("must begin with / and end before the ?", param_hint="--path")
    secret = _secret(key_id, secret_file)
    parts = signatures.SignedParts(
        method=method.upper(),
        path=path,
        query=query,
        timestamp=str(int(Clock().now_s())),
        nonce=secrets.token_urlsafe(_NONCE_BYTES),
    )
    body = b"" if body_file is None else body_file.read()
    try:
        signature = signatures.sign(secret, parts, body)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    headers = {
        signatures.TIMESTAMP_HEADER: parts.timestamp,
        signatures.NONCE_HEADER: parts.nonce,
        signatures.SIGNATURE_HEADER: signature,
    }
    if output == "json":
        print_json(headers)
    elif output == "headers":
        click.echo("\n".join(f"{name}: {value}" for name, value in headers.items()))
    else:
        target = url.rstrip("/") + path + (f"?{query}" if query else "")
        click.echo(_curl(parts.method, target, headers, body_file))


def _secret(key_id: str | None, secret_file: IO[str] | None) -> str:
    if key_id is not None and secret_file is not None:
        raise click.UsageError("--key-id and --secret-file exclude each other")
    if key_id is not None:
        return find_signing_secret(load_settings(), key_id)
    secret = secret_file.read().strip() if secret_file is not None else None
    secret = secret or resolve_credential(f"env:{_SECRET_VARIABLE}")
    if not secret:
        raise click.UsageError(f"give --key-id or --secret-file, or set {_SECRET_VARIABLE}")
    return secret


def _curl(method: str, target: str, headers: dict[str, str], body_file: IO[bytes] | None) -> str:
    # The API key stays a variable of the reader's shell: this line ends up in its history.
    words = [
        f"curl -X {shlex.quote(method)} {shlex.quote(target)}",
        '-H "X-API-Key: $ROUTER_API_KEY"',
    ]
    words += [f"-H {shlex.quote(f'{name}: {value}')}" for name, value in headers.items()]
    if body_file is not None:
        source = "-" if body_file.name == "<stdin>" else body_file.name
        words += [
            "-H 'Content-Type: application/json'",
            f"--data-binary {shlex.quote('@' + source)}",
        ]
    return " \\\n  ".join(words)
