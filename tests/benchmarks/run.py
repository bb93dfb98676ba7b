"""The benchmark: `python -m tests.benchmarks.run`, method and figures in docs/performance.md.

Exit status: 0 done, 1 a call went wrong or --assert-ratio was not reached, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks import processes, report, stacks
from tests.benchmarks.processes import BenchmarkError, Cores, python_of
from tests.benchmarks.report import CONTROL, Result, Round
from tests.benchmarks.stand import Running, Stand
from tests.benchmarks.subjects import BEFORE, SUBJECTS, Subject, before

_ROUTER = "router"
_ASSERTED_CONNECTIONS = 32
_WARM_UP_S = 1.0
_BUSY_LIMIT = 0.85
_TOP_FUNCTIONS = 40
_TOP_PACKAGES = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for and return the exit status."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    cores = processes.plan_cores()
    if not cores.pinned:
        _warn(
            "NOT PINNED: one core only, or no CPU affinity on this system. Gateway, load generator"
            " and backend share cores; the figures are worth little, the ratio somewhat more."
        )
    processes.pin_current_process(cores.others)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="router-benchmark-") as directory,
            processes.stopped_at_the_end() as children,
        ):
            stand = Stand(Path(directory), cores, children)
            if not stand.has_redis:
                _warn(
                    "NO REDIS-SERVER ON PATH: the router's embedded one shares the gateway's core."
                    " The router's figures are too low."
                )
            if options.profile is not None:
                for subject in _chosen(options, [_ROUTER]):
                    _profile(stand, subject, options, Path(directory))
                return 0
            results = _measure_all(stand, options)
    except BenchmarkError as error:
        print(f"benchmark failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return _publish(results, options, cores)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.run", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds per subject (default 5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one (default 3)")
    parser.add_argument(
        "--connections", type=_numbers, default=[32, 1], metavar="N[,N]", help="default 32,1"
    )
    parser.add_argument(
        "--subjects",
        type=lambda text: text.split(","),
        metavar="NAME[,NAME]",
        help=f"of {', '.join(SUBJECTS)}, in this order (default control,router)",
    )
    parser.add_argument(
        "--before",
        type=Path,
        metavar="DIR",
        help=f"measure the router of another checkout, too, as the subject {BEFORE}; it must have"
        " a .venv with the router installed",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    parser.add_argument(
        "--assert-ratio",
        type=float,
        metavar="R",
        help="exit 1 if the router is below R x the control at 32 connections",
    )
    parser.add_argument(
        "--profile",
        nargs="?",
        const="",
        metavar="DIR",
        help="instead of measuring, profile the worker of the router (or of --subjects) and print"
        " where its CPU time goes; with DIR, keep the collapsed stacks there",
    )
    options = parser.parse_args(arguments)
    _check(parser, options)
    return options


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    subjects = options.subjects or [CONTROL, _ROUTER]
    unknown = [name for name in subjects if name not in SUBJECTS]
    if unknown or len(set(subjects)) != len(subjects):
        parser.error(f"--subjects: unknown or repeated among {', '.join(subjects)}")
    if options.rounds < 1 or options.seconds <= 0 or min(options.connections) < 1:
        parser.error("--rounds, --seconds and --connections must be positive")
    if options.before is not None and not Path(python_of(options.before.absolute())).exists():
        parser.error(f"--before: {options.before} has no .venv")
    if options.assert_ratio is not None:
        if not {CONTROL, _ROUTER} <= set(subjects):
            parser.error("--assert-ratio needs the subjects control and router")
        if _ASSERTED_CONNECTIONS not in options.connections:
            parser.error(f"--assert-ratio needs {_ASSERTED_CONNECTIONS} among --connections")


def _chosen(options: argparse.Namespace, usual: list[str]) -> list[Subject]:
    """The subjects, in the order in which they are measured."""
    chosen = [SUBJECTS[name] for name in options.subjects or usual]
    return chosen if options.before is None else [*chosen, before(options.before.absolute())]


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _measure_all(stand: Stand, options: argparse.Namespace) -> list[Result]:
    """Rounds of all subjects in turn, so that a slow minute of the machine hits each of them."""
    running = [stand.start(subject) for subject in _chosen(options, [CONTROL, _ROUTER])]
    results = []
    for connections in options.connections:
        for each in running:
            stand.measure(each, connections, min(_WARM_UP_S, options.seconds))
        rounds: dict[str, list[Round]] = {each.subject.name: [] for each in running}
        for number in range(1, options.rounds + 1):
            for each in running:
                measured = stand.measure(each, connections, options.seconds)
                rounds[each.subject.name].append(measured)
                _say_round(each, connections, number, measured)
        for each in running:
            results.append(
                report.result_of(
                    each.subject.name,
                    connections,
                    rounds[each.subject.name],
                    control=rounds.get(CONTROL),
                    rss_mib=processes.resident_mib(each.workers()),
                )
            )
    return results


def _publish(results: list[Result], options: argparse.Namespace, cores: Cores) -> int:
    print(report.table(results))
    for result in results:
        if result.others_busy is not None and result.others_busy > _BUSY_LIMIT:
            _warn(
                f"load generator and backend were busy {result.others_busy:.0%} of the time for"
                f" {result.subject} at {result.connections} connection(s): they may be the limit"
            )
    if options.json is not None:
        document = report.document(results, machine=_machine(cores), settings=_settings(options))
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    if options.assert_ratio is None:
        return 0
    lack = report.shortfall(results, _ROUTER, _ASSERTED_CONNECTIONS, options.assert_ratio)
    if lack:
        print(lack, file=sys.stderr)
    return 1 if lack else 0


def _profile(stand: Stand, subject: Subject, options: argparse.Namespace, directory: Path) -> None:
    """Load one subject under the sampler and print its functions and packages by CPU time."""
    name = subject.name
    path = directory / f"{name}.collapsed"
    if options.profile:
        Path(options.profile).mkdir(parents=True, exist_ok=True)
        path = Path(options.profile).absolute() / path.name
    path.unlink(missing_ok=True)
    running = stand.start(subject, profile=path)
    connections = options.connections[0]
    measured = stand.measure(running, connections, options.rounds * options.seconds)
    running.child.stop()
    if not path.exists():
        raise BenchmarkError(f"{name} wrote no profile:\n{running.child.log_tail()}")
    counted = stacks.parse(path.read_text().splitlines())
    print(
        f"{name}: {sum(counted.values())} samples over {measured.calls} calls,"
        f" {connections} connection(s)"
    )
    _print_costs(counted, measured.cpu_us_per_call)


def _print_costs(counted: Counter[tuple[str, ...]], us_per_call: float | None) -> None:
    functions = stacks.costs(counted)
    for title, found, most in (
        ("By package", stacks.costs_by_package(counted), _TOP_PACKAGES),
        ("By function", functions, _TOP_FUNCTIONS),
        ("By function with everything below it", stacks.by_total(functions), _TOP_FUNCTIONS),
    ):
        print(f"\n{title}\n{stacks.table(found, us_per_call=us_per_call, most=most)}")


def _machine(cores: Cores) -> dict[str, Any]:
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "pinned": cores.pinned,
        "gateway_cores": sorted(cores.gateway or ()),
        "other_cores": sorted(cores.others or ()),
    }


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "rounds": options.rounds,
        "seconds": options.seconds,
        "connections": options.connections,
        "subjects": [subject.name for subject in _chosen(options, [CONTROL, _ROUTER])],
    }


def _say_round(each: Running, connections: int, number: int, measured: Round) -> None:
    print(
        f"# {connections} connection(s), round {number}: {each.subject.name}"
        f" {measured.requests_per_s:.0f}/s",
        file=sys.stderr,
        flush=True,
    )


def _warn(text: str) -> None:
    print(f"\n*** {text} ***\n", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
