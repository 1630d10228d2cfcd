"""Distribute the requests to one model over several references, by weight."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from serving.contract.compatibility import breaking_changes
from serving.models.loaded_model import LoadedModel
from serving.models.slot import Slot


class TrafficSplit:
    """Chooses the reference of a model that serves a request.

    A reference is skipped while it is not live, or while its contract would break clients of the primary. The
    primary (the first reference) receives all requests that no other reference receives.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = slots
        total = sum(slot.reference.weight or 0.0 for slot in slots)
        self._shares = {slot: (slot.reference.weight or 0.0) / total for slot in slots}
        self._weighted: dict[Slot, LoadedModel | None] = {}
        """The live version to which a weight applies, by slot."""
        self._live_versions: tuple[LoadedModel | None, ...] | None = None
        self._bounds: list[tuple[float, Slot]] = []

    @property
    def primary(self) -> Slot:
        """The reference with which the others are compared."""
        return self.slots[0]

    def share(self, slot: Slot) -> float:
        """Return the intended share of requests of a reference, from 0 to 1."""
        return self._shares[slot]

    def set_weight(self, slot: Slot, share: float) -> None:
        """Route a share of the requests to the live version of a reference, at the expense of the primary.

        A version that goes live there later receives no requests until this method is called again.
        """
        self._weighted[slot], self._shares[slot] = slot.live, share
        self._shares[self.primary] = max(0.0, 1.0 - sum(self._shares[other] for other in self.slots[1:]))
        self._live_versions = None

    def route(self, point: float) -> Slot:
        """Return the reference for a point in [0, 1); the same point always yields the same reference.

        When the share of a reference grows, the points that it already had stay with it.
        """
        live_versions = tuple(slot.live for slot in self.slots)
        if live_versions != self._live_versions:
            self._live_versions = live_versions
            self._bounds = self._lower_bounds()
        for bound, slot in self._bounds:
            if point >= bound:
                return slot
        return self.primary

    def is_compatible(self, slot: Slot) -> bool:
        """Return whether this reference can serve clients of the primary."""
        live, primary = slot.live, self.primary.live
        if live is None or primary is None:
            return live is not None
        return not breaking_changes(primary.contract, live.contract)

    def _lower_bounds(self) -> list[tuple[float, Slot]]:
        """Return the lowest point of each secondary reference, in descending order from 1."""
        bounds, bound = [], 1.0
        for slot in self.slots[1:]:
            is_weighted = self._weighted.get(slot, slot.live) is slot.live
            if is_weighted and self._shares[slot] > 0 and self.is_compatible(slot):
                bound -= self._shares[slot]
                bounds.append((bound, slot))
        # Without a live primary, its share goes to the last secondary reference.
        without_primary = bounds and self.primary.live is None
        return [*bounds[:-1], (0.0, bounds[-1][1])] if without_primary else bounds


def primary() -> float:
    """Return the point that selects the primary, if it is live."""
    return 0.0


def hash_bucket(model: str, caller: str) -> float:
    """Return a point in [0, 1) that is constant for a caller of a model and uniform over all callers."""
    digest = hashlib.sha256(f"{model}\0{caller}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
