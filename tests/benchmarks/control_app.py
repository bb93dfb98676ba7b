"""The control: the smallest Flask view that forwards a call with `requests.Session().post`.

What anybody would write first, and nothing else: no authentication, no checks, no records. Its
pool holds as many connections as the benchmark opens, because `requests` would otherwise throw
away all but ten of them after each call and make the control slower than it has to be.
"""

from __future__ import annotations

import requests
from flask import Flask, Response, request

from tests.benchmarks.messages import PATH

_POOL_SIZE = 256


def create_app(base_url: str) -> Flask:
    """A Flask application that forwards chat completions to `base_url`."""
    app = Flask(__name__)
    session = requests.Session()
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=_POOL_SIZE))
    url = base_url + PATH.removeprefix("/v1")

    @app.post(PATH)
    def forward() -> Response:
        reply = session.post(
            url, data=request.get_data(), headers={"Content-Type": "application/json"}
        )
        return Response(reply.content, reply.status_code, content_type="application/json")

    return app
