"""A model version, as the registry tells of it, and its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from urllib.parse import quote


class Outcome(StrEnum):
    """What became of a promotion."""

    LIVE = "live"
    REJECTED = "rejected"
    SUPERSEDED = "superseded"
    REVERTED = "reverted"


NO_STORE_HEADERS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
"""What every answer tells caches and browsers."""
TAGS_OF_FRONT = (
    "serving.state",
    "serving.reason",
    "serving.since",
    "serving.live",
    "serving.batching",
    "serving.warnings",
    "serving.canary",
    "serving.canary.state",
    "serving.shadow",
    "serving.shadow.stats",
)


@dataclass(frozen=True, slots=True)
class Version:
    """The facts on one model version; `version` is None for a logged model outside the registry.

    `location` is where its artifacts can be downloaded from; it never changes for a version.
    """

    name: str
    version: str | None
    location: str
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
        """What tells it apart among those of its model: its number, or the logged model's id."""
        return self.version or self.model_id or ""

    @property
    def user_tags(self) -> dict[str, str]:
        """Its tags but those that the serving front writes itself."""
        return {name: value for name, value in self.tags.items() if name not in TAGS_OF_FRONT}

    @property
    def in_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """As answers' headers tell it."""
        return (
            (b"x-model-name", quote(self.name).encode()),
            (b"x-model-version", quote(self.label).encode()),
            *NO_STORE_HEADERS,
        )

    @property
    def in_logs(self) -> dict[str, str | None]:
        """As lines of the log tell it."""
        return {"model": self.name, "version": self.label}

    @property
    def identity(self) -> tuple[str, str | None, str]:
        """What tells two versions apart, whatever stage, aliases and tags they have at present."""
        return self.name, self.version, self.source


@dataclass(frozen=True, slots=True)
class Artifacts:
    """A version's files on the local disk, and the digest of them all."""

    folder: Path
    digest: str
