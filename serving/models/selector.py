"""Select the loaded version that a request addresses."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from copy import copy
from random import random

from serving.errors import UnknownModel, not_served
from serving.models.loaded_model import LoadedModel
from serving.models.on_demand_slot import SlotOnDemand
from serving.models.slot import Slot
from serving.models.traffic_split import TrafficSplit

_SCHEME = "models:/"
_MAX_VIEWS = 1000


class ModelSelector:
    """Finds the version for a name, a reference or a version number. The first slot is the default.

    References with weights share the requests that name only their model.
    """

    splits: Mapping[str, TrafficSplit]
    """The traffic splits, by name of the model."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = slots
        self._default: Slot | None = slots[0]
        self._views: dict[tuple[str, ...], ModelSelector] = {}
        weighted = [slot for slot in slots if slot.reference.weight is not None]
        self.splits = {
            name: TrafficSplit([slot for slot in weighted if slot.reference.name == name])
            for name in {slot.reference.name for slot in weighted}
        }

    def only(self, names: tuple[str, ...]) -> ModelSelector:
        """Return a view that contains only these models; without names, all models."""
        if not names:
            return self
        if names not in self._views:
            if len(self._views) >= _MAX_VIEWS:
                self._views.clear()
            self._views[names] = self._view(names)
        return self._views[names]

    def _view(self, names: tuple[str, ...]) -> ModelSelector:
        view = copy(self)
        view.slots = [slot for slot in self.slots if slot.reference.name in names]
        view.splits = {name: split for name, split in self.splits.items() if name in names}
        if self._default not in view.slots:
            view._default = None
        view._views = {}
        return view

    @property
    def default(self) -> Slot | None:
        """The slot for requests that name no model; None in a view that does not contain it."""
        return self._default

    def named(self) -> dict[str, Slot]:
        """Return the first slot of each model, by name of the model."""
        slots: dict[str, Slot] = {}
        for slot in self.slots:
            slots.setdefault(slot.reference.name, slot)
        return slots

    def lease(self, target: str | None = None, point: Callable[[], float] = random) -> LoadedModel:
        """Return the version that a request addresses; hold it with `with`.

        Args:
            target: the name of a model, or a reference with or without `models:/`: a configured reference,
                an alias or stage of a live version, or the number of a loaded version. None: the default.
            point: returns a point in [0, 1), which selects among references that share the requests.

        Raises:
            UnknownModel: the target matches no served model.
            NotLive: the target has no live version.
            NotLoaded: the target is a model on demand, or may be one of its versions.
        """
        if not target:
            if self._default is None:
                raise UnknownModel("Name a model: the default one is not served here.")
            if self._default.reference.name not in self.splits:
                return self._default.lease()
            target = self._default.reference.name
        if split := self.splits.get(target):
            return split.route(point()).lease()
        name = target.removeprefix(_SCHEME)
        for slot in self.slots:
            if name in _configured_names(slot):
                return slot.lease()
        for slot in self.slots:
            if slot.live and name in _registry_names(slot.live):
                return slot.live
        for slot in self.slots:
            if slot.warm and name == _numbered(slot.warm):
                return slot.warm
        self._lease_on_demand(re.split("[/@]", name)[0])
        raise not_served(target)

    def matches(self, target: str, leased: LoadedModel) -> bool:
        """Return whether a target (see `lease`) can address this version; a model's name matches any."""
        name = target.removeprefix(_SCHEME)
        if name in (leased.version.name, _numbered(leased)):
            return True
        return any(
            name in (*_configured_names(slot), *_registry_names(leased))
            for slot in self.slots
            if slot.live is leased
        )

    def version(self, name: str, version: str) -> LoadedModel:
        """Return a loaded version by its number.

        Raises:
            UnknownModel: the version is not loaded.
            NotLoaded: the model is on demand; the version may be the one that loads.
        """
        for loaded in self.loaded(name):
            if loaded.version.version == version:
                return loaded
        self._lease_on_demand(name)
        raise UnknownModel(f"Version {version[:50]} of model {name} is not loaded.")

    def labelled(self, name: str, label: str) -> LoadedModel:
        """Return the live version of a model that has an alias, or else a stage.

        Raises:
            UnknownModel: no live version has it.
            NotLive: the reference with this alias or stage has no live version.
            NotLoaded: the model is on demand; the version that it loads may have it.
        """
        # `lease` reads a number in place of a stage as a version.
        for target in () if label.isdecimal() else (f"{name}@{label}", f"{name}/{label}"):
            with suppress(UnknownModel):
                return self.lease(target)
        raise UnknownModel(f"No live version of {name[:100]!r} has the alias or stage {label[:50]!r}.")

    def loaded(self, name: str) -> Iterator[LoadedModel]:
        """Yield the loaded versions of a model; per slot, the live one comes first.

        Raises:
            UnknownModel: no such model is served.
        """
        slots = [slot for slot in self.slots if slot.reference.name == name]
        if not slots:
            raise not_served(name)
        for slot in slots:
            yield from (loaded for loaded in (slot.live, slot.warm) if loaded)

    def check_required(self) -> None:
        """Check that every required model is live.

        Raises:
            NotLive: a required model has no live version, or no running process.
        """
        for slot in self.slots:
            if slot.required:
                slot.check_serving()

    def ensure_loaded(self, reference: str, seconds: float) -> AbstractAsyncContextManager[None]:
        """Return a block before which the model on demand is loaded, and within which it is not evicted.

        Args:
            reference: the reference that a `NotLoaded` error names.
            seconds: the longest time to wait.

        Raises:
            Overloaded: too many requests wait for the model.
            NotLive: loading failed or took too long.
        """
        for slot in self.slots:
            if slot.reference.uri == reference and isinstance(slot, SlotOnDemand):
                return slot.ensure_loaded(seconds)
        raise not_served(reference)

    def _lease_on_demand(self, name: str) -> None:
        """Raise `NotLoaded` for a model on demand: its versions are known only once it is loaded."""
        for slot in self.slots:
            if slot.reference.name == name and isinstance(slot, SlotOnDemand):
                slot.lease()


def _configured_names(slot: Slot) -> tuple[str, str]:
    """Return the names of a slot in `SERVING_MODELS`: the model and the reference."""
    return slot.reference.name, slot.reference.uri.removeprefix(_SCHEME)


def _registry_names(live: LoadedModel) -> list[str]:
    """Return the references that resolve to a live version in the registry.

    The version must be live: a warm one has probably lost its stage and aliases since they were read.
    """
    version = live.version
    stages = [f"{version.name}/{version.stage}"] if version.stage else []
    return [_numbered(live), *stages, *(f"{version.name}@{alias}" for alias in version.aliases)]


def _numbered(loaded: LoadedModel) -> str:
    return f"{loaded.version.name}/{loaded.version.version}"
