"""The trace that a request belongs to, as it is handed on to the model process: W3C Trace Context.

https://www.w3.org/TR/trace-context/ has the forms of `traceparent` and `tracestate`. A batch may hold rows
of several requests, but model code can continue one trace only. That is the first request's that is
recorded; the span of its call of the model refers to the other requests, and theirs refer to it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

_PARENT, _STATE = b"traceparent", b"tracestate"


@dataclass(slots=True, eq=False)
class TraceContext:
    """The trace of one request: where it stands in it, and what became of its rows."""

    trace_id: str
    span_id: str
    """Of the request's own span."""
    flags: int
    """Of which the first says whether it is recorded."""
    state: str = ""
    queued: float = 0.0
    """When its first rows were queued, by the performance counter."""
    calls: list[ModelCall] = field(default_factory=list)
    """The calls of the model that had rows of it."""

    @property
    def is_recorded(self) -> bool:
        """Whether its spans are kept."""
        return bool(self.flags & 1)


@dataclass(slots=True, eq=False)
class ModelCall:
    """One call of the model; times are of the performance counter.

    `traces` are those of its requests that are recorded, or else one that is not.
    """

    traces: Sequence[TraceContext]
    requests: int
    rows: int
    started: float
    finished: float = 0.0
    failed: bool = False
    span_id: str = field(default_factory=lambda: os.urandom(8).hex())

    def end(self, *, failed: bool) -> None:
        """It is over."""
        self.finished, self.failed = time.perf_counter(), failed

    @property
    def home(self) -> TraceContext:
        """The trace that model code continues."""
        return self.traces[0]

    @property
    def metadata(self) -> dict[bytes, str]:
        """What a table carries along to the model process."""
        home = self.home
        parent = f"00-{home.trace_id}-{self.span_id}-{home.flags:02x}"
        return {_PARENT: parent, _STATE: home.state} if home.state else {_PARENT: parent}


current: ContextVar[TraceContext | None] = ContextVar("current", default=None)
"""The trace of the request that this context answers; None unless requests are traced."""


def extract(metadata: Mapping[bytes, bytes]) -> dict[str, str]:
    """What `Call.metadata` has carried here."""
    return {name.decode(): metadata[name].decode() for name in (_PARENT, _STATE) if name in metadata}


@contextmanager
def attach(carried: Mapping[str, str]) -> Iterator[None]:
    """Have OpenTelemetry continue a trace that was carried here, for the block.

    Where it is not installed, as in environments of older MLflow, model code can't continue one.
    """
    try:
        from opentelemetry import context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError:
        yield
        return
    token = context.attach(TraceContextTextMapPropagator().extract(carried))
    try:
        yield
    finally:
        context.detach(token)
