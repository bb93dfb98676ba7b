"""The benchmark's statistics, on rounds whose figures are known."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.benchmarks import report
from tests.benchmarks.report import Result, Round

MS = 1_000_000


def round_at(requests_per_s: float) -> Round:
    """A round of one second at the given rate."""
    return Round(
        calls=round(requests_per_s),
        elapsed_s=1.0,
        requests_per_s=requests_per_s,
        p50_ms=1.0,
        p99_ms=2.0,
        cpu_us_per_call=500.0,
        others_busy=0.25,
    )


def result_at(subject: str, rates: list[float], control: list[float] | None) -> Result:
    """A result at 32 connections with one round per rate."""
    return report.result_of(
        subject,
        32,
        [round_at(rate) for rate in rates],
        control=None if control is None else [round_at(rate) for rate in control],
        rss_mib=40.0,
    )


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.01, 1), (0.5, 50), (0.501, 51), (0.99, 99), (1.0, 100)]
)
def test_percentile_is_the_nearest_rank(share: float, expected: int) -> None:
    """A percentile is a measured value that the given share of all values do not exceed."""
    assert report.percentile(range(1, 101), share) == expected


def test_percentile_of_one_value_is_that_value() -> None:
    """One call is its own median and its own 99th percentile."""
    assert report.percentile([7], 0.5) == report.percentile([7], 0.99) == 7


def test_round_counts_calls_and_orders_latencies() -> None:
    """Latencies arrive in the order of completion and still give the right percentiles."""
    latencies_ns = [each * MS for each in (9, 1, 5, 3, 7, 2, 8, 4, 10, 6)]

    measured = report.round_of(latencies_ns, 0.5, cpu_s=0.02, others_cpu_s=0.1)

    assert measured == Round(
        calls=10,
        elapsed_s=0.5,
        requests_per_s=20.0,
        p50_ms=5.0,
        p99_ms=10.0,
        cpu_us_per_call=2000.0,
        others_busy=0.2,
    )


def test_round_without_proc_knows_no_cpu_time() -> None:
    """Where CPU time cannot be read it is unknown, not zero."""
    measured = report.round_of([MS], 1.0, cpu_s=None, others_cpu_s=None)

    assert (measured.cpu_us_per_call, measured.others_busy) == (None, None)


def test_result_takes_the_median_of_the_rounds() -> None:
    """One round that the machine spoiled moves the extremes but not the figure."""
    result = result_at("router", [1500.0, 300.0, 1600.0], None)

    assert (result.requests_per_s_min, result.requests_per_s, result.requests_per_s_max) == (
        300.0,
        1500.0,
        1600.0,
    )


def test_result_with_an_unknown_cpu_time_in_one_round_reports_none() -> None:
    """A median over some of the rounds would pass for one over all of them."""
    rounds = [round_at(1000.0), replace(round_at(1000.0), cpu_us_per_call=None)]

    result = report.result_of("router", 1, rounds, control=None, rss_mib=None)

    assert (result.cpu_us_per_call, result.others_busy) == (None, 0.25)


def test_ratio_compares_medians_and_each_pair_of_rounds() -> None:
    """The ratio of the medians is not the median of the ratios, so both are told."""
    result = result_at("router", [1500.0, 1600.0, 1000.0], [1000.0, 800.0, 500.0])

    assert result.ratio is not None
    assert result.ratio.of_medians == 1500.0 / 800.0
    assert result.ratio.per_round == (1.5, 2.0, 2.0)


def test_ratio_refuses_rounds_that_have_no_partner() -> None:
    """A missing round would shift every later pair."""
    with pytest.raises(ValueError, match="zip"):
        report.ratio_of([round_at(1.0), round_at(1.0)], [round_at(1.0)])


@pytest.mark.parametrize(("least", "expected"), [(1.4, ""), (1.5, ""), (1.51, "1.50 x")])
def test_shortfall_begins_just_above_the_ratio_reached(least: float, expected: str) -> None:
    """A ratio that is reached exactly is enough; anything less is said with both figures."""
    results = [result_at("router", [1500.0], [1000.0])]

    lack = report.shortfall(results, "router", 32, least)

    assert (expected in lack) if expected else lack == ""


@pytest.mark.parametrize(("subject", "connections"), [("bare", 32), ("router", 1)])
def test_shortfall_of_what_was_not_measured_is_one(subject: str, connections: int) -> None:
    """A required ratio cannot be met by leaving it out of the run."""
    results = [result_at("router", [1500.0], [1000.0])]

    assert "was not measured" in report.shortfall(results, subject, connections, 1.0)


def test_shortfall_without_a_control_is_one() -> None:
    """Without a control there is no ratio that could be good enough."""
    assert "was not measured" in report.shortfall(
        [result_at("router", [1500.0], None)], "router", 32, 1.0
    )


def test_table_has_one_block_per_number_of_connections() -> None:
    """Figures at 32 connections and at 1 never stand in one column."""
    control = result_at("control", [1000.0], [1000.0])
    router = result_at("router", [1500.0], [1000.0])
    single = replace(router, connections=1, ratio=None, rss_mib=None)

    blocks = report.table([control, router, single]).split("\n\n")

    assert [len(block.splitlines()) for block in blocks] == [4, 3]
    assert blocks[0].splitlines()[3].split() == [
        *("router", "1500", "1500..1500", "1.00", "2.00", "500", "40.0", "0", "25%", "1.50", "1.50")
    ]
    assert blocks[1].splitlines()[2].split()[-5:] == ["n/a", "0", "25%", "n/a", "n/a"]


def test_document_survives_json() -> None:
    """What is written with --json holds each round and the ratio."""
    results = [result_at("router", [1500.0, 1600.0], [1000.0, 1000.0])]

    document = json.loads(
        json.dumps(report.document(results, machine={"pinned": True}, settings={}))
    )

    assert document["version"] == 1
    assert document["machine"] == {"pinned": True}
    assert [each["requests_per_s"] for each in document["results"][0]["rounds"]] == [1500.0, 1600.0]
    assert document["results"][0]["ratio"] == {"of_medians": 1.55, "per_round": [1.5, 1.6]}
