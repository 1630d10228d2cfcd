"""Tables of results, printed on the screen and written to `RESULTS.md`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class ReportTable:
    """A table with a title and notes."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def show(tables: Iterable[ReportTable], out: Console) -> None:
    """Print the tables."""
    for content in tables:
        table = Table(*content.columns, title=content.title, title_justify="left", box=box.SIMPLE_HEAD)
        for row in content.rows:
            table.add_row(*row)
        out.print(table)
        for note in content.notes:
            out.print(f"· {note}")


def markdown(heading: str, tables: Iterable[ReportTable]) -> str:
    """Return a section of a Markdown file: the heading, and each table with its notes."""
    parts = [f"## {heading}\n"]
    for content in tables:
        lines = [content.columns, tuple("---" for _ in content.columns), *content.rows]
        parts.append(f"### {content.title}\n")
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
        parts.append("".join(f"- {note}\n" for note in content.notes))
    return "\n".join(part for part in parts if part)


def spread(values: Sequence[float]) -> str:
    """Format as `median (min–max)`."""
    digits = 0 if median(values) >= 100 else 2
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def range_of(values: Sequence[float]) -> str:
    """Format as `min / median / max`, with three digits."""
    middle = abs(median(values))
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
    return " / ".join(f"{value:,.{digits}f}" for value in (min(values), median(values), max(values)))
