"""Authentication of requests by API keys, which come from a file that may change at any time."""

from __future__ import annotations

import hmac
import logging
import math
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from serving.auth import api_keys
from serving.auth.access_rules import Access
from serving.auth.api_keys import ApiKey
from serving.errors import ApiKeyFileError, RateExceeded, Unauthenticated
from serving.telemetry.rate_limit import TokenBucket

log = logging.getLogger("serving.auth")
READABLE, UNREADABLE, STALE = "readable", "unreadable", "stale"
_POLL_INTERVAL_SECONDS = 1.0
_UNMATCHED_DIGEST = "0" * 64
_NO_KEY = "Send an API key, as Authorization: Bearer … or as X-API-Key."


class Authenticator:
    """Holds the keys of a file, and reads it again within a second after a change.

    While the file cannot be read, as during a write, its last keys stay valid. After `stale_seconds` all
    keys are rejected, since revoked ones would otherwise stay valid.

    Raises:
        ApiKeyFileError: the file cannot be read at the start.
    """

    def __init__(
        self, file: Path, clock: Callable[[], float] = time.monotonic, stale_seconds: float = math.inf
    ) -> None:
        self._file, self._stale_seconds, self._clock = file, stale_seconds, clock
        self._state = self._stat_key_file()
        self._keys = {key.id: key for key in api_keys.read(file)}
        self._checked = clock()
        self._unreadable_since: float | None = None
        self._buckets: dict[str, TokenBucket] = {}

    def authenticate(self, headers: Iterable[tuple[bytes, bytes]], access: Access) -> ApiKey:
        """Return the key of a request, if it gives this access.

        Raises:
            Unauthenticated: the request has no key, or one that is unknown or has expired.
            Forbidden: the key does not give this access.
            RateExceeded: the key has exceeded its rate.
        """
        now = self._clock()
        self._refresh(now)
        if self._is_stale(now):
            raise Unauthenticated("All API keys are rejected: the service cannot read its key file.")
        key = self._find(_extract_key(headers))
        access.check(key)
        if key.rate is not None:
            bucket = self._buckets.get(key.id)
            if bucket is None or bucket.rate != key.rate:
                bucket = self._buckets[key.id] = TokenBucket(key.rate)
            if seconds := bucket.acquire(now):
                detail = f"This API key allows {key.rate:g} requests per second."
                raise RateExceeded(detail, math.ceil(seconds))
        return key

    def state(self) -> str:
        """Return the state of the key file, for `/ready`."""
        now = self._clock()
        self._refresh(now)
        return STALE if self._is_stale(now) else READABLE if self.is_readable else UNREADABLE

    @property
    def is_readable(self) -> bool:
        """Check whether the last attempt to read the key file succeeded."""
        return self._unreadable_since is None

    def _is_stale(self, now: float) -> bool:
        since = self._unreadable_since
        return since is not None and now - since >= self._stale_seconds

    def _find(self, plaintext: str) -> ApiKey:
        key = self._keys.get(api_keys.identity(plaintext) or "")
        # An unknown id takes as long as a wrong secret, so that the time reveals no ids.
        expected = key.sha256 if key else _UNMATCHED_DIGEST
        if not hmac.compare_digest(api_keys.digest(plaintext), expected) or key is None:
            raise Unauthenticated("Unknown API key.")
        if key.expires is not None and key.has_expired(datetime.now(UTC)):
            raise Unauthenticated("This API key has expired.")
        return key

    def _refresh(self, now: float) -> None:
        if now - self._checked < _POLL_INTERVAL_SECONDS:
            return
        self._checked = now
        state = self._stat_key_file()
        if state != self._state or self._unreadable_since is not None:
            self._load(state, now)

    def reload(self) -> None:
        """Read the file now, even if it seems unchanged."""
        self._checked = self._clock()
        self._load(self._stat_key_file(), self._checked)

    def _load(self, state: tuple[int, ...] | None, now: float) -> None:
        try:
            self._keys = {key.id: key for key in api_keys.read(self._file)}
        except ApiKeyFileError as error:
            if self._unreadable_since is None:
                self._unreadable_since = now
                log.error(
                    "cannot read the key file; its last keys stay valid for %g s: %s",
                    self._stale_seconds,
                    error,
                )
            return
        self._state, self._unreadable_since = state, None
        self._buckets = {id_: bucket for id_, bucket in self._buckets.items() if id_ in self._keys}
        log.info("reloaded the key file: %d keys", len(self._keys))

    def _stat_key_file(self) -> tuple[int, ...] | None:
        try:
            status = self._file.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def _extract_key(headers: Iterable[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip().decode("latin-1")
        if name == b"x-api-key":
            return value.decode("latin-1")
    raise Unauthenticated(_NO_KEY)
