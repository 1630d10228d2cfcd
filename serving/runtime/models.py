"""All that is served, and the choice among it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from serving.errors import UnknownModel
from serving.runtime.loaded import Loaded
from serving.runtime.slot import Slot

_SCHEME = "models:/"


class Models:
    """What is served for each reference; the first is the default."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = slots

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

    def lease(self, chosen: str | None = None) -> Loaded:
        """What is live for a model; hold it with `with`.

        `chosen` is a name, or a reference with or without `models:/`: a served one, or an alias, a stage
        or a version number of what is live at present. None is the default model.

        Raises:
            UnknownModel: nothing that is served is called so.
            NotLive: it has no live version yet.
        """
        return (self.slot(chosen) if chosen else self.default).lease()

    def slot(self, chosen: str) -> Slot:
        """What is served under a name or a reference; raises as `lease` does."""
        wanted = chosen.removeprefix(_SCHEME)
        for slot in self.slots:
            if wanted in (slot.reference.name, slot.reference.uri.removeprefix(_SCHEME)):
                return slot
        for slot in self.slots:
            if slot.live and _means(wanted, slot.live):
                return slot
        raise UnknownModel(f"No model {chosen[:100]!r} is served here.")

    def version(self, name: str, version: str) -> Loaded:
        """A version that is loaded.

        Raises:
            UnknownModel: it is not.
        """
        for loaded in self.loaded(name):
            if loaded.version.version == version:
                return loaded
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


def _means(wanted: str, live: Loaded) -> bool:
    """Whether a reference names a version, by what the registry says of it."""
    version = live.version
    named = [f"{version.name}@{alias}" for alias in version.aliases]
    return wanted in (f"{version.name}/{version.version}", f"{version.name}/{version.stage}", *named)
