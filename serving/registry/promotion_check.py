"""The interface of conditions that features add to the gate, for example an approval."""

from __future__ import annotations

from dataclasses import dataclass

from serving.models.loaded_model import LoadedModel
from serving.models.slot import Slot
from serving.version import Artifacts, Version


@dataclass(frozen=True, slots=True)
class Promotion:
    """A version that is about to go live.

    Args:
        slot: holds what is live under the reference, and receives the version.
        version: the version, with its tags as they are in the registry now.
        artifacts: its artifacts on the disk, with their digest.
        has_served: whether it is among the versions that were live last under this reference on this front.
    """

    slot: Slot
    version: Version
    artifacts: Artifacts
    has_served: bool


class PromotionCheck:
    """A condition that a version must meet before it goes live; every method is optional.

    Each method runs at every attempt to start the version, also for a return to an earlier version and after
    a restart of the service. The exceptions state the reason for the person who promoted the version.
    """

    async def before_load(self, promotion: Promotion) -> None:
        """Check the version before any of its code runs.

        Raises:
            Rejected: it must not go live.
            PromotionWaits: it must not go live yet.
        """

    async def before_live(self, promotion: Promotion, loaded: LoadedModel) -> None:
        """Check the version after it was loaded and verified.

        Raises:
            Rejected: it must not go live.
            PromotionWaits: it must not go live yet.
        """
