"""Find and watch the processes of a test by their ids."""

from __future__ import annotations

import os
import select
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self


def parent(pid: int) -> int:
    """Return the parent of a process."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    return int(after_name.split()[1])


def children(pid: int) -> set[int]:
    """Return the running child processes of a process."""
    pids = set()
    with suppress(FileNotFoundError, ProcessLookupError):  # the process may end during the read
        for task in Path(f"/proc/{pid}/task").iterdir():
            pids |= {int(child) for child in (task / "children").read_text().split()}
    return pids


def descendants(pid: int) -> set[int]:
    """Return all descendants of a process."""
    pids = children(pid)
    return pids.union(*(descendants(child) for child in pids))


def fork_server(front: int) -> int:
    """Return the fork server of a front, a child of its guardian; 0 without one."""
    for guardian in children(front):
        with suppress(OSError):
            if b"serving.processes.fork_server" in Path(f"/proc/{guardian}/cmdline").read_bytes():
                return next(iter(children(guardian)), 0)
    return 0


class Watch:
    """Handles of processes, which report an exit even after another process reaps it."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._handles = {pid: os.pidfd_open(pid) for pid in pids}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for handle in self._handles.values():
            os.close(handle)

    def has_ended(self) -> bool:
        """Return whether at least one process has ended."""
        return bool(select.select([*self._handles.values()], [], [], 0)[0])

    def left(self, seconds: float = 30) -> set[int]:
        """Return the processes that are still running after `seconds`; return at once when all have ended."""
        return {
            pid for pid, handle in self._handles.items() if not select.select([handle], [], [], seconds)[0]
        }
