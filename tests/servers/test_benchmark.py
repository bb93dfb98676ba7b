"""The benchmark as a program: what it writes, when it refuses, what it leaves behind.

Nothing here asserts how fast anything is.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.framing import MessageError
from tests.benchmarks.load import LoadError, run_load
from tests.benchmarks.redis import PROGRAM as REDIS
from tests.fakes.backend.scripts import answer, answer_and_end, reply
from tests.fakes.backend.server import FakeServer

ROOT = Path(__file__).resolve().parents[2]
ROUND_FIELDS = {
    *("calls", "elapsed_s", "requests_per_s", "p50_ms", "p99_ms"),
    *("cpu_us_per_call", "others_busy"),
}

HAS_REDIS = int(REDIS is not None)

pytestmark = pytest.mark.servers


def start_benchmark(*arguments: str) -> subprocess.Popen[str]:
    """The benchmark with these arguments, in the source tree's root."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.run", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_benchmark(*arguments: str) -> tuple[int, str, str]:
    """Exit status, output and error output of a whole run."""
    with start_benchmark(*arguments) as process:
        output, errors = process.communicate(timeout=90)
        return process.returncode, output, errors


def alive(pid: int) -> bool:
    """Whether a process of this id exists and is no zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def started_pids(errors: str) -> list[int]:
    """The processes that the benchmark says it started."""
    return [int(pid) for pid in re.findall(r"^# started .* pid=(\d+)$", errors, re.MULTILINE)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, str]:
    """One short run of the control and the bare view: JSON document, output, error output."""
    path = tmp_path_factory.mktemp("benchmark") / "figures.json"
    status, output, errors = run_benchmark(
        *("--subjects", "control,bare", "--rounds", "1", "--seconds", "0.5"),
        *("--connections", "4,1", "--json", str(path)),
    )
    assert status == 0, errors
    return json.loads(path.read_text()), output, errors


def test_json_holds_each_subject_at_each_number_of_connections(
    finished: tuple[dict[str, Any], str, str],
) -> None:
    """P1: a run can be kept and compared, with the machine and the settings that it had."""
    document = finished[0]

    assert document["version"] == 1
    assert document["settings"] == {
        "rounds": 1,
        "seconds": 0.5,
        "connections": [4, 1],
        "subjects": ["control", "bare"],
    }
    assert {"system", "python", "cores", "pinned"} <= set(document["machine"])
    assert [(each["subject"], each["connections"]) for each in document["results"]] == [
        ("control", 4),
        ("bare", 4),
        ("control", 1),
        ("bare", 1),
    ]


def test_json_rounds_agree_with_their_summary(
    finished: tuple[dict[str, Any], str, str],
) -> None:
    """With a single round, the summary is that round and the ratio is that of the two rounds."""
    for result in finished[0]["results"]:
        (measured,) = result["rounds"]
        assert set(measured) == ROUND_FIELDS
        assert measured["calls"] >= result["connections"]
        assert measured["elapsed_s"] >= 0.5
        assert 0 < measured["p50_ms"] <= measured["p99_ms"]
        assert result["requests_per_s"] == measured["requests_per_s"]
        assert result["errors"] == 0
        assert result["ratio"]["per_round"] == [result["ratio"]["of_medians"]]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc: no CPU time, no RSS")
def test_cpu_time_and_memory_are_known_where_proc_is(
    finished: tuple[dict[str, Any], str, str],
) -> None:
    """The gunicorn worker is found among its master's children."""
    for result in finished[0]["results"]:
        assert result["rss_mib"] > 1
        assert result["cpu_us_per_call"] > 0


def test_table_names_every_subject(finished: tuple[dict[str, Any], str, str]) -> None:
    """The printed table has a line per subject in each block."""
    lines = [line.split()[0] for line in finished[1].splitlines() if line]

    assert lines == ["4", "subject", "control", "bare", "1", "subject", "control", "bare"]


def test_nothing_is_left_running(finished: tuple[dict[str, Any], str, str]) -> None:
    """Backend, load generator, Redis and both subjects are gone when the run ends."""
    pids = started_pids(finished[2])

    assert len(pids) == 4 + HAS_REDIS
    assert [pid for pid in pids if alive(pid)] == []


@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"]
)
def test_an_interrupted_run_leaves_nothing_running(sent: signal.Signals, status: int) -> None:
    """Ctrl-C or a TERM in the middle of a round ends everything that was started."""
    with start_benchmark("--subjects", "control", "--seconds", "0.2", "--rounds", "999") as process:
        assert process.stderr is not None
        seen = ""
        while "round 1" not in seen:
            line = process.stderr.readline()
            assert line, seen
            seen += line
        process.send_signal(sent)
        process.communicate(timeout=30)

    assert process.returncode == status
    assert len(started_pids(seen)) == 3 + HAS_REDIS
    assert [pid for pid in started_pids(seen) if alive(pid)] == []


def test_another_checkout_is_measured_in_the_same_run(tmp_path: Path) -> None:
    """It is started in its own directory, by its own interpreter and as its own benchmark says."""
    other = tmp_path / "other"
    other.mkdir()
    for name in ("tests", "router", "gunicorn.conf.py"):
        (other / name).symlink_to(ROOT / name)
    python = other / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\npwd >>"{tmp_path}/started"\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    status, output, errors = run_benchmark(
        *("--subjects", "control", "--before", str(other), "--connections", "2"),
        *("--rounds", "1", "--seconds", "0.3"),
    )
    assert status == 0, errors
    assert [line.split()[0] for line in output.splitlines()[2:]] == ["control", "before"]
    # Asked how it is launched, its document applied, its server started.
    assert (tmp_path / "started").read_text().split() == [str(other)] * 3


@pytest.mark.skipif(REDIS is None, reason="REDIS-SERVER IS NOT INSTALLED")
def test_decisions_are_measured_against_a_control() -> None:
    """Each kind of decision has a line of its own, beside what the same server needs for a PING."""
    finished = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.decisions", "--decisions", "50"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    head, *lines = finished.stdout.splitlines()
    assert head.split()[:4] == ["p50", "us", "p99", "us"]
    names = [" ".join(line.split()[4:]) for line in lines]
    assert names == ["control: PING", "rates", "rates, id, budgets"]
    assert all(0 < float(line.split()[0]) <= float(line.split()[1]) for line in lines)


def test_profile_shows_the_view_and_keeps_the_stacks(tmp_path: Path) -> None:
    """The profiled worker writes its stacks when it ends, and the view is among them."""
    status, output, errors = run_benchmark(
        *("--subjects", "control", "--profile", str(tmp_path)),
        *("--rounds", "1", "--seconds", "1", "--connections", "4"),
    )

    assert status == 0, errors
    assert "requests/sessions.py:" in output  # Python 3.10 names no class
    assert "tests/benchmarks/control_app.py:" in (tmp_path / "control.collapsed").read_text()


@pytest.mark.parametrize(
    ("refuse", "message"), [(True, "not a 200: .*503"), (False, "closed in mid-call")]
)
def test_load_ends_with_the_first_call_that_goes_wrong(refuse: bool, message: str) -> None:
    """A refusal or a lost connection fails the round instead of counting as a fast answer."""
    whole = reply(b"{}")
    script = answer(whole, reply(b"{}", 503)) if refuse else answer_and_end(whole)
    with FakeServer(script) as server, pytest.raises((MessageError, LoadError), match=message):
        run_load(server.port, connections=2, seconds=5)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--subjects", "control,nobody"),
        ("--subjects", "control", "--assert-ratio", "1"),
        ("--connections", "1", "--assert-ratio", "1"),
        ("--rounds", "0"),
        ("--before", "/nowhere"),
    ],
)
def test_wrong_usage_starts_nothing(arguments: tuple[str, ...]) -> None:
    """What cannot be measured is refused before any process is started."""
    status, _, errors = run_benchmark(*arguments)

    assert status == 2
    assert started_pids(errors) == []
