"""Output and exit statuses of the commands."""

from __future__ import annotations

import io
import sys
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

EXIT_OK, EXIT_NEGATIVE, EXIT_ERROR = 0, 1, 2
"""The result is positive; it is negative, and the reason is printed; there is no result."""

# Highlighting and emoji codes would change names and messages that come from others.
out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)

__all__ = [
    "EXIT_ERROR", "EXIT_NEGATIVE", "EXIT_OK", "err", "escape", "fail", "ignore_closed_pipe", "out", "report",
    "succeed", "warn",
]  # fmt: skip


def succeed(text: str, console: Console = err) -> None:
    """Print the success of a command."""
    console.print(f"[green]✓[/] {escape(text)}", soft_wrap=True)


def warn(text: str, console: Console = err) -> None:
    """Print a warning."""
    console.print(f"[yellow]![/] {escape(text)}", soft_wrap=True)


def report(*lines: str) -> None:
    """Print one line for each mistake."""
    for line in lines:
        err.print(f"[red]✗[/] {escape(line)}", soft_wrap=True)


def fail(*lines: str) -> NoReturn:
    """Print one line for each mistake, and exit with `EXIT_ERROR`."""
    report(*lines)
    raise typer.Exit(EXIT_ERROR)


class _ClosablePipe(io.FileIO):
    """Standard output or standard error, whose reader may stop reading, as `head` does."""

    def write(self, data: Any) -> int:
        """Write data; discard it if nothing reads it any more."""
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes


def ignore_closed_pipe() -> None:
    """Let commands go on when their output is closed, because their exit status is a result too."""
    for name in ("stdout", "stderr"):
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            pipe = io.BufferedWriter(_ClosablePipe(stream.fileno(), "wb", closefd=False))
            is_by_line = stream.line_buffering
            setattr(
                sys, name, io.TextIOWrapper(pipe, stream.encoding, stream.errors, line_buffering=is_by_line)
            )
