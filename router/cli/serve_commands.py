"""``routerctl serve`` and ``routerctl demo``: they run until they are ended."""

from __future__ import annotations

import sys

import click

from router.cli.options import Command
from router.config.settings import load_settings


@click.command("serve", cls=Command, example="ROUTER_DATA_DIR=/var/lib/api-router routerctl serve")
def serve() -> None:
    """Run the gateway, as 'gunicorn -c gunicorn.conf.py' does. TERM drains and exits."""
    load_settings()  # mistakes in the environment, before gunicorn wraps them in a traceback

    from router.server.command import run

    run()


@click.command("demo", cls=Command, example="ROUTER_DATA_DIR=data/demo routerctl demo")
def demo() -> None:
    """Run two demo backends and a router with the demo document, and print a line to try."""
    load_settings()

    from router.demo.claims import DemoError
    from router.demo.run import run

    try:
        sys.exit(run())
    except DemoError as error:
        raise click.ClickException(str(error)) from None
