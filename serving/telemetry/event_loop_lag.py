"""Measurement of the event loop lag, by which every request that arrives in that time is delayed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_INTERVAL_SECONDS = 0.25


async def measure_loop_lag(observe: Callable[[float], None]) -> None:
    """Observe the delay of a timer in seconds, at a fixed interval, until cancelled."""
    while True:
        due = time.perf_counter() + _INTERVAL_SECONDS  # the loop's clock is updated only once per iteration
        await asyncio.sleep(_INTERVAL_SECONDS)
        observe(max(0.0, time.perf_counter() - due))
