"""Lets those in who have a key, as far as it goes."""

from __future__ import annotations

import hmac
import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from serving.auth import api_keys
from serving.auth.access_rules import Access
from serving.auth.api_keys import ApiKey
from serving.errors import ApiKeyFileError, RateExceeded, Unauthenticated

log = logging.getLogger("serving.guard")
READABLE, UNREADABLE, STALE = "readable", "unreadable", "stale"
_SECONDS_BETWEEN_LOOKS = 1.0
_NOBODY = "0" * 64
_SEND_ONE = "Send a key, as Authorization: Bearer … or as X-API-Key."


@dataclass(slots=True)
class TokenBucket:
    """Lets `rate` requests a second through, and as many at once as come in a second, but one at least."""

    rate: float
    tokens: float = field(init=False)
    since: float = -math.inf

    def __post_init__(self) -> None:
        self.tokens = max(1.0, self.rate)

    def acquire(self, now: float) -> float:
        """Take one; gives 0, or the seconds after which there is one."""
        self.tokens = min(max(1.0, self.rate), self.tokens + (now - self.since) * self.rate)
        self.since = now
        if self.tokens < 1:
            return (1 - self.tokens) / self.rate
        self.tokens -= 1
        return 0.0


class Authenticator:
    """Holds the keys of a file, and notices within a second when that changes.

    A file that can't be read for a moment, as while it is written, leaves the keys valid. After
    `stale_seconds` no key is valid any more, since a revoked one would stay valid.

    Raises:
        BadKeys: the file can't be read.
    """

    def __init__(
        self, file: Path, clock: Callable[[], float] = time.monotonic, stale_seconds: float = math.inf
    ) -> None:
        self._file, self._stale_seconds, self._clock = file, stale_seconds, clock
        self._state = self._look()
        self._keys = {key.id: key for key in api_keys.read(file)}
        self._looked = clock()
        self._unreadable_since: float | None = None
        self._buckets: dict[str, TokenBucket] = {}

    def authenticate(self, headers: Iterable[tuple[bytes, bytes]], access: Access) -> ApiKey:
        """Return the key that comes with a request, if it gives this access.

        Raises:
            Unauthenticated: there is none, or one that is not known, or no more.
            Forbidden: it opens something else.
            RateExceeded: it is used too often.
        """
        now = self._clock()
        self._refresh(now)
        if self._is_stale(now):
            raise Unauthenticated("No key is valid: the service can't read its file of keys.")
        key = self._find(_extract_key(headers))
        access.check(key)
        if key.rate is not None:
            bucket = self._buckets.get(key.id)
            if bucket is None or bucket.rate != key.rate:
                bucket = self._buckets[key.id] = TokenBucket(key.rate)
            if seconds := bucket.acquire(now):
                raise RateExceeded(f"This key is for {key.rate:g} requests a second.", math.ceil(seconds))
        return key

    def state(self) -> str:
        """Return the state of the file of keys, for `/ready`."""
        now = self._clock()
        self._refresh(now)
        return STALE if self._is_stale(now) else READABLE if self.is_readable else UNREADABLE

    @property
    def is_readable(self) -> bool:
        """Check whether the file could be read when it was last needed."""
        return self._unreadable_since is None

    def _is_stale(self, now: float) -> bool:
        since = self._unreadable_since
        return since is not None and now - since >= self._stale_seconds

    def _find(self, told: str) -> ApiKey:
        key = self._keys.get(api_keys.identity(told) or "")
        # The time that this takes tells nothing of what is kept.
        if not hmac.compare_digest(api_keys.digest(told), key.sha256 if key else _NOBODY) or key is None:
            raise Unauthenticated("This key is not known.")
        if key.expires is not None and key.has_expired(datetime.now(UTC)):
            raise Unauthenticated("This key has expired.")
        return key

    def _refresh(self, now: float) -> None:
        if now - self._looked < _SECONDS_BETWEEN_LOOKS:
            return
        self._looked = now
        state = self._look()
        if state == self._state and self._unreadable_since is None:
            return
        try:
            self._keys = {key.id: key for key in api_keys.read(self._file)}
        except ApiKeyFileError as error:
            if self._unreadable_since is None:
                self._unreadable_since = now
                log.error(
                    "the file of keys can't be read; known keys stay valid for %g s: %s",
                    self._stale_seconds,
                    error,
                )
            return
        self._state, self._unreadable_since = state, None
        self._buckets = {identity: each for identity, each in self._buckets.items() if identity in self._keys}
        log.info("keys were read again: %d", len(self._keys))

    def _look(self) -> tuple[int, ...] | None:
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def _extract_key(headers: Iterable[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip().decode("latin-1")
        if name == b"x-api-key":
            return value.decode("latin-1")
    raise Unauthenticated(_SEND_ONE)
