"""Runs blocking calls in threads that can be given up, and that the end of the process does not wait for.

The pools of `concurrent.futures` wait for their threads, at the end of the process too: a call that never
returns would keep a place in the pool, and the process alive.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_PREFIX = "blocking-"
MAX_ABANDONED = 64
"""Threads of one name that were given up and still run; beyond them no call of this name is made."""
_abandoned: dict[str, set[threading.Thread]] = {}


class TooManyHang(Exception):
    """Too many calls that were given up have not returned."""


def thread_name(name: str) -> str:
    """Return the name of the threads for calls of this name."""
    return f"{_PREFIX}{name}"


def start(call: Callable[..., T], *args: Any, name: str) -> asyncio.Future[T]:
    """Begin a call in a thread of its own; cancelling the future gives the thread up.

    Raises:
        TooManyHang: too many calls that were given up have not returned.
    """
    abandoned = _abandoned[name] = {each for each in _abandoned.get(name, ()) if each.is_alive()}
    if len(abandoned) >= MAX_ABANDONED:
        raise TooManyHang(f"{len(abandoned)} calls that were given up have not returned")
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

    def give_up(ended: asyncio.Future[T]) -> None:
        if ended.cancelled() and thread.is_alive():
            _abandoned[name].add(thread)

    future.add_done_callback(give_up)
    thread.start()
    return future


def is_any_left() -> bool:
    """Return whether a thread still runs: what it calls may have threads that the process waits for."""
    return any(thread.name.startswith(_PREFIX) for thread in threading.enumerate())
