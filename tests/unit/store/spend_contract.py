"""What every record store must say of what was spent; each kind of database is put through it.

The expected figures are added up in the tests, call by call.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from sqlalchemy import text

from router.records.record_types import parse_timestamp_us
from router.store.failures import UnstorableRecord
from router.store.queries import spend_query
from router.store.queries.usage_totals import Spend
from router.store.record_store import RecordStore
from router.store.tables.rows import SERVED
from tests.unit.records import samples
from tests.unit.records.samples import KEY, START_S
from tests.unit.store.store_contract import behind_the_back, check_constraint

QUARTER_S = 900
HOUR_S = 3600
DAY_S = 86_400

SPANS = [
    (None, None),
    (None, START_S + DAY_S),
    (START_S + HOUR_S, None),
    (START_S // DAY_S * DAY_S, START_S // DAY_S * DAY_S + DAY_S),
    (START_S // DAY_S * DAY_S + 20 * QUARTER_S, START_S // DAY_S * DAY_S + 75 * QUARTER_S),
    (START_S + 1.5, START_S + 2 * DAY_S + 0.25),
    (START_S + 100, START_S + 130),
    (START_S + 100, START_S + 100),
    (START_S + 5 * DAY_S, None),
    (0.0, START_S + 0.000001),
]


def added_up(
    calls: list[dict[str, Any]],
    organization_id: str,
    key_id: str | None,
    span: tuple[float | None, float | None],
) -> Spend:
    """The calls of an organization or key from the first moment up to, and without, the second."""
    first_us, last_us = (None if at_s is None else round(at_s * 1e6) for at_s in span)
    found = [
        call
        for call in calls
        if call["organization_id"] == organization_id
        and key_id in (None, call["api_key_id"])
        and (first_us is None or parse_timestamp_us(call["timestamp"]) >= first_us)
        and (last_us is None or parse_timestamp_us(call["timestamp"]) < last_us)
    ]
    return Spend(
        sum(call["backend_id"] is not None and call["outcome"] in SERVED for call in found),
        sum(call["tokens_input"] for call in found),
        sum(call["tokens_output"] for call in found),
        sum(call["cost_nanos"] or 0 for call in found),
    )


class SpendContract:
    """The tests; ``store`` and ``store_url`` are those of ``StoreContract``."""

    @pytest.mark.parametrize("span", SPANS, ids=str)
    @pytest.mark.parametrize("key_id", [None, "key_1"])
    def test_kept_sums_are_the_sums_of_the_records(
        self, store: RecordStore, span: tuple[float | None, float | None], key_id: str | None
    ) -> None:
        """Whether a period begins with a quarter of an hour, as everywhere today, or within one."""
        calls = list(samples.different_calls(11, 300))
        store.write(calls)
        for organization_id in ("acme", "Émile & Söhne", "nobody"):
            found = store.spend(organization_id, key_id, from_s=span[0], to_s=span[1])
            assert found == added_up(calls, organization_id, key_id, span)

    def test_what_is_delivered_again_is_not_added_again(self, store: RecordStore) -> None:
        """In the same batch, in another order, beside new records, and with other figures."""
        calls = list(samples.different_calls(3, 60))
        chance = random.Random(1)
        for _ in range(4):
            store.write([*chance.sample(calls, 30), *chance.sample(calls, 30)])
        changed = [{**call, "cost_nanos": 10**15} for call in calls]
        store.write(calls)
        store.write(changed)
        assert store.spend("acme", None) == added_up(calls, "acme", None, (None, None))

    def test_a_batch_that_fails_adds_nothing(self, store: RecordStore) -> None:
        """The sums are in the transaction of the records, while the culprit is looked for, too."""
        behind_the_back(store, check_constraint(store))
        with pytest.raises(UnstorableRecord):
            store.write([samples.usage(cost_nanos=7), samples.usage(status=99)])
        assert store.spend("acme", None).cost_nanos == 0

    def test_records_that_are_left_out_may_lie_anywhere(self, store: RecordStore) -> None:
        """In a whole quarter, at an edge, outside the period, with another key, or nowhere."""
        calls = list(samples.different_calls(5, 200))
        store.write(calls)
        span = (START_S + 1.5, START_S + 2 * DAY_S + 0.25)
        left_out = {call["record_id"] for call in calls[::3]}
        kept = [call for call in calls if call["record_id"] not in left_out]
        for key_id in (None, "key_2"):
            found = store.spend(
                "acme", key_id, from_s=span[0], to_s=span[1], without={*left_out, "unknown"}
            )
            assert found == added_up(kept, "acme", key_id, span)

    def test_the_newest_records_are_named_and_those_that_are_asked_for(
        self, store: RecordStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of one organization or key and period only, in the order in which they were stored."""
        calls = [
            samples.usage(
                record_id=f"r{number}",
                organization_id="acme" if number % 2 else "other",
                api_key_id=f"key_{number % 3}",
                timestamp=START_S + 100 - number,
            )
            for number in range(12)
        ]
        store.write(calls)

        def named(
            key_id: str | None = None, among: tuple[str, ...] = (), **span: float
        ) -> set[str]:
            return store.settled_late("acme", key_id, among, **span)

        assert named() == {"r1", "r3", "r5", "r7", "r9", "r11"}
        assert named("key_0") == {"r3", "r9"}
        assert named(from_s=START_S + 93) == {"r1", "r3", "r5", "r7"}
        monkeypatch.setattr(spend_query, "_NEWEST_OF_ALL", 4)
        assert named() == {"r9", "r11"}
        asked = ("r1", "r2", "unknown", *(f"u{number}" for number in range(1_200)), "r3")
        assert named(among=asked) == {"r1", "r3", "r9", "r11"}
        assert named("key_0", asked) == {"r3", "r9"}
        assert named(among=asked, to_s=START_S + 98) == {"r3", "r9", "r11"}

    def test_a_record_from_before_the_epoch_counts(self, store: RecordStore) -> None:
        """Such a clock is wrong, and its call cost something all the same."""
        store.write([samples.usage(timestamp=-5.0, cost_nanos=7), samples.usage(cost_nanos=20)])
        assert store.spend("acme", None).cost_nanos == 27
        assert store.spend("acme", None, from_s=0.0).cost_nanos == 20

    def test_a_database_without_sums_gets_them(self, store_url: str, store: RecordStore) -> None:
        """What was stored before the update is summed up by it; until then records are read."""
        calls = list(samples.different_calls(9, 200))
        store.write(calls[:150])
        on_table = "" if store._database.is_sqlite else " ON usage_records"
        with store._database.writing() as connection:
            connection.execute(text(f"DROP TRIGGER usage_is_summed{on_table}"))
            connection.execute(text("DROP TABLE usage_sums"))
            connection.execute(text("DELETE FROM schema_versions WHERE version = 3"))
        store.write(calls[150:170])
        span = (START_S + 7, START_S + 2 * DAY_S)
        options = {"from_s": span[0], "to_s": span[1]}
        before = added_up(calls[:170], "acme", "key_1", span)
        assert store.spend("acme", "key_1", **options) == before
        store.close()
        with RecordStore(store_url, audit_key=KEY) as newer:
            newer.migrate()
            assert newer.spend("acme", "key_1", **options) == before
            newer.write(calls)
            assert newer.spend("acme", "key_1", **options) == added_up(calls, "acme", "key_1", span)

    def test_corrections_are_found_until_and_after_they_are_pruned(
        self, store: RecordStore
    ) -> None:
        """B10: budgets count them for as long as their period lasts, the trail keeps them less."""
        context = {"budget": "spend", "unit": "usd", "period": "total", "api_key_id": None}
        events = samples.chained(
            "w-1",
            3,
            action="BUDGET_ADJUSTED",
            entity_type="budget",
            context={**context, "correction_id": "c1"},
            before={"settled": 90},
            after={"settled": 40},
        )
        store.write([], events)
        store.write([], samples.chained("w-2", 3))
        store.write([], samples.chained("w-3", 1, action="LIMIT_RESET", entity_type="limit"))
        found = store.corrections("acme", from_s=START_S + 1)
        assert [(one.budget, one.correction_id, one.amount) for one in found] == [
            ("spend", "c1", -50)
        ] * 2
        store.prune(START_S + 2)
        assert sorted(found, key=lambda one: one.timestamp_us) == sorted(
            store.corrections("acme", from_s=START_S + 1), key=lambda one: one.timestamp_us
        )
        assert store.corrections("other") == []
