"""Death, errors and power failures at every single step that the spool and its reader take."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Mapping
from typing import Literal

import pytest

from router.clock import FrozenClock
from router.spool.reader import SpoolReader
from router.spool.writer import Mode
from tests.fakes.spool_io import Died, Fault, FaultyIO, Kept, Plan, error, fail_at
from tests.fakes.spool_parties import SPOOL, Agent, Worker, fresh, is_ready, new_disk

Party = Literal["worker", "agent"]
When = Literal["before", "after", "torn"]

RECORDS = 18
ROUNDS = 2
TICK_S = 0.25
OUTAGE_S = 1.0
MODES: tuple[Mode, ...] = ("fast", "durable")
PARTIES: tuple[Party, ...] = ("worker", "agent")
WHENS: tuple[When, ...] = ("before", "after", "torn")
LUCK: dict[Party, tuple[tuple[Kept, bool], ...]] = {
    "worker": (("synced", False), ("all", False), ("zeros", True), ("half", True)),
    "agent": (("synced", False), ("half", True)),
}


class Story:
    """A worker and an agent on one disk, in turns. Whoever dies is followed by another."""

    def __init__(
        self,
        mode: Mode,
        plans: Mapping[Party, Plan] | None = None,
        power: tuple[Kept, bool] | None = None,
    ) -> None:
        """With ``power`` a death is a power failure: both die, and the disk loses what it may."""
        self.mode = mode
        self.disk = new_disk()
        self.clock = FrozenClock()
        self.power = power
        self.successors: Mapping[Party, Plan] = {}
        plans = plans or {}
        self.ios = {party: FaultyIO(self.disk, plans.get(party)) for party in PARTIES}
        self.worker: Worker | None = None
        self.agent: Agent | None = None
        self.offered: list[int] = []
        self.safe: list[int] = []
        self.holds = False
        self.steps_at_work = 0
        self.at_work = True
        self.delivered: list[int] = []

    def play(self) -> Story:
        """Rounds of work and delivery, an orderly end, and an agent that finishes."""
        for start in range(0, RECORDS, RECORDS // ROUNDS):
            self._turn("worker", lambda start=start: self._work(start))
            self._turn("agent", self._deliver)
        self.steps_at_work, self.at_work = self.steps("worker"), False
        self._turn("worker", self._finish)
        for _ in range(3):
            self._turn("agent", self._deliver)
        self._turn("worker", self._finish)
        self._remember()
        return self

    def steps(self, party: Party) -> int:
        """How many steps a party took."""
        return len(self.ios[party].steps)

    def _turn(self, party: Party, act: Callable[[], None]) -> None:
        try:
            act()
        except Died:
            self._bury(PARTIES if self.power else (party,))
            if self.power:
                self.disk.lose_power(self.power[0], names=self.power[1])

    def _work(self, start: int) -> None:
        if self.worker is None:
            self.worker = Worker(self.ios["worker"], self.clock, mode=self.mode)
            self.worker.holds = self.holds
        self.worker.work(start, RECORDS // ROUNDS)

    def _finish(self) -> None:
        if self.worker is not None:
            for _ in range(int((OUTAGE_S + 2) / TICK_S)):
                self.worker.tick(TICK_S)
            assert is_ready(self.worker.writer), "not serving again within 2 s"
            self.worker.writer.close()
            self._remember()
            self.worker = None

    def _deliver(self) -> None:
        if self.agent is None:
            self.agent = Agent(self.ios["agent"], self.delivered)
        try:
            self.agent.run()
        except OSError:
            pass  # an agent tries again later

    def _bury(self, parties: tuple[Party, ...]) -> None:
        for party in parties:
            self.ios[party].die()
            self.ios[party] = FaultyIO(self.disk, self.successors.get(party))
        if "worker" in parties:
            self._remember()
            self.worker = None
            self.clock.advance(TICK_S)  # the next one is younger
        if "agent" in parties:
            self.agent = None

    def _remember(self) -> None:
        if self.worker is not None:
            lossy = self.power is not None and self.mode == "fast"
            self.offered += self.worker.offered
            self.safe += self.worker.synced if lossy else self.worker.taken


def assert_nothing_is_lost(story: Story) -> None:
    """What was taken is delivered, in order; what was not offered is not; nothing is left over."""
    assert set(story.safe) <= set(story.delivered)
    assert set(story.delivered) <= set(story.offered)
    assert fresh(story.delivered) == sorted(set(story.delivered))
    assert SpoolReader(SPOOL, story.disk, observe=True).writers() == []


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest) -> Mode:
    """Both modes take different steps."""
    chosen: Mode = request.param
    return chosen


def steps(mode: Mode, party: Party, when: When) -> list[int]:
    """The numbers of the steps that a party takes; only writes and syncs can be half done."""
    names = Story(mode).play().ios[party].steps
    return [
        number
        for number, name in enumerate(names, start=1)
        if when != "torn" or name in ("write", "sync")
    ]


def test_without_a_fault_everything_is_delivered_once(mode: Mode) -> None:
    """The story that the tests below disturb is complete, and long enough to rotate and remove."""
    story = Story(mode).play()
    assert story.delivered == story.safe == list(range(RECORDS))
    worker, agent = (story.ios[party].steps for party in PARTIES)
    assert worker.count("rename") > 2
    assert agent.count("unlink") > 2
    assert {"open", "write", "sync", "sync_dir", "allocate", "truncate", "make_dir"} <= set(worker)
    assert {"open", "write", "sync", "sync_dir", "allocate", "remove_dir"} <= set(agent)


@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize("party", PARTIES)
def test_death_at_each_single_step_loses_nothing(mode: Mode, party: Party, when: When) -> None:
    """Requirement P1: whoever is killed, wherever it is, every taken record is delivered."""
    for step in steps(mode, party, when):
        story = Story(mode, {party: fail_at(step, Fault(Died(), when))}).play()
        assert_nothing_is_lost(story)


@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize("party", PARTIES)
def test_a_power_failure_at_each_single_step_loses_what_the_mode_allows(
    mode: Mode, party: Party, when: When
) -> None:
    """Requirement P2: ``durable`` loses nothing, ``fast`` nothing that a sync has covered."""
    for step in steps(mode, party, when):
        for power in LUCK[party]:
            story = Story(mode, {party: fail_at(step, Fault(Died(), when))}, power).play()
            assert_nothing_is_lost(story)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize("party", PARTIES)
def test_an_error_at_each_single_step_loses_nothing(
    mode: Mode, party: Party, when: When, number: int
) -> None:
    """Requirement P3: one failed step costs at most refusals, and they end within 2 s."""
    for step in steps(mode, party, when):
        story = Story(mode, {party: fail_at(step, Fault(error(number), when))}).play()
        assert_nothing_is_lost(story)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize("names", ["write sync", "sync", "rename", "sync_dir", "open allocate"])
def test_an_outage_from_each_single_step_on_loses_nothing(
    mode: Mode, names: str, number: int
) -> None:
    """Requirement P3: while steps of a kind fail for a second calls are refused, and 2 s later not.

    The end of the story asserts the latter.
    """
    for first in range(1, Story(mode).play().steps_at_work + 1):
        story = Story(mode)
        began_s: list[float] = []

        def plan(
            step: int,
            name: str,
            first: int = first,
            began_s: list[float] = began_s,
            clock: FrozenClock = story.clock,
        ) -> Fault | None:
            if step < first or name not in names.split():
                return None
            began_s.append(clock.monotonic_s())
            over = clock.monotonic_s() > began_s[0] + OUTAGE_S
            return None if over else Fault(error(number))

        story.ios["worker"].plan = plan
        assert_nothing_is_lost(story.play())


def test_a_failed_sync_is_not_trusted_when_the_next_one_succeeds(mode: Mode) -> None:
    """After EIO from fdatasync the data was written again elsewhere before it counts as safe."""
    for failing in steps(mode, "worker", "torn"):
        for death in range(failing + 1, failing + 10):

            def plan(step: int, _: str, failing: int = failing, death: int = death) -> Fault | None:
                if step == failing:
                    return Fault(error(errno.EIO), "torn")
                return Fault(Died()) if step == death else None

            story = Story(mode, {"worker": plan}, ("synced", False)).play()
            assert_nothing_is_lost(story)


class Misfortune:
    """Errors and up to three deaths at random steps of both parties, until the end of the work."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.deaths = 3
        mode = self.chance.choice(MODES)
        power = self.chance.choice([None, None, *LUCK["worker"]])
        self.story = Story(mode, power=power)
        self.story.successors = {party: self._plan() for party in PARTIES}
        for party, plan in self.story.successors.items():
            self.story.ios[party].plan = plan

    def _plan(self) -> Plan:
        rate = self.chance.choice([0.0, 0.01, 0.05, 0.2])

        def plan(_step: int, _name: str) -> Fault | None:
            if not self.story.at_work or self.chance.random() >= rate:
                return None
            when = self.chance.choice(WHENS)
            if self.deaths and self.chance.random() < 0.15:
                self.deaths -= 1
                return Fault(Died(), when)
            return Fault(error(self.chance.choice([errno.EIO, errno.ENOSPC])), when)

        return plan


def test_many_faults_at_random_steps_lose_nothing() -> None:
    """Errors, deaths and power failures of both parties in one story, whatever their order."""
    for seed in range(150):
        assert_nothing_is_lost(Misfortune(seed).story.play())


def test_what_is_held_is_not_lost_while_the_process_lives() -> None:
    """Whatever steps fail, what was refused and held arrives too, and in its place in the order."""
    for seed in range(150):
        misfortune = Misfortune(seed)
        misfortune.deaths = 0
        misfortune.story.holds = True
        story = misfortune.story.play()
        assert_nothing_is_lost(story)
        assert story.safe == list(range(RECORDS))
