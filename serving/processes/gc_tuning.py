"""Tunes the garbage collector: a full collection of the heap of pandas and MLflow adds 200 ms to the p99."""

from __future__ import annotations

import asyncio
import gc

_RARE_THRESHOLDS = (50_000, 50, 100)
_TASK_END_SECONDS = 1.0


def freeze() -> None:
    """Exclude the objects on the heap from garbage collection, and make collections rare."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_RARE_THRESHOLDS)


def schedule_collect() -> None:
    """Schedule a collection of the objects of a closed version, for the time when its tasks have ended.

    With the rare thresholds, Python would collect only after dozens of promotions. A promotion leaves a
    contract and the threads of a download.
    """
    asyncio.get_running_loop().call_later(_TASK_END_SECONDS, _collect)


def _collect() -> None:
    # It takes one or two milliseconds on a frozen heap. On another heap it takes 200 ms, and Python collects
    # often enough by itself.
    if gc.get_threshold() == _RARE_THRESHOLDS:
        gc.collect()
