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

from cachetools import LRUCache

from serving.access import keys
from serving.access.keys import Key, Scope
from serving.errors import BadKeys, Forbidden, RateExceeded, Unauthenticated

log = logging.getLogger("serving.guard")
_SECONDS_BETWEEN_LOOKS = 1.0
_NOBODY = "0" * 64
_SEND_ONE = "Send a key, as Authorization: Bearer … or as X-API-Key."


@dataclass(slots=True)
class Bucket:
    """Lets `rate` requests a second through, and as many at once as come in a second, but one at least."""

    rate: float
    tokens: float = field(init=False)
    since: float = -math.inf

    def __post_init__(self) -> None:
        self.tokens = max(1.0, self.rate)

    def take(self, now: float) -> float:
        """Take one; gives 0, or the seconds after which there is one."""
        self.tokens = min(max(1.0, self.rate), self.tokens + (now - self.since) * self.rate)
        self.since = now
        if self.tokens < 1:
            return (1 - self.tokens) / self.rate
        self.tokens -= 1
        return 0.0


class Guard:
    """Knows the keys in a file, and notices within a second when that changes.

    Raises:
        BadKeys: the file can't be read.
    """

    def __init__(self, file: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._clock = file, clock
        self._state = self._look()
        self._keys = {key.id: key for key in keys.read(file)}
        self._looked = clock()
        self._known: LRUCache[str, Key] = LRUCache(10_000)
        self._buckets: dict[str, Bucket] = {}

    def admit(self, headers: Iterable[tuple[bytes, bytes]], scope: Scope) -> Key:
        """The key that comes with a request, if that opens this.

        Raises:
            Unauthenticated: there is none, or one that is not known, or no more.
            Forbidden: it opens something else.
            RateExceeded: it is used too often.
        """
        now = self._clock()
        if now - self._looked >= _SECONDS_BETWEEN_LOOKS:
            self._looked = now
            self._refresh()
        key = self._find(_sent(headers))
        if scope is Scope.ADMIN and key.scope is not Scope.ADMIN:
            raise Forbidden("This key is for predictions alone.")
        if key.rate is not None:
            bucket = self._buckets.get(key.id)
            if bucket is None or bucket.rate != key.rate:
                bucket = self._buckets[key.id] = Bucket(key.rate)
            if seconds := bucket.take(now):
                raise RateExceeded(f"This key is for {key.rate:g} requests a second.", math.ceil(seconds))
        return key

    def _find(self, told: str) -> Key:
        key = self._known.get(told)
        if key is None:
            key = self._keys.get(keys.identity(told) or "")
            # The time that this takes tells nothing of what is kept.
            if not hmac.compare_digest(keys.digest(told), key.sha256 if key else _NOBODY) or key is None:
                raise Unauthenticated("This key is not known.")
            self._known[told] = key
        if key.expires is not None and key.has_expired(datetime.now(UTC)):
            raise Unauthenticated("This key has expired.")
        return key

    def _refresh(self) -> None:
        state = self._look()
        if state == self._state:
            return
        self._state = state
        try:
            self._keys = {key.id: key for key in keys.read(self._file)}
        except BadKeys as error:
            log.warning("the keys that were known are used on: %s", error)
            return
        self._known.clear()
        self._buckets = {identity: each for identity, each in self._buckets.items() if identity in self._keys}
        log.info("keys were read again: %d", len(self._keys))

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def _sent(headers: Iterable[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip().decode("latin-1")
        if name == b"x-api-key":
            return value.decode("latin-1")
    raise Unauthenticated(_SEND_ONE)


def check_model(key: Key, model: str) -> None:
    """Refuse a key that is not for this model.

    Raises:
        Forbidden: it is for others.
    """
    if key.models and model not in key.models:
        raise Forbidden("This key is for other models.")
