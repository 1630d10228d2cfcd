"""The TLS certificate, which is reloaded when its files change."""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path

from prometheus_client import Gauge

log = logging.getLogger("serving.tls")


class Certificate:
    """A certificate chain and its private key; new connections use the current content of the files.

    If changed files cannot be loaded, this is logged once and the previous certificate stays in use. Any
    thread may use the object.

    Args:
        chain: file of the certificate chain, in PEM.
        key: file of the private key, in PEM.
        broken: gauge that is 1 while the files cannot be loaded.

    Raises:
        OSError: the files cannot be loaded at the start.
    """

    def __init__(self, chain: Path, key: Path, broken: Gauge) -> None:
        self._chain, self._key, self._broken = chain, key, broken
        self._file_states = self._stat_files()
        self._load()

    def context(self) -> ssl.SSLContext:
        """Return the context for a new connection."""
        self._refresh()
        return self._context

    def pair(self) -> tuple[bytes, bytes]:
        """Return the key and the chain for a new connection, in PEM."""
        self._refresh()
        return self._pair

    def reload(self) -> None:
        """Load the files, even if they seem unchanged; on failure the previous certificate stays in use."""
        self._file_states = self._stat_files()
        try:
            self._load()
        except OSError as error:
            self._broken.set(1)
            log.error("cannot load the TLS certificate; the previous one stays in use: %s", error)
        else:
            self._broken.set(0)
            log.info("reloaded the TLS certificate")

    def _refresh(self) -> None:
        if self._stat_files() != self._file_states:
            self.reload()

    def _load(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._chain, self._key, _refuse_passphrase)
        self._context, self._pair = context, (self._key.read_bytes(), self._chain.read_bytes())

    def _stat_files(self) -> list[tuple[int, int, int] | None]:
        return [_file_state(path) for path in (self._chain, self._key)]


def _refuse_passphrase() -> str:
    """Refuse an encrypted key; OpenSSL would otherwise ask for its passphrase on the terminal.

    Raises:
        OSError: always.
    """
    raise OSError("the private key is encrypted; decrypt it first")


def _file_state(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
