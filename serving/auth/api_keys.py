"""API keys. A key is told once, as it is made; what is kept is its SHA-256."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from serving.errors import ApiKeyFileError

_FORM = re.compile(r"sk_([0-9a-f]{16})_[\w-]{43}")
_EXPIRY = re.compile(r"([1-9]\d{0,4})([dh])")


class Scope(StrEnum):
    """What a key opens."""

    PREDICT = "predict"
    ADMIN = "admin"


class ApiKey(BaseModel):
    """What is kept of a key; without `models` it is for all, without `rate` for any number a second."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern="^[0-9a-f]{16}$")
    name: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    scope: Scope = Scope.PREDICT
    models: tuple[str, ...] = ()
    rate: float | None = Field(None, gt=0, description="requests a second")
    expires: AwareDatetime | None = None
    created: AwareDatetime

    def has_expired(self, now: datetime) -> bool:
        """Whether its time is over."""
        return self.expires is not None and now >= self.expires


_KEYS = TypeAdapter(tuple[ApiKey, ...])


def create_key(
    name: str,
    scope: Scope = Scope.PREDICT,
    models: Sequence[str] = (),
    rate: float | None = None,
    expires: datetime | None = None,
) -> tuple[str, ApiKey]:
    """A new key of 256 random bits: as its holder sends it, and as it is kept."""
    identity = secrets.token_hex(8)
    told = f"sk_{identity}_{secrets.token_urlsafe(32)}"
    kept = ApiKey(
        id=identity,
        name=name,
        sha256=digest(told),
        scope=scope,
        models=tuple(models),
        rate=rate,
        expires=expires,
        created=datetime.now(UTC),
    )
    return told, kept


def digest(told: str) -> str:
    """The SHA-256 of a key, in hexadecimal digits."""
    return hashlib.sha256(told.encode()).hexdigest()


def identity(told: str) -> str | None:
    """The id in a key; None where it has not the form of one."""
    found = _FORM.fullmatch(told)
    return found[1] if found else None


def parse_expiry(text: str, now: datetime) -> datetime:
    """When a key expires: after `90d` or `12h`, or at an ISO 8601 date or time, in UTC if it names no zone.

    Raises:
        ValueError: it is none of these, or over.
    """
    if found := _EXPIRY.fullmatch(text):
        return now + timedelta(**{{"d": "days", "h": "hours"}[found[2]]: int(found[1])})
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment <= now:
        raise ValueError(f"{text} is over")
    return moment


def read(file: Path) -> tuple[ApiKey, ...]:
    """The keys in a file.

    Raises:
        BadKeys: it can't be read, or is no file of keys.
    """
    try:
        return _KEYS.validate_json(file.read_bytes())
    except OSError as error:
        raise ApiKeyFileError(f"{file}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ApiKeyFileError(f"{file} is no file of keys: {where or 'it'}: {first['msg']}") from error


def write(file: Path, keys: Sequence[ApiKey]) -> None:
    """Write keys to a file, whose owner and mode stay as they are; a new one only its owner may read.

    Readers find the file whole: another one takes its place. Only where the system does not permit this user
    to give that the same owner, the keys are written into the file as it is.

    Raises:
        BadKeys: it can't be written.
    """
    file = file.resolve()  # of a link, the file behind it is replaced
    content = _KEYS.dump_json(tuple(keys), indent=1)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        before = file.stat() if file.exists() else None
        try:
            _replace(file, content, before)
        except PermissionError:
            if before is None:
                raise
            _overwrite(file, content)
    except OSError as error:
        raise ApiKeyFileError(f"{file}: {error.strerror}") from error


def _replace(file: Path, content: bytes, before: os.stat_result | None) -> None:
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".keys-", delete=False) as new:
        try:
            if before:
                made = os.fstat(new.fileno())
                if (before.st_uid, before.st_gid) != (made.st_uid, made.st_gid):
                    os.fchown(new.fileno(), before.st_uid, before.st_gid)
                os.fchmod(new.fileno(), stat.S_IMODE(before.st_mode))
            new.write(content)
            new.flush()
            os.fsync(new.fileno())
            os.replace(new.name, file)
        except BaseException:
            os.unlink(new.name)
            raise


def _overwrite(file: Path, content: bytes) -> None:
    with file.open("r+b") as opened:
        opened.write(content)
        opened.truncate()
        os.fsync(opened.fileno())
