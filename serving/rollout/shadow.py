"""Shadows: mirror the live requests to another version, and compare the predictions.

A shadow never delays a response. Requests are queued after their responses, in a bounded queue that drops
what does not fit; one batch at a time goes to processes of the lowest priority; and the comparison takes only
a small part of the event loop's time, in short steps.
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

from serving.batching.pending_request import Output, PendingRequest
from serving.contract.compatibility import breaking_changes
from serving.errors import ModelFailed, Overloaded, ServingError
from serving.hooks import InferenceEvent, RequestHook
from serving.models.loaded_model import LoadedModel
from serving.models.model_calls import Part
from serving.models.slot import Slot
from serving.registry.tag_writer import TagWriter
from serving.rollout.comparison import BOUNDS, TAG, ComparisonStats
from serving.rollout.shadow_queue import ShadowQueue

_DEADLINE_SECONDS = 10.0
_REST_FACTOR = 4
"""Rest this many times as long as the shadow took: it uses at most a fifth of a core."""
_PAUSE_FACTOR = 20
"""Rest this many times as long as the comparison held the event loop: it uses at most a twentieth of it."""
_ROWS_PER_TURN = 128
_ROWS_PER_SUBMIT = 16
"""Queueing a request takes as long as comparing this many rows."""
_TAG_INTERVAL_SECONDS = 60.0
_MIN_ROWS = 100
_LOWEST_PRIORITY = 19


@dataclass(slots=True, eq=False)
class ShadowComparison:
    """A live version, its shadow, and the requests that wait for the comparison."""

    live: LoadedModel
    shadow: LoadedModel
    reason: str
    """Why they are not compared; empty if they are."""
    stats: ComparisonStats = field(default_factory=ComparisonStats)
    queue: ShadowQueue = field(default_factory=ShadowQueue)
    tag_due: float = 0.0


MirroredRequest = tuple[PendingRequest, Sequence[Part]]
"""A request to the live version, and the parts in which it was sent to the shadow."""


class Shadow(RequestHook, Collector):
    """Compares the version of a shadow reference with the live version of its model.

    Args:
        slot: The slot of the shadow reference.
        main: The slot whose requests are mirrored.
        tag_writer: Writes the comparison to the registry, on the shadow's version.
    """

    def __init__(self, slot: Slot, main: Slot, tag_writer: TagWriter) -> None:
        self.slot, self.main = slot, main
        self._tag_writer = tag_writer
        self._pair: ShadowComparison | None = None
        self._has_work = asyncio.Event()
        self._lowered: set[int] = set()

    @property
    def pair(self) -> ShadowComparison | None:
        """Return the two versions that are compared; None while one of them is not live.

        A new version on either side starts a new comparison: the predictions of queued requests are those of
        the version before.
        """
        live, shadow, pair = self.main.live, self.slot.live, self._pair
        if live is None or shadow is None:
            self._pair = None
        elif pair is None or pair.live is not live or pair.shadow is not shadow:
            self._pair = ShadowComparison(live, shadow, incompatibility(live, shadow))
        return self._pair

    def on_response(self, event: InferenceEvent) -> None:
        """Queue a request to the live version, if there is space."""
        if event.live is not self.main.live or not event.parts or self.slot.live is None:
            return
        pair = self.pair
        if pair and not pair.reason and event.parts[0][1].stream is None:
            pair.stats.dropped += pair.queue.add(event)
            self._has_work.set()

    async def run(self) -> None:
        """Mirror and compare until cancelled."""
        while True:
            await self._has_work.wait()
            rest = await self.tick()
            if not (self._pair and self._pair.queue):
                self._has_work.clear()
            await asyncio.sleep(rest)

    async def tick(self) -> float:
        """Mirror one batch of queued requests and compare; return the seconds to rest.

        The results count for the pair at the start, even if another version goes live meanwhile.
        """
        pair = self.pair
        if pair is None or not (taken := pair.queue.take()):
            return 0.0
        began = time.perf_counter()
        with pair.shadow:
            self._renice(pair.shadow)
            mirrored: list[MirroredRequest] = []
            await run_cooperatively(_submit_all(pair, taken, mirrored))
            for _, part in [part for _, parts in mirrored for part in parts]:
                await asyncio.wait([part.future])
            self._renice(pair.shadow)
        ended = time.perf_counter()
        held = await run_cooperatively(
            rows for pending, parts in mirrored for rows in _compare_all(pair.stats, pending, parts)
        )
        self._write_tags(pair)
        return max(_REST_FACTOR * (ended - began), _PAUSE_FACTOR * held)

    def _renice(self, shadow: LoadedModel) -> None:
        """Set the lowest priority for all threads of the shadow's processes, again if there are new ones."""
        if (pids := {*shadow.pids}) != self._lowered:
            self._lowered = pids
            for thread in [path.name for pid in pids for path in Path(f"/proc/{pid}/task").glob("*")]:
                with suppress(OSError):
                    os.setpriority(os.PRIO_PROCESS, int(thread), _LOWEST_PRIORITY)

    def _write_tags(self, pair: ShadowComparison) -> None:
        now, stats = time.monotonic(), pair.stats
        if stats.rows + stats.failed >= _MIN_ROWS and now >= pair.tag_due:
            pair.tag_due = now + _TAG_INTERVAL_SECONDS
            update = partial(stats.tags, str(pair.live.version))
            self._tag_writer.set_tags(pair.shadow.version, TAG, update)

    def collect(self) -> Iterator[Metric]:
        """Return the comparison of the present pair of versions for Prometheus."""
        labels = ("model", "version", "live")
        rows = GaugeMetricFamily(
            "serving_shadow_rows",
            "Rows of mirrored live requests by outcome: same, different, failed or dropped.",
            labels=(*labels, "outcome"),
        )
        differences = HistogramMetricFamily(
            "serving_shadow_difference_ratio",
            "Difference between the predictions of the shadow and of the live version.",
            labels=labels,
        )
        latency = GaugeMetricFamily(
            "serving_shadow_latency_ratio",
            "Median latency of the shadow's calls divided by the live version's.",
            labels=labels,
        )
        if (pair := self.pair) and not pair.reason:
            values = [self.slot.reference.name, pair.shadow.version.label, pair.live.version.label]
            stats = pair.stats
            counts = {"same": stats.agreeing, "different": stats.rows - stats.agreeing}
            for outcome, count in (counts | {"failed": stats.failed, "dropped": stats.dropped}).items():
                rows.add_metric([*values, outcome], count)
            bounds = [*map(str, BOUNDS), "+Inf"]
            differences.add_metric(
                values, [*zip(bounds, accumulate(stats.buckets), strict=True)], stats.total
            )
            latency.add_metric(values, stats.latency or 0.0)
        yield from (rows, differences, latency)


def incompatibility(live: LoadedModel, shadow: LoadedModel) -> str:
    """Return why two versions cannot be compared; empty if they can."""
    if live.version.identity == shadow.version.identity:
        return "it is the live version"
    changes = breaking_changes(live.contract, shadow.contract)
    return f"its inputs or outputs differ: {'; '.join(changes[:3])}" if changes else ""


async def run_cooperatively(work: Iterator[int]) -> float:
    """Run the steps of `work`, which yields the rows of each step, and let other tasks run in between.

    Returns:
        The seconds for which the event loop was held.
    """
    rows, held, began = 0, 0.0, time.perf_counter()
    for step_rows in work:
        rows += step_rows
        if rows >= _ROWS_PER_TURN:
            held += time.perf_counter() - began
            await asyncio.sleep(0)
            rows, began = 0, time.perf_counter()
    return held + time.perf_counter() - began


def _submit_all(
    pair: ShadowComparison, taken: Sequence[PendingRequest], mirrored: list[MirroredRequest]
) -> Iterator[int]:
    """Queue the requests for the shadow, and append them to `mirrored`; count those that it rejects."""
    for pending in taken:
        try:
            rows = pair.shadow.column_validator.revalidate(pending.rows)
            params = pair.shadow.contract.read_params(json.loads(pending.key.params or "{}"))
            parts = pair.shadow.calls.submit(rows, params, _DEADLINE_SECONDS, raw=pending.key.raw)
            mirrored.append((pending, parts))
        except Overloaded:
            pair.stats.dropped += len(pending.rows)
        except ServingError:
            pair.stats.failed += len(pending.rows)
        yield _ROWS_PER_SUBMIT + len(pending.rows)


def _compare_all(stats: ComparisonStats, pending: PendingRequest, parts: Sequence[Part]) -> Iterator[int]:
    """Compare the rows of a request, unless JSON cannot express the live version's predictions."""
    try:
        before = yield from _texts(pending.future.result())
    except ServingError:
        return
    if len(before) != len(pending.rows):
        return
    after = [b""] * len(before)
    try:
        for indices, part in parts:
            if not part.future.result().is_one_per_row(len(part.rows)):
                raise ModelFailed("it does not return one result per row")
            texts = yield from _texts(part.future.result())
            for index, text in zip(indices, texts, strict=True):
                after[index] = text
    except ServingError:
        stats.failed += len(before)
        return
    for start in range(0, len(before), _ROWS_PER_TURN):
        rows = slice(start, start + _ROWS_PER_TURN)
        for old, new in zip(before[rows], after[rows], strict=True):
            stats.compare(old, new)
        yield len(before[rows])
    first = parts[0][1]
    stats.seconds.append((pending.finished - pending.started, first.finished - first.started))


def _texts(output: Output) -> Generator[int, None, list[bytes]]:
    """Return the JSON of the prediction for each row; yield the number of rows of each step."""
    texts: list[bytes] = []
    for start in range(0, len(output), _ROWS_PER_TURN):
        predictions = output.part(start, min(start + _ROWS_PER_TURN, len(output))).materialize()
        texts += predictions.rows_json()
        yield len(predictions)
    return texts
