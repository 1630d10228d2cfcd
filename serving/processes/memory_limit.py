"""Watches the memory of a model process, which is replaced when it exceeds the limit."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving.processes.descendants import StopDetector
from serving.processes.replica import Replica

log = logging.getLogger("serving.pool")
_POLL_SECONDS = 1.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pid: int | None) -> int:
    """Return the resident memory of a process in bytes, including shared pages; 0 if it is unknown."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


async def wait_until_exceeded(
    replica: Replica, max_bytes: int | None, log_context: Mapping[str, Any]
) -> bool:
    """Wait until a process exceeds `max_bytes` (true) or has died (false).

    A process that a signal has stopped is killed. There is no limit if the loaded model itself exceeds it: a
    replacement would use as much.
    """
    if max_bytes is not None and resident_bytes(replica.pid) > max_bytes:
        message = "%r uses more than the limit of %d MB after loading its model, and is not replaced"
        log.error(message, replica, max_bytes >> 20, extra=log_context)
        max_bytes = None
    stop_detector = StopDetector()
    while not replica.dead.done():
        await asyncio.wait([replica.dead], timeout=_POLL_SECONDS)
        if stop_detector.detects(replica.pid):
            log.error("%r was stopped by a signal, and is replaced", replica, extra=log_context)
            replica.kill_hung()
        if max_bytes is not None and resident_bytes(replica.pid) > max_bytes:
            return True
    return False
