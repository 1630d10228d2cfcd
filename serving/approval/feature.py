"""Registers the approval of versions with the service."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from serving.approval import approvers
from serving.approval.approval_check import ApprovalCheck, ApprovalFields
from serving.errors import ApproversFileError
from serving.feature_interface import Core, Feature, Task
from serving.http.readiness import StatusSource
from serving.registry.client import RegistryClient
from serving.registry.follower import Follower
from serving.settings.groups import PromotionSettings
from serving.watched_file import WatchedFile

log = logging.getLogger("serving.approval")
_STALE_SECONDS = 60.0


def create(core: Core) -> list[Feature]:
    """Return the feature; nothing without `SERVING_APPROVERS`.

    Raises:
        ApproversFileError: the file cannot be read, or the registry has no tags for approvals.
    """
    if core.settings.approvers is None:
        return []
    check = approval_check(core.settings, core.registry, core.followers)
    return [
        Feature(
            checks=[check],
            tasks=[Task("approval", check.run)],
            status=StatusSource(ApprovalFields, check.status),
            reload=check.reload,
        )
    ]


def approval_check(
    settings: PromotionSettings, registry: RegistryClient, followers: Sequence[Follower]
) -> ApprovalCheck:
    """Return the check of approvals with the file in the settings.

    Raises:
        ApproversFileError: the file cannot be read, or the registry has no tags for approvals.
    """
    assert settings.approvers is not None
    if not registry.has_tags:
        raise ApproversFileError("this registry has no tags, which contain the approvals")
    file = WatchedFile(
        settings.approvers,
        approvers.read,
        ("file of approvers", "approvers"),
        log,
        stale_seconds=_STALE_SECONDS,
    )
    return ApprovalCheck(file, registry if settings.four_eyes else None, followers)
