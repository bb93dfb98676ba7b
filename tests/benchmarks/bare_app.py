"""The upper bound: a bare Flask view that answers the canned reply itself, without a backend."""

from __future__ import annotations

from flask import Flask, Response, request

from tests.benchmarks.messages import PATH, REPLY_BODY

app = Flask(__name__)


@app.post(PATH)
def answer() -> Response:
    """The backend's reply, made here; the body is read as a forwarding view would."""
    request.get_data()
    return Response(REPLY_BODY, content_type="application/json")
