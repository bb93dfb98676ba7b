"""The pure functions that `micro.py` can time: name -> factory of the callable to be timed.

A factory does what happens once (imports, schemas, sample data) and returns what happens per call.
The `reference` entries tell how fast the machine is at the moment.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

from tests.benchmarks.messages import API_KEY, CALL_BODY

Operation = Callable[[], object]


def _reference_json_loads() -> Operation:
    return lambda: json.loads(CALL_BODY)


def _reference_sha256() -> Operation:
    secret = API_KEY.encode()
    return lambda: hashlib.sha256(secret).digest()


OPERATIONS: dict[str, Callable[[], Operation]] = {
    "reference.json_loads": _reference_json_loads,
    "reference.sha256": _reference_sha256,
}
