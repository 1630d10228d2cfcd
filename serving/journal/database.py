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

VERSION_TABLE = "journal_version"
"""Where Alembic keeps which migrations were run; a database of MLflow's may have a table for its own."""
_LOCK = 0x6A6F75726E616C
_BUSY_MS = 1000
# A server that has gone without a word is given up within seconds.
_TCP_TIMEOUTS = {
    "connect_timeout": 5,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}
_MAX_STATEMENT_SECONDS = " -c statement_timeout=30000"


class RowsRejected(Exception):
    """The database does not take these values, and never will."""


def connect(url: str, *, reads: bool = False) -> Engine:
    """An engine for the database at `url`; nothing is asked of that yet.

    One that only `reads` holds up nobody who writes, and may take its time.
    """
    made = make_url(url)
    if made.get_backend_name() == "postgresql":
        options = "-c timezone=UTC" + ("" if reads else _MAX_STATEMENT_SECONDS)
        patience = _TCP_TIMEOUTS | {"options": options}
        own = {name: value for name, value in patience.items() if name not in made.query}
        return create_engine(made, connect_args=own, pool_size=1)
    engine = create_engine(made, connect_args={"timeout": _BUSY_MS / 1000}, pool_size=1)
    event.listen(engine, "connect", _set_pragmas)
    # What may write asks for its turn at once: a transaction that begins by reading could not wait for it.
    begin = "BEGIN" if reads else "BEGIN IMMEDIATE"
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def _set_pragmas(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy begins transactions, not the driver
    for setting in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {setting}")


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring the tables to what this release needs; one after the other where several begin at once.

    Raises:
        JournalAway: the database can't be reached, or its tables are those of a later release.
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
    """A transaction, which is over with the block.

    Raises:
        JournalAway: the database can't be asked now.
        Refused: it does not take what it was given.
    """
    try:
        with engine.begin() as connection:
            yield connection
    except (DataError, IntegrityError) as error:
        raise RowsRejected(_reason(error)) from error
    except SQLAlchemyError as error:
        raise JournalUnavailable(_reason(error)) from error


def _reason(error: SQLAlchemyError) -> str:
    """What the driver says, in one line without values; a connection's errors never tell the password."""
    told = error.orig if isinstance(error, DBAPIError) else error
    return f"{type(told).__name__}: {' '.join(str(told).split())[:300]}"


def insert(
    connection: Connection, table: Table, names: tuple[str, ...], rows: Sequence[tuple[Any, ...]]
) -> None:
    """Insert rows of these columns, but for those that are there already.

    It goes round SQLAlchemy's handling of each value, which takes longer than SQLite does.
    """
    statement = _statement(connection.dialect, table, names)
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(statement, [dict(zip(names, row, strict=True)) for row in rows])
        return
    for place in [place for place, value in enumerate(rows[0]) if isinstance(value, datetime)]:
        rows = [(*row[:place], _in_sqlite(row[place]), *row[place + 1 :]) for row in rows]
    connection.exec_driver_sql(statement, [*rows])


@lru_cache
def _statement(dialect: Dialect, table: Table, names: tuple[str, ...]) -> str:
    made = sqlite.insert(table) if dialect.name == "sqlite" else postgresql.insert(table)
    return str(made.on_conflict_do_nothing().compile(dialect=dialect, column_keys=names))


@lru_cache(maxsize=1024)
def _in_sqlite(moment: datetime) -> str:
    """A moment, which is UTC, as SQLAlchemy reads it."""
    return moment.replace(tzinfo=None).isoformat(" ", "microseconds")
