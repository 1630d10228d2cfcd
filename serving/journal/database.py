"""The journal's database: SQLite for one machine, PostgreSQL for many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Dialect, Engine, Table, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError

from serving.errors import JournalUnavailable
from serving.text import shorten

VERSION_TABLE = "journal_version"
"""Alembic's table of the journal; a database that MLflow shares may have another one."""
_LOCK = 0x6A6F75726E616C
_BUSY_MS = 1000
# A server that vanishes without closing its connections is detected within seconds.
_TCP_TIMEOUTS = {
    "connect_timeout": 5,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}
_MAX_STATEMENT_SECONDS = " -c statement_timeout=30000"


class RowsRejected(Exception):
    """The database rejects these values, and would reject them again."""


def connect(url: str, *, reads: bool = False) -> Engine:
    """Return an engine for the database at `url`, without connecting.

    With `reads`, transactions do not block writers, and statements have no timeout.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        options = "-c timezone=UTC" + ("" if reads else _MAX_STATEMENT_SECONDS)
        defaults = _TCP_TIMEOUTS | {"options": options}
        connect_args = {name: value for name, value in defaults.items() if name not in parsed.query}
        return create_engine(parsed, connect_args=connect_args, pool_size=1)
    engine = create_engine(parsed, connect_args={"timeout": _BUSY_MS / 1000}, pool_size=1)
    event.listen(engine, "connect", _set_pragmas)
    # A transaction that may write locks at its start: after a read, SQLite would fail instead of waiting.
    begin = "BEGIN" if reads else "BEGIN IMMEDIATE"
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def exists(engine: Engine) -> bool:
    """Return whether the file of an SQLite database exists; others exist as far as is known."""
    return engine.dialect.name != "sqlite" or Path(engine.url.database or "").is_file()


def check_exists(engine: Engine) -> None:
    """Check that the file of an SQLite database exists: a connection would create it.

    Raises:
        JournalUnavailable: It does not exist.
    """
    if not exists(engine):
        raise JournalUnavailable(f"there is no journal {engine.url.database}")


def _set_pragmas(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy begins transactions, not the driver
    for setting in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {setting}")


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Migrate the tables to this release; several processes that start at once take turns.

    Raises:
        JournalUnavailable: The database is unavailable, or its tables belong to a later release.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.set_main_option("path_separator", "os")
    with transaction(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, revision)
        except CommandError as error:
            raise JournalUnavailable(f"its tables are those of another release: {error}") from error


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """Run the block in a transaction.

    Raises:
        JournalUnavailable: The database is unavailable.
        RowsRejected: The database rejects the values.
    """
    try:
        with engine.begin() as connection:
            yield connection
    except (DataError, IntegrityError) as error:
        raise RowsRejected(_reason(error)) from error
    except SQLAlchemyError as error:
        raise JournalUnavailable(_reason(error)) from error


def _reason(error: SQLAlchemyError) -> str:
    """Return the driver's message in one line, without values; drivers never include the password."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return f"{type(cause).__name__}: {shorten(' '.join(str(cause).split()), 300)}"


def insert(
    connection: Connection, table: Table, names: tuple[str, ...], rows: Sequence[tuple[Any, ...]]
) -> None:
    """Insert rows with these columns, except those that exist already.

    It bypasses SQLAlchemy's conversion of each value, which takes longer than SQLite itself.
    """
    statement = _statement(connection.dialect, table, names)
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(statement, [dict(zip(names, row, strict=True)) for row in rows])
        return
    for index in [index for index, value in enumerate(rows[0]) if isinstance(value, datetime)]:
        rows = [(*row[:index], _sqlite_text(row[index]), *row[index + 1 :]) for row in rows]
    connection.exec_driver_sql(statement, [*rows])


@lru_cache
def _statement(dialect: Dialect, table: Table, names: tuple[str, ...]) -> str:
    statement = sqlite.insert(table) if dialect.name == "sqlite" else postgresql.insert(table)
    return str(statement.on_conflict_do_nothing().compile(dialect=dialect, column_keys=names))


@lru_cache(maxsize=1024)
def _sqlite_text(moment: datetime) -> str:
    """Return a UTC time in SQLAlchemy's text format for SQLite."""
    return moment.replace(tzinfo=None).isoformat(" ", "microseconds")
