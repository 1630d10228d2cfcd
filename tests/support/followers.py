"""Followers on a real registry with real model processes, in the process of the test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from serving.models.slot import Slot
from serving.processes.launcher import Launcher
from serving.reference import Reference
from serving.registry.artifact_store import ArtifactStore
from serving.registry.client import RegistryClient
from serving.registry.follower import Follower
from serving.registry.gate import Gate
from serving.registry.history import History
from serving.registry.tag_writer import TagWriter
from serving.settings.settings import Settings
from serving.telemetry.metrics import Metrics
from tests.support.registry import Registry

PRODUCTION = "models:/actor/Production"


class FollowerHarness:
    """A registry, and followers of references in it."""

    def __init__(self, uri: str, launcher: Launcher, folder: Path) -> None:
        self.registry = Registry(uri)
        self._launcher, self._folder = launcher, folder
        self._followers: list[tuple[Follower, RegistryClient]] = []

    def follow(
        self,
        reference: str = PRODUCTION,
        *,
        shared: bool = False,
        slot: Slot | None = None,
        tag_writer: TagWriter | None = None,
        **settings: Any,
    ) -> Follower:
        uri = settings.pop("tracking_uri", self.registry.uri)
        configured = Settings(
            **{"tracking_uri": uri, "store_dir": self._folder / "store", "probation_seconds": 0} | settings
        )
        client, slot = (
            RegistryClient(configured),
            slot or Slot(Reference.parse(reference), configured.replay_requests),
        )
        store = ArtifactStore(configured.store_dir, self.registry.uri)
        gate = Gate(configured, client, store, self._launcher, Metrics())
        history = History(store.history(slot.reference.uri))
        tag_writer = tag_writer or TagWriter(client)
        follower = Follower(slot, client, store, gate, tag_writer, history, configured, shared=shared)
        self._followers.append((follower, client))
        return follower

    def front(self, *references: str, **settings: Any) -> list[Follower]:
        """Follow several references as one front does, with one writer of tags."""
        first = self.follow(references[0], **settings)
        more = [
            self.follow(reference, tag_writer=first._tag_writer, **settings) for reference in references[1:]
        ]
        return [first, *more]

    def promote(self, stage: str = "Production", **part: Any) -> str:
        """Register a scripted model as the next version and promote it."""
        version = self.registry.add("actor", **part)
        self.registry.promote("actor", version, stage)
        return version

    def tags(self, version: str) -> dict[str, str]:
        tags_of_version: dict[str, str] = self.registry.client.get_model_version("actor", version).tags
        return tags_of_version

    def live(self, version: str) -> dict[str, str]:
        """Return the tag `serving.live` of a version; {} if it has none."""
        found: dict[str, str] = json.loads(self.tags(version).get("serving.live", "{}"))
        return found

    async def aclose(self) -> None:
        for follower, client in self._followers:
            await follower.unload("the test is over")
            client.close()


async def settle(follower: Follower) -> None:
    """Poll once, wait for the start that follows, and write its tags."""
    await follower.tick()
    await follower.settled()
    await follower.tick()


def live(follower: Follower) -> str | None:
    return follower.slot.live.version.version if follower.slot.live else None


async def predict(follower: Follower, x: float = 1.0, act: str | None = None) -> Any:
    with follower.slot.lease() as leased:
        ((_, ticket),) = leased.calls.submit([{"x": x, "act": act}], {}, 30)
        return json.loads((await ticket.future).materialize().items_json())["prediction"]
