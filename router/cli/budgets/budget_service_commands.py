"""``routerctl budget-service``: the reference budget service as a program."""

from __future__ import annotations

import os
import sys

import click

from router.cli.options import Command
from router.config.settings import load_settings


@click.command(
    "budget-service",
    cls=Command,
    example="BUDGET_SERVICE_BIND=127.0.0.1:8082 routerctl budget-service",
)
@click.option(
    "--no-records",
    is_flag=True,
    help="Begin at 0 what Redis does not know, instead of asking the record store.",
)
def budget_service(no_records: bool) -> None:
    """Run the reference budget service, for routers whose BUDGET_SERVICE_ENDPOINT leads to it.

    It keeps budgets in the Redis of RATE_LIMIT_REDIS_ADDR and rebuilds what that has lost from
    ROUTER_RECORD_STORE. It listens at BUDGET_SERVICE_BIND and, where BUDGET_SERVICE_TOKEN is set,
    demands that as a bearer token; where other hosts can reach it, the token must be set. Every
    change is written to the audit trail, in ROUTER_DATA_DIR. TERM ends it.
    """
    from router.budget_service.gunicorn_settings import APPLICATION, check_exposure

    check_exposure(load_settings())  # mistakes, before gunicorn wraps them in a traceback
    application = APPLICATION.replace("()", "(no_records=True)") if no_records else APPLICATION
    config = "python:router.budget_service.serving"
    os.execv(sys.executable, [sys.executable, "-m", "gunicorn", "-c", config, application])
