"""Several fronts that serve as one: what each has live, and whether all have the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from pydantic import BaseModel, Field

from serving.models.slot import Slot


class InstanceState(BaseModel):
    """What one replica has live."""

    id: str
    node: str
    models: dict[str, str] = Field(description="the live version, by reference")
    since: datetime | None = Field(description="when the last of them was loaded")


@dataclass(frozen=True, slots=True)
class ClusterView:
    """What a look at all replicas in service came to."""

    replicas: Sequence[InstanceState] = ()
    silent: int = 0
    """How many may be in service, and told nothing in time."""


class Cluster(Protocol):
    """Knows the replicas of which this one is one."""

    async def look(self) -> ClusterView:
        """What those tell now that are in service."""
        ...

    async def measure(self) -> Mapping[str, str]:
        """What each has counted and timed, in Prometheus' text format, by its id."""
        ...


def state(replica: str, node: str, slots: Iterable[Slot]) -> InstanceState:
    """What a replica with these slots has live."""
    live = {slot.reference.uri: slot.live for slot in slots if slot.live}
    return InstanceState(
        id=replica,
        node=node,
        models={uri: each.version.version or each.version.model_id or "" for uri, each in live.items()},
        since=max((each.loaded_at for each in live.values()), default=None),
    )


def is_consistent(seen: ClusterView, required: Collection[str]) -> bool:
    """Whether all replicas have these references live, in one version each.

    Models on demand are loaded where they are asked for, which is no disagreement.
    """
    versions = [{uri: replica.models.get(uri) for uri in required} for replica in seen.replicas]
    return not seen.silent and all(each == versions[0] and None not in each.values() for each in versions)


def majority_versions(seen: ClusterView) -> dict[str, str]:
    """The version that most replicas have live, by reference."""
    uris = dict.fromkeys(uri for replica in seen.replicas for uri in replica.models)
    return {
        uri: Counter(each.models[uri] for each in seen.replicas if uri in each.models).most_common(1)[0][0]
        for uri in uris
    }


def divergence(own: Mapping[str, str], others: ClusterView) -> str | None:
    """Why a replica that has these versions must not join those in service; None if it may.

    Where they are about to change from one version to another, it may have either.
    """
    for uri, version in own.items():
        theirs = {each.models[uri] for each in others.replicas if uri in each.models}
        if theirs and version not in theirs:
            return f"{uri} is version {version} here and {' or '.join(sorted(theirs))} on the other replicas"
    return None
