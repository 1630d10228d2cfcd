"""Approvals: Ed25519 signatures over a version, its artifacts and the references it may be promoted to.

The tag `serving.approval` holds an approval as canonical JSON: ASCII, sorted fields, no spaces. Any other
text is invalid, even if a JSON parser reads the same values from it: an approval has exactly one form.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.approval.approvers import KEY_ID_PATTERN, NAME_PATTERN, Approver
from serving.promotion_errors import Rejected
from serving.reference import Reference, ReferenceKind

TAG = "serving.approval"
MAX_REFERENCES = 20
_CONTEXT = b"serving.approval v1\n"
"""Starts every signed message, so that no signature made for another purpose is an approval."""
_MAX_TAG_CHARACTERS = 5000
_MAX_SHOWN_CHARACTERS = 50
_MAX_CACHED_RESULTS = 64
_TIME = "%Y-%m-%dT%H:%M:%SZ"


class ApprovalInvalid(Rejected):
    """An approval does not approve the version."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The version to approve, its artifacts, and the canonical reference that it is promoted to."""

    model: str
    version: str | None
    digest: str
    reference: str


class Approval(BaseModel):
    """What an approver signs."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    approver: str = Field(pattern=NAME_PATTERN)
    key: str = Field(pattern=KEY_ID_PATTERN, description="id of the approver's key")
    model: str
    version: str | None = Field(description="null for a logged model outside the registry")
    digest: str = Field(pattern="^sha256:[0-9a-f]{64}$", description="digest of the artifacts")
    references: tuple[str, ...] = Field(min_length=1, max_length=MAX_REFERENCES)
    approved_at: str = Field(
        pattern=r"^[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]Z$",
        description="the time according to the approver's clock, in UTC",
    )

    def message(self) -> bytes:
        """Return the bytes that are signed: all fields but the signature."""
        return _CONTEXT + _canonical(self.model_dump(exclude={"signature"})).encode()

    @property
    def time(self) -> datetime:
        """Return the time of the approval, according to the approver's clock; the last one if it is none."""
        try:
            return datetime.strptime(self.approved_at, _TIME).replace(tzinfo=UTC)
        except ValueError:  # the 31st of February
            return datetime.max.replace(tzinfo=UTC)


class SignedApproval(Approval):
    """The content of the tag `serving.approval`."""

    signature: str = Field(pattern="^[0-9a-f]{128}$", description="the Ed25519 signature in hexadecimal")


def canonical_reference(reference: Reference) -> str:
    """Return a reference in the one form that approvals use; stages and numbers have several."""
    separator = "@" if reference.kind is ReferenceKind.ALIAS else "/"
    selector = "" if reference.kind is ReferenceKind.MODEL_ID else separator + reference.selector
    return f"models:/{reference.name}{selector}"


def create(
    approver: str, key: str, subject: Subject, references: Iterable[Reference], now: datetime
) -> Approval:
    """Return the approval of a version for references, to be signed with the key of this id."""
    return Approval(
        approver=approver,
        key=key,
        model=subject.model,
        version=subject.version,
        digest=subject.digest,
        references=tuple(sorted({*map(canonical_reference, references)})),
        approved_at=now.astimezone(UTC).strftime(_TIME),
    )


def sign(approval: Approval, key: Ed25519PrivateKey) -> str:
    """Return the value of the tag `serving.approval`."""
    signature = key.sign(approval.message()).hex()
    return _canonical(approval.model_dump() | {"signature": signature})


def parse(tag: str) -> SignedApproval:
    """Return the approval in a tag, whose signature is not checked.

    Raises:
        ApprovalInvalid: the tag is not an approval.
    """
    if len(tag) > _MAX_TAG_CHARACTERS:
        raise ApprovalInvalid(f"the tag {TAG} is too long for an approval")
    try:
        approval = SignedApproval.model_validate_json(tag)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ascii(".".join(map(str, first["loc"]))[:_MAX_SHOWN_CHARACTERS])
        raise ApprovalInvalid(f"the tag {TAG} is not an approval: {field}: {first['msg']}") from error
    if _canonical(approval.model_dump()) != tag:
        raise ApprovalInvalid(f"the tag {TAG} is not in the form that `serving approve` writes")
    return approval


@lru_cache(_MAX_CACHED_RESULTS)
def verify(tag: str, subject: Subject, approvers: tuple[Approver, ...]) -> tuple[SignedApproval, Approver]:
    """Return the approval of a version, and its approver, whose key may have expired.

    Raises:
        ApprovalInvalid: the tag does not approve this version for this reference.
    """
    approval = parse(tag)
    approver = next((entry for entry in approvers if entry.id == approval.key), None)
    if approver is None or approver.name != approval.approver:
        raise ApprovalInvalid(
            f"the file of approvers has no key {approval.key} of {approval.approver}, who approved it: "
            "another approver has to approve it"
        )
    _verify_signature(approval, approver)
    if (approval.model, approval.version) != (subject.model, subject.version):
        raise ApprovalInvalid(
            f"its approval is for {approval.model!a} version {approval.version!a}, not for {subject.model!a} "
            f"version {subject.version!a}"
        )
    if approval.digest != subject.digest:
        raise ApprovalInvalid(
            f"its artifacts are not those that {approver.name} approved: {subject.digest}, not "
            f"{approval.digest}"
        )
    if subject.reference not in approval.references:
        approved = ", ".join(approval.references)
        raise ApprovalInvalid(f"{approver.name} approved it for {approved}, not for {subject.reference}")
    return approval, approver


def check_expiry(approval: Approval, approver: Approver, now: datetime, *, has_served: bool) -> None:
    """Check that the key had not expired; a version that has served needs no new approval.

    Raises:
        ApprovalInvalid: the key has expired.
    """
    expires = approver.expires
    if expires is None or not approver.has_expired(now) or (has_served and approval.time < expires):
        return
    raise ApprovalInvalid(
        f"the key {approver.id} of {approver.name} expired on {expires:%Y-%m-%d}: approve it with another key"
    )


def _canonical(fields: Mapping[str, Any]) -> str:
    """Return the fields of an approval as JSON in its one form."""
    return json.dumps(fields, sort_keys=True, ensure_ascii=True, separators=(",", ":"))


def _verify_signature(approval: SignedApproval, approver: Approver) -> None:
    try:
        key = Ed25519PublicKey.from_public_bytes(approver.public_bytes)
        key.verify(bytes.fromhex(approval.signature), approval.message())
    except (InvalidSignature, ValueError):
        raise ApprovalInvalid(f"the signature of its approval by {approver.name} is not valid") from None
