"""The live version of a model reference: requests lease it, promotions swap it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from serving.contract.contract import Contract
from serving.errors import NotLive
from serving.models.loaded_model import LoadedModel
from serving.models.replay import RequestRecorder
from serving.reference import Reference
from serving.version import Version

RECOVERING = "none of its processes is up; they are being restarted"


@dataclass(frozen=True, slots=True)
class LastLive:
    """The version that went live last, and its contract, which clients rely on."""

    version: Version
    contract: Contract


class Slot:
    """Holds the live version of a reference. A swap changes only what later requests lease.

    The previous version stays `warm` while the new one is on probation. While a `required` slot has no live
    version, the service is not ready.
    """

    def __init__(self, reference: Reference, recorded: int = 0, *, required: bool = True) -> None:
        self.reference, self.required = reference, required
        self.live: LoadedModel | None = None
        self.warm: LoadedModel | None = None
        self.last_live: LastLive | None = None
        """What went live last, whether or not it is still loaded."""
        self.recorder = RequestRecorder(recorded)
        self.ready = asyncio.Event()
        """Set when the first version goes live."""
        self.is_resolved = True
        """False while the reference names no version in the registry. The live version stays live."""
        self.reason = "it is being resolved"
        """The reason why no version is live."""
        self.warnings: tuple[str, ...] = ()
        """Warnings about the reference, for `/ready`."""
        self.tag_warning: str | None = None
        """The warning that the registry does not accept tags of the model."""
        self._probation_ends = 0.0

    def __repr__(self) -> str:
        return f"<Slot {self.reference} live={self.live} warm={self.warm}>"

    @property
    def state(self) -> str:
        """The state, for `/ready`."""
        return "live" if self.is_serving else "recovering" if self.live else "not live"

    @property
    def all_warnings(self) -> list[str]:
        """Warnings about the reference, its tags and its live version, for people."""
        of_tags = [self.tag_warning] if self.tag_warning else []
        return [*self.warnings, *of_tags, *(self.live.warnings if self.live else ())]

    @property
    def is_serving(self) -> bool:
        """Whether a version is live and has a running process."""
        return self.live is not None and self.live.has_process

    def lease(self) -> LoadedModel:
        """Return the live version; hold it with `with` during the request.

        Raises:
            NotLive: no version is live.
        """
        if self.live is None:
            raise NotLive(f"{self.reference} is not live: {self.reason}.", f"{self.reference} is not live.")
        return self.live

    def check_serving(self) -> LoadedModel:
        """Return the live version, for probes.

        Raises:
            NotLive: no version is live, or none of its processes is running.
        """
        live = self.lease()
        if not live.has_process:
            raise NotLive(f"{self.reference} is not live: {RECOVERING}.")
        return live

    @property
    def in_logs(self) -> dict[str, str | None]:
        """Fields for log messages about this slot."""
        version = self.live.version.in_logs if self.live else {"model": self.reference.name}
        return {"reference": self.reference.uri, **version}

    def swap(self, new: LoadedModel, probation_seconds: float) -> list[LoadedModel]:
        """Make `new` live and return the versions to drain."""
        old, warm = self.live, self.warm
        self.live, self.last_live = new, LastLive(new.version, new.contract)
        self.recorder = new.recorder
        self.warm = old if probation_seconds else None
        self._probation_ends = time.monotonic() + probation_seconds
        self.ready.set()
        retired = [warm] if warm and warm is not new else []
        return retired + ([old] if old and not probation_seconds else [])

    def release_warm(self) -> LoadedModel | None:
        """Give up the version that was live before; return it, to be drained."""
        warm, self.warm = self.warm, None
        return warm

    def set_resolved(self, is_resolved: bool) -> None:
        """Record whether the reference names a version at present."""
        self.is_resolved = is_resolved

    def set_reason(self, reason: str) -> None:
        """Record why nothing is live, or why the promoted version is not."""
        self.reason = reason

    def set_warnings(self, *warnings: str) -> None:
        """Replace the warnings about the live version."""
        self.warnings = warnings

    def set_tag_warning(self, warning: str | None) -> None:
        """Record why tags of the model cannot be written; None if they can."""
        self.tag_warning = warning

    def probation_is_over(self) -> bool:
        """Return whether the probation of the live version has ended."""
        return time.monotonic() >= self._probation_ends

    def clear(self, reason: str) -> list[LoadedModel]:
        """Make no version live and return the versions to drain."""
        retired = [loaded for loaded in (self.live, self.warm) if loaded]
        self.live = self.warm = None
        self.reason, self.warnings = reason, ()
        return retired
