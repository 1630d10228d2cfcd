"""Approvals: Ed25519 signatures over a version, its artifacts and the references it may be promoted to."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from serving.approval.approvers import Approver
from serving.errors import ServingError

TAG = "serving.approval"
_CONTEXT = b"serving.approval v1\n"
"""Starts every signed message, so that no signature made for another purpose is an approval."""
_MAX_TAG_CHARACTERS = 5000


class ApprovalInvalid(ServingError):
    """An approval does not approve the version."""


class Approval(BaseModel):
    """What an approver signs."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    approver: str = Field(min_length=1, max_length=100)
    key: str = Field(pattern="^[0-9a-f]{16}$", description="id of the approver's key")
    model: str
    version: str
    digest: str = Field(pattern="^sha256:[0-9a-f]{64}$", description="digest of the artifacts")
    references: tuple[str, ...] = Field(min_length=1, max_length=20)
    approved_at: AwareDatetime

    def message(self) -> bytes:
        """Return the bytes that are signed."""
        return _CONTEXT + self.model_dump_json().encode()


class SignedApproval(Approval):
    """The content of the tag `serving.approval`."""

    signature: str = Field(max_length=100, description="the Ed25519 signature in base64")


def sign(approval: Approval, key: Ed25519PrivateKey) -> str:
    """Return the value of the tag `serving.approval`."""
    signature = base64.b64encode(key.sign(approval.message())).decode()
    return SignedApproval(**approval.model_dump(), signature=signature).model_dump_json()


def parse(tag: str) -> SignedApproval:
    """Return the approval in a tag, whose signature is not checked.

    Raises:
        ApprovalInvalid: the tag is not an approval.
    """
    try:
        if len(tag) > _MAX_TAG_CHARACTERS:
            raise ApprovalInvalid(f"the tag {TAG} is too long for an approval")
        return SignedApproval.model_validate_json(tag)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise ApprovalInvalid(f"the tag {TAG} is not an approval: {field}: {first['msg']}") from error


def check(
    tag: str,
    model: str,
    version: str,
    digest: str,
    reference: str,
    approvers: Sequence[Approver],
    now: datetime,
) -> SignedApproval:
    """Return the approval of a version for a reference.

    Args:
        tag: the value of the tag `serving.approval`.
        model: the name of the registered model.
        version: the number of the version.
        digest: the digest of the artifacts on the disk.
        reference: the reference that the version is promoted to.
        approvers: the approvers and their keys.
        now: the time.

    Raises:
        ApprovalInvalid: the tag does not approve this version for this reference.
    """
    approval = parse(tag)
    approver = next((entry for entry in approvers if entry.id == approval.key), None)
    if approver is None or approver.name != approval.approver:
        raise ApprovalInvalid(
            f"its approval is signed with a key that is not in the approvers' file: {approval.key}"
        )
    _verify(approval, approver)
    if approver.has_expired(now):
        raise ApprovalInvalid(
            f"the key {approver.id} of {approver.name} expired on {approver.expires:%Y-%m-%d}"
        )
    if (approval.model, approval.version) != (model, version):
        raise ApprovalInvalid(
            f"its approval is for {approval.model} version {approval.version}, not {model} version {version}"
        )
    if approval.digest != digest:
        raise ApprovalInvalid(
            f"its approval is for artifacts with the digest {approval.digest}, but the registry has {digest}"
        )
    if reference not in approval.references:
        raise ApprovalInvalid(f"its approval is for {', '.join(approval.references)}, not {reference}")
    return approval


def _verify(approval: SignedApproval, approver: Approver) -> None:
    signed = Approval(**approval.model_dump(exclude={"signature"}))
    try:
        key = Ed25519PublicKey.from_public_bytes(approver.public_bytes)
        key.verify(base64.b64decode(approval.signature, validate=True), signed.message())
    except (InvalidSignature, ValueError, binascii.Error):
        raise ApprovalInvalid(f"the signature of its approval by {approver.name} is not valid") from None
