"""Clients in processes of their own that call without a pause and write down what was answered.

A call counts as answered when its whole reply is there: status 2xx and every byte, of a stream its
proper end too. Only then is its id appended to the file of the process that made it. Calls are made
on connections that are kept, each with an id of its own, and never made again.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

PROCESSES = 2
THREADS = 4
TIMEOUT_S = 20.0
STREAMED_OF = 4
"""Every fourth call is streamed."""
CALLS_A_CONNECTION = 40
"""Enough to keep connections alive, few enough to meet a new worker soon."""
PAUSE_S = 0.03
"""After a call that failed: a router that is being started is not to be drowned."""
END_TIMEOUT_S = 40.0


class Ended(NamedTuple):
    """How a call ended: answered whole with this status, or cut off by what `word` says."""

    request_id: str
    word: str

    @property
    def status(self) -> int:
        """0 when there is no whole answer."""
        return int(self.word) if self.word.isdecimal() else 0


class SteadyClients:
    """The processes and what they have written so far."""

    def __init__(self, directory: Path, port: int, key: str, model: str, *, name: str) -> None:
        self._files = [directory / f"{name}-{number}" for number in range(PROCESSES)]
        self.processes = []
        for file in self._files:
            file.touch()
            command = [sys.executable, __file__, str(file), str(port), model]
            self.processes.append(
                subprocess.Popen(command, stdin=subprocess.PIPE, cwd=directory, text=True)
            )
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(key + "\n")
            process.stdin.flush()

    def calls(self) -> list[Ended]:
        """All calls that have ended, in the order in which each process met them."""
        lines = (line.split(" ") for file in self._files for line in _whole_lines(file))
        return [Ended(request_id, word) for request_id, word in lines]

    def answered(self) -> list[str]:
        """The ids of calls with a whole 2xx reply."""
        return [ended.request_id for ended in self.calls() if 200 <= ended.status < 300]

    def count(self) -> int:
        """How many calls were answered; cheap enough to ask again and again."""
        return sum(file.read_bytes().count(b" 200\n") for file in self._files)

    def words(self) -> Counter[str]:
        """How often calls ended in which way."""
        return Counter(ended.word for ended in self.calls())

    def stop(self) -> None:
        """Let each finish the calls that it has begun."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            assert process.wait(END_TIMEOUT_S) == 0
            assert process.stdin is not None
            process.stdin.close()

    def kill(self) -> None:
        """End them at once, if they still run."""
        for process in self.processes:
            process.kill()
            process.communicate()


@contextmanager
def steady_clients(
    directory: Path, port: int, key: str, model: str, *, name: str
) -> Iterator[SteadyClients]:
    """Clients that call until they are stopped, or until the block ends."""
    clients = SteadyClients(directory, port, key, model, name=name)
    try:
        yield clients
        clients.stop()
    finally:
        clients.kill()


def _whole_lines(file: Path) -> list[str]:
    return file.read_text().split("\n")[:-1]


# --- in the clients' own processes ---------------------------------------------------------------


class _Caller:
    """One connection after the other, one call after the other."""

    def __init__(self, port: int, model: str, key: str) -> None:
        self._headers = {"Content-Type": "application/json", "X-API-Key": key}
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        messages = [{"role": "user", "content": "Tell me of the sea"}]
        fields = {"model": model, "messages": messages}
        self._bodies = [json.dumps({**fields, "stream": stream}) for stream in (False, True)]
        self._calls = 0

    def call(self, request_id: str) -> str:
        """Make one call; the status of its whole reply, or what went wrong."""
        self._calls += 1
        stream = self._calls % STREAMED_OF == 0
        headers = {**self._headers, "X-Request-ID": request_id}
        try:
            self._connection.request("POST", "/v1/chat/completions", self._bodies[stream], headers)
            reply = self._connection.getresponse()
            body = reply.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return type(error).__name__
        if self._calls % CALLS_A_CONNECTION == 0:
            self._connection.close()
        if stream and reply.status == 200 and not body.endswith(b"data: [DONE]\n\n"):
            return "StreamEndedWithAnError"
        return str(reply.status)


def _main(path: str, port: str, model: str) -> None:
    key, stopping = sys.stdin.readline().strip(), threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stopping.set())
    numbers, prefix = itertools.count(), f"{Path(path).name}-{os.getpid()}"
    file = os.open(path, os.O_WRONLY | os.O_APPEND)

    def keep_calling() -> None:
        caller = _Caller(int(port), model, key)
        while not stopping.is_set():
            request_id = f"{prefix}-{next(numbers)}"
            word = caller.call(request_id)
            os.write(file, f"{request_id} {word}\n".encode())
            if word != "200":
                time.sleep(PAUSE_S)

    threads = [threading.Thread(target=keep_calling) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    _main(*sys.argv[1:])
