"""The condition that an approver has signed a version, checked before any code of the version runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from pydantic import BaseModel, Field

from serving.approval.approvers import Approver
from serving.approval.signature import (
    TAG,
    ApprovalInvalid,
    SignedApproval,
    Subject,
    canonical_reference,
    check_expiry,
    verify,
)
from serving.errors import ReferenceNotFound, RegistryUnavailable
from serving.http.readiness import StatusPart
from serving.models.slot import Slot
from serving.promotion_errors import PromotionWaits, Rejected
from serving.reference import Reference
from serving.registry.client import RegistryClient
from serving.registry.follower import Follower
from serving.registry.mlflow_entities import users_of
from serving.registry.promotion_check import Promotion, PromotionCheck
from serving.version import Artifacts, Version
from serving.watched_file import POLL_INTERVAL_SECONDS, WatchedFile

log = logging.getLogger("serving.approval")


class ApprovalState(BaseModel):
    """The approval of a live version."""

    approver: str
    key: str = Field(description="id of the approver's key")
    approved_at: str = Field(description="the time according to the approver's clock")


class ApprovalFields(BaseModel):
    """The field of a model's state."""

    approval: ApprovalState | None = Field(
        None, description="who approved the live version; null for callers without a key, if there are keys"
    )


class ApprovalCheck(PromotionCheck):
    """Lets only versions go live that an approver in the file has signed.

    Args:
        file: the approvers.
        registry: knows who logged a version; None if that does not matter.
        followers: try a refused version again once the file or the clock allows it.
        clock: the time.
    """

    def __init__(
        self,
        file: WatchedFile[tuple[Approver, ...]],
        registry: RegistryClient | None,
        followers: Sequence[Follower],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._file, self._registry, self._followers, self._clock = file, registry, followers, clock
        self._refused: dict[str, Promotion] = {}

    async def before_load(self, promotion: Promotion) -> None:
        """Check the approval of a version; see `PromotionCheck`."""
        uri = promotion.slot.reference.uri
        self._file.refresh()
        try:
            approval = self._approval(promotion)
        except (PromotionWaits, Rejected):
            self._refused[uri] = promotion
            raise
        self._refused.pop(uri, None)
        if self._registry:
            await self._check_four_eyes(self._registry, promotion, approval)
        message = "%s is approved for %s by %s with the key %s"
        facts = promotion.slot.in_logs | promotion.version.in_logs
        log.info(message, promotion.version, uri, approval.approver, approval.key, extra=facts)

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            await asyncio.sleep(POLL_INTERVAL_SECONDS)
            self.tick()

    def tick(self) -> None:
        """Read a changed file, and try versions again that it does not refuse any more."""
        self._file.refresh()
        for uri, promotion in list(self._refused.items()):
            try:
                self._approval(promotion)
            except (PromotionWaits, Rejected):
                continue
            del self._refused[uri]
            for follower in self._followers:
                if follower.slot is promotion.slot:
                    follower.retry()

    def reload(self) -> None:
        """Read the file now."""
        self._file.reload()
        self.tick()

    def status(self, slot: Slot, public: bool) -> StatusPart:
        """Return who approved the live version of a slot, and what is wrong with its approval."""
        if public:
            return StatusPart(ApprovalFields(approval=None))
        warnings, state = self._file_warnings(), None
        if live := slot.live:
            try:
                approval, _ = self._verify(live.version, live.artifacts, slot.reference)
                state = ApprovalState(
                    approver=approval.approver, key=approval.key, approved_at=approval.approved_at
                )
            except (PromotionWaits, Rejected) as error:
                warnings.append(f"{live.version} is live, but could not go live again: {error}")
        return StatusPart(ApprovalFields(approval=state), warnings)

    def _approval(self, promotion: Promotion) -> SignedApproval:
        if self._file.is_stale:
            raise PromotionWaits("the front cannot read its file of approvers, SERVING_APPROVERS")
        version, reference = promotion.version, promotion.slot.reference
        approval, approver = self._verify(version, promotion.artifacts, reference)
        check_expiry(approval, approver, self._clock(), has_served=promotion.has_served)
        return approval

    def _verify(
        self, version: Version, artifacts: Artifacts, reference: Reference
    ) -> tuple[SignedApproval, Approver]:
        tag = version.tags.get(TAG)
        if not tag:
            uri = f"models:/{version.name}" + (f"/{version.version}" if version.version else "")
            raise PromotionWaits(f"it has no approval: run `serving approve {uri} --key FILE`")
        subject = Subject(version.name, version.version, artifacts.digest, canonical_reference(reference))
        return verify(tag, subject, self._file.content)

    def _file_warnings(self) -> list[str]:
        if self._file.is_readable:
            return []
        effect = (
            "every promotion waits" if self._file.is_stale else "its last approvers stay valid for a minute"
        )
        return [f"the front cannot read its file of approvers, SERVING_APPROVERS: {effect}"]

    async def _check_four_eyes(
        self, registry: RegistryClient, promotion: Promotion, approval: SignedApproval
    ) -> None:
        try:
            users = await registry.run(lambda client: users_of(client, promotion.version))
        except ReferenceNotFound:
            users = ()
        except RegistryUnavailable:
            if promotion.has_served:  # it was checked before, and a start must not depend on the registry
                return
            raise
        if not users:
            raise ApprovalInvalid(
                "MLflow does not show who logged it, and its approver must be another person"
            )
        if _person(approval.approver) in map(_person, users):
            raise ApprovalInvalid(
                f"{approval.approver} logged it and approved it: another person has to approve it"
            )


def _person(user: str) -> str:
    """Return a user's name without the domain: `alice` for `alice@example.org`."""
    return user.partition("@")[0].rpartition("\\")[2].casefold()
