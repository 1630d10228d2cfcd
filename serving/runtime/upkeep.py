"""What runs for as long as the service does, whatever mistake there is in it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger("serving")
_SECONDS_BEFORE_NEXT = 1.0


async def kept_up(run: Callable[[], Awaitable[None]]) -> None:
    """Run until cancelled: what has failed is told in the log, and begins anew."""
    while True:
        try:
            await run()
        except Exception:
            log.exception("%s failed, and begins anew", getattr(run, "__qualname__", run))
        await asyncio.sleep(_SECONDS_BEFORE_NEXT)
