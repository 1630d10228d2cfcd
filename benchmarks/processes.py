"""Memory, CPU time and open files of the service's processes, from Linux's /proc."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Memory:
    """Private memory in MB: of the front, the fork server, and each model process."""

    front: float
    fork_server: float
    models: tuple[float, ...]

    @property
    def total(self) -> float:
        """Return the sum; memory that the processes share is not included."""
        return self.front + self.fork_server + sum(self.models)


def front(port: int) -> int:
    """Return the process id of the front on this port, a child of this process."""
    for pid in children(os.getpid()):
        arguments = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
        if str(port).encode() in arguments:
            return pid
    raise ProcessLookupError(f"no child of this process serves at port {port}")


def children(parent: int) -> list[int]:
    """Return the child processes of a process."""
    threads = (_PROC / str(parent) / "task").iterdir()
    return [int(pid) for thread in threads for pid in (thread / "children").read_text().split()]


def fork_server(front: int) -> int:
    """Return the fork server of a service, a child of its guardian; raise ValueError without one."""
    (guardian,) = children(front)
    (server,) = children(guardian)
    return server


def memory(front: int) -> Memory:
    """Return the private memory of a service's processes."""
    server = fork_server(front)
    models = [private(pid) for pid in children(server)]
    return Memory(private(front), private(server), tuple(models))


def private(pid: int) -> float:
    """Return the private memory of a process, in MB."""
    return parse_private((_PROC / str(pid) / "smaps_rollup").read_text())


def parse_private(rollup: str) -> float:
    """Return the sum of Private_Clean and Private_Dirty in a `smaps_rollup`, in MB."""
    return sum(int(size) for size in re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+) kB", rollup, re.M)) / 1024


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process, in user and kernel mode."""
    # The process name, in parentheses, may contain spaces: count the fields from its end.
    fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def open_files(wanted: int) -> Iterator[int]:
    """Raise this process's limit of open files toward `wanted` until the block ends; yield the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
