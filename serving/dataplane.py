"""The request path of every protocol: lease a model, run an endpoint, count the outcome, call the hooks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import random
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

import pyarrow as pa

from serving.codecs.model_input import Rows
from serving.errors import DeadlineExceeded, ModelFailed, NotLoaded, ProcessDied
from serving.hooks import Header, InferenceEvent, RequestHook
from serving.models.loaded_model import LoadedModel
from serving.models.prediction_cache import PredictionCache
from serving.models.selector import ModelSelector
from serving.models.traffic_split import hash_bucket
from serving.request_context import RequestContext
from serving.settings.groups import LimitSettings
from serving.telemetry.metrics import Metrics

log = logging.getLogger("serving")
C = TypeVar("C", bound=RequestContext)
T = TypeVar("T")
Selector: TypeAlias = Callable[[C], LoadedModel]
"""Returns the version that a request addresses, if the client's key gives access to it."""


class Watch(Protocol):
    """Watches the client of one request, and withdraws the request's rows if the client disconnects."""

    def cancel(self) -> object:
        """Stop watching."""


class Endpoint(Generic[C, T]):
    """Parses requests of one protocol, submits their rows and renders the output."""

    protocol: ClassVar[str]
    """The name of the protocol in the journal."""

    async def run(self, context: C, model: LoadedModel) -> T:
        """Return the rendered output; `context.parts` receives the queued rows."""
        raise NotImplementedError

    def watch(self, context: C, model: LoadedModel) -> Watch | None:
        """Watch the client while the endpoint runs; None where a disconnect cancels the task."""
        return None

    def from_cache(self, context: C, cache: PredictionCache) -> T | None:
        """Return the cached response to an identical request, if there is one."""
        return None

    def to_cache(self, context: C, cache: PredictionCache, output: T) -> None:
        """Keep a response for identical requests."""


class DataPlane:
    """Runs the inference requests of all protocols.

    Args:
        models: the served models.
        limits: what one request may use.
        metrics: count failed requests.
        hooks: receive every inference request.
        on_finished: is called with every failed request and its status; the hooks receive the others.
        sticky: the header whose value selects among references that share a model; None selects at random.
    """

    def __init__(
        self,
        models: ModelSelector,
        limits: LimitSettings,
        metrics: Metrics,
        hooks: Sequence[RequestHook] = (),
        on_finished: Callable[[RequestContext, int], None] = lambda context, status: None,
        sticky: bytes | None = None,
    ) -> None:
        self.models, self.limits, self.hooks = models, limits, hooks
        self.on_finished = on_finished
        self._metrics, self._sticky = metrics, sticky

    async def infer(self, context: C, select: Selector[C], endpoint: Endpoint[C, T]) -> T:
        """Return the output of an endpoint for the version that a request addresses.

        Raises:
            ServingError: the request is invalid, or the version cannot process it.
        """
        context.protocol = endpoint.protocol
        with await self.lease(context, select) as model:
            if model.cache is not None:
                cached = endpoint.from_cache(context, model.cache)
                if cached is not None:
                    model.metrics.cache_hits.inc()
                    return cached
            watch = endpoint.watch(context, model)
            try:
                output = await endpoint.run(context, model)
            except (ModelFailed, ProcessDied, DeadlineExceeded) as error:
                self._count_failure(context, model, error)
                raise
            finally:
                if watch:
                    watch.cancel()
                model.calls.withdraw(context.parts)
            model.request_counts.succeeded += 1
            model.metrics.rows.inc(sum([len(indices) for indices, _ in context.parts]))
            if model.cache is not None:
                endpoint.to_cache(context, model.cache, output)
        return output

    # -- the steps of a request

    def receive(self, context: RequestContext) -> None:
        """Announce an inference request to the hooks, before it is authorized."""
        for hook in self.hooks:
            hook.on_request(context)

    async def lease(self, context: C, select: Selector[C]) -> LoadedModel:
        """Return the version that a request addresses; load the model first if it is not loaded.

        Raises:
            UnknownModel: there is no such model or version, or the client's key does not give access to it.
            NotLive: the model has no live version.
        """
        try:
            model = select(context)
        except NotLoaded as error:
            model = await self._load(context, select, error)
        context.leased_at, context.model = time.perf_counter(), model
        return model

    async def _load(self, context: C, select: Selector[C], error: NotLoaded) -> LoadedModel:
        """Load a model on demand; the time that this takes is part of the request's deadline."""
        ends = time.perf_counter() + self.seconds_left(context)
        while True:
            async with self.models.ensure_loaded(error.reference, max(0.0, ends - time.perf_counter())):
                try:
                    model = select(context)
                except NotLoaded as again:  # it was evicted in the meantime
                    error = again
                else:
                    context.seconds_left = max(0.0, ends - time.perf_counter())
                    return model

    def seconds_left(self, context: RequestContext) -> float:
        """Return the time that the model may take for a request, in seconds."""
        if context.seconds_left is not None:
            return context.seconds_left
        return min(self.limits.deadline_seconds, context.timeout)

    async def predict_table(
        self, context: RequestContext, model: LoadedModel, rows: Rows, params: Mapping[str, Any]
    ) -> pa.RecordBatch:
        """Return the model's output table for validated rows, in their order.

        Raises:
            ServingError: the model cannot process the rows.
        """
        seconds, parts = self.seconds_left(context), context.parts
        ends = time.perf_counter() + seconds
        parts += model.calls.submit(rows, params, seconds, raw=True, origin=parts)
        return await model.calls.output(rows, params, parts, ends)

    def response_headers(self, context: RequestContext) -> list[Header]:
        """Return the headers that the hooks add to a successful response."""
        return [header for hook in self.hooks for header in hook.response_headers(context)]

    def record_response(
        self, context: RequestContext, body: bytes = b"", response: Sequence[bytes] = ()
    ) -> None:
        """Count and time a successful request, and pass it to the hooks."""
        model, ended = context.model, time.perf_counter()
        assert model is not None, "only a leased model responds"
        model.metrics.succeeded.inc()
        model.metrics.seconds.observe(ended - context.started)
        if self.hooks:
            event = InferenceEvent(model, context, body, response, context.parts, context.started, ended)
            for hook in self.hooks:
                try:
                    hook.on_response(event)
                except Exception:  # the client has the response; a defect of one feature ends no connection
                    log.exception("a feature failed on a response", extra=context.log_fields)

    def record_failure(self, context: RequestContext, status: int, error: Exception) -> None:
        """Log and count a failed request, and pass it to the hooks."""
        status = int(status)  # the log renders members of `Status` as text
        if isinstance(error, ModelFailed):
            fields = {"path": context.path, "cause": error.cause}
            log.error("the model failed: %s", error, extra=context.log_fields | fields)
        self._metrics.count(*context.model_labels, status)
        for hook in self.hooks:
            hook.on_error(context, status, error)
        self.on_finished(context, status)

    def _count_failure(
        self, context: RequestContext, model: LoadedModel, error: ModelFailed | ProcessDied | DeadlineExceeded
    ) -> None:
        """Count a failure for the probation of a version; only its own failures count against it."""
        counts = model.request_counts
        if isinstance(error, ModelFailed):
            reason = error.exception or "an output that its contract does not allow"
            counts.fail(reason, [ticket for _, ticket in context.parts])
        elif isinstance(error, ProcessDied):
            counts.fail("the death of its process", [ticket for _, ticket in context.parts], died=True)
        elif error.dead or (error.hung and not self._is_shortened(context)):
            counts.fail("no response within the deadline")

    def _is_shortened(self, context: RequestContext) -> bool:
        """Check whether the client, or loading the model, leaves less time than the service's deadline."""
        return self.seconds_left(context) < self.limits.deadline_seconds

    # -- selection

    def visible_models(self, context: RequestContext) -> ModelSelector:
        """Return the models that the client's key gives access to, all of them without a key."""
        return self.models if context.key is None else self.models.only(context.key.models)

    def select(self, context: RequestContext, name: str) -> LoadedModel:
        """Return the live version of a model, by traffic split where references share it."""
        return self.visible_models(context).lease(name, partial(self.routing_key, context, name))

    def select_version(self, context: RequestContext, name: str, version: str) -> LoadedModel:
        """Return a loaded version of a model."""
        return self.visible_models(context).version(name, version)

    def select_label(self, context: RequestContext, name: str, label: str) -> LoadedModel:
        """Return the live version of a model that has an alias or stage."""
        return self.visible_models(context).labelled(name, label)

    def routing_key(self, context: RequestContext, model: str) -> float:
        """Return the point in [0, 1) that selects among references: by the sticky header, or at random."""
        if self._sticky:
            for name, value in context.headers:
                if name == self._sticky:
                    return hash_bucket(model, value.decode("latin-1"))
        return random()  # noqa: S311  # it is no secret
