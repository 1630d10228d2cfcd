"""Several references that share the requests to one model, by weight."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from serving.contract.compatibility import breaking_changes
from serving.models.loaded_model import LoadedModel
from serving.models.slot import Slot


class TrafficSplit:
    """Chooses which of a model's references answers a request.

    One that is not live, or whose contract would break clients of the first one's, is not chosen: its part
    goes to the others. The first has what nobody else has.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = slots
        total = sum(slot.reference.weight or 0.0 for slot in slots)
        self._shares = {slot: (slot.reference.weight or 0.0) / total for slot in slots}
        self._given: dict[Slot, LoadedModel | None] = {}
        self._lives: tuple[LoadedModel | None, ...] | None = None
        self._bounds: list[tuple[float, Slot]] = []

    @property
    def first(self) -> Slot:
        """The reference that the others are measured by."""
        return self.slots[0]

    def share(self, slot: Slot) -> float:
        """The part of the requests that a reference is meant to get, between 0 and 1."""
        return self._shares[slot]

    def set_weight(self, slot: Slot, share: float) -> None:
        """Give what is live for a reference that part of the requests, and take it from the first.

        What goes live there later is given nothing until this is called again.
        """
        self._given[slot], self._shares[slot] = slot.live, share
        self._shares[self.first] = max(0.0, 1.0 - sum(self._shares[other] for other in self.slots[1:]))
        self._lives = None

    def route(self, point: float) -> Slot:
        """The reference that answers, by a number from 0 to below 1; an equal one chooses the same.

        As the part of a reference grows, those stay with it who are with it.
        """
        lives = tuple(slot.live for slot in self.slots)
        if lives != self._lives:
            self._lives = lives
            self._bounds = self._laid_out()
        for bound, slot in self._bounds:
            if point >= bound:
                return slot
        return self.first

    def is_compatible(self, slot: Slot) -> bool:
        """Whether clients of the first reference can be answered by this one."""
        live, first = slot.live, self.first.live
        if live is None or first is None:
            return live is not None
        return not breaking_changes(first.contract, live.contract)

    def _laid_out(self) -> list[tuple[float, Slot]]:
        """From where on each of the others is chosen, the first of which has the end of the numbers."""
        found, bound = [], 1.0
        for slot in self.slots[1:]:
            meant = self._given.get(slot, slot.live) is slot.live
            if meant and self._shares[slot] > 0 and self.is_compatible(slot):
                bound -= self._shares[slot]
                found.append((bound, slot))
        alone = found and self.first.live is None
        return [*found[:-1], (0.0, found[-1][1])] if alone else found


def primary() -> float:
    """The number that chooses the first reference, if that is live."""
    return 0.0


def hash_bucket(model: str, caller: str) -> float:
    """A number from 0 to below 1 that is always the same for a caller of a model, and spread evenly."""
    digest = hashlib.sha256(f"{model}\0{caller}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
