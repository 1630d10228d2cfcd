"""A version that is asked what the live one was asked, and whose answers nobody gets: they are compared.

Nothing here is in the way of an answer: requests are noted once they are answered, in a bounded queue that
drops what does not fit; one batch at a time is asked of processes of the lowest priority; and what comparing
takes of the event loop is a small part of its time.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from serving.errors import Overloaded, ServingError
from serving.monitoring.likeness import BOUNDS, Tally
from serving.registry.herald import Herald
from serving.runtime.compatibility import breaking_changes
from serving.runtime.exchange import Exchange, Observer
from serving.runtime.loaded import Loaded, Part
from serving.runtime.predictions import Predictions
from serving.runtime.slot import Slot
from serving.runtime.tickets import Ticket

TAG = "serving.shadow"
_MOST_WAITING_ROWS = 2048
_MOST_ROWS_AT_ONCE = 256
_DEADLINE_SECONDS = 10.0
_REST = 4
"""Times what the shadow took to answer: so it takes a fifth of a core at most, and shows enough."""
_PAUSE = 20
"""Times what comparing took of the event loop, which so has a twentieth of it at most."""
_SECONDS_BETWEEN_TAGS = 60.0
_FEWEST_ROWS = 100
_LOWEST_PRIORITY = 19


@dataclass(frozen=True, slots=True)
class Pair:
    """The version that answers, and the one that is asked beside it."""

    live: Loaded
    shadow: Loaded


class Shadow(Observer, Collector):
    """Compares what a reference names with what is live for its model.

    Args:
        slot: what the reference names.
        main: what answers the model's clients.
        herald: tells in the registry, on the shadow's version, how it does.
    """

    def __init__(self, slot: Slot, main: Slot, herald: Herald) -> None:
        self.slot, self.main = slot, main
        self.tally = Tally()
        """Of the present pair of versions."""
        self._herald = herald
        self._pair: Pair | None = None
        self.reason = ""
        """Why nothing is compared, where nothing is."""
        self._waiting: deque[tuple[Loaded, Ticket]] = deque()
        self._rows_waiting = 0
        self._wanted = asyncio.Event()
        self._tag_due = 0.0
        self._lowered: set[int] = set()

    # -- on the way of a request

    def answered(self, exchange: Exchange) -> None:
        """Note a request that the live version answered, if there is room."""
        if exchange.live is not self.main.live or not exchange.parts or self.slot.live is None:
            return
        for _, ticket in exchange.parts:
            if self._rows_waiting + len(ticket.rows) > _MOST_WAITING_ROWS:
                self.tally.dropped += len(ticket.rows)
            elif ticket.stream is None:
                self._waiting.append((exchange.live, ticket))
                self._rows_waiting += len(ticket.rows)
        self._wanted.set()

    # -- beside it

    async def run(self) -> None:
        """Ask and compare until cancelled."""
        while True:
            await self._wanted.wait()
            rest = await self.tick()
            if not self._waiting:
                self._wanted.clear()
            await asyncio.sleep(rest)

    async def tick(self) -> float:
        """Ask the shadow what waits, as far as it is one batch, and compare; gives how long to rest then."""
        pair, taken = self._paired(), self._take()
        if pair is None:
            return 0.0
        group = [ticket for live, ticket in taken if live is pair.live]
        self._lower(pair.shadow)
        began = time.perf_counter()
        with pair.shadow:
            asked = [(ticket, self._submit(pair.shadow, ticket)) for ticket in group]
            for other in [other for _, parts in asked for _, other in parts or ()]:
                await asyncio.wait([other.future])
        answered = time.perf_counter()
        for ticket, parts in asked:
            self._compare(ticket, parts)
        self._tell(pair)
        return max(_REST * (answered - began), _PAUSE * (time.perf_counter() - answered))

    def _take(self) -> list[tuple[Loaded, Ticket]]:
        """What is asked next, and who answered it: one batch, or one large request."""
        group: list[tuple[Loaded, Ticket]] = []
        rows = 0
        while self._waiting and (not group or rows + len(self._waiting[0][1].rows) <= _MOST_ROWS_AT_ONCE):
            group.append(self._waiting.popleft())
            rows += len(group[-1][1].rows)
        self._rows_waiting -= rows
        return group

    def _paired(self) -> Pair | None:
        """The two versions that are compared now; None, and why, if there is nothing to compare."""
        live, shadow = self.main.live, self.slot.live
        if live is None or shadow is None or live.version.identity == shadow.version.identity:
            self._pair = None
            self.reason = "" if live is None or shadow is None else "it is what is live"
            return None
        if self._pair is None or (self._pair.live, self._pair.shadow) != (live, shadow):
            self._begin(Pair(live, shadow))
        return None if self.reason else self._pair

    def _begin(self, pair: Pair) -> None:
        self._pair, self.tally, self._tag_due = pair, Tally(), 0.0
        changes = breaking_changes(pair.live.contract, pair.shadow.contract)
        self.reason = f"it takes or answers something else: {'; '.join(changes[:3])}" if changes else ""

    def _lower(self, shadow: Loaded) -> None:
        """Give its processes the lowest priority, all of their threads, as soon as there are new ones."""
        if (pids := {*shadow.pids}) != self._lowered:
            self._lowered = pids
            for thread in [path.name for pid in pids for path in Path(f"/proc/{pid}/task").glob("*")]:
                with suppress(OSError):
                    os.setpriority(os.PRIO_PROCESS, int(thread), _LOWEST_PRIORITY)

    def _submit(self, shadow: Loaded, ticket: Ticket) -> list[Part] | None:
        """Queue what a request had asked of the live version; None where the shadow does not take it."""
        try:
            rows = shadow.intake.refitted(ticket.rows)
            params = shadow.contract.read_params(json.loads(ticket.key.params or "{}"))
            return shadow.submit(rows, params, _DEADLINE_SECONDS, raw=ticket.key.raw)
        except Overloaded:
            self.tally.dropped += len(ticket.rows)
            return None
        except ServingError:
            self.tally.failed += len(ticket.rows)
            return None

    def _compare(self, ticket: Ticket, parts: list[Part] | None) -> None:
        if parts is None:
            return
        try:
            found = [(indices, other.future.result().now()) for indices, other in parts]
        except ServingError:
            self.tally.failed += len(ticket.rows)
            return
        before = _predictions(ticket)
        if before is None:
            return
        for indices, predictions in found:
            for place, index in enumerate(indices):
                self.tally.compare(before.row(index), predictions.row(place))
        other = parts[0][1]
        self.tally.seconds.append((ticket.finished - ticket.started, other.finished - other.started))

    # -- telling

    def told(self) -> str:
        """How the pair compares, in a sentence."""
        tally, live = self.tally, self._pair and self._pair.live.version
        return (
            f"agrees with {live} in {tally.agreement or 0:.1%} of {tally.rows} rows; 95 % differ by "
            f"{tally.quantile(0.95) or 0:.3g} or less; takes {tally.latency or 0:.2g} times as long; "
            f"failed on {tally.failed}, left out {tally.dropped}"
        )

    def _tell(self, pair: Pair) -> None:
        now = time.monotonic()
        if self.tally.rows >= _FEWEST_ROWS and now >= self._tag_due:
            self._tag_due = now + _SECONDS_BETWEEN_TAGS
            told = self.told()
            self._herald.note(pair.shadow.version, TAG, lambda _: told)

    def collect(self) -> Iterator[Metric]:
        """How the pair compares, for Prometheus; what is told is of the present pair of versions."""
        labels = ("model", "version", "live")
        rows = GaugeMetricFamily(
            "serving_shadow_rows",
            "Rows of live requests by what became of them.",
            labels=(*labels, "outcome"),
        )
        apart = HistogramMetricFamily(
            "serving_shadow_difference_ratio",
            "How far the shadow's predictions are from the live ones.",
            labels=labels,
        )
        slower = GaugeMetricFamily(
            "serving_shadow_latency_ratio",
            "Median time of its calls as a ratio to the live version's.",
            labels=labels,
        )
        if pair := self._pair:
            versions = [
                each.version.version or each.version.model_id or "" for each in (pair.shadow, pair.live)
            ]
            named, tally = [self.slot.reference.name, *versions], self.tally
            counts = {"same": tally.agreeing, "different": tally.rows - tally.agreeing}
            for outcome, count in (counts | {"failed": tally.failed, "dropped": tally.dropped}).items():
                rows.add_metric([*named, outcome], count)
            upto = [*map(str, BOUNDS), "+Inf"]
            apart.add_metric(named, [*zip(upto, accumulate(tally.buckets), strict=True)], tally.total)
            slower.add_metric(named, tally.latency or 0.0)
        yield from (rows, apart, slower)


def _predictions(ticket: Ticket) -> Predictions | None:
    """What the live version answered to each row; None where it answered none, or what JSON can't say."""
    try:
        return ticket.future.result().now()
    except ServingError:
        return None
