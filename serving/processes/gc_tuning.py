"""When garbage is collected: a full collection over the heap of pandas and MLflow shows at p99, as 200 ms."""

from __future__ import annotations

import asyncio
import gc

_RARELY = (50_000, 50, 100)
_SECONDS_TO_END = 1.0


def freeze() -> None:
    """Take what is on the heap out of garbage collection, which is rare from now on."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_RARELY)


def schedule_collect() -> None:
    """Collect what a version leaves that was closed, once its tasks are over.

    By itself Python would come to it after dozens of promotions, each of which leaves a contract and the
    threads of a download.
    """
    asyncio.get_running_loop().call_later(_SECONDS_TO_END, _sweep)


def _sweep() -> None:
    # A millisecond or two; where the heap has not settled, 200, and Python comes to it by itself.
    if gc.get_threshold() == _RARELY:
        gc.collect()
