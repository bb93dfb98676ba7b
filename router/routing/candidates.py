"""The backends that may serve a call, in the order in which to try them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from router.call import Call
from router.config.document import Backend, Document, Share
from router.errors import InvalidRequest, ModelNotFound
from router.providers.provider_table import PROVIDERS

Draw = Callable[[], float]
"""Gives numbers in [0, 1)."""


def candidates(
    document: Document, organization_id: str, call: Call, draw: Draw = random.random
) -> list[Backend]:
    """At least one backend, best first, by the policy of the organization and the model.

    Raises ``ModelNotFound`` when no policy sends the model anywhere and ``InvalidRequest`` when
    none of its backends can serve this kind of call.
    """
    policy = document.policy_for(organization_id, call.model)
    found = [] if policy is None else order(policy.shares, draw)
    if not found:
        raise ModelNotFound(call.requested_model)
    capable = [
        backend
        for backend in (document.backends[backend_id] for backend_id in found)
        if call.operation in PROVIDERS[backend.kind].paths
    ]
    if not capable:
        raise InvalidRequest(
            f"the model '{call.requested_model}' does not support {call.operation}", field="model"
        )
    return capable


def order(shares: Sequence[Share], draw: Draw) -> list[str]:
    """Backend ids in the order in which to try them.

    Weighted sampling without replacement: the first place follows the weights exactly, and when
    a backend drops out the others keep the ratio they had among themselves. A weight of 0 takes
    no traffic at all.
    """
    left = [share for share in shares if share.weight > 0]
    total = sum(share.weight for share in left)
    ordered: list[str] = []
    while len(left) > 1:
        mark = draw() * total
        chosen = len(left) - 1
        for index, share in enumerate(left):
            mark -= share.weight
            if mark < 0:
                chosen = index
                break
        share = left.pop(chosen)
        total -= share.weight
        ordered.append(share.backend_id)
    ordered.extend(share.backend_id for share in left)
    return ordered
