"""The TLS certificate, loaded again when its files change."""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path

from prometheus_client import Gauge

log = logging.getLogger("serving.tls")


class Certificate:
    """A certificate chain and its private key; new connections use what their files contain now.

    Files that cannot be loaded are reported once, and the last valid ones stay in use. Any thread may use it.

    Args:
        chain: the file of the certificate chain, in PEM.
        key: the file of its private key, in PEM.
        broken: is 1 while files cannot be loaded.

    Raises:
        OSError: they cannot be loaded now.
    """

    def __init__(self, chain: Path, key: Path, broken: Gauge) -> None:
        self._chain, self._key, self._broken = chain, key, broken
        self._seen = self._state()
        self._load()

    def context(self) -> ssl.SSLContext:
        """Return the context for a new connection."""
        self._refresh()
        return self._context

    def pair(self) -> tuple[bytes, bytes]:
        """Return the key and the chain for a new connection, in PEM."""
        self._refresh()
        return self._pair

    def _refresh(self) -> None:
        if (state := self._state()) == self._seen:
            return
        self._seen = state
        try:
            self._load()
        except OSError as error:
            self._broken.set(1)
            log.error("cannot load the TLS certificate, the previous one stays in use: %s", error)
        else:
            self._broken.set(0)
            log.info("loaded the TLS certificate again, as its files have changed")

    def _load(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._chain, self._key)
        self._context, self._pair = context, (self._key.read_bytes(), self._chain.read_bytes())

    def _state(self) -> list[tuple[int, int, int] | None]:
        return [_file_state(path) for path in (self._chain, self._key)]


def _file_state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
