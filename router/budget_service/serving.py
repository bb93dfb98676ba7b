"""gunicorn's configuration of the budget service as a module, as ``router.server.gunicorn_conf``.

Next to that one and ``wsgi`` the only module that does something when imported.
"""

import gevent.monkey

gevent.monkey.patch_all()

from router.budget_service.gunicorn_settings import configuration  # noqa: E402
from router.config.settings import load_settings  # noqa: E402  (nothing may precede the patch)

globals().update(configuration(load_settings()))
