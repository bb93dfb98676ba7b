"""gunicorn's configuration: ``gunicorn -c gunicorn.conf.py``.

Everything is set through the environment (docs/configuration.md). Whatever gunicorn setting is
assigned below the import overrides the router's choice.
"""

from router.server.gunicorn_conf import *  # noqa: F403
