"""Signals other than those that uvicorn handles, SIGINT and SIGTERM.

- SIGHUP reloads the certificate, the API keys and the files of features. If the terminal of the service has
  been closed, it stops the service.
- SIGUSR1 logs the state of the service; SIGUSR2 has no effect.
- SIGQUIT stops the service like SIGTERM.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable

HARMLESS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that must not end a process of the service; operators may send them to all of its processes."""


def survive_start() -> None:
    """Survive harmless signals that arrive before the service can handle them; treat SIGQUIT as SIGTERM.

    Handlers, unlike SIG_IGN, are not inherited by the programs that this process starts.
    """
    for number in HARMLESS:
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGQUIT, lambda *_: signal.raise_signal(signal.SIGTERM))


def handle(
    loop: asyncio.AbstractEventLoop, reload: Callable[[], None], log_state: Callable[[], None]
) -> None:
    """Handle signals in the event loop from now on, until the process ends.

    The handlers are not `loop.add_signal_handler`, which restores the default when the loop is closed: a
    signal during the exit would then kill the process.
    """
    is_on_terminal = _has_terminal()

    def hang_up() -> None:
        if is_on_terminal and not _has_terminal():
            signal.raise_signal(signal.SIGTERM)
        else:
            reload()

    def in_loop(action: Callable[[], None]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(action)

    signal.signal(signal.SIGHUP, lambda *_: in_loop(hang_up))
    signal.signal(signal.SIGUSR1, lambda *_: in_loop(log_state))


def _has_terminal() -> bool:
    """Return whether the standard error is an open terminal; a closed one is no terminal any more."""
    try:
        return os.isatty(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
