"""Runs blocking calls in threads that can be abandoned, and that do not delay the exit of the process.

The pools of `concurrent.futures` wait for their threads, also at exit: a call that never returns would occupy
the pool, and keep the process alive.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_PREFIX = "blocking-"
MAX_ABANDONED = 64
"""Maximum of abandoned threads of one name that still run; beyond it, calls of this name are refused."""
_abandoned: dict[str, set[threading.Thread]] = {}


class TooManyHang(Exception):
    """Too many abandoned calls have not returned."""


def thread_name(name: str) -> str:
    """Return the name of the threads for calls of this name."""
    return f"{_PREFIX}{name}"


def start(call: Callable[..., T], *args: Any, name: str) -> asyncio.Future[T]:
    """Start a call in a thread of its own; cancelling the future abandons the thread.

    Raises:
        TooManyHang: too many abandoned calls have not returned.
    """
    abandoned = _abandoned[name] = {thread for thread in _abandoned.get(name, ()) if thread.is_alive()}
    if len(abandoned) >= MAX_ABANDONED:
        raise TooManyHang(f"{len(abandoned)} abandoned calls have not returned")
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]  # a call may return None
        else:
            future.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = call(*args)
        except BaseException as raised:
            error = raised
        try:
            loop.call_soon_threadsafe(deliver, result, error)
        except RuntimeError:
            return  # the loop has ended

    thread = threading.Thread(target=run, name=thread_name(name), daemon=True)

    def abandon(ended: asyncio.Future[T]) -> None:
        if ended.cancelled() and thread.is_alive():
            _abandoned[name].add(thread)

    future.add_done_callback(abandon)
    thread.start()
    return future


def is_any_left() -> bool:
    """Return whether a thread still runs: its libraries may have started threads that delay the exit."""
    return any(thread.name.startswith(_PREFIX) for thread in threading.enumerate())
