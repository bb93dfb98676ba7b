"""`routerctl dev mock-backend`: the mock backend as a program."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import Any

import click

from router.mock_backend.behaviour import RULES, Behaviour, BehaviourError, Rule
from router.mock_backend.server import DEFAULT_MODELS, MockBackend

_DEFAULT_PORT = 9001
_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def _behaviour_option(name: str, rule: Rule) -> Callable[[Any], Any]:
    """Make the flag of one setting; its default is the dataclass's own."""
    flag = f"--{name.replace('_', '-')}"
    default = getattr(Behaviour(), name)
    if rule.kind == "flag":
        return click.option(f"{flag}/--no-{flag[2:]}", default=default, help=rule.explanation)
    kinds: dict[str, Any] = {
        "number": click.FLOAT,
        "integer": click.INT,
        "choice": click.Choice(rule.choices),
    }
    return click.option(
        flag, type=kinds[rule.kind], default=default, show_default=True, help=rule.explanation
    )


def _with_behaviour_options(target: Callable[..., None]) -> Callable[..., None]:
    # Decorators apply from the last to the first: reversed, the help lists the settings in order.
    for name, rule in reversed(list(RULES.items())):
        target = _behaviour_option(name, rule)(target)
    return target


@click.command(
    "mock-backend", epilog="\b\nExample:\n  routerctl dev mock-backend --port 9001 --latency-ms 40"
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=_DEFAULT_PORT, show_default=True, help="Port; 0 takes a free one.")
@click.option("--name", default="mock", show_default=True, help="Shows in system_fingerprint.")
@click.option("--api-key", envvar="MOCK_BACKEND_API_KEY", help="Bearer token that /v1/ demands.")
@click.option("--model", "models", multiple=True, default=DEFAULT_MODELS, help="Model to list.")
@_with_behaviour_options
def command(
    host: str, port: int, name: str, api_key: str | None, models: tuple[str, ...], **settings: Any
) -> None:
    """Run an OpenAI-compatible backend that answers without a model and fails on request.

    Settings can be changed while it runs: PATCH /_mock/behaviour. TERM and INT end it.
    """
    try:
        backend = MockBackend(
            name, Behaviour.of(settings), host=host, port=port, api_key=api_key, models=models
        )
    except BehaviourError as error:
        raise click.UsageError(_in_flags(error)) from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    # Blocked before any thread starts, the signals wait for `sigwait`; no handler can interfere.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING_SIGNALS)
    try:
        backend.start()
    except OSError as error:
        raise click.ClickException(f"cannot listen on {host}:{port}: {error.strerror}") from error
    with backend:
        event = {"event": "mock_backend_listening", "name": name, "url": backend.url}
        click.echo(json.dumps(event))
        signal.sigwait(_ENDING_SIGNALS)


def _in_flags(error: BehaviourError) -> str:
    problems = error.problems.items()
    return "; ".join(f"--{name.replace('_', '-')} {problem}" for name, problem in problems)
