"""The parent of the fork server, which ends all that is left below it once the fork server or the front ends.

Model code may start processes in other sessions, clear their parent-death signal, or clone them as siblings
of its own process. All of them stay descendants of the guardian, since it adopts orphans. It is forked before
the heavy imports, does nothing but wait, and runs no code of models.
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
"""How the name of the temporary folder of a fork server begins."""
_MAX_SECONDS_TO_END = 1.0
"""Time for a fork server to end by itself once the front has gone; then it is killed."""


def guard(control: socket.socket) -> int:
    """Fork, stay behind as the guardian, and return in the child.

    Return the read end of a pipe that is at its end when the guardian has died.
    """
    alive, held = os.pipe()
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
        for descriptor in (held, woken, wake):
            os.close(descriptor)
        return alive
    os.close(alive)
    status = signal.SIGKILL.value
    try:
        status = _wait(control, server, woken)
    finally:
        descendants.kill_children()
        _remove_scratch()
        _end_like(status)
    raise AssertionError("unreachable")


def _wait(control: socket.socket, server: int, woken: int) -> int:
    """Wait until the fork server has ended, and return its status; kill it soon after the front has gone."""
    front = select.poll()
    front.register(control, 0)  # reports the end of the front, and nothing else
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
            timeout = _MAX_SECONDS_TO_END
        elif timeout and woken not in events:
            descendants.kill(server)
            timeout = None


def _reaped(server: int) -> int | None:
    """Reap what has ended; return the wait status of the fork server if that has."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == server:
                return ended[1]
    return None


def _remove_scratch() -> None:
    """Remove the temporary files of model processes: a front that was killed can't."""
    scratch = os.environ.get("TMPDIR", "")
    if os.path.basename(scratch).startswith(SCRATCH):
        shutil.rmtree(scratch, ignore_errors=True)


def _end_like(status: int) -> None:
    """End with the exit code, or by the signal, of the fork server."""
    if os.WIFSIGNALED(status):
        with suppress(OSError, ValueError):
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1)
