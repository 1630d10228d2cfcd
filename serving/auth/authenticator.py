"""Authentication of requests by API keys, which come from a file that may change at any time."""

from __future__ import annotations

import hmac
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from serving.auth import api_keys
from serving.auth.access_rules import Access
from serving.auth.api_keys import ApiKey
from serving.errors import RateExceeded, Unauthenticated
from serving.telemetry.rate_limit import TokenBucket
from serving.watched_file import WatchedFile

log = logging.getLogger("serving.auth")
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
        self._clock = clock
        self._file = WatchedFile(
            file,
            api_keys.read,
            ("key file", "keys"),
            log,
            clock=clock,
            stale_seconds=stale_seconds,
            on_change=self._apply,
        )
        self._buckets: dict[str, TokenBucket] = {}
        self._apply(self._file.content)

    def authenticate(self, headers: Iterable[tuple[bytes, bytes]], access: Access) -> ApiKey:
        """Return the key of a request, if it gives this access.

        Raises:
            Unauthenticated: the request has no key, or one that is unknown or has expired.
            Forbidden: the key does not give this access.
            RateExceeded: the key has exceeded its rate.
        """
        self._file.refresh()
        if self._file.is_stale:
            raise Unauthenticated("All API keys are rejected: the service cannot read its key file.")
        key = self._find(_extract_key(headers))
        access.check(key)
        if key.rate is not None:
            bucket = self._buckets.get(key.id)
            if bucket is None or bucket.rate != key.rate:
                bucket = self._buckets[key.id] = TokenBucket(key.rate)
            if seconds := bucket.acquire(self._clock()):
                detail = f"This API key allows {key.rate:g} requests per second."
                raise RateExceeded(detail, math.ceil(seconds))
        return key

    def state(self) -> str:
        """Return the state of the key file, for `/ready`."""
        self._file.refresh()
        return self._file.state

    @property
    def is_readable(self) -> bool:
        """Check whether the last attempt to read the key file succeeded."""
        return self._file.is_readable

    def reload(self) -> None:
        """Read the file now, even if it seems unchanged."""
        self._file.reload()

    def _find(self, plaintext: str) -> ApiKey:
        key = self._keys.get(api_keys.identity(plaintext) or "")
        # An unknown id takes as long as a wrong secret, so that the time reveals no ids.
        expected = key.sha256 if key else _UNMATCHED_DIGEST
        if not hmac.compare_digest(api_keys.digest(plaintext), expected) or key is None:
            raise Unauthenticated("Unknown API key.")
        if key.expires is not None and key.has_expired(datetime.now(UTC)):
            raise Unauthenticated("This API key has expired.")
        return key

    def _apply(self, keys: Sequence[ApiKey]) -> None:
        self._keys = {key.id: key for key in keys}
        self._buckets = {id_: bucket for id_, bucket in self._buckets.items() if id_ in self._keys}


def _extract_key(headers: Iterable[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip().decode("latin-1")
        if name == b"x-api-key":
            return value.decode("latin-1")
    raise Unauthenticated(_NO_KEY)
