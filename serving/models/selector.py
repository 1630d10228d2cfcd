"""All that is served, and the choice among it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from random import random

from serving.errors import UnknownModel, not_served
from serving.models.loaded_model import LoadedModel
from serving.models.slot import Slot, SlotOnDemand
from serving.models.traffic_split import TrafficSplit

_SCHEME = "models:/"
_MAX_VIEWS = 1000


class ModelSelector:
    """What is served for each reference; the first is the default.

    References with weights share the requests to their model: where no reference is named but the model,
    `point` (from 0 to below 1) chooses one.
    """

    splits: Mapping[str, TrafficSplit]
    """Those that are shared, by the model's name."""

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
        """Return a view of these models alone, in which no other model exists; no names stand for all."""
        if not names:
            return self
        if names not in self._views:
            if len(self._views) >= _MAX_VIEWS:
                self._views.clear()
            self._views[names] = self._limited(names)
        return self._views[names]

    def _limited(self, names: tuple[str, ...]) -> ModelSelector:
        view = copy(self)
        view.slots = [slot for slot in self.slots if slot.reference.name in names]
        view.splits = {name: split for name, split in self.splits.items() if name in names}
        if self._default not in view.slots:
            view._default = None
        view._views = {}
        return view

    @property
    def default(self) -> Slot | None:
        """The one that is meant where none is named; None in a view without it."""
        return self._default

    def named(self) -> dict[str, Slot]:
        """The slot of each name: of several references to one model the first is the model's."""
        found: dict[str, Slot] = {}
        for slot in self.slots:
            found.setdefault(slot.reference.name, slot)
        return found

    def lease(self, chosen: str | None = None, point: Callable[[], float] = random) -> LoadedModel:
        """What is live for a model; hold it with `with`.

        `chosen` is a name, or a reference with or without `models:/`: a served one, or else an alias or a
        stage of what is live at present, or the version number of what is loaded. None is the default model.

        Raises:
            UnknownModel: nothing that is served is called so.
            NotLive: it has no live version yet, or is asleep, or may be a version that is.
        """
        if not chosen:
            if self._default is None:
                raise UnknownModel("Name a model: the default one is not served here.")
            if self._default.reference.name not in self.splits:
                return self._default.lease()
            chosen = self._default.reference.name
        if split := self.splits.get(chosen):
            return split.route(point()).lease()
        wanted = chosen.removeprefix(_SCHEME)
        for slot in self.slots:
            if wanted in _called(slot):
                return slot.lease()
        for slot in self.slots:
            if slot.live and wanted in _carried(slot.live):
                return slot.live
        for slot in self.slots:
            if slot.warm and wanted == _numbered(slot.warm):
                return slot.warm
        self._wake(re.split("[/@]", wanted)[0])
        raise not_served(chosen)

    def matches(self, chosen: str, leased: LoadedModel) -> bool:
        """Whether a choice, as `lease` takes it, means this version; the model's name means any of them."""
        wanted = chosen.removeprefix(_SCHEME)
        if wanted in (leased.version.name, _numbered(leased)):
            return True
        return any(
            wanted in (*_called(slot), *_carried(leased)) for slot in self.slots if slot.live is leased
        )

    def version(self, name: str, version: str) -> LoadedModel:
        """A version that is loaded.

        Raises:
            UnknownModel: it is not.
            Asleep: it may be, once the model is awake.
        """
        for loaded in self.loaded(name):
            if loaded.version.version == version:
                return loaded
        self._wake(name)
        raise UnknownModel(f"Version {version[:50]} of model {name} is not loaded.")

    def loaded(self, name: str) -> Iterator[LoadedModel]:
        """The versions of a model that are loaded, first the live one.

        Raises:
            UnknownModel: no such model is served.
        """
        slots = [slot for slot in self.slots if slot.reference.name == name]
        if not slots:
            raise not_served(name)
        for slot in slots:
            yield from (loaded for loaded in (slot.live, slot.warm) if loaded)

    def _wake(self, name: str) -> None:
        """Which versions of a model on demand there are, is known once it is awake."""
        for slot in self.slots:
            if slot.reference.name == name and isinstance(slot, SlotOnDemand):
                slot.lease()


def _called(slot: Slot) -> tuple[str, str]:
    """What a slot is called in `SERVING_MODELS`: its model's name, and its reference."""
    return slot.reference.name, slot.reference.uri.removeprefix(_SCHEME)


def _carried(live: LoadedModel) -> list[str]:
    """The references that name a version, by what the registry says of it.

    Only for what is live: what was so before is remembered with a stage and aliases that it has lost since.
    """
    version = live.version
    named = [f"{version.name}/{version.stage}"] if version.stage else []
    return [_numbered(live), *named, *(f"{version.name}@{alias}" for alias in version.aliases)]


def _numbered(loaded: LoadedModel) -> str:
    return f"{loaded.version.name}/{loaded.version.version}"
