"""A WSGI application under a sampling profiler; `run.py --profile` serves it in a subject's place.

A kernel timer (ITIMER_PROF) raises SIGPROF every millisecond of CPU time that the worker uses, as
far as the kernel's tick allows; the handler notes the Python stack. A deterministic profiler would
make small functions look large, and loses its way when gevent switches greenlets. Time in C code is
charged to the Python function that called it, or that runs next after the event loop.

Environment: BENCHMARK_PROFILED_APPLICATION is what gunicorn would have served,
BENCHMARK_PROFILE_FILE where the collapsed stacks (`outer;...;inner count`) go when the worker ends.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from gunicorn.util import import_app

_INTERVAL_S = 0.001


class Sampler:
    """Counts Python stacks of this process until it ends, then writes them to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._counts: Counter[tuple[CodeType, ...]] = Counter()

    def start(self) -> None:
        """Begin sampling; call in the worker, because a fork does not inherit the timer."""
        signal.signal(signal.SIGPROF, self._sample)
        # A handler installed from Python interrupts system calls unless told otherwise, and not
        # all of the C code under gevent tries again.
        signal.siginterrupt(signal.SIGPROF, False)
        signal.setitimer(signal.ITIMER_PROF, _INTERVAL_S, _INTERVAL_S)
        atexit.register(self._write)

    def _sample(self, signum: int, frame: FrameType | None) -> None:
        stack = []
        while frame is not None:
            stack.append(frame.f_code)
            frame = frame.f_back
        self._counts[tuple(stack)] += 1

    def _write(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        roots = sorted((path for path in sys.path if path), key=len, reverse=True)
        lines = [
            ";".join(_label(code, roots) for code in reversed(stack)) + f" {count}\n"
            for stack, count in self._counts.most_common()
        ]
        self._path.write_text("".join(lines))


def _label(code: CodeType, roots: list[str]) -> str:
    path = code.co_filename
    for root in roots:
        if path.startswith(root + os.sep):
            path = path[len(root) + 1 :]
            break
    # co_qualname exists from Python 3.11 on.
    return f"{path}:{getattr(code, 'co_qualname', code.co_name)}"


class Profiled:
    """Passes calls on to the real application; sampling starts with a process's first call."""

    def __init__(self, application: Any, path: Path) -> None:
        self._application = application
        self._path = path
        self._sampled_pid = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Serve one call."""
        if self._sampled_pid != os.getpid():
            self._sampled_pid = os.getpid()
            Sampler(self._path).start()
        return self._application(environ, start_response)  # type: ignore[no-any-return]


application = Profiled(
    import_app(os.environ["BENCHMARK_PROFILED_APPLICATION"]),
    Path(os.environ["BENCHMARK_PROFILE_FILE"]),
)
