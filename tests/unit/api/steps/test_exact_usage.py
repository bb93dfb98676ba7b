"""However a call ends and its backend reports what was used: what its client sees, its record says,
its audit event has and its budgets are charged is one and the same, to the nano-USD.

The product of the ways to report usage, of whole and streamed answers, and of the endings, each
through the real application; what is expected is computed from the split that the backend had in
mind, by the table in `docs/records.md`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing

import pytest

from router.exports.client_list import match_client
from router.exports.comparison import STORE, Scope
from router.exports.reconciliation import Reconciliation
from router.upstream import transport
from tests.fakes.backend.usage_reports import REPORTERS, Reporter
from tests.fakes.endings import Case, cases
from tests.fakes.exact_money import check_client, check_record
from tests.fakes.priced_stand import PricedStand
from tests.fakes.router_stand import World


def test_the_product_is_large() -> None:
    """It is generated, so nothing says otherwise that it is not empty."""
    assert sum(len([*cases(reporter)]) for reporter in REPORTERS) >= 1_500


@pytest.mark.parametrize("reporter", REPORTERS, ids=lambda reporter: reporter.name)
def test_each_ending_has_one_charge(
    world: World, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """U7, U8, U9, B5: nothing is free by accident, and nothing dearer than the provider's bill."""
    monkeypatch.setattr(transport, "CLIENT_CHECK_S", 0.01)
    priced = PricedStand(world)
    made = [*cases(reporter)]
    faults = {}
    booked: tuple[int, ...] = (0, 0, 0)
    for case in made:
        try:
            booked = check(priced, case, booked)
        except AssertionError as fault:
            faults[case.name] = str(fault)
            booked = priced.booked()
    assert not faults, "\n\n".join(f"{name}: {fault}" for name, fault in faults.items())
    check_books(priced, made)


def check(priced: PricedStand, case: Case, before: tuple[int, ...]) -> tuple[int, ...]:
    """Make the call, and hold everything against what it is to be charged; what is booked then."""
    charge, stand = case.charge, priced.stand
    counted = stand.metric("cost_nanousd_total")
    body = priced.play(case)
    record, line = stand.spool.records[-1], stand.lines[-1]
    booked = priced.booked()
    pairs = zip(booked, before, strict=True)
    assert tuple(now - then for now, then in pairs) == charge.booked
    check_record(charge, record, stand.spool.events[-1])
    assert line.get("cost_nanos") == record["cost_nanos"]
    assert stand.metric("cost_nanousd_total") - counted == charge.cost_nanos
    reserved = record["reserved_nanos"], record["reserved_tokens"]
    is_over = charge.booked[0] > reserved[0] or charge.booked[1] > reserved[1]
    assert record["over_reservation"] is is_over
    assert is_over or case.ending.name != "more than reserved"
    if charge.outcome == "completed" and body is not None:
        check_client(case.report, case.asked, charge, body)
    return booked


def check_books(priced: PricedStand, made: Sequence[Case]) -> None:
    """The comparison of ``records reconcile`` agrees with the table, call by call."""
    records = priced.stand.spool.records
    assert len(records) == len(made)
    with closing(Reconciliation(Scope(), (STORE,))) as books:
        for record in records:
            books.observe(json.dumps(record).encode(), STORE)
        books.add_answers(
            (record["request_id"], (*case.charge.tokens, case.charge.recorded["cost_nanos"]))
            for record, case in zip(records, made, strict=True)
        )
        found = books.compare(9)
        client = match_client(books.by_request(), found.differences, is_complete=True)
    assert found.differences.counts == {}
    assert (client.listed.records, client.unlisted.records) == (len(made), 0)
    assert found.tallies[STORE].cost_nanos == priced.booked()[0]
