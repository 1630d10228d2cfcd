"""Files of approvers' private keys: PEM (PKCS #8), encrypted if there is a passphrase.

The first line of a file names the approver; PEM allows text before the key (RFC 7468).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from serving.errors import ServingError

_OWNER = re.compile(r"Approver: (\S+)\n")
_MODE = 0o600
_MAX_FILE_BYTES = 100_000


class PrivateKeyError(ServingError):
    """A file of a private key cannot be read or written."""


class PassphraseRequired(PrivateKeyError):
    """The private key is encrypted, and there is no passphrase."""


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """Return the 32 bytes of the public key."""
    return key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def create(file: Path, name: str, passphrase: str) -> Ed25519PrivateKey:
    """Return a new key, and write it to a new file that only its owner may read; encrypt it if possible.

    Raises:
        PrivateKeyError: the file exists or cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase.encode())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    try:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE), "wb") as new:
            new.write(f"Approver: {name}\n".encode() + pem)
            os.fsync(new.fileno())
    except FileExistsError:
        raise PrivateKeyError(f"{file} exists: name a new file for the private key") from None
    except OSError as error:
        raise PrivateKeyError(f"{file}: {error.strerror}") from error
    return key


def read(file: Path, passphrase: str) -> tuple[str | None, Ed25519PrivateKey]:
    """Return the approver's name, if the file has one, and the key.

    Raises:
        PassphraseRequired: the key is encrypted, and the passphrase is empty.
        PrivateKeyError: the file cannot be read, or the passphrase is wrong.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise PrivateKeyError(f"{file}: {error.strerror}") from error
    is_encrypted = b"ENCRYPTED" in content
    if is_encrypted and not passphrase:
        raise PassphraseRequired(f"{file} is encrypted")
    try:
        secret = passphrase.encode() if is_encrypted else None
        key = serialization.load_pem_private_key(content, secret)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        detail = "the passphrase is wrong" if is_encrypted else "it holds no private key in PEM"
        raise PrivateKeyError(f"{file}: {detail}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise PrivateKeyError(f"{file} holds a key of another kind than Ed25519")
    name = _OWNER.match(content.decode(errors="replace"))
    return (name[1] if name else None), key
