"""Tracks and kills the processes that model code starts, so that none outlives the service (Linux only).

The fork server and the model processes are child subreapers. A process that a model process leaves behind
becomes a child of the fork server, regardless of its process group or session.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

MARK = "SERVING_FORK_SERVER"
"""The environment variable that marks the descendants of one fork server."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_PROC = Path("/proc")
_MIN_STOPPED_CHECKS = 3


def die_with_parent() -> None:
    """Make the kernel kill this process when its parent ends."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Make this process the parent of its descendants whose own parents have ended (child subreaper)."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process on Linux; do nothing on other systems."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def children() -> set[int]:
    """Return the process ids of the children of this process; empty if the system does not list them."""
    pids: set[int] = set()
    with suppress(OSError):  # no file descriptors are left
        for task in _PROC.glob("self/task/*/children"):
            with suppress(OSError):
                pids.update(map(int, task.read_text().split()))
    return pids


class StopDetector:
    """Detects a process that a signal such as SIGSTOP keeps stopped.

    A process that runs between two checks does not count as stopped. Tools that limit CPU time stop and
    continue a process in turn.
    """

    def __init__(self) -> None:
        self._stopped: dict[int, tuple[bytes, int]] = {}

    def detects(self, *pids: int | None) -> bool:
        """Check once; return whether one of the processes was stopped, without running, at several checks."""
        stopped = {}
        for pid in pids:
            if pid and (switches := _switches_if_stopped(pid)):
                previous, checks = self._stopped.get(pid, (switches, 0))
                stopped[pid] = (switches, checks + 1 if switches == previous else 1)
        self._stopped = stopped
        return any(checks >= _MIN_STOPPED_CHECKS for _, checks in stopped.values())


def _switches_if_stopped(pid: int) -> bytes:
    """Return the counts of context switches of a stopped process; empty if it runs or cannot be read."""
    with suppress(OSError):
        status = (_PROC / str(pid) / "status").read_bytes()
        if b"\nState:\tT" in status:
            return status.partition(b"\nvoluntary_ctxt_switches")[2] or b"unknown"
    return b""


def kill(pid: int) -> None:
    """Kill a process; do nothing if it has ended."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def kill_children() -> None:
    """Kill all descendants of this process, which must adopt orphans, and wait until they have ended."""
    while remaining := children():
        for pid in remaining:
            kill(pid)
        for pid in remaining:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def kill_marked(mark: str) -> None:
    """Kill the processes that a killed fork server has left behind."""
    killed: set[int] = set()
    while remaining := _marked(mark) - killed:
        for pid in remaining:
            kill(pid)
        killed |= remaining


def _marked(mark: str) -> set[int]:
    entry = f"{MARK}={mark}".encode()
    pids = set()
    for environment in _PROC.glob("[0-9]*/environ"):
        with suppress(OSError):  # the process has ended, or belongs to another user
            if entry in environment.read_bytes().split(b"\0"):
                pids.add(int(environment.parent.name))
    return pids


def killed_by(number: int, when: str = "") -> str:
    """Return a phrase about a process that a signal has killed; SIGKILL may come from the OOM killer."""
    return f"killed by {signal_name(number)}{when}" + ", perhaps out of memory" * (number == signal.SIGKILL)


def signal_name(number: int) -> str:
    """Return the name of a signal, or its number: real-time signals have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
