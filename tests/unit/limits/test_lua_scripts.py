"""The Lua files: what they promise about keys and about failover.

Whether a script touches a key that it has not declared is decided by Redis, with an access list for
each call, and on fakeredis by a prelude in front of the script: see ``tests/fakes/key_guard.py``.
Every test with a ``stand`` runs its scripts that way; here all their modes run with random input.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ResponseError

import router.limits
from router.budget_service.lease_finder import LeaseFinder
from router.limits.budgets.ledger import Ledger
from router.limits.budgets.maintenance import LedgerMaintenance
from router.limits.budgets.rebuilding import Rebuilder, RebuildingLedger
from router.limits.budgets.windows import Amounts, Reservation, WindowLost, WindowSpec
from router.limits.idempotency.entries import Entry, Idempotency, NotStored
from router.limits.idempotency.nonces import Nonce, Nonces
from router.limits.outcome import Request
from router.limits.rates.decision import BucketSpec, Correction, SlotSpec
from router.limits.rates.limiter import RateLimiter
from router.limits.redis_exchange import RedisExchange
from router.limits.redis_keys import quoted, tag
from router.redis.scripts import Script, ScriptCall, load_script, packed, script
from tests.fakes.key_guard import PRELUDE, GuardedClient
from tests.unit.limits.conftest import Stand, frozen_script

FOLDER = Path(router.limits.__file__).parent
FILES = sorted(FOLDER.rglob("*.lua"))

MODES = {
    "bucket.lua": {"take", "peek", "finish"},
    "claim.lua": {""},
    "end.lua": {"complete", "not_kept", "abandon"},
    "reserve.lua": {"reserve", "read"},
    "settle.lua": {""},
    "hold_again.lua": {""},
    "lease_amounts.lua": {""},
    "seed.lua": {"inspect", "seed"},
    "adjust.lua": {"add", "set"},
    "nonce.lua": {""},
    # Which of the four parts have arguments: rates, nonce, id, budgets.
    "admission.lua": {f"{parts:04b}" for parts in range(1, 16)},
}


def code(file: Path) -> str:
    """Without comments."""
    return re.sub(r"--.*", "", file.read_text("utf-8"))


@dataclass
class Modes:
    """Runs scripts on a stand, and remembers the mode of each."""

    stand: Stand
    is_unavailable: bool = False
    names: dict[str, str] = field(default_factory=dict)
    seen: dict[str, set[str]] = field(default_factory=dict)

    def load(self, *files: str, **parts: Sequence[str]) -> Script:
        made = frozen_script(*files, **parts)
        self.names[made.sha] = Path(files[-1]).name
        return made

    def run(self, call: ScriptCall) -> Any:
        name = self.names[call.script.sha]
        mode = ""
        if name == "admission.lua":
            mode = "".join(str(int(bool(count))) for count in call.arguments[4:8])
        elif len(MODES[name]) > 1:
            mode = str(call.arguments[0])
        self.seen.setdefault(name, set()).add(mode)
        return self.stand.run(call)

    def run_all(self, calls: Sequence[ScriptCall]) -> list[Any]:
        return [self.run(call) for call in calls]


NAMES = ("spend", "a b", "x*?[y]\\", "ü:%", "{tag}")
ORGANIZATIONS = ("acme", "other")


class RandomCalls:
    """Everything that the router does with its scripts, in random order with random input."""

    def __init__(self, stand: Stand, seed: int) -> None:
        self.modes = Modes(stand)
        self.chance = random.Random(seed)
        runner, load, clock = self.modes, self.modes.load, stand.clock
        self.limiter = RateLimiter(runner, load=load)
        self.ledger = Ledger(runner, clock=clock, load=load)
        self.maintenance = LedgerMaintenance(runner, clock=clock, load=load)
        rebuilder = Rebuilder(self.maintenance, lambda _organization_id, _lost: 7)
        book = RebuildingLedger(self.ledger, rebuilder)
        self.leases = LeaseFinder(book, runner, load=load)
        self.idempotency = Idempotency(runner, load=load, max_reply_bytes=8)
        self.nonces = Nonces(runner, clock=clock, quota=40, load=load)
        self.exchange = RedisExchange(runner, self.ledger, self.idempotency, self.nonces, load=load)
        self.specs = [self.window(name) for name in NAMES]
        self.reserved: list[Reservation] = []
        self.steps = (
            self.rates, self.admit, self.reserve, self.settle, self.read, self.correct,
            self.rebuild, self.claim, self.move, self.evict, self.find, self.hold_again,
            self.take_nonce,
        )  # fmt: skip

    def step(self) -> None:
        self.chance.choice(self.steps)()

    def organization(self) -> str:
        return self.chance.choice(ORGANIZATIONS)

    def lease(self) -> str:
        return f"lease {self.chance.randrange(20)}"

    def buckets(self) -> list[BucketSpec]:
        found = [(name, self.chance.choice((0.0, 1.5, 70.0))) for name in NAMES]
        chosen = self.chance.sample(found, self.chance.randrange(4))
        return [
            BucketSpec(name, (name,), rate_per_s, 5, leased=self.chance.random() < 0.5)
            for name, rate_per_s in chosen
        ]

    def slots(self) -> list[SlotSpec]:
        chosen = self.chance.sample(NAMES, self.chance.randrange(3))
        return [SlotSpec(name, (name,), self.chance.randrange(3)) for name in chosen]

    def windows(self, least: int = 0) -> list[WindowSpec]:
        return self.chance.sample(self.specs, self.chance.randrange(least, 4))

    def window(self, name: str) -> WindowSpec:
        is_keys = self.chance.random() < 0.5
        return WindowSpec(
            name,
            self.chance.choice(("usd", "tokens", "requests")),  # type: ignore[arg-type]
            self.chance.choice(("daily", "monthly", "total")),  # type: ignore[arg-type]
            self.chance.choice((None, 0, 50)),
            scope="key" if is_keys else "org",
            subject="k 1" if is_keys else "",
            thresholds=(50, 100),
            enforced=self.chance.random() < 0.7,
        )

    def amounts(self) -> Amounts:
        return Amounts(self.chance.randrange(20), self.chance.randrange(20))

    def entry(self, owner: str) -> Entry:
        request_id = f"request {self.chance.randrange(10)}"
        return Entry(self.organization(), request_id, b"f%d" % self.chance.randrange(2), owner)

    def rates(self) -> None:
        organization, buckets, slots = self.organization(), self.buckets(), self.slots()
        self.limiter.take(organization, buckets, slots, lease_id=self.lease())
        self.limiter.peek(organization, buckets, slots)
        corrections = [
            Correction(one, self.chance.randrange(-3, 9), estimate=1 if one.leased else None)
            for one in buckets
        ]
        self.limiter.finish(organization, corrections, slots, lease_id=self.lease())

    def admit(self) -> None:
        organization, lease = self.organization(), self.lease()
        rates = None
        if self.chance.random() < 0.5:
            plan = self.limiter.plan(
                "take", organization, self.buckets(), self.slots(), lease_id=lease
            )
            rates = plan.call
        entry = self.entry(lease) if self.chance.random() < 0.5 else None
        if entry is not None:
            entry.organization_id = organization
        nonce = self.nonce(organization, lease) if self.chance.random() < 0.5 else None
        request = Request(organization, lease, self.windows(), self.amounts(), 60_000, nonce=nonce)
        if rates is not None or nonce or entry is not None or request.windows:
            _, outcome = self.exchange.ask(rates, request, entry)
            if isinstance(outcome, Reservation):
                self.reserved.append(outcome)

    def reserve(self) -> None:
        windows, amounts = self.windows(least=1), self.amounts()
        outcome = self.ledger.reserve(
            self.organization(), self.lease(), windows, amounts, ttl_ms=60_000
        )
        if isinstance(outcome, Reservation):
            self.reserved.append(outcome)

    def settle(self) -> None:
        if self.reserved:
            self.ledger.settle(self.chance.choice(self.reserved), self.amounts())

    def hold_again(self) -> None:
        if self.reserved:
            held = self.chance.choice(self.reserved)
            if held.reserved_at_ms is not None:
                self.maintenance.hold_again(held, ttl_ms=self.chance.choice((0, 60_000)))

    def find(self) -> None:
        self.leases.find(self.organization(), self.lease(), self.windows())

    def read(self) -> None:
        self.ledger.read(self.organization(), self.windows(least=1))

    def correct(self) -> None:
        organization, name = self.organization(), f"correction {self.chance.randrange(5)}"
        window = self.chance.choice(self.specs)
        try:
            self.maintenance.adjust(organization, window, -3, correction_id=name, reason="test")
            self.maintenance.reset(organization, window, correction_id=name + "r", reason="test")
        except WindowLost:
            pass

    def rebuild(self) -> None:
        self.maintenance.rebuild(self.organization(), self.specs, lambda _lost: 7)

    def claim(self) -> None:
        entry = self.entry(self.lease())
        self.idempotency.begin(entry, lease_ms=60_000)
        reply = self.chance.choice((None, b"reply", b"a long reply", NotStored()))
        self.modes.run(self.idempotency.plan_end(entry, reply))

    def nonce(self, organization: str, lease: str) -> Nonce:
        name, text = self.chance.choice(NAMES), str(self.chance.randrange(50))
        return Nonce(organization, name, text, int(self.modes.stand.clock.now_s()), lease)

    def take_nonce(self) -> None:
        self.nonces.take(self.nonce(self.organization(), self.lease()))

    def move(self) -> None:
        self.modes.stand.clock.advance(self.chance.choice((0.1, 3600.0, 86_400.0)))

    def evict(self) -> None:
        names = self.modes.stand.key_names()
        if names and self.chance.random() < 0.3:
            self.modes.stand.client.execute_command("DEL", self.chance.choice(names))


@pytest.mark.parametrize("seed", range(3))
def test_every_mode_touches_declared_keys_only(stand: Stand, seed: int) -> None:
    """R5: whatever a script is given, it touches the keys that its caller has named, and no other;
    on a cluster those lie in its one slot."""
    calls = RandomCalls(stand, seed)
    for number in range(4_000):
        calls.step()
        if number > 400 and calls.modes.seen == MODES:
            break
    assert calls.modes.seen == MODES
    tested = set(MODES) | {"window.lua"}  # which stands before the scripts of the ledger
    assert {file.name for file in FILES} == tested


@pytest.mark.parametrize(
    "source",
    [
        "return redis.call('GET', KEYS[1] .. 'x')",
        "return redis.call('SET', '{acme}other', '1')",
        "return redis.call('MGET', KEYS[1], '{acme}other')",
        "return redis.call('DEL', KEYS[1], ARGV[1])",
    ],
)
def test_a_script_that_builds_the_name_of_a_key_is_found(stand: Stand, source: str) -> None:
    """R5: also where that key would lie in the same slot."""
    is_fake = not isinstance(stand.client, GuardedClient)
    call = ScriptCall(script(PRELUDE * is_fake + source), ["{acme}k"], ["{acme}other"])
    with pytest.raises(ResponseError, match=r"is not declared|can't access|to access a key"):
        stand.run(call)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_scripts_do_not_depend_on_the_moment_beyond_redis_own_clock(file: Path) -> None:
    """R4: no argument is a time of the caller's clock to count with, and nothing is random."""
    assert "math.random" not in code(file)
    assert "os." not in code(file)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_scripts_say_what_they_are_called_with(file: Path) -> None:
    """Each opens with its keys, its arguments and an example."""
    text = file.read_text("utf-8")
    head = text[: text.index("\nlocal ")]
    assert [word for word in ("KEYS", "ARGV", "Example") if word not in head] == []


def test_a_script_is_known_by_its_digest() -> None:
    """R6: EVALSHA first, EVAL to teach it; both carry the same keys and arguments."""
    made = script("return 1")
    assert made.sha == hashlib.sha1(b"return 1").hexdigest()
    call = ScriptCall(made, ["{a}k"], ["x", b"\x00y", 3])
    tail = b"$1\r\n1\r\n$4\r\n{a}k\r\n$1\r\nx\r\n$2\r\n\x00y\r\n$1\r\n3\r\n"
    assert (
        call.by_digest() == b"*7\r\n$7\r\nEVALSHA\r\n$40\r\n" + made.sha.encode() + b"\r\n" + tail
    )
    assert call.by_source() == b"*7\r\n$4\r\nEVAL\r\n$8\r\nreturn 1\r\n" + tail
    assert packed(("PING",)) == b"*1\r\n$4\r\nPING\r\n"


def test_a_script_may_be_made_of_several_files() -> None:
    """The ledger's scripts share one file, which stands first."""
    source = load_script("budgets/window.lua", "budgets/reserve.lua").source
    assert source.index("local function totals") < source.index("local status, lost")


def test_all_keys_of_an_organization_share_a_tag() -> None:
    """R5: the tag is the organization, so its keys lie in one slot and others' elsewhere."""
    assert tag("acme") == "router:{acme}:"


@pytest.mark.parametrize(("part", "name"), [("a:b", "a%3Ab"), ("a%3Ab", "a%253Ab"), ("a", "a")])
def test_names_of_parts_are_never_mixed_up(part: str, name: str) -> None:
    """What contains the separator, or looks like its quotation, stays itself."""
    assert quoted(part) == name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_script_uses_a_command_with_several_keys(file: Path) -> None:
    """R5: a master that imports a slot refuses such a command while one of the keys is not there,
    and that in the middle of a script."""
    several = r"'(?:MGET|MSET|MSETNX|RENAME|[SZ](?:UNION|INTER|DIFF)\w*|PF\w+|BITOP|COPY)'"
    second_key = r"'(?:DEL|UNLINK|EXISTS|TOUCH)',[^()]*(?:\([^()]*\)[^()]*)*,"
    assert re.findall(f"{several}|{second_key}", code(file)) == []
