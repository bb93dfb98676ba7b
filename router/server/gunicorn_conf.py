"""gunicorn's configuration as a module: ``gunicorn -c python:router.server.gunicorn_conf``.

The repository's ``gunicorn.conf.py`` takes everything from here, so that a checkout and an
installed package run alike. Next to ``wsgi`` the only module that does something when imported.
"""

import gevent.monkey

gevent.monkey.patch_all()

from router.config.settings import load_settings  # noqa: E402  (nothing may precede the patch)
from router.server.hooks import configuration  # noqa: E402

globals().update(configuration(load_settings()))
