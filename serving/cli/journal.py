"""The commands of the journal: `serving journal export FILE`, `upgrade`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from serving.errors import JournalUnavailable
from serving.settings.parsing import parse_journal_url

# SQLAlchemy and pyarrow are imported by the commands, when they are needed.

app = typer.Typer(help="Export the journal of predictions, or prepare its database.", no_args_is_help=True)
err = Console(stderr=True, highlight=False)

Url = Annotated[
    str,
    typer.Option("--journal-url", envvar="SERVING_JOURNAL_URL", help="The database.", show_default=False),
]


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="The Parquet file to write.")],
    url: Url,
    since: Annotated[str, typer.Option(help="The first moment, in ISO 8601; UTC without a zone.")] = "",
    until: Annotated[str, typer.Option(help="The moment after the last.")] = "",
    model: Annotated[str, typer.Option(help="Only of this model.")] = "",
    version: Annotated[str, typer.Option(help="Only of this version.")] = "",
) -> None:
    """Write predictions to a Parquet file: a line for each row, with the true outcome if it is known."""
    from serving.journal.export import ExportFilter
    from serving.journal.export import export as write

    choice = ExportFilter(_moment(since), _moment(until), model or None, version or None)
    with _opened(url, reads=True) as engine:
        count = write(engine, file, choice)
    err.print(f"[green]✓[/] {count:,} rows in {file}", soft_wrap=True)


@app.command()
def upgrade(url: Url) -> None:
    """Bring the tables to what this release needs, which the service does by itself when it starts."""
    from serving.journal import database

    with _opened(url) as engine:
        database.upgrade(engine)
    err.print("[green]✓[/] the journal's tables are those of this release")


@contextmanager
def _opened(url: str, *, reads: bool = False) -> Iterator[Any]:
    from serving.journal import database

    try:
        engine = database.connect(parse_journal_url(url), reads=reads)
    except ValueError as error:
        _fail(f"SERVING_JOURNAL_URL: {error}")
    try:
        yield engine
    except JournalUnavailable as error:
        _fail(f"the journal's database can't be asked: {error}")
    except OSError as error:
        _fail(str(error))
    finally:
        engine.dispose()


def _fail(line: str) -> NoReturn:
    err.print("[red]✗[/] " + line.replace("[", r"\["), soft_wrap=True)
    raise typer.Exit(2)


def _moment(text: str) -> datetime | None:
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text} is no moment such as 2026-07-31T12:00") from None
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
