"""What gunicorn loads: ``router.wsgi:application``. Importing it builds a worker's services."""

from __future__ import annotations

import atexit

from router.app import create_app, expose_metrics
from router.config.settings import load_settings
from router.services.worker_services import build_services
from router.telemetry.logs import configure_logging

settings = load_settings()
configure_logging(settings.log_level)
services = build_services(settings)
atexit.register(services.close)
application = create_app(services)
expose_metrics(application)
