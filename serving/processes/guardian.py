"""Runs the parent of the fork server, which kills all descendants that remain after the server or front ends.

Model code may start processes in other sessions, clear their parent-death signal, or clone them as siblings
of its own process. All of them remain descendants of the guardian, because it adopts orphans. The guardian is
the original process; it forks the fork server before the heavy imports, only waits, and runs no model code.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import sys
from contextlib import suppress

from serving.processes import descendants

SCRATCH = "serving-models-"
"""Prefix of the name of a fork server's temporary folder."""
_MAX_EXIT_SECONDS = 1.0
"""Time for a fork server to exit after the front has gone; after that it is killed."""


def guard(control: socket.socket) -> int:
    """Fork, run as the guardian in the parent, and return in the child.

    Returns:
        The read end of a pipe that reaches its end when the guardian dies.
    """
    alive, held_open = os.pipe()
    if sys.platform != "linux":
        return alive
    descendants.adopt_orphans()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    server = os.fork()
    if server == 0:
        signal.set_wakeup_fd(-1)
        for descriptor in (held_open, woken, wake):
            os.close(descriptor)
        return alive
    os.close(alive)
    status = signal.SIGKILL.value
    try:
        status = _wait(control, server, woken)
    finally:
        descendants.kill_children()
        _remove_scratch()
        _exit_like(status)
    raise AssertionError("unreachable")


def _wait(control: socket.socket, server: int, woken: int) -> int:
    """Wait until the fork server has ended, and return its wait status; kill it soon after the front ends."""
    front = select.poll()
    front.register(control, 0)  # reports only that the front has hung up
    front.register(woken, select.POLLIN)
    timeout: float | None = None
    while True:
        events = dict(front.poll(timeout and timeout * 1000))
        if woken in events:
            os.read(woken, 4096)
        if (status := _reaped(server)) is not None:
            return status
        if control.fileno() in events:
            front.unregister(control)
            timeout = _MAX_EXIT_SECONDS
        elif timeout and woken not in events:
            descendants.kill(server)
            timeout = None


def _reaped(server: int) -> int | None:
    """Reap ended children; return the wait status of the fork server if it is among them."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == server:
                return ended[1]
    return None


def _remove_scratch() -> None:
    """Remove the temporary files of model processes, because a killed front cannot."""
    scratch = os.environ.get("TMPDIR", "")
    if os.path.basename(scratch).startswith(SCRATCH):
        shutil.rmtree(scratch, ignore_errors=True)


def _exit_like(status: int) -> None:
    """End this process with the exit code or the signal of the fork server."""
    if os.WIFSIGNALED(status):
        with suppress(OSError, ValueError):
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1)
