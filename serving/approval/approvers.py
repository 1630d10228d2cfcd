"""The file of approvers and their Ed25519 public keys."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from serving import private_files
from serving.errors import ApproversFileError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}$"
"""ASCII only: no name looks like another one, or breaks a log line."""
KEY_ID_PATTERN = "^[0-9a-f]{16}$"
_P = 2**255 - 19
_ORDER_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER = {0, 1, _P - 1, _ORDER_8, _P - _ORDER_8}
"""The y coordinates of the points of edwards25519 whose order divides 8 (RFC 8032, section 5.1)."""


class Approver(BaseModel):
    """An approver's public key in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=NAME_PATTERN)
    id: str = Field(pattern=KEY_ID_PATTERN, description="start of the SHA-256 of the public key")
    public_key: str = Field(pattern="^[0-9a-f]{64}$", description="the Ed25519 public key in hexadecimal")
    expires: AwareDatetime | None = None
    created: AwareDatetime

    @model_validator(mode="after")
    def _check_key(self) -> Approver:
        if key_id(self.public_bytes) != self.id:
            raise ValueError("the id does not belong to the public key")
        if is_weak(self.public_bytes):
            raise ValueError("the public key is weak: everybody can forge its signatures")
        return self

    @property
    def public_bytes(self) -> bytes:
        """Return the 32 bytes of the public key."""
        return bytes.fromhex(self.public_key)

    def has_expired(self, now: datetime) -> bool:
        """Check whether the key has expired."""
        return self.expires is not None and now >= self.expires


_APPROVERS = TypeAdapter(tuple[Approver, ...])


def is_name(text: str) -> bool:
    """Check whether a text may be the name of an approver."""
    return re.fullmatch(NAME_PATTERN, text) is not None


def key_id(public: bytes) -> str:
    """Return the id of a public key: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(public).hexdigest()[:16]


def is_weak(public: bytes) -> bool:
    """Check whether a public key is a point of small order, for which signatures need no private key."""
    return (int.from_bytes(public, "little") & (2**255 - 1)) % _P in _SMALL_ORDER


def create(name: str, public: bytes, expires: datetime | None = None) -> Approver:
    """Return the entry of an approver for the file."""
    return Approver(
        name=name,
        id=key_id(public),
        public_key=public.hex(),
        expires=expires,
        created=datetime.now(UTC),
    )


def read(file: Path) -> tuple[Approver, ...]:
    """Return the approvers in a file.

    Raises:
        ApproversFileError: the file cannot be read, or is not a file of approvers.
    """
    try:
        entries = json.loads(file.read_bytes(), object_pairs_hook=_unambiguous)
        approvers = _APPROVERS.validate_python(entries)
    except OSError as error:
        raise ApproversFileError(f"{file}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = "".join(f"{part}: " for part in [".".join(map(str, first["loc"]))] if part)
        message = first["msg"].removeprefix("Value error, ")
        raise ApproversFileError(f"{file} is not a file of approvers: {where}{message}") from error
    except (ValueError, RecursionError) as error:
        raise ApproversFileError(f"{file} is not a file of approvers: {error}") from error
    if repeated := _repeated(approver.id for approver in approvers):
        raise ApproversFileError(f"{file}: several entries have the key {repeated}")
    return approvers


def write(file: Path, approvers: Sequence[Approver]) -> None:
    """Write approvers to a file, and keep its owner and mode; only its owner may read a new file.

    Raises:
        ApproversFileError: the file cannot be written.
    """
    try:
        private_files.replace(file, _APPROVERS.dump_json(tuple(approvers), indent=1))
    except OSError as error:
        raise ApproversFileError(f"{file}: {error.strerror}") from error


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; readers differ in the value of a repeated field, so there must be none."""
    if repeated := _repeated(name for name, _ in pairs):
        raise ValueError(f"an entry has the field {repeated!a} twice")
    return dict(pairs)


def _repeated(values: Iterable[str]) -> str | None:
    return next((value for value, count in Counter(values).items() if count > 1), None)
