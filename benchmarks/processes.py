"""What Linux tells of the service's processes: memory, CPU, and how many files may be open."""

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
    """Private memory in MB: of the front, of the fork server, and of each model process."""

    front: float
    fork_server: float
    models: tuple[float, ...]

    @property
    def total(self) -> float:
        """Of all together; what they share with each other comes on top, once."""
        return self.front + self.fork_server + sum(self.models)


def front(port: int) -> int:
    """The process that serves at this port, started by this one."""
    for pid in children(os.getpid()):
        arguments = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
        if str(port).encode() in arguments:
            return pid
    raise ProcessLookupError(f"no child of this process serves at port {port}")


def children(parent: int) -> list[int]:
    """The child processes of a process."""
    threads = (_PROC / str(parent) / "task").iterdir()
    return [int(pid) for thread in threads for pid in (thread / "children").read_text().split()]


def fork_server(front: int) -> int:
    """Return the fork server of a service, a child of its guardian; raises ValueError without one."""
    (guardian,) = children(front)
    (server,) = children(guardian)
    return server


def memory(front: int) -> Memory:
    """The private memory of a service's processes."""
    server = fork_server(front)
    models = [private(pid) for pid in children(server)]
    return Memory(private(front), private(server), tuple(models))


def private(pid: int) -> float:
    """The private memory of a process, in MB."""
    return parse_private((_PROC / str(pid) / "smaps_rollup").read_text())


def parse_private(rollup: str) -> float:
    """Private_Clean and Private_Dirty of a `smaps_rollup`, in MB."""
    return sum(int(size) for size in re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+) kB", rollup, re.M)) / 1024


def cpu_seconds(pid: int) -> float:
    """CPU that a process has used so far, in user and kernel mode."""
    # The name, in brackets, may have spaces: fields are counted from behind it.
    fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def open_files(wanted: int) -> Iterator[int]:
    """Let this process open `wanted` files, or as many as it may, until the block ends; gives that limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
