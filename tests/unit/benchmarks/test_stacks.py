"""What the profile's tables make of collapsed stacks."""

from __future__ import annotations

from tests.benchmarks import stacks
from tests.benchmarks.stacks import Cost

LINES = [
    "flask/app.py:Flask.wsgi_app;router/api/pipeline.py:run;json/decoder.py:decode 6",
    "flask/app.py:Flask.wsgi_app;router/api/pipeline.py:run 3",
    "flask/app.py:Flask.wsgi_app 1",
]


def test_costs_tell_own_time_from_time_below() -> None:
    """A function is charged what it spends itself, and separately what it causes."""
    assert stacks.costs(stacks.parse(LINES)) == [
        Cost("json/decoder.py:decode", 0.6, 0.6),
        Cost("router/api/pipeline.py:run", 0.3, 0.9),
        Cost("flask/app.py:Flask.wsgi_app", 0.1, 1.0),
    ]


def test_recursion_is_counted_once_per_sample() -> None:
    """A function below itself does not reach more than the whole."""
    assert stacks.costs(stacks.parse(["a.py:f;a.py:f;a.py:f 5"])) == [Cost("a.py:f", 1.0, 1.0)]


def test_costs_by_total_begin_with_the_outermost_function() -> None:
    """Read from the top, the table follows the path of a call."""
    ordered = stacks.by_total(stacks.costs(stacks.parse(LINES)))

    assert [cost.total for cost in ordered] == [1.0, 0.9, 0.6]


def test_packages_merge_their_functions_and_the_router_is_split() -> None:
    """Libraries are told by name, the router by folder."""
    assert [cost.name for cost in stacks.costs_by_package(stacks.parse(LINES))] == [
        "json",
        "router/api",
        "flask",
    ]


def test_module_at_the_top_is_its_own_package() -> None:
    """A single-file module of the router or of the library keeps its name without `.py`."""
    assert stacks.package_of("router/gateway.py:serve") == "router/gateway"
    assert stacks.package_of("socket.py:socket.send") == "socket"
    assert stacks.package_of("<frozen os>:environ") == "<frozen os>"


def test_table_gives_shares_of_a_calls_cpu_time() -> None:
    """Shares become microseconds once the CPU time of one call is known."""
    found = stacks.costs(stacks.parse(LINES))

    first = stacks.table(found, us_per_call=500.0, most=1).splitlines()[1]

    assert first.split() == ["60.0%", "60.0%", "300.0", "300.0", "json/decoder.py:decode"]
    assert stacks.table(found, us_per_call=None, most=1).splitlines()[1].split()[2:4] == [
        "n/a",
        "n/a",
    ]
