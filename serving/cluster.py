"""The view of several fronts that serve as one: the versions that each has live, and whether they agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from pydantic import BaseModel, Field

from serving.models.slot import Slot


class InstanceState(BaseModel):
    """The live versions of one front."""

    id: str
    node: str
    models: dict[str, str] = Field(description="the live version, by reference")
    since: datetime | None = Field(description="when the last of them was loaded")


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The states of all fronts in service."""

    instances: Sequence[InstanceState] = ()
    silent: int = 0
    """The number of fronts that may be in service, but have not responded in time."""


class Cluster(Protocol):
    """Reaches the fronts of the cluster that this front belongs to."""

    async def view(self) -> ClusterView:
        """Return the states of the fronts in service."""
        ...

    async def collect_metrics(self) -> Mapping[str, str]:
        """Return the metrics of each front in Prometheus' text format, by the front's id."""
        ...


def instance_state(identity: str, node: str, slots: Iterable[Slot]) -> InstanceState:
    """Return the state of a front with these slots."""
    live = {slot.reference.uri: slot.live for slot in slots if slot.live}
    return InstanceState(
        id=identity,
        node=node,
        models={uri: model.version.version or model.version.model_id or "" for uri, model in live.items()},
        since=max((model.loaded_at for model in live.values()), default=None),
    )


def is_consistent(view: ClusterView, required: Collection[str]) -> bool:
    """Return whether all fronts have these references live, with the same version.

    Models on demand are not required: each front loads them on their first request there.
    """
    versions = [{uri: instance.models.get(uri) for uri in required} for instance in view.instances]
    return not view.silent and all(
        models == versions[0] and None not in models.values() for models in versions
    )


def majority_versions(view: ClusterView) -> dict[str, str]:
    """Return the version that most fronts have live, by reference."""
    uris = dict.fromkeys(uri for instance in view.instances for uri in instance.models)
    return {
        uri: Counter(
            instance.models[uri] for instance in view.instances if uri in instance.models
        ).most_common(1)[0][0]
        for uri in uris
    }


def divergence(own: Mapping[str, str], others: ClusterView) -> str | None:
    """Return why a front with these versions must not join those in service; None if it may.

    While the others change from one version to another, it may have either.
    """
    for uri, version in own.items():
        theirs = {instance.models[uri] for instance in others.instances if uri in instance.models}
        if theirs and version not in theirs:
            return f"{uri} is version {version} here and {' or '.join(sorted(theirs))} on the other replicas"
    return None
