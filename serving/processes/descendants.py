"""Keeps hold of the processes that model code starts, so that none outlives it; Linux has the means for that.

The fork server and each model process adopt the orphans below them. What a model process leaves behind
becomes a child of the fork server then, whatever process group or session it is in.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

MARK = "SERVING_FORK_SERVER"
"""The variable whose value marks all that a fork server and its descendants have started."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_PROC = Path("/proc")
_MAX_STOPPED_LOOKS = 3


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Have the kernel make this process the parent of each descendant whose parent has ended."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process, where the system is Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def children() -> set[int]:
    """Return the ids of this process's children; none where the system does not list them."""
    found: set[int] = set()
    with suppress(OSError):  # there are no descriptors left
        for task in _PROC.glob("self/task/*/children"):
            with suppress(OSError):
                found.update(map(int, task.read_text().split()))
    return found


class StopDetector:
    """Notices a process that a signal, such as SIGSTOP, keeps stopped.

    A process that runs at times, as under a tool that limits its CPU time by such signals, is not stopped.
    """

    def __init__(self) -> None:
        self._looks: dict[int, tuple[bytes, int]] = {}

    def detects(self, *pids: int | None) -> bool:
        """Look once; return whether one of them was stopped at several looks, and never ran in between."""
        looks = {}
        for pid in pids:
            if pid and (switches := _switches_if_stopped(pid)):
                before, number = self._looks.get(pid, (switches, 0))
                looks[pid] = (switches, number + 1 if switches == before else 1)
        self._looks = looks
        return any(number >= _MAX_STOPPED_LOOKS for _, number in looks.values())


def _switches_if_stopped(pid: int) -> bytes:
    """Return how often a stopped process was given a CPU; nothing if it runs, or if the system lists none."""
    with suppress(OSError):
        status = (_PROC / str(pid) / "status").read_bytes()
        if b"\nState:\tT" in status:
            return status.partition(b"\nvoluntary_ctxt_switches")[2] or b"unknown"
    return b""


def kill(pid: int) -> None:
    """Kill a process, unless it has ended."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def kill_children() -> None:
    """Kill all descendants of a process that adopts orphans, and wait until they have ended."""
    while left := children():
        for pid in left:
            kill(pid)
        for pid in left:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def kill_marked(mark: str) -> None:
    """Kill what a fork server that could not do so itself, since it was killed, has left behind."""
    killed: set[int] = set()
    while found := _marked(mark) - killed:
        for pid in found:
            kill(pid)
        killed |= found


def _marked(mark: str) -> set[int]:
    entry = f"{MARK}={mark}".encode()
    found = set()
    for environment in _PROC.glob("[0-9]*/environ"):
        with suppress(OSError):  # it is another user's, or has ended
            if entry in environment.read_bytes().split(b"\0"):
                found.add(int(environment.parent.name))
    return found


def signal_name(number: int) -> str:
    """Return the name of a signal; real-time signals have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
