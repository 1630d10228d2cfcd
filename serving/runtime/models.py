"""All that is served, and the choice among it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from random import random

from serving.errors import UnknownModel
from serving.runtime.loaded import Loaded
from serving.runtime.slot import Slot, SlotOnDemand
from serving.runtime.split import Split

_SCHEME = "models:/"


class Models:
    """What is served for each reference; the first is the default.

    References with weights share the requests to their model: where no reference is named but the model,
    `point` (from 0 to below 1) chooses one.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = slots
        weighted = [slot for slot in slots if slot.reference.weight is not None]
        self.splits = {
            name: Split([slot for slot in weighted if slot.reference.name == name])
            for name in {slot.reference.name for slot in weighted}
        }
        """Those that are shared, by the model's name."""

    @property
    def default(self) -> Slot:
        """The one that is meant where none is named."""
        return self.slots[0]

    def named(self) -> dict[str, Slot]:
        """The slot of each name: of several references to one model the first is the model's."""
        found: dict[str, Slot] = {}
        for slot in self.slots:
            found.setdefault(slot.reference.name, slot)
        return found

    def lease(self, chosen: str | None = None, point: Callable[[], float] = random) -> Loaded:
        """What is live for a model; hold it with `with`.

        `chosen` is a name, or a reference with or without `models:/`: a served one, or else an alias or a
        stage of what is live at present, or the version number of what is loaded. None is the default model.

        Raises:
            UnknownModel: nothing that is served is called so.
            NotLive: it has no live version yet, or is asleep, or may be a version that is.
        """
        if split := self.splits.get(chosen or self.default.reference.name):
            return split.choose(point()).lease()
        if not chosen:
            return self.default.lease()
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
        self._rouse(re.split("[/@]", wanted)[0])
        raise UnknownModel(f"No model {chosen[:100]!r} is served here.")

    def agrees(self, chosen: str, leased: Loaded) -> bool:
        """Whether a choice, as `lease` takes it, means this version; the model's name means any of them."""
        wanted = chosen.removeprefix(_SCHEME)
        if wanted in (leased.version.name, _numbered(leased)):
            return True
        return any(
            wanted in (*_called(slot), *_carried(leased)) for slot in self.slots if slot.live is leased
        )

    def version(self, name: str, version: str) -> Loaded:
        """A version that is loaded.

        Raises:
            UnknownModel: it is not.
            Asleep: it may be, once the model is awake.
        """
        for loaded in self.loaded(name):
            if loaded.version.version == version:
                return loaded
        self._rouse(name)
        raise UnknownModel(f"Version {version[:50]} of model {name} is not loaded.")

    def loaded(self, name: str) -> Iterator[Loaded]:
        """The versions of a model that are loaded, first the live one.

        Raises:
            UnknownModel: no such model is served.
        """
        slots = [slot for slot in self.slots if slot.reference.name == name]
        if not slots:
            raise UnknownModel(f"No model {name[:100]!r} is served here.")
        for slot in slots:
            yield from (loaded for loaded in (slot.live, slot.warm) if loaded)

    def _rouse(self, name: str) -> None:
        """Which versions of a model on demand there are, is known once it is awake."""
        for slot in self.slots:
            if slot.reference.name == name and isinstance(slot, SlotOnDemand):
                slot.lease()


def _called(slot: Slot) -> tuple[str, str]:
    """What a slot is called in `SERVING_MODELS`: its model's name, and its reference."""
    return slot.reference.name, slot.reference.uri.removeprefix(_SCHEME)


def _carried(live: Loaded) -> list[str]:
    """The references that name a version, by what the registry says of it.

    Only for what is live: what was so before is remembered with a stage and aliases that it has lost since.
    """
    version = live.version
    named = [f"{version.name}/{version.stage}"] if version.stage else []
    return [_numbered(live), *named, *(f"{version.name}@{alias}" for alias in version.aliases)]


def _numbered(loaded: Loaded) -> str:
    return f"{loaded.version.name}/{loaded.version.version}"
