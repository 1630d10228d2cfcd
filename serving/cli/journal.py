"""Commands for the journal: `serving journal export FILE`, `serving journal upgrade`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from serving.cli.console import fail, succeed
from serving.cli.options import with_options
from serving.errors import JournalUnavailable
from serving.settings.parsing import parse_journal_url

# The commands themselves import SQLAlchemy and pyarrow, so that `--help` stays fast.

app = typer.Typer(help="Export the journal of predictions, or upgrade its database.", no_args_is_help=True)

Url = Annotated[
    str,
    typer.Option(
        "--journal-url", envvar="SERVING_JOURNAL_URL", help="URL of the database.", show_default=False
    ),
]


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="Parquet file to write.")],
    url: Url,
    since: Annotated[str, typer.Option(help="Start time (inclusive), in ISO 8601; default zone: UTC.")] = "",
    until: Annotated[str, typer.Option(help="End time (exclusive).")] = "",
    model: Annotated[str, typer.Option(help="Export only this model.")] = "",
    version: Annotated[str, typer.Option(help="Export only this version.")] = "",
) -> None:
    """Write predictions to a Parquet file: one line per row, with its true outcome if that is recorded."""
    from serving.journal.export import ExportFilter
    from serving.journal.export import export as write

    times = _parse_time("--since", since), _parse_time("--until", until)
    rows = ExportFilter(*times, model or None, version or None)
    with _engine(url, reads=True) as engine:
        count = write(engine, file, rows)
    succeed(f"{count:,} rows in {file}")


@app.command()
def upgrade(url: Url) -> None:
    """Upgrade the tables to this release, as the service does when it starts."""
    from serving.journal import database

    with _engine(url) as engine:
        is_new = not database.exists(engine)
        database.upgrade(engine)
    if is_new:
        succeed(f"created a new journal in {engine.url.database}")
    else:
        succeed("upgraded the tables of the journal to this release")


@contextmanager
def _engine(url: str, *, reads: bool = False) -> Iterator[Any]:
    from serving.journal import database

    try:
        engine = database.connect(parse_journal_url(url), reads=reads)
        if reads:
            database.check_exists(engine)
    except (ValueError, JournalUnavailable) as error:
        fail(with_options(f"SERVING_JOURNAL_URL: {error}"))
    try:
        yield engine
    except JournalUnavailable as error:
        fail(f"cannot use the journal's database: {error}")
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    finally:
        engine.dispose()


def _parse_time(option: str, text: str) -> datetime | None:
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        message = f"{text} is not a time such as 2026-07-31T12:00"
        raise typer.BadParameter(message, param_hint=option) from None
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
