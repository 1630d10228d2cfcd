"""Parsers for settings that environment variables and flags give as text."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from serving.errors import InvalidReference
from serving.reference import Reference
from serving.text import install_command

# MLflow's users write a driver into its URI; the journal always uses psycopg 3.
_POSTGRES_DRIVERS = ("postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2")

MAX_SLICE_COLUMNS = 5
_ROOT_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~@:+-]+)*")


def parse_list(value: Any) -> Any:
    """Split a comma-separated text into its items; return any other value as it is."""
    if not isinstance(value, str):
        return value
    return tuple(item for item in map(str.strip, value.split(",")) if item)


def parse_references(value: Any) -> Any:
    """Parse comma-separated references without weights."""
    return _parse_references(value, Reference.parse)


def parse_weighted_references(value: Any) -> Any:
    """Parse comma-separated references; any may have a weight."""
    return _parse_references(value, Reference.parse_weighted)


def _parse_references(value: Any, parse: Callable[[str], Reference]) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return tuple(map(parse, parse_list(value)))
    except InvalidReference as error:
        raise ValueError(str(error)) from None


def check_paths_and_ports(items: tuple[str, ...]) -> tuple[str, ...]:
    """Return the items if each is an absolute path or a TCP port.

    Raises:
        ValueError: an item is neither.
    """
    for item in items:
        if not (item.startswith("/") or (item.isascii() and item.isdecimal() and 0 < int(item) < 65536)):
            raise ValueError(f"{item!r} is neither an absolute path nor a TCP port")
    return items


def parse_root_path(text: str) -> str:
    """Return a path prefix without its final slash; empty if it is `/`.

    Raises:
        ValueError: the text is not a plain absolute path.
    """
    path = text.removesuffix("/")
    if not _ROOT_PATH.fullmatch(path):
        raise ValueError("write a path such as /models-eu, with letters, digits and any of ._~@:+-")
    return path


def check_peers(items: tuple[str, ...]) -> tuple[str, ...]:
    """Return the items if each is an IP address, a network, or `*`.

    Raises:
        ValueError: an item is none of these.
    """
    for item in items:
        try:
            _ = item == "*" or ip_network(item)
        except ValueError as error:
            raise ValueError(f"{error}; write IP addresses, networks such as 10.0.0.0/8, or *") from None
    return items


def check_route(path: str | None) -> str | None:
    """Return the path of an additional endpoint.

    Raises:
        ValueError: it does not start with `/`, or contains characters that a URL path encodes.
    """
    if path is not None and not re.fullmatch(r"/[\w.~:@/-]*", path, re.ASCII):
        raise ValueError("write a path such as /predict: letters, digits and . ~ : @ / - _")
    return path


def without_brackets(host: str) -> str:
    """Return an IPv6 address without the brackets that URLs require."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def with_brackets(host: str) -> str:
    """Return a host as URLs contain it: IPv6 addresses are in brackets."""
    return f"[{host}]" if ":" in host else host


def lowercase(value: Any) -> Any:
    """Return a text in lower case; return any other value as it is."""
    return value.lower() if isinstance(value, str) else value


def parse_secret_journal_url(value: SecretStr | None) -> SecretStr | None:
    """Apply `parse_journal_url` to a setting."""
    return value and SecretStr(parse_journal_url(value.get_secret_value()))


def parse_journal_url(text: str) -> str:
    """Return the URL of the journal's database, with the name of the installed driver.

    Raises:
        ValueError: the journal cannot use this URL; the message contains no password.
    """
    from sqlalchemy.engine import make_url  # heavy, and most services have no journal
    from sqlalchemy.exc import ArgumentError

    forms = "write sqlite:///file.db or postgresql://user:password@host/database"
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(f"not a database URL: {forms}") from None
    if url.drivername in ("sqlite", "sqlite+pysqlite"):
        if url.database in (None, "", ":memory:"):
            raise ValueError(f"an in-memory database does not outlive its process: {forms}")
        if not (folder := Path(str(url.database)).parent).is_dir():
            raise ValueError(f"the folder {folder} of the database does not exist")
    elif url.drivername not in _POSTGRES_DRIVERS:
        raise ValueError(f"{url.drivername} is not supported: {forms}")
    elif not find_spec("psycopg"):
        raise ValueError(f"the PostgreSQL driver is not installed: {install_command('postgres')}")
    else:
        url = url.set(drivername="postgresql+psycopg")
    return url.render_as_string(hide_password=False)


def check_slices(columns: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns of slices; raises ValueError if they are too many for the metrics."""
    if len(columns) > MAX_SLICE_COLUMNS:
        raise ValueError(f"name at most {MAX_SLICE_COLUMNS} columns")
    return columns
