"""A model version as the registry describes it, and its artifacts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from urllib.parse import quote


class Outcome(StrEnum):
    """The outcome of a promotion."""

    LIVE = "live"
    REJECTED = "rejected"
    WAITING = "waiting"
    SUPERSEDED = "superseded"
    REVERTED = "reverted"


NO_STORE_HEADERS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
"""Headers of all responses, for caches and browsers."""
TAGS_OF_FRONT = (
    "serving.state",
    "serving.reason",
    "serving.since",
    "serving.live",
    "serving.batching",
    "serving.warnings",
    "serving.refusal",
    "serving.evaluation",
    "serving.canary",
    "serving.canary.state",
    "serving.shadow",
    "serving.shadow.stats",
)


@dataclass(frozen=True, slots=True)
class Version:
    """One model version."""

    name: str
    version: str | None
    """The version number; None for a logged model outside the registry."""
    location: str
    """The download URI of its artifacts, which never changes for a version."""
    source: str
    stage: str | None = None
    aliases: tuple[str, ...] = ()
    run_id: str | None = None
    model_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return f"{self.name} version {self.version}" if self.version else f"model {self.model_id}"

    @property
    def label(self) -> str:
        """Return its number, or the id of a logged model: unique among the versions of its model."""
        return self.version or self.model_id or ""

    @property
    def user_tags(self) -> dict[str, str]:
        """Return its tags except those that fronts write."""
        return {name: value for name, value in self.tags.items() if name not in TAGS_OF_FRONT}

    @property
    def in_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """Return the headers of the responses of this version."""
        return (
            (b"x-model-name", quote(self.name).encode()),
            (b"x-model-version", quote(self.label).encode()),
            *NO_STORE_HEADERS,
        )

    @property
    def in_logs(self) -> dict[str, str | None]:
        """Return its fields for log lines."""
        return {"model": self.name, "version": self.label}

    @property
    def identity(self) -> tuple[str, str | None, str]:
        """Return a key that identifies the version, independent of its stage, aliases and tags."""
        return self.name, self.version, self.source


@dataclass(frozen=True, slots=True)
class Artifacts:
    """The files of a version on the local disk, and the digest over all of them."""

    folder: Path
    digest: str
