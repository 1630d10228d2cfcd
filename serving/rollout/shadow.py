"""A version that is asked what the live one was asked, and whose answers nobody gets: they are compared.

Nothing here is in the way of an answer: requests are noted once they are answered, in a bounded backlog that
leaves out what does not fit; one batch at a time is asked of processes of the lowest priority; and what
comparing takes of the event loop is a small part of its time, and little at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from serving.batching.pending import Output, PendingRequest
from serving.contract.compatibility import breaking_changes
from serving.errors import ModelFailed, Overloaded, ServingError
from serving.hooks import InferenceEvent, RequestHook
from serving.models.loaded_model import LoadedModel
from serving.models.model_calls import Part
from serving.models.slot import Slot
from serving.registry.tag_writer import TagWriter
from serving.rollout.comparison import BOUNDS, ComparisonStats, prefer_larger_sample
from serving.rollout.shadow_queue import ShadowQueue

TAG = "serving.shadow"
_DEADLINE_SECONDS = 10.0
_REST = 4
"""Times what the shadow took to answer: so it takes a fifth of a core at most, and shows enough."""
_PAUSE = 20
"""Times what comparing took of the event loop, which so has a twentieth of it at most."""
_ROWS_IN_A_TURN = 128
_ROWS_OF_A_REQUEST = 16
"""As many rows are compared while a request is queued."""
_SECONDS_BETWEEN_TAGS = 60.0
_MIN_ROWS = 100
_LOWEST_PRIORITY = 19


@dataclass(slots=True, eq=False)
class ShadowComparison:
    """The version that answers, the one that is asked beside it, and how they compare."""

    live: LoadedModel
    shadow: LoadedModel
    reason: str
    """Why they are not compared; empty if they are."""
    tally: ComparisonStats = field(default_factory=ComparisonStats)
    backlog: ShadowQueue = field(default_factory=ShadowQueue)
    tag_due: float = 0.0


MirroredRequest = tuple[PendingRequest, Sequence[Part]]
"""A part of a request, and what the shadow was asked for it."""


class Shadow(RequestHook, Collector):
    """Compares what a reference names with what is live for its model.

    Args:
        slot: what the reference names.
        main: what answers the model's clients.
        herald: tells in the registry, on the shadow's version, how it does.
    """

    def __init__(self, slot: Slot, main: Slot, herald: TagWriter) -> None:
        self.slot, self.main = slot, main
        self._herald = herald
        self._pair: ShadowComparison | None = None
        self._wanted = asyncio.Event()
        self._lowered: set[int] = set()

    @property
    def pair(self) -> ShadowComparison | None:
        """The two versions that are compared now; None while one of them is not there.

        With another version on either side all begins anew: what waits was answered by the one before.
        """
        live, shadow, pair = self.main.live, self.slot.live, self._pair
        if live is None or shadow is None:
            self._pair = None
        elif pair is None or pair.live is not live or pair.shadow is not shadow:
            self._pair = ShadowComparison(live, shadow, incompatibility(live, shadow))
        return self._pair

    # -- on the way of a request

    def on_response(self, exchange: InferenceEvent) -> None:
        """Note a request that the live version answered, if there is room."""
        if exchange.live is not self.main.live or not exchange.parts or self.slot.live is None:
            return
        pair = self.pair
        if pair and not pair.reason and exchange.parts[0][1].stream is None:
            pair.tally.dropped += pair.backlog.add(exchange)
            self._wanted.set()

    # -- beside it

    async def run(self) -> None:
        """Ask and compare until cancelled."""
        while True:
            await self._wanted.wait()
            rest = await self.tick()
            if not (self._pair and self._pair.backlog):
                self._wanted.clear()
            await asyncio.sleep(rest)

    async def tick(self) -> float:
        """Ask the shadow what waits, as far as it is one batch, and compare; gives how long to rest then.

        Whatever goes live meanwhile, all of it counts for the pair that there was.
        """
        pair = self.pair
        if pair is None or not (taken := pair.backlog.take()):
            return 0.0
        began = time.perf_counter()
        with pair.shadow:
            self._renice(pair.shadow)
            asked: list[MirroredRequest] = []
            await run_cooperatively(_submit_all(pair, taken, asked))
            for other in [other for _, parts in asked for _, other in parts]:
                await asyncio.wait([other.future])
            self._renice(pair.shadow)
        answered = time.perf_counter()
        held = await run_cooperatively(
            rows for ticket, parts in asked for rows in _compare_all(pair.tally, ticket, parts)
        )
        self._tell(pair)
        return max(_REST * (answered - began), _PAUSE * held)

    def _renice(self, shadow: LoadedModel) -> None:
        """Give its processes the lowest priority, all of their threads, as soon as there are new ones."""
        if (pids := {*shadow.pids}) != self._lowered:
            self._lowered = pids
            for thread in [path.name for pid in pids for path in Path(f"/proc/{pid}/task").glob("*")]:
                with suppress(OSError):
                    os.setpriority(os.PRIO_PROCESS, int(thread), _LOWEST_PRIORITY)

    # -- telling

    def _tell(self, pair: ShadowComparison) -> None:
        now, tally = time.monotonic(), pair.tally
        if tally.rows + tally.failed >= _MIN_ROWS and now >= pair.tag_due:
            pair.tag_due = now + _SECONDS_BETWEEN_TAGS
            told = tally.told(str(pair.live.version))
            self._herald.set_tag(pair.shadow.version, TAG, partial(prefer_larger_sample, told))

    def collect(self) -> Iterator[Metric]:
        """How the pair compares, for Prometheus; what is told is of the present pair of versions."""
        labels = ("model", "version", "live")
        rows = GaugeMetricFamily(
            "serving_shadow_rows",
            "Rows of mirrored live requests by outcome: same, different, failed or dropped.",
            labels=(*labels, "outcome"),
        )
        apart = HistogramMetricFamily(
            "serving_shadow_difference_ratio",
            "Difference between the predictions of the shadow and of the live version.",
            labels=labels,
        )
        slower = GaugeMetricFamily(
            "serving_shadow_latency_ratio",
            "Median latency of the shadow's calls divided by the live version's.",
            labels=labels,
        )
        if (pair := self.pair) and not pair.reason:
            named = [self.slot.reference.name, pair.shadow.version.label, pair.live.version.label]
            tally = pair.tally
            counts = {"same": tally.agreeing, "different": tally.rows - tally.agreeing}
            for outcome, count in (counts | {"failed": tally.failed, "dropped": tally.dropped}).items():
                rows.add_metric([*named, outcome], count)
            upto = [*map(str, BOUNDS), "+Inf"]
            apart.add_metric(named, [*zip(upto, accumulate(tally.buckets), strict=True)], tally.total)
            slower.add_metric(named, tally.latency or 0.0)
        yield from (rows, apart, slower)


def incompatibility(live: LoadedModel, shadow: LoadedModel) -> str:
    """Why two versions can't be compared; empty if they can."""
    if live.version.identity == shadow.version.identity:
        return "it is what is live"
    changes = breaking_changes(live.contract, shadow.contract)
    return f"it takes or answers something else: {'; '.join(changes[:3])}" if changes else ""


async def run_cooperatively(work: Iterator[int]) -> float:
    """Do work on the event loop that tells after each bit how many rows that was; others have their turns.

    Gives the seconds that the loop was held.
    """
    rows, held, began = 0, 0.0, time.perf_counter()
    for more in work:
        rows += more
        if rows >= _ROWS_IN_A_TURN:
            held += time.perf_counter() - began
            await asyncio.sleep(0)
            rows, began = 0, time.perf_counter()
    return held + time.perf_counter() - began


def _submit_all(
    pair: ShadowComparison, taken: Sequence[PendingRequest], asked: list[MirroredRequest]
) -> Iterator[int]:
    """Queue what the live version was asked, and note that; what the shadow does not take is counted."""
    for ticket in taken:
        try:
            rows = pair.shadow.column_validator.revalidate(ticket.rows)
            params = pair.shadow.contract.read_params(json.loads(ticket.key.params or "{}"))
            parts = pair.shadow.calls.submit(rows, params, _DEADLINE_SECONDS, raw=ticket.key.raw)
            asked.append((ticket, parts))
        except Overloaded:
            pair.tally.dropped += len(ticket.rows)
        except ServingError:
            pair.tally.failed += len(ticket.rows)
        yield _ROWS_OF_A_REQUEST + len(ticket.rows)


def _compare_all(tally: ComparisonStats, ticket: PendingRequest, parts: Sequence[Part]) -> Iterator[int]:
    """Count what was answered; nothing where the live version answered what JSON can't say."""
    try:
        before = yield from _texts(ticket.future.result())
    except ServingError:
        return
    if len(before) != len(ticket.rows):
        return
    after = [b""] * len(before)
    try:
        for indices, other in parts:
            if not other.future.result().is_one_per_row(len(other.rows)):
                raise ModelFailed("it does not return one result per row")
            texts = yield from _texts(other.future.result())
            for index, text in zip(indices, texts, strict=True):
                after[index] = text
    except ServingError:
        tally.failed += len(before)
        return
    for start in range(0, len(before), _ROWS_IN_A_TURN):
        rows = slice(start, start + _ROWS_IN_A_TURN)
        for old, new in zip(before[rows], after[rows], strict=True):
            tally.compare(old, new)
        yield len(before[rows])
    other = parts[0][1]
    tally.seconds.append((ticket.finished - ticket.started, other.finished - other.started))


def _texts(answer: Output) -> Generator[int, None, list[bytes]]:
    """The predictions as JSON, row by row."""
    texts: list[bytes] = []
    for start in range(0, len(answer), _ROWS_IN_A_TURN):
        found = answer.part(start, min(start + _ROWS_IN_A_TURN, len(answer))).materialize()
        texts += found.rows_json()
        yield len(found)
    return texts
