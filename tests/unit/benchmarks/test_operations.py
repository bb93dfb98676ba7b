"""What the micro benchmark times is there, runs, and does what its name says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.benchmarks.micro import main
from tests.benchmarks.operations import OPERATIONS

EXPECTED: dict[str, Callable[[Any], bool]] = {
    "pricing.cost_nanos": lambda nanos: nanos == 176 * 2_500 + 1_024 * 1_250 + 350 * 10_000,
    "pricing.estimate": lambda usage: usage.tokens_output == 350,
    "api.parse_object": lambda fields: fields["model"] == "gpt-4o",
    "upstream.forwardable": lambda headers: len(headers) == 2,
    "routing.order": lambda order: sorted(order) == ["primary", "secondary"],
    "telemetry.redact": lambda text: "Say hello" in text,
    "telemetry.open_trace": lambda trace: trace.parent_span_id == "b7ad6b7169203331",
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_runs(name: str) -> None:
    """A renamed function would otherwise be noticed only by whoever measures next."""
    operation = OPERATIONS[name]()
    first, second = operation(), operation()
    assert type(first) is type(second)


@pytest.mark.parametrize("name", EXPECTED)
def test_an_operation_does_the_real_thing(name: str) -> None:
    """What is timed is the usual case, not an early refusal."""
    assert EXPECTED[name](OPERATIONS[name]()())


def test_a_name_that_selects_nothing_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """The message lists what there is."""
    with pytest.raises(SystemExit) as raised:
        main(["no-such-operation"])
    assert raised.value.code == 2
    assert "routing.order" in capsys.readouterr().err
