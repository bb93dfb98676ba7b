"""What a backend reports is what its client sees, its record says and its budgets are charged.

Every spelling of usage × kinds of number × ways to ask, each through the real application, with the
expected cost computed from the split that the backend had in mind.
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace

import pytest

from router.exports.client_list import match_client
from router.exports.comparison import STORE, Scope
from router.exports.reconciliation import Reconciliation
from tests.fakes.backend.scripts import chunked, reply
from tests.fakes.backend.usage_reports import Report
from tests.fakes.backend.usage_spellings import all_input, all_output
from tests.fakes.exact_money import (
    PRICES,
    REPORTS,
    USD,
    WAYS,
    check_client,
    check_record,
    cost_of,
)
from tests.fakes.limited import Fixed, budget
from tests.fakes.router_stand import RouterStand, World


def priced_stand(world: World) -> RouterStand:
    """Every class has a price, and budgets of all units count."""
    document = world.services.state.document()
    budgets = (budget(limit=1000 * USD), budget("tokens", 10**9), budget("requests", 10**6))
    acme = replace(document.organizations["acme"], budgets=budgets)
    priced = {
        name: replace(document.models[name], prices=PRICES)
        if name in ("plain", "claude")
        else model
        for name, model in document.models.items()
    }
    names = {name: priced[model.id] for name, model in document.model_names.items()}
    organizations = {**document.organizations, "acme": acme}
    changed = replace(document, organizations=organizations, models=priced, model_names=names)
    return world.stand(state=Fixed(changed))


def booked(stand: RouterStand) -> tuple[int, int, int]:
    """What the ledger has: nano-USD, tokens, calls; nothing is reserved."""
    found = {entry["name"]: entry for entry in stand.call("GET", "/v1/limits").json["budgets"]}
    assert [entry["reserved"] for entry in found.values()] == [0, 0, 0]
    settled = [found[f"{unit}-daily"]["settled"] for unit in ("usd", "tokens", "requests")]
    return round(settled[0] * USD), settled[1], settled[2]


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.name)
def test_client_record_and_ledger_have_what_was_used(world: World, report: Report) -> None:
    """U7, U8, B5: to the nano-USD, whatever the spelling, however the call was made."""
    stand = priced_stand(world)
    whole = reply(json.dumps(report.whole).encode(), headers=("Content-Type: application/json",))
    streamed = chunked(*report.events, headers=("Content-Type: text/event-stream",))
    cost, tokens = cost_of(report.split, report.tier), all_input(report.split)
    tokens += all_output(report.split)
    for number, asked in enumerate(WAYS, 1):
        raw = streamed if asked.stream else whole
        stand.backends.plain.set(raw=raw)
        stand.backends.anthropic.raw = raw
        answer = stand.call("POST", asked.path, json=asked.body(report.model), promised=False)
        check_client(report, asked, answer.body)
        check_record(report, stand.spool.records[-1])
        assert booked(stand) == (number * cost, number * tokens, number)
    check_books(stand, report)


def check_books(stand: RouterStand, report: Report) -> None:
    """The comparison of ``records reconcile`` finds what the client lists in the records."""
    figures = (
        all_input(report.split),
        all_output(report.split),
        cost_of(report.split, report.tier),
    )
    with closing(Reconciliation(Scope(), (STORE,))) as books:
        for record in stand.spool.records:
            books.observe(json.dumps(record).encode(), STORE)
        books.add_answers((record["request_id"], figures) for record in stand.spool.records)
        found = books.compare(9)
        client = match_client(books.by_request(), found.differences, is_complete=True)
    assert found.differences.counts == {}
    assert (client.listed.records, client.unlisted.records) == (len(WAYS), 0)
    assert found.tallies[STORE].cost_nanos == booked(stand)[0]
