"""Output and exit statuses of the commands."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape

EXIT_OK, EXIT_NEGATIVE, EXIT_ERROR = 0, 1, 2
"""The result is positive; it is negative, and the reason is printed; there is no result."""

# Highlighting and emoji codes would change names and messages that come from others.
out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)

__all__ = ["EXIT_ERROR", "EXIT_NEGATIVE", "EXIT_OK", "err", "escape", "fail", "out", "succeed"]


def succeed(text: str, console: Console = err) -> None:
    """Print the success of a command."""
    console.print(f"[green]✓[/] {escape(text)}", soft_wrap=True)


def fail(*lines: str) -> NoReturn:
    """Print one line for each mistake, and exit with `EXIT_ERROR`."""
    for line in lines:
        err.print(f"[red]✗[/] {escape(line)}", soft_wrap=True)
    raise typer.Exit(EXIT_ERROR)
