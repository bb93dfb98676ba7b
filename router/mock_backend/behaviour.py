"""How a mock backend behaves: its settings, their rules, and the dial that changes them."""

from __future__ import annotations

import dataclasses
import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Failure = Literal[
    "none",
    "refuse",
    "reset",
    "black_hole",
    "truncate_body",
    "cut_stream",
    "garbage",
    "tar_pit",
    "bad_json",
    "no_usage",
    "slow_body",
]
UsageStyle = Literal["last_empty_choices", "with_last_choice", "every_chunk", "none"]
LineEnding = Literal["lf", "crlf"]

_DAY_MS = 86_400_000


class BehaviourError(ValueError):
    """Settings that cannot be had; `problems` maps each such field to what is wrong with it."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {problem}" for name, problem in problems.items()))
        self.problems = dict(problems)


@dataclass(frozen=True)
class Rule:
    """What one setting may be, and the sentence that explains it."""

    kind: Literal["number", "integer", "flag", "choice"]
    explanation: str
    low: float = 0
    high: float = 0
    optional: bool = False
    choices: tuple[str, ...] = ()

    def problem(self, value: object) -> str | None:
        """Say what is wrong with a value, or nothing."""
        if value is None and self.optional:
            return None
        if self.kind == "flag":
            return None if isinstance(value, bool) else "must be true or false"
        if self.kind == "choice":
            return None if value in self.choices else f"must be one of {', '.join(self.choices)}"
        accepted = int if self.kind == "integer" else (int, float)
        # NaN is a float that no comparison admits, so the range check refuses it too.
        if isinstance(value, bool) or not isinstance(value, accepted):
            return f"must be {'an integer' if self.kind == 'integer' else 'a number'}"
        if not self.low <= value <= self.high:
            return f"must be between {self.low} and {self.high}"
        return None


def _number(explanation: str, *, high: float = _DAY_MS, optional: bool = False) -> dict[str, Rule]:
    return {"rule": Rule("number", explanation, high=high, optional=optional)}


def _integer(
    explanation: str, *, high: int, low: int = 0, optional: bool = False
) -> dict[str, Rule]:
    return {"rule": Rule("integer", explanation, low=low, high=high, optional=optional)}


def _flag(explanation: str) -> dict[str, Rule]:
    return {"rule": Rule("flag", explanation)}


def _choice(explanation: str, choices: tuple[str, ...]) -> dict[str, Rule]:
    return {"rule": Rule("choice", explanation, choices=choices)}


@dataclass(frozen=True)
class Behaviour:
    """All that can be set about a mock backend; a value that breaks its rule is refused."""

    latency_ms: float = field(
        default=0, metadata=_number("Wait before the head of an inference answer.")
    )
    latency_jitter_ms: float = field(
        default=0, metadata=_number("Up to this much, drawn evenly, is added to the latency.")
    )
    first_token_ms: float = field(
        default=0, metadata=_number("Wait between the head of a stream and its first event.")
    )
    token_interval_ms: float = field(
        default=0, metadata=_number("Wait between two events of a stream.")
    )
    tokens_input: int | None = field(
        default=None,
        metadata=_integer("Input tokens that every answer reports.", high=10**9, optional=True),
    )
    tokens_output: int | None = field(
        default=None,
        metadata=_integer(
            "Output tokens of every choice, whatever the call asks.", high=10**9, optional=True
        ),
    )
    error_rate: float = field(
        default=0, metadata=_number("Share of inference calls answered with an error.", high=1)
    )
    error_status: int = field(
        default=500, metadata=_integer("Status of those errors.", low=400, high=599)
    )
    retry_after_s: int | None = field(
        default=None,
        metadata=_integer("Retry-After sent with those errors.", high=86_400, optional=True),
    )
    health_status: int = field(
        default=200, metadata=_integer("Status of GET /health.", low=200, high=599)
    )
    failure: Failure = field(
        default="none", metadata=_choice("How every answer is broken.", get_args(Failure))
    )
    cut_after_chunks: int = field(
        default=1, metadata=_integer("Events that cut_stream lets through.", high=1_000_000)
    )
    tar_pit_interval_ms: float = field(
        default=1000, metadata=_number("Wait between two bytes of tar_pit and slow_body.")
    )
    keepalive_ms: float | None = field(
        default=None,
        metadata=_number("A connection idle for this long is closed.", optional=True),
    )
    seed: int | None = field(
        default=None,
        metadata=_integer(
            "Makes errors and jitter the same in every run.", high=2**63 - 1, optional=True
        ),
    )
    usage_style: UsageStyle = field(
        default="last_empty_choices",
        metadata=_choice("Where a stream reports its usage.", get_args(UsageStyle)),
    )
    line_ending: LineEnding = field(
        default="lf", metadata=_choice("Line ending of stream events.", get_args(LineEnding))
    )
    comments: bool = field(
        default=False, metadata=_flag("Put a comment line before every stream event.")
    )
    split_writes: bool = field(
        default=False, metadata=_flag("Send every stream event in two TCP writes.")
    )

    def __post_init__(self) -> None:
        problems = {
            name: problem
            for name, rule in RULES.items()
            if (problem := rule.problem(getattr(self, name))) is not None
        }
        if problems:
            raise BehaviourError(problems)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Behaviour:
        """Build a behaviour from a mapping; what it leaves out takes the default."""
        return cls().with_changes(settings)

    def with_changes(self, changes: Mapping[str, Any]) -> Behaviour:
        """Copy with some settings replaced; all that is wrong is reported in one BehaviourError."""
        problems = {name: "is no setting" for name in changes if name not in RULES}
        known = {name: value for name, value in changes.items() if name in RULES}
        try:
            changed = dataclasses.replace(self, **known)
        except BehaviourError as error:
            raise BehaviourError({**problems, **error.problems}) from None
        if problems:
            raise BehaviourError(problems)
        return changed

    def as_settings(self) -> dict[str, Any]:
        """Return the settings as JSON can carry them."""
        return dataclasses.asdict(self)


RULES: Mapping[str, Rule] = {
    each.name: each.metadata["rule"] for each in dataclasses.fields(Behaviour)
}


@dataclass(frozen=True)
class Draw:
    """What was decided for one request: the settings in force and how its dice fell."""

    behaviour: Behaviour
    delay_s: float = 0.0
    fails: bool = False


class Dial:
    """Holds the behaviour in force; a change replaces it whole and starts the dice again."""

    def __init__(self, initial: Behaviour) -> None:
        self._initial = initial
        self._lock = threading.Lock()
        self._turn_to(initial)

    @property
    def behaviour(self) -> Behaviour:
        return self._behaviour

    def replace(self, behaviour: Behaviour) -> None:
        """Put other settings in force for the requests that come from now on."""
        with self._lock:
            self._turn_to(behaviour)

    def change(self, changes: Mapping[str, Any]) -> Behaviour:
        """Replace the named settings only, and return what is in force now."""
        with self._lock:
            self._turn_to(self._behaviour.with_changes(changes))
            return self._behaviour

    def reset(self) -> Behaviour:
        """Return to the settings that it began with."""
        self.replace(self._initial)
        return self._initial

    def draw(self) -> Draw:
        """Decide about one inference call.

        Both dice are cast for each call, so the n-th call after a change fares the same for the
        same seed, whatever rate and jitter are.
        """
        with self._lock:
            behaviour = self._behaviour
            luck, jitter = self._dice.random(), self._dice.random()
        delay_ms = behaviour.latency_ms + jitter * behaviour.latency_jitter_ms
        return Draw(behaviour, delay_s=delay_ms / 1000, fails=luck < behaviour.error_rate)

    def _turn_to(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._dice = random.Random(behaviour.seed)
