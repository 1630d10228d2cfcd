"""How late the event loop is: by so much every request that arrives then is held up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_SECONDS_BETWEEN = 0.25


async def measure_loop_lag(observe: Callable[[float], None]) -> None:
    """Tell by how many seconds a timer is late, again and again, until cancelled."""
    while True:
        due = time.perf_counter() + _SECONDS_BETWEEN  # the loop's own clock stands still within a turn
        await asyncio.sleep(_SECONDS_BETWEEN)
        observe(max(0.0, time.perf_counter() - due))
