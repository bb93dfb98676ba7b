"""One exchange with Redis for all that a call asks: its rates, its nonce, its id, its budgets."""

from __future__ import annotations

from typing import Any

from router.breaker import Unavailable
from router.limits.budgets.ledger import Ledger, ReservePlan
from router.limits.budgets.windows import Amounts, NotReserved, Reservation, Settlement
from router.limits.idempotency.entries import Entry, Idempotency, New, NotStored
from router.limits.idempotency.nonces import Nonces
from router.limits.outcome import ExchangeReply, Request
from router.limits.recent import Recent
from router.redis.scripts import Loader, Runner, ScriptCall, Template, load_script


class RedisExchange:
    """Asks Redis alone; ``ServiceExchange`` does the same where a budget service has the budgets.

    The nonce is taken first, then the id is claimed. The reservation is made only if that succeeds,
    and a budget that refuses frees the id again. A call without an id has no entry, one without
    budgets no windows, one without a signature no nonce.
    """

    uses_budget_service = False
    """Whether there may be budgets that the document does not know of. Where there are none,
    :meth:`ask` can take the rates of a call as well."""

    def __init__(
        self,
        redis: Runner,
        ledger: Ledger,
        idempotency: Idempotency,
        nonces: Nonces,
        *,
        load: Loader = load_script,
    ) -> None:
        self._redis = redis
        self._ledger = ledger
        self._idempotency = idempotency
        self._nonces = nonces
        self._templates: Recent[Template] = Recent()
        self._script = load(
            "admission.lua",
            rates=("rates/bucket.lua",),
            nonce=("idempotency/nonce.lua",),
            claim=("idempotency/claim.lua",),
            reserve=("budgets/window.lua", "budgets/reserve.lua"),
        )

    def ask(
        self, rates: ScriptCall | None, request: Request, entry: Entry | None
    ) -> tuple[list[int], ExchangeReply | None]:
        """What the rates answered, and what became of nonce, id and budgets. ``entry.owner`` is the
        request's lease id.

        The second part is ``None`` when the rates refuse the call, so that nothing else was asked,
        or when the call has to be asked again because Redis is in another period; its id stays
        claimed then. Raises :class:`NotReserved` when nobody knows what Redis has done.
        """
        nonce = claim = plan = None
        if request.nonce is not None:
            nonce = self._nonces.plan(request.nonce)
        if entry is not None:
            claim = self._idempotency.plan_begin(entry, lease_ms=request.ttl_ms)
        if request.windows:
            plan = self._plan(request)
        call = self._joined(rates, nonce, claim, None if plan is None else plan.call)
        try:
            reply = self._redis.run(call)
        except Unavailable as cause:
            raise NotReserved(cause, _presumed(request, plan)) from cause
        rated, taken, claimed, reserved = reply
        if rated and not rated[0]:
            return rated, None
        refused = self._nonces.read(taken) if nonce is not None else None
        if refused is not None:
            return rated, refused
        return rated, self._outcome(request, entry, plan, claimed, reserved)

    def end(
        self,
        reservation: Reservation,
        amounts: Amounts,
        entry: Entry | None,
        reply: bytes | NotStored | None,
    ) -> Settlement:
        """Book ``amounts``, and store the reply or free the id, in one exchange. Twice is once."""
        calls = []
        if reservation.windows:
            calls.append(self._ledger.plan_settle(reservation, amounts))
        if entry is not None:
            calls.append(self._idempotency.plan_end(entry, reply))
        replies = self._redis.run_all(calls) if calls else []
        if not reservation.windows:
            return Settlement(True)
        return self._ledger.read_settle(reservation, replies[0])

    def end_later(self, *_: object) -> bool:
        """``False``: what Redis has not taken is not kept here."""
        return False

    def presume(self, request: Request) -> Reservation | None:
        """What Redis would have reserved, had it been asked."""
        return _presumed(request, self._plan(request) if request.windows else None)

    def _plan(self, request: Request) -> ReservePlan:
        return self._ledger.plan_reserve(
            request.organization_id,
            request.lease_id,
            request.windows,
            request.amounts,
            ttl_ms=request.ttl_ms,
        )

    def _joined(
        self,
        rates: ScriptCall | None,
        nonce: ScriptCall | None,
        claim: ScriptCall | None,
        reserve: ScriptCall | None,
    ) -> ScriptCall:
        always_the_same = rates and rates.template and reserve and reserve.template
        if nonce or claim or not always_the_same:
            return ScriptCall(self._script, *_words(rates, nonce, claim, reserve))
        assert rates and rates.template and reserve and reserve.template
        made_of = (rates.template, reserve.template)
        template = self._templates.get(made_of)
        if template is None:
            template = Template(self._script, *_words(rates.template, None, None, reserve.template))
            self._templates[made_of] = template
        return template.filled(reserve.values)

    def _outcome(
        self,
        request: Request,
        entry: Entry | None,
        plan: ReservePlan | None,
        claimed: list[Any],
        reserved: list[Any],
    ) -> ExchangeReply | None:
        if entry is not None:
            claim = self._idempotency.read_begin(claimed)
            if not isinstance(claim, New):
                return claim
        return (
            _presumed(request, None) if plan is None else self._ledger.read_reserve(plan, reserved)
        )


def _words(*parts: ScriptCall | Template | None) -> tuple[list[Any], list[Any]]:
    """Keys and arguments of the parts, after how many of each they have."""
    keys: list[Any] = []
    counts: list[Any] = [0 if part is None else len(part.keys) for part in parts]
    arguments: list[Any] = []
    for part in parts:
        if part is None:
            counts.append(0)
            continue
        keys += part.keys
        counts.append(len(part.arguments))
        arguments += part.arguments
    return keys, counts + arguments


def _presumed(request: Request, plan: ReservePlan | None) -> Reservation:
    if plan is None:
        return Reservation(request.lease_id, request.organization_id, ())
    return plan.presumed
