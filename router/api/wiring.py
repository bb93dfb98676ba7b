"""How views and steps reach the services of the application that serves them."""

from __future__ import annotations

from typing import cast

from flask import current_app

from router.services import Services


def services() -> Services:
    """The services of the application being served."""
    return cast(Services, current_app.extensions["router"])
