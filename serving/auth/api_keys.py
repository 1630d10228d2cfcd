"""API keys and the file that contains them.

A key is shown once, when it is created. The file contains only its SHA-256.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from serving import private_files
from serving.errors import ApiKeyFileError

_FORM = re.compile(r"sk_([0-9a-f]{16})_[\w-]{43}")
_EXPIRY = re.compile(r"([1-9]\d{0,4})([dh])")


class Scope(StrEnum):
    """Endpoints that a key gives access to."""

    PREDICT = "predict"
    ADMIN = "admin"


class ApiKey(BaseModel):
    """The record of a key in the file; empty `models` allow all models, and no `rate` is unlimited."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern="^[0-9a-f]{16}$")
    name: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    scope: Scope = Scope.PREDICT
    models: tuple[str, ...] = ()
    rate: float | None = Field(None, gt=0, description="requests per second")
    expires: AwareDatetime | None = None
    created: AwareDatetime

    def has_expired(self, now: datetime) -> bool:
        """Check whether the key has expired."""
        return self.expires is not None and now >= self.expires


_KEYS = TypeAdapter(tuple[ApiKey, ...])


def create_key(
    name: str,
    scope: Scope = Scope.PREDICT,
    models: Sequence[str] = (),
    rate: float | None = None,
    expires: datetime | None = None,
) -> tuple[str, ApiKey]:
    """Return a new key of 256 random bits, as its owner sends it, and its record for the file."""
    identity = secrets.token_hex(8)
    plaintext = f"sk_{identity}_{secrets.token_urlsafe(32)}"
    record = ApiKey(
        id=identity,
        name=name,
        sha256=digest(plaintext),
        scope=scope,
        models=tuple(models),
        rate=rate,
        expires=expires,
        created=datetime.now(UTC),
    )
    return plaintext, record


def digest(plaintext: str) -> str:
    """Return the SHA-256 of a key, in hexadecimal digits."""
    return hashlib.sha256(plaintext.encode()).hexdigest()


def identity(plaintext: str) -> str | None:
    """Return the id in a key; None if the text does not have the form of a key."""
    match = _FORM.fullmatch(plaintext)
    return match[1] if match else None


def parse_expiry(text: str, now: datetime) -> datetime:
    """Return the expiry that a text describes: a period (`90d`, `12h`), or an ISO 8601 date or time.

    The default time zone is UTC.

    Raises:
        ValueError: the text has no such form, or the time is in the past.
    """
    if period := _EXPIRY.fullmatch(text):
        return now + timedelta(**{{"d": "days", "h": "hours"}[period[2]]: int(period[1])})
    expiry = datetime.fromisoformat(text)
    expiry = expiry if expiry.tzinfo else expiry.replace(tzinfo=UTC)
    if expiry <= now:
        raise ValueError(f"{text} is in the past")
    return expiry


def read(file: Path) -> tuple[ApiKey, ...]:
    """Return the keys in a file.

    Raises:
        ApiKeyFileError: the file cannot be read, or is not a key file.
    """
    try:
        return _KEYS.validate_json(file.read_bytes())
    except OSError as error:
        raise ApiKeyFileError(f"{file}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ApiKeyFileError(
            f"{file} is not a key file: {f'{where}: ' * bool(where)}{first['msg']}"
        ) from error


def write(file: Path, keys: Sequence[ApiKey]) -> None:
    """Write keys to a file, and keep its owner and mode; only its owner may read a new file.

    Raises:
        ApiKeyFileError: the file cannot be written.
    """
    try:
        private_files.replace(file, _KEYS.dump_json(tuple(keys), indent=1))
    except OSError as error:
        raise ApiKeyFileError(f"{file}: {error.strerror}") from error
