"""The file of approvers and their Ed25519 public keys."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from serving.errors import ServingError

KEY_BYTES = 32


class ApproversFileError(ServingError):
    """The file of approvers cannot be read or written."""


class Approver(BaseModel):
    """An approver's public key in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=100)
    id: str = Field(pattern="^[0-9a-f]{16}$", description="start of the SHA-256 of the public key")
    public_key: str = Field(description="the 32 bytes of the Ed25519 public key, in base64")
    expires: AwareDatetime | None = None
    created: AwareDatetime

    @model_validator(mode="after")
    def _check_key(self) -> Approver:
        if len(self.public_bytes) != KEY_BYTES:
            raise ValueError("the public key does not have 32 bytes")
        if key_id(self.public_bytes) != self.id:
            raise ValueError("the id does not belong to the public key")
        return self

    @property
    def public_bytes(self) -> bytes:
        """Return the bytes of the public key."""
        return base64.b64decode(self.public_key, validate=True)

    def has_expired(self, now: datetime) -> bool:
        """Check whether the key has expired."""
        return self.expires is not None and now >= self.expires


_APPROVERS = TypeAdapter(tuple[Approver, ...])


def key_id(public: bytes) -> str:
    """Return the id of a public key: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(public).hexdigest()[:16]


def create(name: str, public: bytes, expires: datetime | None = None) -> Approver:
    """Return the entry of an approver for the file."""
    return Approver(
        name=name,
        id=key_id(public),
        public_key=base64.b64encode(public).decode(),
        expires=expires,
        created=datetime.now(UTC),
    )


def read(file: Path) -> tuple[Approver, ...]:
    """Return the approvers in a file.

    Raises:
        ApproversFileError: the file cannot be read, or is not a file of approvers.
    """
    try:
        return _APPROVERS.validate_json(file.read_bytes())
    except OSError as error:
        raise ApproversFileError(f"{file}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ApproversFileError(f"{file} is not a file of approvers: {where}: {first['msg']}") from error


def dump(approvers: Sequence[Approver]) -> bytes:
    """Return the content of a file of approvers."""
    return _APPROVERS.dump_json(tuple(approvers), indent=1)
