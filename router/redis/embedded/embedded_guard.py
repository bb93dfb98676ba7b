"""The parent process of an embedded Redis: stops it when the last process that uses it has ended.

A program of its own, run by path: ``embedded_guard.py USERS_FILE LOCK_FD STOP_S COMMAND...``. Each
user of the server holds a shared lock on the users file, which the kernel releases however the
process ends. So the guard only waits for the exclusive lock, and keeps it until the server has
ended; whoever wants a server meanwhile waits and then starts the next one.

The guard detaches itself, so that no user of the server has to reap it, and imports nothing of the
``router`` package, so that it stays small.
"""

import _thread
import ctypes
import fcntl
import os
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run the command until it has no users; the lock is released when the command ends."""
    if os.fork():
        os._exit(0)
    os.setsid()  # Ctrl-C in a terminal reaches the whole group, but workers still have to settle
    users, lock_fd, stop_s, *command = sys.argv[1:]
    _keep_only(int(lock_fd))
    server = os.fork()
    if server == 0:
        _become(command)
    signal.signal(signal.SIGTERM, lambda _signal, _frame: os.kill(server, signal.SIGTERM))
    _thread.start_new_thread(_end_when_unused, (users, server, float(stop_s)))
    os.waitpid(server, 0)
    os._exit(0)


def _keep_only(lock_fd: int) -> None:
    """Close all inherited files, such as a worker's listening sockets, except the lock."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    os.closerange(3, lock_fd)
    os.closerange(lock_fd + 1, os.sysconf("SC_OPEN_MAX"))


def _become(command: list[str]) -> None:
    try:
        if sys.platform == "linux":  # a server without its guard would never be stopped
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        os.execv(command[0], command)
    finally:
        os._exit(127)


def _end_when_unused(users: str, server: int, stop_s: float) -> None:
    fd = os.open(users, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.kill(server, signal.SIGTERM)
    time.sleep(stop_s)
    os.kill(server, signal.SIGKILL)


if __name__ == "__main__":
    main()
