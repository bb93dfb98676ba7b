"""Microseconds per operation of single functions: `python -m tests.benchmarks.micro [name...]`.

A name selects all operations that begin with it; without names all of `operations.py` are timed.
"""

from __future__ import annotations

import argparse
import sys
import timeit
from collections.abc import Sequence
from dataclasses import dataclass

from tests.benchmarks.operations import OPERATIONS, Operation

_REPEATS = 7
_REPEAT_S = 0.1


@dataclass(frozen=True)
class Timing:
    """How long one operation takes; the best repeat is the one least disturbed by others."""

    best_us: float
    median_us: float


def time_operation(operation: Operation, *, repeat_s: float = _REPEAT_S) -> Timing:
    """Time repeats of about `repeat_s` each, garbage collection off as `timeit` has it."""
    timer = timeit.Timer("operation()", globals={"operation": operation})
    loops = 1
    while (taken_s := timer.timeit(loops)) < repeat_s / 10:
        loops *= 4
    loops = max(1, round(loops * repeat_s / taken_s))
    ordered = sorted(taken / loops * 1e6 for taken in timer.repeat(_REPEATS, loops))
    return Timing(best_us=ordered[0], median_us=ordered[_REPEATS // 2])


def main(arguments: Sequence[str] | None = None) -> int:
    """Time the operations asked for, print one line each, return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.micro", description=__doc__.splitlines()[0]
    )
    parser.add_argument("names", nargs="*", metavar="name")
    prefixes = tuple(parser.parse_args(arguments).names)
    chosen = [name for name in OPERATIONS if not prefixes or name.startswith(prefixes)]
    if not chosen:
        parser.error(f"no such operation; there are {', '.join(OPERATIONS)}")
    print(f"{'best us':>9} {'median us':>10}  operation")
    for name in chosen:
        timing = time_operation(OPERATIONS[name]())
        print(f"{timing.best_us:9.2f} {timing.median_us:10.2f}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
